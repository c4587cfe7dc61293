//! The control plane: signatures, the recorded error texts, lists, idempotency.

use anyhow::{Context, ensure};
use e2e::{
    Stage,
    aws::Signer,
    image::{self, BASE_IMAGE, Source},
};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("api::a_wrong_access_key_is_refused", wrong_key),
    ("api::a_wrong_secret_is_refused", wrong_secret),
    ("api::a_stale_signature_is_refused", stale),
    ("api::the_built_in_s3_checks_signatures_too", s3_signatures),
    ("api::what_is_not_there_is_not_found", not_found),
    ("api::values_that_break_a_constraint_are_named", constraints),
    ("api::a_request_the_service_would_refuse_is_refused_with_its_words", refusals),
    ("api::an_image_with_live_microvms_cannot_be_deleted", delete_refused),
    ("api::an_image_being_built_cannot_be_deleted_and_keeps_its_name", mid_build),
    ("api::lists_come_in_pages", pages),
    ("api::lists_can_be_filtered", filters),
    ("api::a_repeated_client_token_launches_once", client_token),
];

pub fn refused(stage: &Stage, operation: &str, parameters: Value, code: &str, message: &str) -> anyhow::Result<()> {
    let refusal = stage.aws.refusal(operation, parameters.clone())?;
    ensure!(
        refusal.code == code && refusal.message == message,
        "{operation} {parameters}\n  said {refusal}\n  should say {code}: {message}"
    );
    Ok(())
}

fn signed_by(stage: &Stage, signer: &Signer, code: &str) -> anyhow::Result<String> {
    let refusal = stage.aws.refusal_as("lambda-microvms", "list_microvms", json!({}), signer)?;
    ensure!(refusal.code == code && refusal.status == 403, "{refusal}");
    // Refused before anything is looked at, and for what changes something too.
    let run = json!({"imageIdentifier": stage.image.arn});
    let refusal = stage.aws.refusal_as("lambda-microvms", "run_microvm", run, signer)?;
    ensure!(refusal.code == code, "{refusal}");
    ensure!(stage.live()?.is_empty(), "a refused call launched something");
    Ok(refusal.message)
}

fn wrong_key(stage: &mut Stage) -> anyhow::Result<()> {
    let signer = Signer {
        access_key: Some("AKIANOBODYKNOWSTHIS0".into()),
        secret_key: Some("secret".into()),
        ..Signer::default()
    };
    signed_by(stage, &signer, "UnrecognizedClientException")?;
    Ok(())
}

fn wrong_secret(stage: &mut Stage) -> anyhow::Result<()> {
    let signer = Signer {
        access_key: stage.server.environment()?.remove("AWS_ACCESS_KEY_ID"),
        secret_key: Some("not the secret".into()),
        ..Signer::default()
    };
    signed_by(stage, &signer, "InvalidSignatureException")?;
    Ok(())
}

fn stale(stage: &mut Stage) -> anyhow::Result<()> {
    for clock_offset in [-3600, 3600] {
        signed_by(stage, &Signer { clock_offset, ..Signer::default() }, "InvalidSignatureException")?;
    }
    // Clocks that differ by a little are no offence.
    let signer = Signer { clock_offset: -120, ..Signer::default() };
    stage.aws.call_as("lambda-microvms", "list_microvms", json!({}), &signer)?;
    Ok(())
}

fn s3_signatures(stage: &mut Stage) -> anyhow::Result<()> {
    let nobody = Signer {
        access_key: Some("AKIANOBODYKNOWSTHIS0".into()),
        secret_key: Some("secret".into()),
        ..Signer::default()
    };
    let wrong = Signer {
        access_key: stage.server.environment()?.remove("AWS_ACCESS_KEY_ID"),
        secret_key: Some("not the secret".into()),
        ..Signer::default()
    };
    for (signer, codes) in
        [(nobody, &["InvalidAccessKeyId", "NotSignedUp", "AccessDenied"][..]), (wrong, &["SignatureDoesNotMatch"])]
    {
        let parameters = json!({"Bucket": image::BUCKET});
        let refusal = stage.aws.refusal_as("s3", "list_objects_v2", parameters, &signer)?;
        ensure!(codes.contains(&refusal.code.as_str()) && refusal.status == 403, "{refusal}");
    }
    Ok(())
}

fn not_found(stage: &mut Stage) -> anyhow::Result<()> {
    let id = "microvm-00000000-0000-4000-8000-000000000000";
    for operation in ["get_microvm", "suspend_microvm", "resume_microvm", "terminate_microvm"] {
        let message = format!("MicroVM not found: {id}");
        refused(stage, operation, json!({"microvmIdentifier": id}), "ResourceNotFoundException", &message)?;
    }
    let token = json!({"microvmIdentifier": id, "expirationInMinutes": 5, "allowedPorts": [{"port": 1}]});
    let message = format!("MicroVM not found: {id}");
    refused(stage, "create_microvm_auth_token", token, "ResourceNotFoundException", &message)?;

    let arn = stage.image.arn.replace(":stage", ":no-such-image");
    let message = format!("MicroVMImage not found for MicroVMImageID: {arn}");
    for operation in ["get_microvm_image", "delete_microvm_image"] {
        refused(stage, operation, json!({"imageIdentifier": arn}), "ResourceNotFoundException", &message)?;
    }
    let message = format!("MicroVMImage not found for MicroVMImage: {}, Version: 9.0", stage.image.arn);
    let version = json!({"imageIdentifier": stage.image.arn, "imageVersion": "9.0"});
    refused(stage, "get_microvm_image_version", version, "ResourceNotFoundException", &message)?;

    let message = format!("No active version found for MicroVM image {arn}");
    refused(stage, "run_microvm", json!({"imageIdentifier": arn}), "ResourceNotFoundException", &message)?;
    let message = format!("No active version found for MicroVM image {} and version 9.0", stage.image.arn);
    let pinned = json!({"imageIdentifier": stage.image.arn, "imageVersion": "9.0"});
    refused(stage, "run_microvm", pinned, "ResourceNotFoundException", &message)
}

fn create(changes: Value) -> Value {
    let mut parameters = image::create_parameters("refused", "refused.zip");
    for (name, value) in changes.as_object().into_iter().flatten() {
        parameters[name] = value.clone();
    }
    parameters
}

fn constraints(stage: &mut Stage) -> anyhow::Result<()> {
    let invalid = "ValidationException";
    refused(
        stage,
        "create_microvm_image",
        create(json!({"name": "bad name!"})),
        invalid,
        "1 validation error detected: Value 'bad name!' at 'name' failed to satisfy constraint: Member must satisfy \
         regular expression pattern: [a-zA-Z0-9-_]+",
    )?;
    let several = create(json!({"name": "bad name!", "buildRoleArn": "not-a-role-but-long-enough"}));
    let refusal = stage.aws.refusal("create_microvm_image", several)?;
    ensure!(refusal.message.starts_with("2 validation errors detected: "), "{refusal}");
    ensure!(refusal.message.contains("'name'") && refusal.message.contains("'buildRoleArn'"), "{refusal}");

    // The payload's length is looked at before the image, and its value is not told.
    let payload = "x".repeat(4097);
    let run = json!({"imageIdentifier": "arn:nonsense", "runHookPayload": payload});
    let refusal = stage.aws.refusal("run_microvm", run)?;
    ensure!(refusal.code == invalid && !refusal.message.contains("xxx"), "{refusal}");
    ensure!(refusal.message.contains("Value at 'runHookPayload' failed to satisfy constraint"), "{refusal}");
    ensure!(refusal.message.contains("Member must have length less than or equal to 4096"), "{refusal}");

    let list = stage.aws.refusal("list_microvms", json!({"maxResults": 51}))?;
    ensure!(list.code == invalid && list.message.contains("'maxResults'"), "{list}");
    Ok(())
}

fn refusals(stage: &mut Stage) -> anyhow::Result<()> {
    let invalid = "ValidationException";
    let check =
        |operation: &str, parameters: Value, message: &str| refused(stage, operation, parameters, invalid, message);
    check("get_microvm_image", json!({"imageIdentifier": "stage"}), "Invalid ARN format: stage")?;
    check("delete_microvm_image", json!({"imageIdentifier": "stage"}), "Invalid ARN format: stage")?;
    check("run_microvm", json!({"imageIdentifier": "stage"}), "Malformed ARN - doesn't start with 'arn:'")?;
    let slash = stage.image.arn.replace("microvm-image:", "microvm-image/");
    let refusal = stage.aws.refusal("get_microvm_image", json!({"imageIdentifier": slash}))?;
    ensure!(refusal.code == "AccessDeniedException" && refusal.status == 403, "{refusal}");

    let create_image = "create_microvm_image";
    check(
        create_image,
        create(json!({"name": "stage"})),
        "A MicroVM image with the name 'stage' already exists in this account",
    )?;
    check(
        create_image,
        create(json!({"resources": [{"minimumMemoryInMiB": 600}]})),
        &format!(
            "The requested memory size of 600 MiB is not supported by base MicroVM image {BASE_IMAGE}. Supported \
             memory sizes in MiB are: [512, 1024, 2048, 4096, 8192]."
        ),
    )?;
    for uri in ["https://bucket/key.zip", "s3://bucket", "s3:///key"] {
        check(
            create_image,
            create(json!({"codeArtifact": {"uri": uri}})),
            "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>",
        )?;
    }
    check(
        create_image,
        create(json!({"baseImageVersion": "999"})),
        &format!("No managed MicroVM Image with arn {BASE_IMAGE} and version 999 is available"),
    )?;
    let hooks = create(json!({"hooks": {"port": 9000, "microvmHooks": {"run": "ENABLED"}}}));
    let refusal = stage.aws.refusal(create_image, hooks)?;
    let start = "ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook";
    ensure!(refusal.code == invalid && refusal.message.starts_with(start), "{refusal}");

    let run = |changes: Value| {
        let mut parameters = json!({"imageIdentifier": stage.image.arn});
        for (name, value) in changes.as_object().into_iter().flatten() {
            parameters[name] = value.clone();
        }
        parameters
    };
    check(
        "run_microvm",
        run(json!({"runHookPayload": "hello"})),
        "The run hook must be enabled in the MicroVM image to pass the run hook payload",
    )?;
    let bare = run(json!({"ingressNetworkConnectors": ["HTTP_INGRESS"]}));
    check("run_microvm", bare, "Malformed network connector ARN")?;
    let unknown = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:NO_EGRESS";
    check(
        "run_microvm",
        run(json!({"egressNetworkConnectors": [unknown]})),
        &format!("Unrecognized managed network connector ARN: {unknown}"),
    )?;
    ensure!(stage.live()?.is_empty(), "a refused call launched something");

    let microvm = stage.launch()?;
    let token = json!({"microvmIdentifier": microvm.id, "expirationInMinutes": 61, "allowedPorts": [{"port": 80}]});
    check("create_microvm_auth_token", token, "ExpirationMinutes 61 exceeded max allowed of 60.")
}

fn delete_refused(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let image = json!({"imageIdentifier": stage.image.arn});
    let message = "Cannot delete microvm image with running microvms.";
    refused(stage, "delete_microvm_image", image.clone(), "ValidationException", message)?;
    stage.suspend(&microvm)?;
    refused(stage, "delete_microvm_image", image, "ValidationException", message)?;
    ensure!(stage.get(&microvm, "/probe/count")?.status == 200, "the refused delete hurt");
    Ok(())
}

fn mid_build(stage: &mut Stage) -> anyhow::Result<()> {
    let zip = stage.scratch("slow.zip");
    Source::dockerfile("FROM pilotlight/debian:12\nRUN sleep 3 && exit 1\n").zip(&zip)?;
    let created = image::create(&stage.aws, "mid-build", &zip)?;
    let arn = created["imageArn"].as_str().context("no imageArn")?.to_owned();
    let message = format!("Cannot delete MicroVM image in its current state: {arn}");
    refused(stage, "delete_microvm_image", json!({"imageIdentifier": arn}), "ValidationException", &message)?;
    let message = "A MicroVM image with the name 'mid-build' already exists in this account";
    let again = create(json!({"name": "mid-build"}));
    refused(stage, "create_microvm_image", again, "ValidationException", message)?;
    let message = format!("No active version found for MicroVM image {arn}");
    refused(stage, "run_microvm", json!({"imageIdentifier": arn}), "ResourceNotFoundException", &message)?;
    image::settled(&stage.aws, created)?;
    stage.aws.microvms("delete_microvm_image", json!({"imageIdentifier": arn}))?;
    Ok(())
}

fn pages(stage: &mut Stage) -> anyhow::Result<()> {
    let mut launched = Vec::new();
    for _ in 0..3 {
        launched.push(stage.launch()?.id);
    }
    let (mut seen, mut pages) = (Vec::new(), 0);
    let mut parameters = json!({"maxResults": 2});
    loop {
        let page = stage.aws.microvms("list_microvms", parameters.clone())?;
        let items = page["items"].as_array().context("no items")?;
        ensure!(items.len() <= 2, "a page of {}", items.len());
        for item in items {
            // Those of other tests, of other images and versions, are listed too while they are remembered.
            ensure!(item["imageArn"].is_string() && item["imageVersion"].is_string(), "{item}");
            seen.push(item["microvmId"].as_str().context("no microvmId")?.to_owned());
        }
        pages += 1;
        let Some(token) = page["nextToken"].as_str() else { break };
        parameters["nextToken"] = json!(token);
    }
    ensure!(pages >= 2, "{} microVMs in one page of two", seen.len());
    let count = seen.len();
    ensure!(launched.iter().all(|id| seen.contains(id)), "{launched:?} are not all in {seen:?}");
    seen.sort();
    seen.dedup();
    ensure!(seen.len() == count, "a microVM is on two pages");
    let refusal = stage.aws.refusal("list_microvms", json!({"nextToken": "not a token"}))?;
    ensure!(refusal.status == 400, "{refusal}");
    Ok(())
}

fn filters(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let listed = |parameters: Value| -> anyhow::Result<bool> {
        let page = stage.aws.microvms("list_microvms", parameters)?;
        let items = page["items"].as_array().context("no items")?;
        Ok(items.iter().any(|item| item["microvmId"] == json!(microvm.id)))
    };
    let arn = &stage.image.arn;
    ensure!(listed(json!({"imageIdentifier": arn, "maxResults": 50}))?, "not listed by its image");
    ensure!(listed(json!({"imageIdentifier": arn, "imageVersion": "1.0", "maxResults": 50}))?, "not by its version");
    let images = |filter: &str| stage.aws.microvms("list_microvm_images", json!({"nameFilter": filter}));
    let (found, not) = (images("tag")?, images("no-such-part")?);
    ensure!(found["items"].as_array().is_some_and(|items| items.iter().any(|item| item["name"] == "stage")), "{found}");
    ensure!(not["items"] == json!([]), "{not}");
    let version = json!({"imageIdentifier": arn, "imageVersion": "1.0", "architecture": "ARM_64"});
    let arm = stage.aws.microvms("list_microvm_image_builds", version.clone())?;
    let mut intel = version;
    intel["architecture"] = json!("X86_64");
    let intel = stage.aws.microvms("list_microvm_image_builds", intel)?;
    let count = |page: &Value| page["items"].as_array().map_or(0, Vec::len);
    ensure!(count(&arm) + count(&intel) == 1, "{arm} {intel}");
    Ok(())
}

fn client_token(stage: &mut Stage) -> anyhow::Result<()> {
    let token = format!("token-{}", std::process::id());
    let run = json!({"imageIdentifier": stage.image.arn, "clientToken": token});
    let first = stage.aws.microvms("run_microvm", run.clone())?;
    let id = first["microvmId"].as_str().context("no microvmId")?;
    stage.await_state(id, "RUNNING")?;
    let second = stage.aws.microvms("run_microvm", run.clone())?;
    ensure!(second["microvmId"] == first["microvmId"], "{first} {second}");
    ensure!(stage.live()?.len() == 1, "the token launched twice");
    let mut other = run;
    other["maximumDurationInSeconds"] = json!(600);
    let refusal = stage.aws.refusal("run_microvm", other)?;
    ensure!(refusal.code == "ConflictException" && refusal.status == 409, "{refusal}");
    Ok(())
}

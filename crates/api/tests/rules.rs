//! The service's rules that need no look-up, and the defaults they fill in.

use std::time::Duration;

use api::{
    arn::ImageArn,
    catalogue,
    connector::{EgressConnector, ManagedConnector},
    error::ServiceError,
    ids::ImageVersion,
    images::{Architecture, CreateMicrovmImageRequest, ImagePlan, S3Location},
    input::{FromInput, Input},
    microvms::{CreateMicrovmAuthTokenRequest, MAXIMUM_DURATION_SECONDS, RunMicrovmRequest, RunPlan, TokenPlan},
    size::Size,
    token::Ports,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const REGION: &str = "us-east-1";
const BASE: &str = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1";

fn with(mut body: Value, changes: Value) -> Input {
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let path = [("microvmIdentifier".to_owned(), "microvm-1".to_owned())];
    Input::new(path, [], body.to_string().as_bytes()).unwrap()
}

fn create(changes: Value) -> CreateMicrovmImageRequest {
    let body = json!({
        "name": "shop",
        "baseImageArn": BASE,
        "buildRoleArn": "arn:aws:iam::123456789012:role/build",
        "codeArtifact": { "uri": "s3://code/shop.zip" },
    });
    CreateMicrovmImageRequest::from_input(&with(body, changes)).unwrap()
}

fn image(changes: Value) -> Result<ImagePlan, ServiceError> {
    create(changes).version.plan(REGION, &[Architecture::X86_64])
}

fn run(changes: Value) -> Result<RunPlan, ServiceError> {
    let body = json!({ "imageIdentifier": "arn:aws:lambda:us-east-1:123456789012:microvm-image:shop" });
    RunMicrovmRequest::from_input(&with(body, changes)).unwrap().plan(REGION, MAXIMUM_DURATION_SECONDS)
}

fn token(minutes: u32, ports: Value) -> Result<TokenPlan, ServiceError> {
    let body = json!({ "expirationInMinutes": minutes, "allowedPorts": ports });
    CreateMicrovmAuthTokenRequest::from_input(&with(body, json!({}))).unwrap().plan()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ServiceError>, message: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("ValidationException", 400));
    assert_eq!(error.to_string(), message);
}

#[test]
fn an_image_that_asks_for_nothing_gets_the_defaults() {
    let plan = image(json!({})).unwrap();
    assert_eq!(
        (plan.size, plan.architectures, plan.egress),
        (Size::DEFAULT, vec![Architecture::X86_64], EgressConnector::Managed(ManagedConnector::InternetEgress))
    );
    assert_eq!((plan.artifact.bucket.as_str(), plan.artifact.key.as_str()), ("code", "shop.zip"));
    assert_eq!(plan.hooks, api::hooks::HookPlan::default());
    let shown = serde_json::to_value(&plan.configuration).unwrap();
    assert_eq!(
        shown,
        json!({
            "baseImageArn": BASE,
            "baseImageVersion": "1.0",
            "buildRoleArn": "arn:aws:iam::123456789012:role/build",
            "codeArtifact": { "uri": "s3://code/shop.zip" },
            "description": null,
            "logging": null,
            "egressNetworkConnectors":
                ["arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS"],
            "cpuConfigurations": null,
            "resources": [{ "minimumMemoryInMiB": 2048 }],
            "additionalOsCapabilities": null,
            "hooks": null,
            "environmentVariables": null,
            "kmsKeyIdentifier": null,
        })
    );
}

#[test]
fn a_key_to_encrypt_with_is_refused() {
    let message = "The kmsKeyIdentifier is not supported by this installation, which has no key management service: \
                   leave it out";
    refused(image(json!({ "kmsKeyIdentifier": "alias/mine" })), message);
    refused(run(json!({ "kmsKeyIdentifier": "alias/mine" })), message);
}

#[test]
fn memory_is_from_the_table() {
    for mib in Size::BASELINES_MIB {
        assert_eq!(image(json!({ "resources": [{ "minimumMemoryInMiB": mib }] })).unwrap().size.baseline_mib, mib);
    }
    for mib in [0, -1, 511, 513, 16384] {
        refused(
            image(json!({ "resources": [{ "minimumMemoryInMiB": mib }] })),
            &format!(
                "The requested memory size of {mib} MiB is not supported by base MicroVM image {BASE}. Supported memory \
                 sizes in MiB are: [512, 1024, 2048, 4096, 8192]."
            ),
        );
    }
    assert_eq!(image(json!({ "resources": [] })).unwrap().size, Size::DEFAULT);
}

#[test]
fn artifacts_are_objects_in_s3() {
    let parse = |uri: &str| S3Location::parse(uri).map(|it| (it.bucket, it.key));
    assert_eq!(parse("s3://my.bucket-1/a/b c.zip"), Ok(("my.bucket-1".into(), "a/b c.zip".into())));
    for uri in [
        "",
        "s3://",
        "s3://code",
        "s3://code/",
        "s3:///key",
        "https://code/key",
        "s3://UPPER/key",
        "s3://../key",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/app:1",
        "s3://ab/key",
    ] {
        refused(parse(uri), "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>");
    }
}

#[test]
fn the_base_image_is_the_managed_one_in_either_spelling() {
    for (asked, shown) in [("0", "0.0"), ("1", "1.0"), ("1.0", "1.0"), ("0.0", "0.0")] {
        let plan = image(json!({ "baseImageVersion": asked })).unwrap();
        assert_eq!(plan.configuration.base_image_version.as_deref(), Some(shown));
    }
    refused(
        image(json!({ "baseImageVersion": "999" })),
        &format!("No managed MicroVM Image with arn {BASE} and version 999 is available"),
    );
    let elsewhere = "arn:aws:lambda:eu-west-1:aws:microvm-image:al2023-1";
    refused(
        image(json!({ "baseImageArn": elsewhere })),
        &format!("No managed MicroVM Image with arn {elsewhere} is available"),
    );
}

#[test]
fn architectures_are_a_set_of_those_of_the_host() {
    use Architecture::{Arm64, X86_64};
    let asked = |names: &[&str], host: &[Architecture]| {
        let named: Vec<_> = names.iter().map(|name| json!({ "architecture": name })).collect();
        let request = create(json!({ "cpuConfigurations": named }));
        request.version.plan(REGION, host).map(|plan| plan.architectures)
    };
    assert_eq!(asked(&[], &[Arm64, X86_64]), Ok(vec![Arm64]));
    assert_eq!(asked(&["X86_64"], &[Arm64, X86_64]), Ok(vec![X86_64]));
    assert_eq!(asked(&["X86_64", "ARM_64", "X86_64"], &[Arm64, X86_64]), Ok(vec![X86_64, Arm64]));
    let message = asked(&["X86_64", "ARM_64"], &[X86_64]).unwrap_err().to_string();
    let sentence = "The architecture ARM_64 in cpuConfigurations is not supported by this installation. Supported \
                    architectures are: [X86_64].";
    assert_eq!(message, sentence);
}

#[test]
fn hooks_need_a_port_and_a_ready_hook() {
    let hooks = |hooks: Value| image(json!({ "hooks": hooks })).map(|plan| plan.hooks);
    for hook in ["run", "resume", "suspend", "terminate"] {
        let message = hooks(json!({ "port": 9000, "microvmHooks": { hook: "ENABLED" } })).unwrap_err().to_string();
        assert!(
            message.starts_with("ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook")
        );
    }
    assert!(hooks(json!({ "port": 9000, "microvmHooks": { "run": "DISABLED" } })).unwrap().run.is_none());
    refused(
        hooks(json!({ "microvmImageHooks": { "ready": "ENABLED" } })),
        "A port must be specified in hooks when any hook is enabled",
    );
    let plan = hooks(json!({
        "port": 9000,
        "microvmHooks": { "run": "ENABLED", "suspend": "ENABLED", "suspendTimeoutInSeconds": 20 },
        "microvmImageHooks": { "ready": "ENABLED", "validate": "ENABLED", "validateTimeoutInSeconds": 600 },
    }))
    .unwrap();
    let seconds = |limit: Option<Duration>| limit.map(|it| it.as_secs());
    assert_eq!((plan.port, seconds(plan.ready), seconds(plan.validate)), (Some(9000), Some(30), Some(600)));
    assert_eq!((seconds(plan.run), seconds(plan.suspend), plan.resume), (Some(1), Some(20), None));
}

#[test]
fn the_platforms_own_variables_cannot_be_set() {
    let message = image(json!({ "environmentVariables": { "AWS_REGION": "x", "OK": "y" } })).unwrap_err().to_string();
    assert!(message.ends_with("Reserved keys used in this request: AWS_REGION"));
}

#[test]
fn what_no_process_can_have_in_its_environment_is_refused() {
    for (name, text, shown) in [("A=B", "x", "A=B"), ("A\0", "x", "A\\u{0}"), ("A", "x\0y", "A")] {
        refused(
            image(json!({ "environmentVariables": { name: text } })),
            &format!(
                "The variable '{shown}' in environmentVariables cannot be set: a name must not contain '=' or a NUL \
                 character, and a value no NUL character"
            ),
        );
    }
    assert!(image(json!({ "environmentVariables": { "A": "x=y" } })).is_ok());
}

#[test]
fn a_version_has_two_spellings_and_no_more() {
    for text in ["3", "3.0"] {
        assert_eq!(text.parse(), Ok(ImageVersion::from_major(3)));
    }
    for text in ["", ".0", "0", "0.0", "+3", "-3", "03", "03.0", "3.1", "3.0.0", "3.", " 3", "4294967296"] {
        assert!(text.parse::<ImageVersion>().is_err(), "{text}");
    }
}

#[test]
fn a_launch_has_defaults_and_limits() {
    let plan = run(json!({})).unwrap();
    assert_eq!(
        plan,
        RunPlan { ingress: vec![ManagedConnector::HttpIngress], egress: None, maximum_duration_in_seconds: 28_800 }
    );
    assert_eq!(run(json!({ "egressNetworkConnectors": [] })).unwrap().egress, None);
    let egress = ManagedConnector::InternetEgress.arn(REGION);
    let plan = run(json!({ "egressNetworkConnectors": [egress], "maximumDurationInSeconds": 5 })).unwrap();
    let internet = EgressConnector::Managed(ManagedConnector::InternetEgress);
    assert_eq!((plan.egress, plan.maximum_duration_in_seconds), (Some(vec![internet]), 5));
    refused(run(json!({ "ingressNetworkConnectors": ["HTTP_INGRESS"] })), "Malformed network connector ARN");
    let policy = |seconds: u32| {
        run(json!({ "idlePolicy": {
            "maxIdleDurationSeconds": seconds, "suspendedDurationSeconds": 0, "autoResumeEnabled": false
        }}))
    };
    assert!(policy(28_800).is_ok());
    assert!(policy(28_801).is_err());
}

#[test]
fn a_configuration_may_allow_longer_lives() {
    let run_idle = |allowed: u32, of_image: u32, seconds: u32, idle: u32| {
        let policy = json!({
            "maxIdleDurationSeconds": idle, "suspendedDurationSeconds": 0, "autoResumeEnabled": false
        });
        let changes = json!({
            "imageIdentifier": "arn:aws:lambda:us-east-1:123456789012:microvm-image:shop",
            "maximumDurationInSeconds": seconds, "idlePolicy": policy,
        });
        RunMicrovmRequest::from_input(&with(json!({}), changes).allowing(allowed))?.plan(REGION, of_image)
    };
    let run = |allowed, of_image, seconds| run_idle(allowed, of_image, seconds, 60);
    assert_eq!(run_idle(100_000, 100_000, 100_000, 100_000).unwrap().maximum_duration_in_seconds, 100_000);
    refused(run_idle(100_000, 28_800, 60, 28_801), "MaxIdleDurationSeconds 28801 exceeded max allowed of 28800.");
    // The same sentence whichever limit it is.
    let sentence = |limit: u32| {
        format!(
            "1 validation error detected: Value '{}' at 'maximumDurationInSeconds' failed to satisfy constraint: Member \
             must have value less than or equal to {limit}",
            limit + 1
        )
    };
    refused(run(100_000, 100_000, 100_001), &sentence(100_000));
    refused(run(100_000, 28_800, 28_801), &sentence(28_800));
    refused(run(28_800, 28_800, 28_801), &sentence(28_800));
}

#[test]
fn tokens_are_short_lived_and_small() {
    let plan = token(60, json!([{ "port": 80 }, { "range": { "startPort": 81, "endPort": 90 } }, { "port": 443 }]));
    let plan = plan.unwrap();
    assert_eq!((plan.lifetime.as_secs(), plan.ports), (3600, Ports::from_ranges(vec![(80, 90), (443, 443)])));
    refused(token(61, json!([{ "port": 80 }])), "ExpirationMinutes 61 exceeded max allowed of 60.");
    assert!(token(5, json!([{ "range": { "startPort": 2, "endPort": 1 } }])).is_err());
    let every_other = |count: u16| Value::from((1..=count).map(|n| json!({ "port": n * 2 })).collect::<Vec<_>>());
    assert!(token(5, every_other(256)).is_ok());
    assert!(token(5, every_other(257)).is_err());
}

#[test]
fn errors_travel_as_recorded() {
    let error = catalogue::unknown_microvm("microvm-1").to_wire();
    assert_eq!((error.status, error.kind), (404, "ResourceNotFoundException"));
    assert_eq!(
        error.body,
        json!({ "message": "MicroVM not found: microvm-1", "resourceId": null, "resourceType": null })
    );
    let error = catalogue::memory_quota_exceeded().to_wire();
    assert_eq!((error.status, error.kind), (402, "ServiceQuotaExceededException"));
    assert_eq!(
        error.body,
        json!({
            "message": "The base maximum allocated memory limit has been reached for this account.",
            "quotaCode": null, "serviceCode": null, "resourceId": null, "resourceType": null,
        })
    );
    let throttled = ServiceError::Throttling { message: "slow".into(), retry_after_seconds: Some(3) }.to_wire();
    assert_eq!((throttled.status, throttled.retry_after_seconds), (429, Some(3)));
    assert_eq!(catalogue::client_token_reused().status(), 409);
    assert_eq!(catalogue::insufficient_capacity("it is full").status(), 500);
}

#[test]
fn the_recorded_sentences() {
    let arn = "arn:aws:lambda:us-east-1:123456789012:microvm-image:shop";
    for (error, sentence) in [
        (catalogue::unknown_image(arn), format!("MicroVMImage not found for MicroVMImageID: {arn}")),
        (
            catalogue::unknown_version(arn, "1.0"),
            format!("MicroVMImage not found for MicroVMImage: {arn}, Version: 1.0"),
        ),
        (catalogue::no_active_version(arn, None), format!("No active version found for MicroVM image {arn}")),
        (
            catalogue::no_active_version(arn, Some("1.0")),
            format!("No active version found for MicroVM image {arn} and version 1.0"),
        ),
        (
            catalogue::duplicate_image_name("shop"),
            "A MicroVM image with the name 'shop' already exists in this account".into(),
        ),
        (
            catalogue::payload_without_run_hook(),
            "The run hook must be enabled in the MicroVM image to pass the run hook payload".into(),
        ),
        (
            catalogue::microvm_terminated("microvm-1"),
            "The MicroVM microvm-1 has been terminated and its state cannot be changed.".into(),
        ),
        (catalogue::image_has_running_microvms(), "Cannot delete microvm image with running microvms.".into()),
        (catalogue::image_not_deletable_now(arn), format!("Cannot delete MicroVM image in its current state: {arn}")),
    ] {
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn image_arns() {
    let arn = ImageArn::new(REGION, "123456789012", "shop");
    assert_eq!(arn.to_string().parse(), Ok(arn));
    for text in [
        "",
        "arn:",
        "arn:aws:lambda:r:123456789012:microvm-image:",
        "arn:aws:lambda:r:12:microvm-image:a",
        "arn:aws:s3:r:123456789012:microvm-image:a",
        "arn:aws:lambda:r:123456789012:function:a",
        "arn:aws:lambda:r:123456789012:microvm-image:a:1",
        "arn:aws:lambda:r:123456789012:microvm-image:a/../b",
    ] {
        assert!(text.parse::<ImageArn>().is_err(), "{text}");
    }
    for (text, message) in [
        ("shop", "Malformed ARN - doesn't start with 'arn:'"),
        ("arn:aws", "Malformed ARN - no AWS partition specified"),
        ("arn:aws:lambda:r:1:", "Malformed ARN - no resource specified"),
        ("arn:aws:lambda:r:1:x", "Invalid ARN format: arn:aws:lambda:r:1:x"),
    ] {
        refused(ImageArn::of_run_operation(text), message);
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "(arn:|s3://)?[a-z:/.{}]{0,60}") {
        let _ = text.parse::<ImageArn>();
        let _ = ImageArn::of_run_operation(&text);
        let _ = S3Location::parse(&text);
        let _ = ManagedConnector::from_arns(&[text], REGION, api::connector::Direction::Ingress);
    }
}

//! What each state allows.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::{Test, ground::Ground};

pub const TESTS: &[Test] = &[
    ("states::microvm_pending", |ground| microvm(ground, "PENDING", [OK, OK, OK, OK])),
    ("states::microvm_running", |ground| microvm(ground, "RUNNING", [OK, OK, OK, OK])),
    ("states::microvm_suspending", |ground| microvm(ground, "SUSPENDING", [OK, OK, OK, OK])),
    ("states::microvm_suspended", |ground| microvm(ground, "SUSPENDED", [OK, OK, OK, OK])),
    ("states::microvm_terminating", |ground| microvm(ground, "TERMINATING", [ENDED, ENDED, OK, ENDED])),
    ("states::microvm_terminated", |ground| microvm(ground, "TERMINATED", [ENDED, ENDED, OK, ENDED])),
    ("states::image_creating", creating),
    ("states::image_create_failed", create_failed),
    ("states::image_updating", updating),
    ("states::image_update_failed", update_failed),
    ("states::the_last_version_stays", last_version),
    ("states::tags_are_merged_and_listed", tags),
    ("states::keys_to_encrypt_with_are_refused", keys_refused),
    ("states::image_deleted", deleted),
    ("states::image_with_microvms", in_use),
    ("states::an_app_that_ends", app_ends),
    ("states::a_suspend_that_fails", suspend_fails),
    ("states::a_launch_that_fails", launch_fails),
    ("states::artifacts_that_cannot_be_built", artifacts),
];

/// Allowed.
const OK: &str = "";
/// Refused because it has ended.
const ENDED: &str = "has been terminated and its state cannot be changed.";

/// Wants a call to have been refused so.
pub fn refused(result: anyhow::Result<Value>, kind: &str, message: &str) -> anyhow::Result<()> {
    let error = match result {
        Ok(answer) => anyhow::bail!("answered {answer} instead of {kind}: {message}"),
        Err(error) => error.downcast::<e2e::AwsError>()?,
    };
    ensure!(error.code == kind && error.message.contains(message), "{error}, not {kind}: {message}");
    Ok(())
}

/// A microVM in this state, which lasts.
fn in_state(ground: &Ground, state: &str) -> anyhow::Result<String> {
    let front = &ground.front;
    let slow = |step: &str| front.image(json!({ step: "1500" }));
    match state {
        "PENDING" => front.begin_microvm(&slow("SIM_RUN_MS")?),
        "RUNNING" => front.microvm(&ground.image),
        "SUSPENDING" => {
            let id = front.microvm(&slow("SIM_SUSPEND_MS")?)?;
            ground.call("SuspendMicrovm", json!({"microvmIdentifier": id}))?;
            Ok(id)
        }
        "SUSPENDED" => {
            let id = front.microvm(&ground.image)?;
            ground.call("SuspendMicrovm", json!({"microvmIdentifier": id}))?;
            front.await_microvm(&id, state)?;
            Ok(id)
        }
        "TERMINATING" => {
            let id = front.microvm(&slow("SIM_TERMINATE_MS")?)?;
            ground.call("TerminateMicrovm", json!({"microvmIdentifier": id}))?;
            Ok(id)
        }
        "TERMINATED" => {
            let id = front.microvm(&ground.image)?;
            front.terminate(&id)?;
            Ok(id)
        }
        other => anyhow::bail!("there is no state {other}"),
    }
}

/// Suspend, resume, terminate and a token in a state; each asked of a microVM of its own.
fn microvm(ground: &Ground, state: &str, outcomes: [&str; 4]) -> anyhow::Result<()> {
    let operations = ["SuspendMicrovm", "ResumeMicrovm", "TerminateMicrovm", "CreateMicrovmAuthToken"];
    for (operation, outcome) in operations.into_iter().zip(outcomes) {
        let id = in_state(ground, state)?;
        let found = ground.front.await_microvm(&id, state)?;
        ensure!(found["terminatedAt"].is_null() == (state != "TERMINATED"), "{found}");
        let mut parameters = json!({"microvmIdentifier": id});
        if operation == "CreateMicrovmAuthToken" {
            parameters["expirationInMinutes"] = json!(1);
            parameters["allowedPorts"] = json!([{"port": 80}]);
        }
        let answer = ground.call(operation, parameters);
        if outcome == OK {
            let answer = answer?;
            // A repeated verb changes nothing; the others have been taken.
            ensure!(operation == "CreateMicrovmAuthToken" || answer == json!({}), "{operation}: {answer}");
        } else {
            refused(answer, "ValidationException", outcome)?;
        }
        // Whatever was asked, it goes on to where that leads.
        let end = match (state, operation) {
            ("TERMINATING" | "TERMINATED", _) | (_, "TerminateMicrovm") => "TERMINATED",
            (_, "SuspendMicrovm") | ("SUSPENDING" | "SUSPENDED", "CreateMicrovmAuthToken") => "SUSPENDED",
            _ => "RUNNING",
        };
        ground.front.await_microvm(&id, end)?;
        ground.front.terminate(&id)?;
    }
    Ok(())
}

fn creating(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.begin_image(json!({"SIM_BUILD_MS": "1500"}))?;
    let of_image = json!({"imageIdentifier": arn});
    let image = ground.call("GetMicrovmImage", of_image.clone())?;
    ensure!(image["state"] == "CREATING" && image["latestActiveImageVersion"].is_null(), "{image}");
    let message = format!("Cannot delete MicroVM image in its current state: {arn}");
    refused(ground.call("DeleteMicrovmImage", of_image.clone()), "ValidationException", &message)?;
    let message = format!("No active version found for MicroVM image {arn}");
    refused(ground.call("RunMicrovm", of_image), "ResourceNotFoundException", &message)?;
    let mut again = e2e::image::create_parameters("", e2e::front::ARTIFACT);
    again["name"] = image["name"].clone();
    let message =
        format!("A MicroVM image with the name '{}' already exists", image["name"].as_str().unwrap_or_default());
    refused(ground.call("CreateMicrovmImage", again), "ValidationException", &message)?;
    ground.front.await_image(&arn, "CREATED")?;
    Ok(())
}

fn create_failed(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.begin_image(json!({"SIM_BUILD_FAILS": "The app did not start."}))?;
    let image = ground.front.await_image(&arn, "CREATE_FAILED")?;
    ensure!(image["latestFailedImageVersion"] == "1.0" && image["latestActiveImageVersion"].is_null(), "{image}");
    let of_version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
    let version = ground.call("GetMicrovmImageVersion", of_version.clone())?;
    ensure!(version["state"] == "FAILED", "{version}");
    let builds = ground.call("ListMicrovmImageBuilds", of_version)?;
    let build = &builds["items"][0];
    ensure!(build["buildState"] == "FAILED" && build["stateReason"] == "The app did not start.", "{build}");
    let of_image = json!({"imageIdentifier": arn});
    refused(ground.call("RunMicrovm", of_image.clone()), "ResourceNotFoundException", "No active version found")?;
    ground.call("DeleteMicrovmImage", of_image)?;
    Ok(())
}

/// What an update says: the definition anew, as it replaces the whole of it.
fn update(arn: &str, script: Value) -> Value {
    let mut parameters = e2e::image::create_parameters("", e2e::front::ARTIFACT);
    parameters.as_object_mut().map(|members| members.remove("name"));
    parameters["imageIdentifier"] = json!(arn);
    parameters["environmentVariables"] = script;
    parameters
}

fn updating(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.image(json!({}))?;
    let answer = ground.call("UpdateMicrovmImage", update(&arn, json!({"SIM_BUILD_MS": "1500"})))?;
    ensure!(answer["state"] == "UPDATING" && answer["imageVersion"] == "2.0", "{answer}");
    let busy = "MicroVM Image is already in state: UPDATING";
    refused(ground.call("UpdateMicrovmImage", update(&arn, json!({}))), "ConflictException", busy)?;
    let version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
    refused(ground.call("DeleteMicrovmImageVersion", version.clone()), "ConflictException", busy)?;
    let mut status = version.clone();
    status["status"] = json!("INACTIVE");
    refused(ground.call("UpdateMicrovmImageVersion", status), "ConflictException", busy)?;
    let message = format!("Cannot delete MicroVM image in its current state: {arn}");
    refused(ground.call("DeleteMicrovmImage", json!({"imageIdentifier": arn})), "ValidationException", &message)?;
    // Meanwhile what there was is launched.
    let run = ground.call("RunMicrovm", json!({"imageIdentifier": arn}))?;
    ensure!(run["imageVersion"] == "1.0", "{run}");
    ground.front.terminate(run["microvmId"].as_str().unwrap_or_default())?;
    let image = ground.front.await_image(&arn, "UPDATED")?;
    ensure!(image["latestActiveImageVersion"] == "2.0", "{image}");
    Ok(())
}

fn update_failed(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.image(json!({}))?;
    ground.call("UpdateMicrovmImage", update(&arn, json!({"SIM_BUILD_FAILS": "It does not start."})))?;
    let image = ground.front.await_image(&arn, "UPDATE_FAILED")?;
    ensure!(image["latestActiveImageVersion"] == "1.0" && image["latestFailedImageVersion"] == "2.0", "{image}");
    let run = ground.call("RunMicrovm", json!({"imageIdentifier": arn}))?;
    ensure!(run["imageVersion"] == "1.0", "{run}");
    ground.front.terminate(run["microvmId"].as_str().unwrap_or_default())?;
    // Numbers never go back.
    let again = ground.call("UpdateMicrovmImage", update(&arn, json!({})))?;
    ensure!(again["imageVersion"] == "3.0", "{again}");
    ground.front.await_image(&arn, "UPDATED")?;
    Ok(())
}

fn last_version(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.image(json!({}))?;
    let version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
    let message = "This is the last version. Please delete the entire image";
    refused(ground.call("DeleteMicrovmImageVersion", version), "ValidationException", message)
}

fn tags(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.image(json!({}))?;
    let listed = || Ok::<_, anyhow::Error>(ground.call("ListTags", json!({"Resource": arn}))?["Tags"].clone());
    ensure!(listed()? == json!({}), "{}", listed()?);
    ground.call("TagResource", json!({"Resource": arn, "Tags": {"a": "1", "b": "2"}}))?;
    ground.call("TagResource", json!({"Resource": arn, "Tags": {"b": "3"}}))?;
    ensure!(listed()? == json!({"a": "1", "b": "3"}), "{}", listed()?);
    let image = ground.call("GetMicrovmImage", json!({"imageIdentifier": arn}))?;
    ensure!(image["tags"] == listed()?, "{image}");
    ground.call("UntagResource", json!({"Resource": arn, "TagKeys": ["a", "never-there"]}))?;
    ensure!(listed()? == json!({"b": "3"}), "{}", listed()?);
    // Only images and connectors have tags.
    let of_microvm = ground.call("ListTags", json!({"Resource": ground.microvm}));
    refused(of_microvm, "ValidationException", "at 'resource' failed to satisfy constraint")
}

/// Taking a key and encrypting nothing with it would be worse than saying no.
fn keys_refused(ground: &Ground) -> anyhow::Result<()> {
    let key = "arn:aws:kms:us-east-1:000000000000:key/00000000-0000-4000-8000-000000000000";
    let mut create = e2e::image::create_parameters(&ground.front.name("encrypted"), e2e::front::ARTIFACT);
    create["kmsKeyIdentifier"] = json!(key);
    let message = "The kmsKeyIdentifier is not supported by this installation";
    refused(ground.call("CreateMicrovmImage", create), "ValidationException", message)?;
    let run = json!({"imageIdentifier": ground.image, "kmsKeyIdentifier": key});
    refused(ground.call("RunMicrovm", run), "ValidationException", message)
}

fn deleted(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.image(json!({}))?;
    let of_image = json!({"imageIdentifier": arn});
    let answer = ground.call("DeleteMicrovmImage", of_image.clone())?;
    ensure!(answer == json!({"imageIdentifier": arn, "state": "DELETING"}), "{answer}");
    e2e::until("the image to be gone", std::time::Duration::from_secs(20), || {
        let message = format!("MicroVMImage not found for MicroVMImageID: {arn}");
        refused(ground.call("GetMicrovmImage", of_image.clone()), "ResourceNotFoundException", &message)
    })?;
    refused(ground.call("RunMicrovm", of_image), "ResourceNotFoundException", "No active version found")
}

fn in_use(ground: &Ground) -> anyhow::Result<()> {
    let arn = ground.front.image(json!({}))?;
    let id = ground.front.microvm(&arn)?;
    let of_image = json!({"imageIdentifier": arn});
    let message = "Cannot delete microvm image with running microvms.";
    refused(ground.call("DeleteMicrovmImage", of_image.clone()), "ValidationException", message)?;
    ground.front.terminate(&id)?;
    ground.call("DeleteMicrovmImage", of_image)?;
    Ok(())
}

fn app_ends(ground: &Ground) -> anyhow::Result<()> {
    let id = ground.front.begin_microvm(&ground.front.image(json!({"SIM_ENDS_AFTER_MS": "50"}))?)?;
    let ended = ground.front.await_microvm(&id, "TERMINATED")?;
    ensure!(ended["stateReason"] == "Container Stopped with Exit Code: 0", "{ended}");
    Ok(())
}

fn suspend_fails(ground: &Ground) -> anyhow::Result<()> {
    let id = ground.front.microvm(&ground.front.image(json!({"SIM_SUSPEND_FAILS": "The disk is full"}))?)?;
    ground.call("SuspendMicrovm", json!({"microvmIdentifier": id}))?;
    e2e::until("the reason", std::time::Duration::from_secs(20), || {
        let microvm = ground.front.await_microvm(&id, "RUNNING")?;
        ensure!(microvm["stateReason"].as_str().is_some_and(|reason| reason.contains("The disk is full")), "{microvm}");
        Ok(())
    })?;
    ground.front.terminate(&id)
}

fn launch_fails(ground: &Ground) -> anyhow::Result<()> {
    let id = ground.front.begin_microvm(&ground.front.image(json!({"SIM_RUN_FAILS": "It would not start"}))?)?;
    let ended = ground.front.await_microvm(&id, "TERMINATED")?;
    ensure!(ended["stateReason"].as_str().is_some_and(|reason| reason.contains("It would not start")), "{ended}");
    Ok(())
}

/// The documented reasons of builds, from artifacts that are really so.
fn artifacts(ground: &Ground) -> anyhow::Result<()> {
    let front = &ground.front;
    let broken = front.scratch("broken.zip");
    std::fs::write(&broken, "this is no zip")?;
    e2e::image::upload(&front.aws, &broken, "broken.zip")?;
    let bare = front.scratch("bare.zip");
    e2e::image::Source::default().with("app.py", b"print()").zip(&bare)?;
    e2e::image::upload(&front.aws, &bare, "bare.zip")?;
    for (uri, reason) in [
        ("s3://artifacts/nothing.zip", "S3_NO_SUCH_KEY"),
        ("s3://no-such-bucket/app.zip", "S3_NO_SUCH_BUCKET"),
        ("s3://artifacts/broken.zip", "ARCHIVE_INVALID"),
        ("s3://artifacts/bare.zip", "ARCHIVE_DOCKERFILE_NOT_FOUND"),
    ] {
        let mut parameters = e2e::image::create_parameters(&front.name("artifact"), "");
        parameters["codeArtifact"] = json!({ "uri": uri });
        let created = ground.call("CreateMicrovmImage", parameters)?;
        let arn = created["imageArn"].as_str().unwrap_or_default().to_owned();
        front.await_image(&arn, "CREATE_FAILED")?;
        let builds = ground.call("ListMicrovmImageBuilds", json!({"imageIdentifier": arn, "imageVersion": "1.0"}))?;
        let said = builds["items"][0]["stateReason"].as_str().unwrap_or_default().to_owned();
        ensure!(said.starts_with(reason), "{uri}: {said}, not {reason}");
        ground.call("DeleteMicrovmImage", json!({"imageIdentifier": arn}))?;
    }
    Ok(())
}

//! The app is told of the turning points of its life.

use anyhow::ensure;
use e2e::{Stage, image, microvm::waking};
use serde_json::json;

use super::{Test, edge::links_nowhere, images::remove};

pub const TESTS: &[Test] = &[("hooks::an_app_is_told_of_every_turn_of_its_life", told)];

fn told(stage: &mut Stage) -> anyhow::Result<()> {
    let mut parameters = image::create_parameters("hooked", "stage.zip");
    parameters["hooks"] = json!({
        "port": 8080,
        "microvmImageHooks": {
            "ready": "ENABLED", "readyTimeoutInSeconds": 60,
            "validate": "ENABLED", "validateTimeoutInSeconds": 60,
        },
        "microvmHooks": {
            "run": "ENABLED", "runTimeoutInSeconds": 30,
            "suspend": "ENABLED", "suspendTimeoutInSeconds": 30,
            "resume": "ENABLED", "resumeTimeoutInSeconds": 30,
            "terminate": "ENABLED", "terminateTimeoutInSeconds": 30,
        },
    });
    let created = stage.aws.microvms("create_microvm_image", parameters)?;
    let image = image::settled(&stage.aws, created)?;
    ensure!(image.state() == "CREATED", "{}", image.reason());

    let microvm = stage
        .launch_with(json!({"imageIdentifier": image.arn, "idlePolicy": waking(), "runHookPayload": "for this one"}))?;
    let seen = stage.fetch(&microvm, "/hooks")?;
    // What /validate does is done to a clone, and nothing of it is kept.
    let calls = json!({"ready": 1, "run": 1});
    ensure!(seen["calls"] == calls, "{seen}");
    links_nowhere(stage, &microvm)?;
    let last_run = json!({"microvmId": microvm.id, "runHookPayload": "for this one"});
    ensure!(seen["last_run"] == last_run, "{seen}");

    stage.suspend(&microvm)?;
    let calls = json!({"ready": 1, "run": 1, "resume": 1, "suspend": 1});
    let seen = stage.fetch(&microvm, "/hooks")?;
    ensure!(seen["calls"] == calls, "{seen}");

    stage.terminate(&microvm.id)?;
    let log = stage.server.data_dir().join("logs/microvms").join(&microvm.id).join("app.log");
    let log = std::fs::read_to_string(log)?;
    ensure!(log.contains("hook terminate"), "the terminate hook was not called:\n{log}");
    remove(stage, &image.arn)
}

//! An image that goes on living: another version is built, launched beside the first, and removed.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::{Stage, image, until};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("version::an_update_is_launched_beside_what_runs", beside),
    ("version::a_failed_update_costs_nothing_and_a_restart_interrupts_one", failed),
];

fn update(stage: &Stage, changes: &Value) -> anyhow::Result<Value> {
    let mut parameters = image::create_parameters("stage", "stage.zip");
    let members = parameters.as_object_mut().context("parameters are an object")?;
    members.remove("name");
    members.insert("imageIdentifier".into(), json!(stage.image.arn));
    for (name, value) in changes.as_object().into_iter().flatten() {
        members.insert(name.clone(), value.clone());
    }
    stage.aws.microvms("update_microvm_image", parameters)
}

fn settled(stage: &Stage, state: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    until(state, Duration::from_secs(120), || {
        last = stage.aws.microvms("get_microvm_image", json!({"imageIdentifier": stage.image.arn}))?;
        ensure!(last["state"] != "UPDATING", "still UPDATING");
        Ok(())
    })?;
    ensure!(last["state"] == state, "{last}");
    Ok(last)
}

fn versions(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    let page = stage.aws.microvms("list_microvm_image_versions", json!({"imageIdentifier": stage.image.arn}))?;
    Ok(page["items"].as_array().context("no items")?.clone())
}

/// Back to the version that every other test launches.
fn only_the_first(stage: &Stage) -> anyhow::Result<()> {
    for version in versions(stage)? {
        if version["imageVersion"] != "1.0" {
            let which = json!({"imageIdentifier": stage.image.arn, "imageVersion": version["imageVersion"]});
            let leaving = stage.aws.microvms("delete_microvm_image_version", which)?;
            ensure!(leaving["state"] == "DELETING", "{leaving}");
            settled(stage, "UPDATED")?;
        }
    }
    Ok(())
}

fn beside(stage: &mut Stage) -> anyhow::Result<()> {
    let before = stage.traces().images;
    let first = stage.launch()?;
    stage.count(&first)?;
    let updating = update(stage, &json!({"environmentVariables": {"GENERATION": "two"}}))?;
    let version = updating["imageVersion"].clone();
    ensure!(updating["state"] == "UPDATING" && version != "1.0", "{updating}");
    ensure!(updating["latestActiveImageVersion"] == "1.0", "{updating}");
    // The update is no outage.
    let meanwhile = stage.launch()?;
    ensure!(stage.describe(&meanwhile.id)?["imageVersion"] == "1.0", "an unfinished version was launched");
    let image = settled(stage, "UPDATED")?;
    ensure!(image["latestActiveImageVersion"] == version, "{image}");

    let second = stage.launch()?;
    ensure!(stage.describe(&second.id)?["imageVersion"] == version, "the old version was launched");
    let machine = stage.fetch(&second, "/probe/machine")?;
    let env = &machine["env"];
    ensure!(env["GENERATION"] == "two" && env["FROM_THE_REQUEST"].is_null(), "nothing is taken over: {env}");
    ensure!(env["AWS_LAMBDA_MICROVM_IMAGE_VERSION"] == version, "{env}");
    ensure!(stage.count(&first)? == 2, "what ran before runs on");
    let pinned = stage.launch_with(json!({"imageVersion": "1.0"}))?;
    ensure!(stage.fetch(&pinned, "/probe/machine")?["env"]["GENERATION"].is_null(), "the pinned version is another");

    let which = json!({"imageIdentifier": stage.image.arn, "imageVersion": version});
    let refusal = stage.aws.refusal("delete_microvm_image_version", which.clone())?;
    ensure!(refusal.message == "Cannot delete microvm image version with running microvms.", "{refusal}");
    // Rolled back by a word.
    let mut inactive = which;
    inactive["status"] = json!("INACTIVE");
    stage.aws.microvms("update_microvm_image_version", inactive)?;
    let third = stage.launch()?;
    ensure!(stage.describe(&third.id)?["imageVersion"] == "1.0", "an inactive version was launched");
    stage.suspend(&second)?;
    ensure!(stage.count(&second)? == 1, "what was launched from it wakes all the same");

    stage.clear()?;
    only_the_first(stage)?;
    ensure!(stage.traces().images == before, "files of the removed version are left");
    ensure!(versions(stage)?.len() == 1, "{:?}", versions(stage)?);
    Ok(())
}

fn failed(stage: &mut Stage) -> anyhow::Result<()> {
    let before = stage.traces().images;
    let nowhere = json!({"codeArtifact": {"uri": format!("s3://{}/no-such.zip", image::BUCKET)}});
    let version = update(stage, &nowhere)?["imageVersion"].clone();
    let image = settled(stage, "UPDATE_FAILED")?;
    ensure!(image["latestActiveImageVersion"] == "1.0" && image["latestFailedImageVersion"] == version, "{image}");
    let microvm = stage.launch()?;
    ensure!(stage.describe(&microvm.id)?["imageVersion"] == "1.0", "{image}");

    // A server killed in the middle of an update says so when it is back, and keeps what there was.
    update(stage, &json!({}))?;
    until("the build to begin", Duration::from_secs(20), || {
        ensure!(versions(stage)?[0]["state"] == "IN_PROGRESS", "it is still waiting");
        Ok(())
    })?;
    stage.server.crash()?;
    stage.up()?;
    settled(stage, "UPDATE_FAILED")?;
    ensure!(stage.count(&microvm)? == 1, "the microVM is there");
    stage.clear()?;
    only_the_first(stage)?;
    until("the files to be those of before", Duration::from_secs(10), || {
        ensure!(stage.traces().images == before, "files are left: {:?}", stage.traces().images);
        Ok(())
    })
}

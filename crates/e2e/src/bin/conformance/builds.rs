//! Versions with several builds: one for each architecture.

use anyhow::{Context, ensure};
use e2e::until;
use serde_json::{Value, json};

use crate::{Test, ground::Ground, states::refused};

pub const TESTS: &[Test] = &[
    ("builds::one_for_each_architecture", each),
    ("builds::one_of_two_fails", one_fails),
    ("builds::the_base_images_say_what_for", base_images),
];

fn for_both(ground: &Ground, script: Value) -> Value {
    let mut parameters = e2e::image::create_parameters(&ground.front.name("both"), e2e::front::ARTIFACT);
    parameters["cpuConfigurations"] = both();
    parameters["environmentVariables"] = script;
    parameters
}

fn both() -> Value {
    json!([{"architecture": "X86_64"}, {"architecture": "ARM_64"}, {"architecture": "X86_64"}])
}

/// The builds of a version, newest first.
fn listed(ground: &Ground, of_version: &Value, more: Value) -> anyhow::Result<Vec<Value>> {
    let mut parameters = of_version.clone();
    for (name, value) in more.as_object().into_iter().flatten() {
        parameters[name] = value.clone();
    }
    let (mut builds, mut pages) = (vec![], 0);
    loop {
        let page = ground.call("ListMicrovmImageBuilds", parameters.clone())?;
        builds.extend(page["items"].as_array().context("no items")?.iter().cloned());
        pages += 1;
        ensure!(pages <= 4, "there is always another page");
        if page["nextToken"].is_null() {
            return Ok(builds);
        }
        parameters["nextToken"] = page["nextToken"].clone();
    }
}

fn members(builds: &[Value], name: &str) -> Vec<Value> {
    builds.iter().map(|build| build[name].clone()).collect()
}

/// The whole life of an image with versions for both.
fn each(ground: &Ground) -> anyhow::Result<()> {
    let created = ground.call("CreateMicrovmImage", for_both(ground, json!({"SIM_BUILD_MS": "1000"})))?;
    ensure!(created["cpuConfigurations"] == both(), "{created}");
    let arn = created["imageArn"].as_str().context("no imageArn")?;
    let of_version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
    let begun = listed(ground, &of_version, json!({}))?;
    let going_on = |state: &Value| state == "PENDING" || state == "IN_PROGRESS";
    ensure!(begun.len() == 2 && members(&begun, "buildState").iter().all(going_on), "{begun:?}");
    ground.front.await_image(arn, "CREATED")?;
    let version = ground.call("GetMicrovmImageVersion", of_version.clone())?;
    ensure!(version["state"] == "SUCCESSFUL" && version["status"] == "ACTIVE", "{version}");

    let builds = listed(ground, &of_version, json!({"maxResults": 1}))?;
    ensure!(members(&builds, "architecture") == [json!("ARM_64"), json!("X86_64")], "{builds:?}");
    ensure!(members(&builds, "chipset") == [json!("GRAVITON"), json!("INTEL")], "{builds:?}");
    ensure!(builds[0]["createdAt"] == builds[1]["createdAt"], "{builds:?}");
    ensure!(members(&builds, "buildId") == members(&begun, "buildId"), "{builds:?} {begun:?}");
    for (filter, found) in [
        (json!({"architecture": "ARM_64"}), &builds[..1]),
        (json!({"chipset": "INTEL", "maxResults": 1}), &builds[1..]),
        (json!({"chipsetGeneration": "1"}), &builds[..]),
        (json!({"architecture": "ARM_64", "chipset": "INTEL"}), &[]),
    ] {
        let listed = listed(ground, &of_version, filter.clone())?;
        ensure!(listed == found, "{filter}: {listed:?}");
    }
    for build in &builds {
        let mut parameters = of_version.clone();
        parameters["buildId"] = build["buildId"].clone();
        let got = ground.call("GetMicrovmImageBuild", parameters)?;
        ensure!(got["architecture"] == build["architecture"] && got["buildState"] == "SUCCESSFUL", "{got}");
        ensure!(got["snapshotBuild"]["memorySnapshotSizeInBytes"].is_u64(), "{got}");
    }
    ground.front.terminate(&ground.front.microvm(arn)?)?;

    let mut update = for_both(ground, json!({}));
    update.as_object_mut().map(|members| members.remove("name"));
    update["imageIdentifier"] = json!(arn);
    ground.call("UpdateMicrovmImage", update)?;
    ground.front.await_image(arn, "UPDATED")?;
    let id = ground.front.microvm(arn)?;
    let of_new = json!({"imageIdentifier": arn, "imageVersion": "2.0"});
    let new = listed(ground, &of_new, json!({}))?;
    ensure!(new.len() == 2 && new[0]["buildId"] != builds[0]["buildId"], "{new:?}");
    ground.call("DeleteMicrovmImageVersion", of_version)?;
    ground.front.await_image(arn, "UPDATED")?;
    // What it was launched from has not gone with the other version.
    ground.call("SuspendMicrovm", json!({"microvmIdentifier": id}))?;
    ground.front.await_microvm(&id, "SUSPENDED")?;
    ground.call("ResumeMicrovm", json!({"microvmIdentifier": id}))?;
    ground.front.await_microvm(&id, "RUNNING")?;
    ground.front.terminate(&id)?;
    delete(ground, arn)
}

fn one_fails(ground: &Ground) -> anyhow::Result<()> {
    let reason = "CONTAINER_BUILD_FAILED: not on this one";
    let script = json!({"SIM_BUILD_FAILS": reason, "SIM_BUILD_FAILS_FOR": "ARM_64"});
    let created = ground.call("CreateMicrovmImage", for_both(ground, script))?;
    let (arn, id) = (created["imageArn"].as_str().context("no imageArn")?, created["id"].as_str());
    let image = ground.front.await_image(arn, "CREATE_FAILED")?;
    ensure!(image["latestFailedImageVersion"] == "1.0", "{image}");
    let of_version = json!({"imageIdentifier": arn, "imageVersion": "1.0"});
    let version = ground.call("GetMicrovmImageVersion", of_version.clone())?;
    ensure!(version["state"] == "FAILED" && version["status"] == "INACTIVE", "{version}");
    ensure!(version["stateReason"].is_null(), "{version}");
    let builds = listed(ground, &of_version, json!({}))?;
    ensure!(members(&builds, "buildState") == [json!("FAILED"), json!("SUCCESSFUL")], "{builds:?}");
    ensure!(members(&builds, "stateReason") == [json!(reason), Value::Null], "{builds:?}");
    let run = ground.call("RunMicrovm", json!({"imageIdentifier": arn}));
    refused(run, "ResourceNotFoundException", "No active version found")?;
    if let Some(id) = id {
        let files = ground.front.server.data_dir().join("images").join(id).join("1.0");
        until("nothing to be left", std::time::Duration::from_secs(10), || {
            ensure!(!files.exists(), "{} is there", files.display());
            Ok(())
        })?;
    }
    delete(ground, arn)
}

fn base_images(ground: &Ground) -> anyhow::Result<()> {
    let parameters = json!({"imageIdentifier": e2e::image::BASE_IMAGE});
    let versions = ground.call("ListManagedMicrovmImageVersions", parameters)?;
    let supported = &versions["items"][0]["supportedCpuConfigurations"];
    ensure!(*supported == json!([{"architecture": "X86_64"}, {"architecture": "ARM_64"}]), "{versions}");
    Ok(())
}

fn delete(ground: &Ground, arn: &str) -> anyhow::Result<()> {
    let of_image = json!({"imageIdentifier": arn});
    ground.call("DeleteMicrovmImage", of_image.clone())?;
    until("the image to be gone", std::time::Duration::from_secs(20), || {
        ensure!(ground.call("GetMicrovmImage", of_image.clone()).is_err(), "it is there");
        Ok(())
    })
}

//! From a zip to an image, and the zips that never get there.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{
    Stage, disk,
    image::{self, Image, Source},
    machine, until,
};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[
    ("image::a_dockerfile_becomes_an_image_version_that_is_active", becomes_active),
    ("image::the_app_already_runs_in_the_snapshot", app_runs_in_snapshot),
    ("image::the_build_log_can_be_read", build_log),
    ("image::a_zip_without_a_dockerfile_fails_its_build", no_dockerfile),
    ("image::a_zip_that_climbs_out_of_its_directory_fails_its_build", zip_slip),
    ("image::a_zip_bomb_fails_its_build", zip_bomb),
    ("image::a_failing_run_step_fails_its_build", failing_run),
    ("image::an_app_that_exits_at_once_fails_its_build", app_exits),
    ("image::an_object_that_does_not_exist_fails_its_build", no_object),
    ("image::a_deleted_image_leaves_nothing", delete),
    ("image::a_full_disk_fails_a_build_and_says_so", disk_full),
];

fn becomes_active(stage: &mut Stage) -> anyhow::Result<()> {
    let image = &stage.image;
    ensure!(image.states == ["CREATING", "CREATED"], "states: {:?}", image.states);
    ensure!(image.created["imageVersion"] == "1.0", "{}", image.created);
    ensure!(
        image.arn == format!("arn:aws:lambda:us-east-1:{}:microvm-image:stage", account(&image.arn)),
        "{}",
        image.arn
    );
    ensure!(image.version["state"] == "SUCCESSFUL" && image.version["status"] == "ACTIVE", "{}", image.version);
    ensure!(image.version["resources"] == json!([{"minimumMemoryInMiB": 512}]), "{}", image.version);
    let build = &image.build;
    ensure!(build["buildState"] == "SUCCESSFUL", "{build}");
    ensure!(["X86_64", "ARM_64"].contains(&build["architecture"].as_str().unwrap_or_default()), "{build}");
    for weight in ["memorySnapshotSizeInBytes", "codeInstallSizeInBytes", "diskSnapshotSizeInBytes"] {
        ensure!(build["snapshotBuild"][weight].as_u64().is_some_and(|bytes| bytes > 0), "{weight}: {build}");
    }
    let got = stage.aws.microvms("get_microvm_image", json!({"imageIdentifier": image.arn}))?;
    ensure!(got["latestActiveImageVersion"] == "1.0", "{got}");
    Ok(())
}

fn account(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

fn app_runs_in_snapshot(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    let (one, two) = (stage.fetch(&one, "/probe/born")?, stage.fetch(&two, "/probe/born")?);
    ensure!(one["born"] == two["born"], "the app was started for each launch: {one} {two}");
    Ok(())
}

fn build_log(stage: &mut Stage) -> anyhow::Result<()> {
    let output = std::process::Command::new(e2e::server::program())
        .args(["logs", "--build", &stage.image.arn, "--data-dir"])
        .arg(stage.server.data_dir())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.contains("COPY probe.py"), "the log does not show the Dockerfile's steps:\n{text}");
    Ok(())
}

/// A build that must fail: its image, gone again when the test is over.
fn failed(stage: &Stage, name: &str, zip: &Path) -> anyhow::Result<Image> {
    // The uploaded object stays: it is the user's.
    image::upload(&stage.aws, zip, &format!("{name}.zip"))?;
    std::fs::remove_file(zip)?;
    let before = (stage.traces(), disk::free(&stage.disk())?);
    let created = image::create_of(&stage.aws, name)?;
    let image = image::settled(&stage.aws, created)?;
    ensure!(image.states == ["CREATING", "CREATE_FAILED"], "states: {:?}", image.states);
    ensure!(image.version["state"] == "FAILED" && image.version["status"] == "INACTIVE", "{}", image.version);
    ensure!(image.build["buildState"] == "FAILED", "{}", image.build);
    ensure!(image.version["stateReason"].is_null(), "the reason belongs to the build: {}", image.version);
    let got = stage.aws.microvms("get_microvm_image", json!({"imageIdentifier": image.arn}))?;
    ensure!(got["latestFailedImageVersion"] == "1.0" && got["latestActiveImageVersion"].is_null(), "{got}");
    leaves_nothing(stage, &before)?;
    remove(stage, &image.arn)?;
    Ok(image)
}

fn leaves_nothing(stage: &Stage, before: &(e2e::stage::Traces, u64)) -> anyhow::Result<()> {
    until("nothing to be left of the build", Duration::from_secs(10), || {
        let traces = stage.traces();
        ensure!(traces == before.0, "{traces:?} is not {:?}", before.0);
        // The log stays, and the database has grown by some rows.
        let taken = before.1.saturating_sub(disk::free(&stage.disk())?);
        ensure!(taken < 8 << 20, "{taken} bytes are gone");
        Ok(())
    })
}

pub fn remove(stage: &Stage, arn: &str) -> anyhow::Result<()> {
    stage.aws.microvms("delete_microvm_image", json!({"imageIdentifier": arn}))?;
    until("the image to be gone", Duration::from_secs(20), || {
        let refusal = stage.aws.refusal("get_microvm_image", json!({"imageIdentifier": arn}))?;
        ensure!(refusal.code == "ResourceNotFoundException", "{refusal}");
        Ok(())
    })
}

fn reason_has(image: &Image, words: &[&str]) -> anyhow::Result<()> {
    let reason = image.reason();
    for word in words {
        ensure!(reason.contains(word), "'{word}' is not in the reason: {reason}");
    }
    Ok(())
}

fn failed_source(stage: &Stage, name: &str, source: &Source) -> anyhow::Result<Image> {
    let zip = stage.scratch("failing.zip");
    source.zip(&zip)?;
    failed(stage, name, &zip)
}

fn no_dockerfile(stage: &mut Stage) -> anyhow::Result<()> {
    let source = Source::default().with("app.py", b"print('no Dockerfile here')\n");
    reason_has(&failed_source(stage, "no-dockerfile", &source)?, &["ARCHIVE_DOCKERFILE_NOT_FOUND"])
}

fn zip_slip(stage: &mut Stage) -> anyhow::Result<()> {
    let target = "pilotlight-e2e-slipped";
    let source = Source::dockerfile("FROM pilotlight/debian:12\n")
        .with(&format!("{}tmp/{target}", "../".repeat(24)), b"out\n")
        .with(&format!("../{target}"), b"out\n");
    let image = failed_source(stage, "zip-slip", &source)?;
    ensure!(!Path::new("/tmp").join(target).exists(), "the zip wrote outside its directory");
    ensure!(!machine::names_in(stage.server.data_dir()).contains(target), "the zip wrote outside its directory");
    reason_has(&image, &["ARCHIVE_INVALID"])
}

fn zip_bomb(stage: &mut Stage) -> anyhow::Result<()> {
    let zip = stage.scratch("bomb.zip");
    image::bomb(&zip, 9 << 10)?;
    reason_has(&failed(stage, "zip-bomb", &zip)?, &["ARCHIVE_INVALID"])
}

fn failing_run(stage: &mut Stage) -> anyhow::Result<()> {
    let source = Source::dockerfile("FROM pilotlight/debian:12\nRUN echo about-to-fail && exit 7\nCMD [\"true\"]\n");
    let image = failed_source(stage, "failing-run", &source)?;
    reason_has(&image, &["The container image build failed."])?;
    let logs = stage.server.data_dir().join("logs/builds");
    let told =
        walk(&logs).into_iter().any(|log| std::fs::read_to_string(log).is_ok_and(|log| log.contains("about-to-fail")));
    ensure!(told, "no build log under {} tells of the failing step", logs.display());
    Ok(())
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    machine::names_in(directory)
        .into_iter()
        .map(|name| directory.join(name))
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .collect()
}

fn app_exits(stage: &mut Stage) -> anyhow::Result<()> {
    let source = Source::dockerfile("FROM pilotlight/debian:12\nCMD [\"sh\", \"-c\", \"exit 3\"]\n");
    let image = failed_source(stage, "app-exits", &source)?;
    reason_has(&image, &["3"])?;
    ensure!(!image.reason().contains("INTERNAL"), "an exiting app is no internal error: {}", image.reason());
    Ok(())
}

fn no_object(stage: &mut Stage) -> anyhow::Result<()> {
    for (name, bucket, code) in
        [("no-key", image::BUCKET, "S3_NO_SUCH_KEY"), ("no-bucket", "no-such-bucket", "S3_NO_SUCH_BUCKET")]
    {
        let mut parameters = image::create_parameters(name, "nothing-here.zip");
        parameters["codeArtifact"] = json!({"uri": format!("s3://{bucket}/nothing-here.zip")});
        let created = stage.aws.microvms("create_microvm_image", parameters)?;
        let image = image::settled(&stage.aws, created)?;
        ensure!(image.state() == "CREATE_FAILED", "{name}: {:?}", image.states);
        reason_has(&image, &[code])?;
        remove(stage, &image.arn)?;
    }
    Ok(())
}

fn delete(stage: &mut Stage) -> anyhow::Result<()> {
    let before = (stage.traces(), disk::free(&stage.disk())?);
    let zip = stage.scratch("small.zip");
    Source::dockerfile("FROM pilotlight/debian:12\nCMD [\"sleep\", \"infinity\"]\n").zip(&zip)?;
    let created = image::create(&stage.aws, "short-lived", &zip)?;
    let image = image::settled(&stage.aws, created)?;
    ensure!(image.state() == "CREATED", "{}", image.reason());
    ensure!(stage.traces().images.len() == before.0.images.len() + 1, "{:?}", stage.traces());
    remove(stage, &image.arn)?;
    leaves_nothing(stage, &before)
}

fn disk_full(stage: &mut Stage) -> anyhow::Result<()> {
    let source = Source::probe()?.with("ballast", &[7; 1 << 20]);
    let zip = stage.scratch("full.zip");
    source.zip(&zip)?;
    image::upload(&stage.aws, &zip, "full.zip")?;
    std::fs::remove_file(&zip)?;
    let before = stage.settled()?;
    let filler = disk::Filler::leave(&stage.disk(), 48 << 20)?;
    let created = stage.aws.microvms("create_microvm_image", image::create_parameters("disk-full", "full.zip"))?;
    let image = image::settled(&stage.aws, created).context("with a full disk");
    drop(filler);
    let image = image?;
    ensure!(image.state() == "CREATE_FAILED", "{:?}", image.states);
    reason_has(&image, &["DISK_STORAGE_FULL"])?;
    stage.same_as(&before)?;
    remove(stage, &image.arn)
}

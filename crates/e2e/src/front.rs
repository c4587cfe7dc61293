//! A server over pretend VMs and a boto3 beside it: for all that needs no VM.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{
    Aws,
    image::{self, BUCKET, Source},
    server::{self, Server},
    stage::WorkDir,
    until,
};

/// Longest wait for anything pretended.
const PATIENCE: Duration = Duration::from_secs(30);

/// Key of the artifact that every image is made of.
pub const ARTIFACT: &str = "front.zip";

/// The front.
pub struct Front {
    /// The server.
    pub server: Server,
    /// boto3.
    pub aws: Aws,
    names: AtomicU32,
    work_dir: WorkDir,
}

impl Front {
    /// Starts a server with these arguments; a bucket with an artifact is there.
    pub fn open(arguments: &[&str]) -> anyhow::Result<Self> {
        let (work_dir, data_dir) = WorkDir::make("data")?;
        std::fs::create_dir(&data_dir)?;
        let mut server = Server::of(server::simulation(), arguments, data_dir, work_dir.0.join("server.log"));
        server.start()?;
        let aws = Aws::start(&server.environment()?)?;
        aws.call("s3", "create_bucket", json!({"Bucket": BUCKET}))?;
        let front = Self { server, aws, names: AtomicU32::new(0), work_dir };
        let zip = front.scratch("front.zip");
        Source::dockerfile("FROM scratch\n").zip(&zip)?;
        image::upload(&front.aws, &zip, ARTIFACT)?;
        Ok(front)
    }

    /// A path for a file of a test's own.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.work_dir.0.join(name)
    }

    /// A name that no other test has.
    #[must_use]
    pub fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Begins to make an image whose VMs do what the script says; its ARN.
    pub fn begin_image(&self, script: Value) -> anyhow::Result<String> {
        let mut parameters = image::create_parameters(&self.name("image"), ARTIFACT);
        parameters["environmentVariables"] = script;
        let created = self.aws.microvms("create_microvm_image", parameters)?;
        Ok(created["imageArn"].as_str().context("no imageArn")?.to_owned())
    }

    /// Makes an image and waits until it is there.
    pub fn image(&self, script: Value) -> anyhow::Result<String> {
        let arn = self.begin_image(script)?;
        self.await_image(&arn, "CREATED")?;
        Ok(arn)
    }

    /// Waits for a state of an image.
    pub fn await_image(&self, arn: &str, state: &str) -> anyhow::Result<Value> {
        until(state, PATIENCE, || {
            let image = self.aws.microvms("get_microvm_image", json!({"imageIdentifier": arn}))?;
            ensure!(image["state"] == state, "{arn} is {}", image["state"]);
            Ok(image)
        })
    }

    /// Launches a microVM of an image and does not wait; its id.
    pub fn begin_microvm(&self, image: &str) -> anyhow::Result<String> {
        let run = self.aws.microvms("run_microvm", json!({"imageIdentifier": image}))?;
        Ok(run["microvmId"].as_str().context("no microvmId")?.to_owned())
    }

    /// Launches a microVM of an image and waits until it runs.
    pub fn microvm(&self, image: &str) -> anyhow::Result<String> {
        let id = self.begin_microvm(image)?;
        self.await_microvm(&id, "RUNNING")?;
        Ok(id)
    }

    /// Waits for a state of a microVM.
    pub fn await_microvm(&self, id: &str, state: &str) -> anyhow::Result<Value> {
        until(state, PATIENCE, || {
            let microvm = self.aws.microvms("get_microvm", json!({"microvmIdentifier": id}))?;
            ensure!(microvm["state"] == state, "{id} is {}: {}", microvm["state"], microvm["stateReason"]);
            Ok(microvm)
        })
    }

    /// Ends a microVM, if it has not ended.
    pub fn terminate(&self, id: &str) -> anyhow::Result<()> {
        self.aws.microvms("terminate_microvm", json!({"microvmIdentifier": id}))?;
        self.await_microvm(id, "TERMINATED")?;
        Ok(())
    }
}

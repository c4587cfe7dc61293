//! What every test stands on: one server, one boto3, one image.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    Aws, disk,
    image::{self, BUCKET, Image, Source},
    machine,
    server::Server,
    sweep, until,
};

/// How many namespaces a server may keep ready beside those in use.
const NAMESPACES_READY_MAX: usize = 16;

/// The stage.
pub struct Stage {
    /// The server.
    pub server: Server,
    /// boto3.
    pub aws: Aws,
    /// The image that microVMs are launched from.
    pub image: Image,
    /// How long its build took.
    pub build_time: Duration,
    work_dir: WorkDir,
}

/// Swept when dropped, and when setting the stage fails half-way.
pub(crate) struct WorkDir(pub(crate) PathBuf);

impl WorkDir {
    /// A fresh one for a server that keeps its things below this name in it; whoever gets it makes that directory.
    pub(crate) fn make(data: &str) -> anyhow::Result<(Self, PathBuf)> {
        let path = TempDir::with_prefix_in("pl-e2e-", "/var/tmp")?.keep();
        let data_dir = path.join(data);
        sweep::register(&data_dir, &path);
        Ok((Self(path), data_dir))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        sweep::sweep(&self.0);
    }
}

/// What of a server's is on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Directories of microVMs.
    pub microvms: BTreeSet<String>,
    /// Directories of image versions.
    pub images: BTreeSet<String>,
    /// VMM processes.
    pub vmms: usize,
    /// Mount points.
    pub mounts: Vec<PathBuf>,
}

impl Stage {
    /// Starts a server on a disk of its own and builds the image there.
    pub fn set(source: &Source, size_mib: u32) -> anyhow::Result<Self> {
        let (work_dir, data_dir) = WorkDir::make("disk/data")?;
        disk::mount(&work_dir.0.join("disk.img"), &work_dir.0.join("disk"))?;
        std::fs::create_dir(&data_dir)?;
        let mut server = Server::new(data_dir, work_dir.0.join("server.log"));
        server.start()?;
        let aws = Aws::start(&server.environment()?)?;
        aws.call("s3", "create_bucket", json!({"Bucket": BUCKET}))?;
        let zip = work_dir.0.join("stage.zip");
        source.zip(&zip)?;
        let begin = Instant::now();
        image::upload(&aws, &zip, "stage.zip")?;
        let mut parameters = image::create_parameters("stage", "stage.zip");
        parameters["resources"] = json!([{"minimumMemoryInMiB": size_mib}]);
        parameters["environmentVariables"] = json!({"FROM_THE_REQUEST": "yes, and = kept"});
        let created = aws.microvms("create_microvm_image", parameters)?;
        let image = image::settled(&aws, created)?;
        let build_time = begin.elapsed();
        ensure!(
            image.state() == "CREATED",
            "the stage's image is {}: {}\n{}",
            image.state(),
            image.reason(),
            server.log_tail()
        );
        Ok(Self { server, aws, image, build_time, work_dir })
    }

    /// A path for a file of a test's own.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.work_dir.0.join(name)
    }

    /// The file system that the server's data are on.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.work_dir.0.join("disk")
    }

    /// Starts the server if a test left it down.
    pub fn up(&mut self) -> anyhow::Result<()> {
        if !self.server.is_up() {
            self.server.start()?;
        }
        Ok(())
    }

    /// Ends every microVM a test left.
    pub fn clear(&mut self) -> anyhow::Result<()> {
        self.up()?;
        for (id, _) in self.live()? {
            self.terminate(&id)?;
        }
        Ok(())
    }

    /// What of the server's is on the machine now.
    #[must_use]
    pub fn traces(&self) -> Traces {
        let data = self.server.data_dir();
        let images = data.join("images");
        let versions = machine::names_in(&images).into_iter().flat_map(|image| {
            let versions = machine::names_in(&images.join(&image));
            versions.into_iter().map(move |version| format!("{image}/{version}"))
        });
        Traces {
            microvms: machine::names_in(&data.join("microvms")),
            images: versions.collect(),
            vmms: machine::vmms_of(data).iter().filter(|vmm| !machine::is_ready(vmm, data)).count(),
            mounts: machine::mounts_below(data),
        }
    }

    /// What there is once nothing is under way.
    pub fn settled(&self) -> anyhow::Result<Traces> {
        self.no_orphans()?;
        Ok(self.traces())
    }

    /// There is what there was. Files and mounts are gone by the time that the API says so; the VMMs have a moment, as those that
    /// wait ahead of time come and go.
    pub fn same_as(&self, before: &Traces) -> anyhow::Result<()> {
        let now = Traces { vmms: before.vmms, ..self.traces() };
        ensure!(now == *before, "{now:?} is not {before:?}");
        until("as many VMMs as there were", Duration::from_secs(5), || {
            let now = self.traces().vmms;
            ensure!(now == before.vmms, "{now} VMMs, and there were {}", before.vmms);
            Ok(())
        })
    }

    /// There is what there was, in a moment: where what was begun ended without an answer.
    pub fn same_as_soon(&self, before: &Traces) -> anyhow::Result<()> {
        until("what is there to be what was there", Duration::from_secs(20), || {
            let now = self.traces();
            ensure!(now == *before, "{now:?} is not {before:?}");
            Ok(())
        })
    }

    /// What is on the machine is what the API lists, no more and no less.
    pub fn no_orphans(&self) -> anyhow::Result<()> {
        until("what is there to be what is listed", Duration::from_secs(20), || {
            let live = self.live()?;
            let traces = self.traces();
            let running = live.iter().filter(|(_, state)| state == "RUNNING").count();
            let settled = live.iter().all(|(_, state)| ["RUNNING", "SUSPENDED"].contains(&state.as_str()));
            ensure!(settled, "not settled: {live:?}");
            let listed: BTreeSet<_> = live.into_iter().map(|(id, _)| id).collect();
            ensure!(traces.microvms == listed, "directories {:?}, listed {listed:?}", traces.microvms);
            ensure!(traces.vmms == running, "{} VMMs, {running} microVMs run", traces.vmms);
            ensure!(traces.mounts.is_empty(), "mounts: {:?}", traces.mounts);
            let namespaces = machine::namespaces_of(self.server.data_dir());
            ensure!(
                (running..=running + NAMESPACES_READY_MAX).contains(&namespaces.len()),
                "{} namespaces for {running} running microVMs",
                namespaces.len()
            );
            let links = machine::links_of(self.server.data_dir());
            ensure!(links.len() == namespaces.len(), "{links:?} are not the links of {namespaces:?}");
            Ok(())
        })
    }

    /// Directory of the image version that microVMs are launched from.
    pub fn version_dir(&self) -> anyhow::Result<PathBuf> {
        let images = self.server.data_dir().join("images");
        let whole = |dir: &Path| dir.join("memory.img").exists();
        machine::names_in(&images)
            .into_iter()
            .map(|image| images.join(image).join("1.0"))
            .find(|dir| whole(dir))
            .with_context(|| format!("no image version in {}", images.display()))
    }
}

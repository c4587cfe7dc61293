//! Buildah, told where everything is.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::sync::Mutex;

use crate::{Cause, process::Tool};

/// Short names are looked for among the local images first and on Docker Hub then, as Docker does.
const REGISTRIES: &str = "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"permissive\"\n";

/// Images come from registries and from the builder's own stores. A Dockerfile's `FROM dir:/…` or `oci-archive:/…` would
/// read files of this machine: refused.
const POLICY: &str = r#"{
  "default": [{ "type": "reject" }],
  "transports": {
    "docker": { "": [{ "type": "insecureAcceptAnything" }] },
    "containers-storage": { "": [{ "type": "insecureAcceptAnything" }] }
  }
}
"#;

/// The builder's directories on disk.
#[derive(Debug)]
pub(crate) struct Store {
    /// The base images.
    storage: PathBuf,
    work: PathBuf,
    /// Builds that begin together prepare one after the other.
    preparing: Mutex<()>,
}

impl Store {
    pub(crate) fn new(storage: PathBuf, work: PathBuf) -> Self {
        Self { storage, work, preparing: Mutex::default() }
    }

    /// Where the jobs' directories are.
    pub(crate) fn jobs(&self) -> PathBuf {
        self.work.join("jobs")
    }

    /// Where the images are that this builder pulled, and what it is making.
    pub(crate) fn own(&self) -> PathBuf {
        self.work.join("store")
    }

    /// What says which mounts and processes there are; meaningless after a crash.
    pub(crate) fn run_root(&self) -> PathBuf {
        self.own().join("run")
    }

    /// Makes the directories and the configuration that Buildah reads.
    pub(crate) async fn prepare(&self) -> Result<(), Cause> {
        let _one_by_one = self.preparing.lock().await;
        for dir in [self.jobs(), self.own()] {
            tokio::fs::create_dir_all(&dir).await.map_err(|source| file("making the directory", &dir, source))?;
        }
        for (path, text) in [(self.registries(), REGISTRIES), (self.policy(), POLICY)] {
            if tokio::fs::read(&path).await.is_ok_and(|now| now == text.as_bytes()) {
                continue;
            }
            // Renamed into place, because a build may be reading it.
            let new = path.with_extension("new");
            tokio::fs::write(&new, text).await.map_err(|source| file("writing", &new, source))?;
            tokio::fs::rename(&new, &path).await.map_err(|source| file("renaming to", &path, source))?;
        }
        Ok(())
    }

    /// Buildah's own arguments, before its verb.
    fn arguments(&self) -> Vec<String> {
        let driver = std::fs::read_to_string(self.storage.join("driver")).unwrap_or_default();
        let driver = if driver.trim() == "vfs" { "vfs" } else { "overlay" };
        let mut arguments = vec![
            format!("--root={}", self.own().join("root").display()),
            format!("--runroot={}", self.run_root().display()),
            format!("--storage-driver={driver}"),
        ];
        let images = self.storage.join("root");
        if images.is_dir() {
            arguments.push(format!("--storage-opt={driver}.imagestore={}", images.display()));
        }
        if driver == "overlay" {
            arguments.push("--storage-opt=overlay.skip_mount_home=true".to_owned());
        }
        arguments
    }

    /// A call of Buildah for a job.
    pub(crate) fn buildah(&self, job: &Path, verb: &str) -> Tool {
        self.surround(Tool::new("buildah"), job).args(self.arguments()).arg(verb)
    }

    /// A shell script that gets the beginning of a call of Buildah as its arguments.
    pub(crate) fn script(&self, job: &Path, script: &str) -> Tool {
        let shell = Tool::new("sh").args(["-euc", script, "sh", "buildah"]).args(self.arguments());
        self.surround(shell, job)
    }

    fn surround(&self, tool: Tool, job: &Path) -> Tool {
        tool.env("CONTAINERS_REGISTRIES_CONF", self.registries()).env("TMPDIR", job)
    }

    pub(crate) fn policy(&self) -> PathBuf {
        self.work.join("policy.json")
    }

    fn registries(&self) -> PathBuf {
        self.work.join("registries.conf")
    }
}

fn file(step: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::File { step, path: path.to_owned(), source }
}

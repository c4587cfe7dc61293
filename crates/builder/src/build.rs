//! One build, from zip to root disk.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedRwLockReadGuard, RwLock},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ArchiveError, ArchiveLimits, BuildError, Cause, ImageConfig, archive,
    buildah::Store,
    log::BuildLog,
    process::{Bounds, End, disk_is_full},
    root_disk,
};

/// Longest time of one build.
const BUILD_MAX: Duration = Duration::from_secs(60 * 60);

/// Longest time to remove what builds left in the store.
const TIDY_MAX: Duration = Duration::from_secs(120);

/// How many builds may leave their layers before new builds wait for a moment in which they can be removed.
const UNTIDY_MAX: usize = 8;

/// What a builder works with.
#[derive(Debug, Clone)]
pub struct BuilderConfig {
    /// The base images, as `scripts/base-images.sh` made them.
    pub storage: PathBuf,
    /// Scratch space, used by this builder alone.
    pub work: PathBuf,
    /// What a code artifact may hold.
    pub limits: ArchiveLimits,
}

impl BuilderConfig {
    /// The usual limits.
    #[must_use]
    pub fn new(storage: PathBuf, work: PathBuf) -> Self {
        Self { storage, work, limits: ArchiveLimits::default() }
    }
}

/// One thing to build.
#[derive(Debug, Clone)]
pub struct Job {
    /// The zip, with a Dockerfile at its root.
    pub archive: PathBuf,
    /// The build's name, unique among the builds that run: letters, digits, `-`, `_` and `.`.
    pub tag: String,
    /// The build's log in plain text, appended to.
    pub log: PathBuf,
    /// Where the root disk is to be.
    pub root_disk: PathBuf,
    /// Environment variables of the image, which the Dockerfile's steps see too.
    pub env: Vec<(String, String)>,
    /// Stops the build.
    pub cancel: CancellationToken,
}

/// What a build made, beside the root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// How the application runs.
    pub config: ImageConfig,
    /// The size of the root disk.
    pub root_disk_bytes: u64,
    /// The size of the files in it.
    pub code_install_bytes: u64,
}

/// Builds images; cheap to clone.
#[derive(Debug, Clone)]
pub struct Builder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Store,
    limits: ArchiveLimits,
    /// Builds share it; removing layers excludes them, because a layer may be about to be used by another build.
    in_use: Arc<RwLock<()>>,
    /// How many builds have left layers in the store.
    untidy: AtomicUsize,
}

impl Builder {
    /// A builder. Nothing is touched until the first build or [`Builder::sweep`].
    #[must_use]
    pub fn new(config: BuilderConfig) -> Self {
        let store = Store::new(config.storage, config.work);
        let inner = Inner { store, limits: config.limits, in_use: Arc::default(), untidy: AtomicUsize::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// Builds a job. Whatever happens, also when this future is dropped, nothing of the job stays but its log and, on
    /// success, its root disk.
    pub async fn build(&self, job: &Job) -> Result<Built, BuildError> {
        let inner = Arc::clone(&self.inner);
        let job = Job { cancel: job.cancel.child_token(), ..job.clone() };
        // Dropping this future cancels the job; its task lives on to remove what there is.
        let _cancel = job.cancel.clone().drop_guard();
        let task = tokio::spawn(async move { inner.build(&job).await });
        match task.await {
            Ok(result) => result.map_err(BuildError::from),
            Err(error) => Err(Cause::Task(error).into()),
        }
    }

    /// Removes what builds of a crashed process left: call it before the first build.
    pub async fn sweep(&self) -> Result<(), BuildError> {
        let _alone = self.inner.in_use.write().await;
        self.inner.sweep().await?;
        Ok(())
    }
}

impl Inner {
    async fn build(&self, job: &Job) -> Result<Built, Cause> {
        if !is_tag(&job.tag) {
            return Err(Cause::Tag { tag: job.tag.clone() });
        }
        let shared = self.enter().await;
        self.store.prepare().await?;
        let dir = self.store.jobs().join(&job.tag);
        tokio::fs::create_dir(&dir).await.map_err(file("making the directory", &dir))?;
        let mut result = self.build_in(&dir, job).await;
        let failed_for_space = matches!(result, Err(Cause::Dockerfile(_) | Cause::Step { .. })) && disk_is_full(&dir);
        if failed_for_space {
            result = Err(Cause::DiskFull { path: dir.clone() });
        }
        if let Err(error) = tokio::fs::remove_dir_all(&dir).await {
            tracing::warn!(dir = %dir.display(), %error, "a build's directory stays until the next start");
        }
        self.leave(shared).await;
        result
    }

    async fn build_in(&self, dir: &Path, job: &Job) -> Result<Built, Cause> {
        let mut log = BuildLog::open(&job.log).await?;
        let deadline = Instant::now() + BUILD_MAX;
        let bounds = Bounds { cancel: &job.cancel, deadline, allowed: BUILD_MAX, job: dir };
        let result = self.steps(&bounds, job, &mut log).await;
        match &result {
            Ok(built) => log.say(&format!("The root disk is {} bytes.", built.root_disk_bytes)).await?,
            Err(cause) => {
                // Its own failure to be written would only hide the first one.
                let _ = log.say(&format!("The build failed: {}", crate::error::chain(cause))).await;
            }
        }
        result
    }

    async fn steps(&self, bounds: &Bounds<'_>, job: &Job, log: &mut BuildLog) -> Result<Built, Cause> {
        let context = self.unpack(bounds, job).await?;
        let image = self.dockerfile(bounds, job, &context, log).await?;

        let inspect = self.store.buildah(bounds.job, "inspect").args(["--type", "image", &image]);
        let inspected = done("reading the image's configuration", inspect.run_for_answer(bounds).await)?;
        let config = ImageConfig::parse(&inspected, &job.env).map_err(Cause::Configuration)?;

        let code_install_bytes = root_disk::pack(&self.store, &image, &job.root_disk, bounds).await?;
        let disk = tokio::fs::metadata(&job.root_disk).await.map_err(file("weighing", &job.root_disk))?;
        Ok(Built { config, root_disk_bytes: disk.len(), code_install_bytes })
    }

    async fn unpack(&self, bounds: &Bounds<'_>, job: &Job) -> Result<PathBuf, Cause> {
        let context = bounds.job.join("context");
        let (archive, into, limits) = (job.archive.clone(), context.clone(), self.limits);
        let cancel = job.cancel.clone();
        match tokio::task::spawn_blocking(move || archive::unpack(&archive, &into, limits, &cancel)).await {
            Ok(Ok(())) => Ok(context),
            Ok(Err(ArchiveError::Cancelled)) => Err(Cause::Cancelled),
            Ok(Err(error)) => Err(Cause::Archive(error)),
            Err(error) => Err(Cause::Task(error)),
        }
    }

    /// Runs the Dockerfile; returns the image's id.
    async fn dockerfile(
        &self,
        bounds: &Bounds<'_>,
        job: &Job,
        context: &Path,
        log: &mut BuildLog,
    ) -> Result<String, Cause> {
        let id_file = bounds.job.join("image");
        let mut build = self
            .store
            .buildah(bounds.job, "build")
            // The image gets no name: what has none is removed afterwards.
            .args(["--isolation", "chroot", "--layers", "--force-rm", "--pull=missing", "--format", "docker"])
            // In a chroot a device node is the device itself, and a process that may chroot again leaves it.
            .args(["--cap-drop", "CAP_MKNOD", "--cap-drop", "CAP_SYS_CHROOT"])
            .arg("--signature-policy")
            .arg(self.store.policy())
            .arg("--iidfile")
            .arg(&id_file);
        for (name, value) in &job.env {
            build = build.arg("--env").arg(format!("{name}={}", escaped(value)));
        }
        build = build.arg("--file").arg(context.join("Dockerfile")).arg(context);
        match build.run_logged(bounds, log).await {
            End::Done(_) => {}
            End::Failed(source) => return Err(Cause::Dockerfile(source)),
            End::Stopped(cause) => return Err(cause),
        }
        let id = tokio::fs::read_to_string(&id_file).await.map_err(file("reading", &id_file))?;
        Ok(id.trim().trim_start_matches("sha256:").to_owned())
    }

    async fn enter(&self) -> OwnedRwLockReadGuard<()> {
        if self.untidy.load(Ordering::Relaxed) >= UNTIDY_MAX {
            let _alone = self.in_use.write().await;
            self.tidy().await;
        }
        Arc::clone(&self.in_use).read_owned().await
    }

    /// Ends a build; the last one of those that run together removes their layers.
    async fn leave(&self, shared: OwnedRwLockReadGuard<()>) {
        self.untidy.fetch_add(1, Ordering::Relaxed);
        drop(shared);
        if let Ok(_alone) = self.in_use.try_write() {
            self.tidy().await;
        }
    }

    /// Removes working containers, and images without a name. Nothing else may use the store meanwhile.
    pub(crate) async fn tidy(&self) {
        if self.untidy.load(Ordering::Relaxed) == 0 {
            return;
        }
        let dir = self.store.own();
        let cancel = CancellationToken::new();
        let bounds = Bounds { cancel: &cancel, deadline: Instant::now() + TIDY_MAX, allowed: TIDY_MAX, job: &dir };
        for (verb, what) in [("rm", "--all"), ("rmi", "--prune")] {
            let end = self.store.buildah(&dir, verb).arg(what).run_for_answer(&bounds).await;
            if let Err(cause) = done("removing what builds left", end) {
                // They cost disk space only, and the next build tries again.
                tracing::warn!(error = %crate::error::chain(&cause), "builds left layers behind");
                return;
            }
        }
        self.untidy.store(0, Ordering::Relaxed);
    }

    /// Counts one build's leavings that nobody counted.
    pub(crate) fn mark_untidy(&self) {
        self.untidy.fetch_add(1, Ordering::Relaxed);
    }
}

/// Buildah expands `$NAME` in the values of `--env`, and `$$` to `$`.
fn escaped(value: &str) -> String {
    value.replace('$', "$$")
}

fn is_tag(tag: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&tag.len()) && tag.bytes().all(good) && !tag.starts_with('.')
}

fn done(step: &'static str, end: End) -> Result<Vec<u8>, Cause> {
    match end {
        End::Done(answer) => Ok(answer),
        End::Failed(source) => Err(Cause::Step { step, source }),
        End::Stopped(cause) => Err(cause),
    }
}

fn file(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Cause {
    let path = path.to_owned();
    move |source| Cause::File { step, path, source }
}

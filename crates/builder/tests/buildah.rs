//! Real builds, with the base images that `make setup` made and without a network.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use builder::{BuildError, Builder, BuilderConfig, Built, Cause, Job};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use zip::{ZipWriter, write::SimpleFileOptions};

/// The base images, if they are there and this may use them.
fn storage() -> Option<PathBuf> {
    let assets = std::env::var_os("PILOTLIGHT_ASSETS").map_or("/var/lib/pilotlight/assets".into(), PathBuf::from);
    let storage = assets.join("storage");
    if !rustix::process::geteuid().is_root() {
        println!("skipped: building images needs root");
        return None;
    }
    if !storage.join("recipe").is_file() {
        println!("skipped: there are no base images in {}; run: make setup", storage.display());
        return None;
    }
    Some(storage)
}

/// A builder in a directory of its own.
struct Site {
    dir: TempDir,
    builder: Builder,
    storage: PathBuf,
}

impl Site {
    fn new(storage: PathBuf) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let builder = Builder::new(BuilderConfig::new(storage.clone(), dir.path().join("work")));
        Self { dir, builder, storage }
    }

    fn job(&self, tag: &str, files: &[(&str, &str)]) -> Job {
        let archive = self.dir.path().join(format!("{tag}.zip"));
        let mut zip = ZipWriter::new(fs::File::create(&archive).expect("a file"));
        for (name, content) in files {
            zip.start_file(*name, SimpleFileOptions::default().unix_permissions(0o755)).expect("a member");
            zip.write_all(content.as_bytes()).expect("its bytes");
        }
        zip.finish().expect("a zip");
        Job {
            archive,
            tag: tag.to_owned(),
            log: self.dir.path().join(format!("{tag}.log")),
            root_disk: self.dir.path().join(format!("{tag}.erofs")),
            env: Vec::new(),
            cancel: CancellationToken::new(),
        }
    }

    async fn build(&self, job: &Job) -> (Result<Built, BuildError>, String) {
        let result = self.builder.build(job).await;
        (result, fs::read_to_string(&job.log).unwrap_or_default())
    }

    /// Nothing but the store of the builder is there: no job, container, image of its own, mount or process.
    fn assert_clean(&self) {
        let work = self.dir.path().join("work");
        assert_eq!(fs::read_dir(work.join("jobs")).expect("jobs").count(), 0, "job directories");
        let list = |verb: &[&str]| {
            let output = Command::new("buildah")
                .arg(format!("--root={}", work.join("store/root").display()))
                .arg(format!("--runroot={}", work.join("store/run").display()))
                .arg(format!(
                    "--storage-driver={}",
                    fs::read_to_string(self.storage.join("driver")).expect("driver").trim()
                ))
                .args(verb)
                .output()
                .expect("buildah runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        assert_eq!(list(&["containers", "--all", "--quiet"]), "", "containers");
        assert_eq!(list(&["images", "--all", "--quiet"]), "", "images");
        // `buildah` above, outside any namespace, mounts its own root on itself.
        let _ = Command::new("umount").arg(work.join("store/root/overlay")).output();
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(&*work.to_string_lossy()), "mounts");
        assert!(!processes_in(&work), "processes");
    }
}

/// Is there a process that was started with something of a directory?
fn processes_in(dir: &Path) -> bool {
    let dir = dir.to_string_lossy().into_owned();
    fs::read_dir("/proc").expect("proc").flatten().any(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&dir))
    })
}

fn stat_in(disk: &Path, path: &str) -> String {
    let output = Command::new("dump.erofs").arg(format!("--path={path}")).arg(disk).output().expect("dump.erofs runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_dockerfile_becomes_a_disk_and_a_configuration() {
    let Some(storage) = storage() else { return };
    let site = Site::new(storage);
    let dockerfile = r#"
FROM pilotlight/debian:12 AS first
RUN echo made > /made
FROM pilotlight/debian:12
ENV GREETING=hello
COPY --from=first /made /made
COPY app.sh /srv/app.sh
RUN echo "env=[$TOKEN] processes=$(ls /proc | grep -c '^[0-9]')" && chown 1234:1234 /srv/app.sh && ! mknod /disk b 8 0
WORKDIR /srv
USER 1234
EXPOSE 8080 9000/udp
ENTRYPOINT ["/srv/app.sh"]
CMD ["--port", "8080"]
"#;
    let mut job = site.job("good-1", &[("Dockerfile", dockerfile), ("app.sh", "#!/bin/sh\necho hi\n")]);
    job.env = vec![("TOKEN".into(), "a $HOME \"b\" \\ $$c".into()), ("GREETING".into(), "hi".into())];
    let (built, log) = site.build(&job).await;
    let built = built.unwrap_or_else(|error| panic!("{error:?}\n{log}"));

    assert_eq!(built.config.entrypoint, ["/srv/app.sh"]);
    assert_eq!(built.config.cmd, ["--port", "8080"]);
    assert_eq!((&*built.config.workdir, &*built.config.user), ("/srv", "1234"));
    assert_eq!(built.config.exposed_ports, [8080]);
    let value = |name: &str| built.config.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!(value("TOKEN"), Some("a $HOME \"b\" \\ $$c"));
    assert_eq!(value("GREETING"), Some("hi"));
    assert!(value("PATH").is_some_and(|path| path.contains("/usr/bin")));

    assert!(log.contains("env=[a $HOME \"b\" \\ $$c]"), "{log}");
    assert!(log.contains("STEP"), "{log}");
    assert_eq!(fs::metadata(&job.root_disk).expect("a disk").len(), built.root_disk_bytes);
    assert!(built.code_install_bytes > 10_000_000 && built.root_disk_bytes > 10_000_000, "{built:?}");
    let app = stat_in(&job.root_disk, "/srv/app.sh");
    assert!(app.contains("Uid: 1234") && app.contains("0755"), "{app}");
    assert!(stat_in(&job.root_disk, "/made").contains("regular file"));
    site.assert_clean();
}

#[tokio::test]
async fn a_failing_step_leaves_nothing_but_the_log() {
    let Some(storage) = storage() else { return };
    let site = Site::new(storage);
    let dockerfile = "FROM pilotlight/debian:12\nRUN echo before\nRUN echo to the log; exit 7\n";
    let job = site.job("bad-1", &[("Dockerfile", dockerfile)]);
    let (result, log) = site.build(&job).await;
    let error = result.expect_err("it fails");
    assert_eq!(error.reason(), "The container image build failed.");
    assert!(log.contains("to the log") && log.contains('7'), "{log}");
    assert!(!job.root_disk.exists());
    site.assert_clean();
}

#[tokio::test]
async fn archives_and_images_that_are_not_there() {
    let Some(storage) = storage() else { return };
    let site = Site::new(storage);
    let (result, _) = site.build(&site.job("empty", &[("app.py", "")])).await;
    assert!(result.expect_err("no Dockerfile").reason().starts_with("ARCHIVE_DOCKERFILE_NOT_FOUND"));
    let (result, _) = site.build(&site.job("slip", &[("Dockerfile", "FROM scratch\n"), ("../x", "")])).await;
    assert_eq!(result.expect_err("a slip").reason(), "ARCHIVE_INVALID: entry \"../x\": leaves the archive");
    assert!(!site.dir.path().join("work/jobs/x").exists());
    // A registry that nothing listens at, and files of this machine: an error in the log, and no image.
    for (tag, from) in [("away", "localhost:1/none:1"), ("dir", "dir:/etc"), ("archive", "oci-archive:/etc/passwd")] {
        let (result, log) = site.build(&site.job(tag, &[("Dockerfile", &format!("FROM {from}\n"))])).await;
        assert_eq!(result.expect_err(from).reason(), "The container image build failed.");
        assert!(log.contains(from.split('/').next().expect("a part")), "{log}");
    }
    site.assert_clean();
}

#[tokio::test]
async fn cancelled_and_dropped_builds_end_their_processes() {
    let Some(storage) = storage() else { return };
    let site = Site::new(storage);
    let dockerfile = "FROM pilotlight/debian:12\nRUN echo begun; sleep 600 & sleep 600\n";

    let job = site.job("cancelled", &[("Dockerfile", dockerfile)]);
    let (build, ()) = tokio::join!(site.builder.build(&job), async {
        wait_for(|| log_has(&job, "\nbegun")).await;
        job.cancel.cancel();
    });
    assert!(matches!(build.expect_err("cancelled").cause(), Cause::Cancelled));
    site.assert_clean();

    let job = site.job("dropped", &[("Dockerfile", dockerfile)]);
    tokio::select! {
        _ = site.builder.build(&job) => panic!("it cannot end"),
        () = wait_for(|| log_has(&job, "\nbegun")) => {}
    }
    wait_for(|| !site.dir.path().join("work/jobs/dropped").exists()).await;
    // Its turn comes when the dropped build has let go of the store.
    site.builder.sweep().await.expect("swept");
    site.assert_clean();
}

#[tokio::test]
async fn builds_run_side_by_side() {
    let Some(storage) = storage() else { return };
    let site = Site::new(storage);
    let files = [("Dockerfile", "FROM pilotlight/debian:12\nCOPY f /f\nRUN cat /f\n"), ("f", "same")];
    let (one, two) = (site.job("one", &files), site.job("two", &files));
    let (one, two) = tokio::join!(site.build(&one), site.build(&two));
    one.0.unwrap_or_else(|error| panic!("{error:?}\n{}", one.1));
    two.0.unwrap_or_else(|error| panic!("{error:?}\n{}", two.1));
    site.assert_clean();
}

#[tokio::test]
async fn a_sweep_ends_what_a_crash_left() {
    let Some(storage) = storage() else { return };
    let site = Site::new(storage);
    let job = site.job("first", &[("Dockerfile", "FROM pilotlight/debian:12\n")]);
    site.build(&job).await.0.expect("built");
    // As a killed server would leave it: a running build, noted in its directory.
    let left = site.dir.path().join("work/jobs/left");
    fs::create_dir_all(left.join("context")).expect("made");
    let mut child = {
        use std::os::unix::process::CommandExt;
        Command::new("sleep").arg("600").process_group(0).spawn().expect("sleep runs")
    };
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("stat");
    let started = stat.rsplit(") ").next().expect("fields").split(' ').nth(19).expect("a start");
    fs::write(left.join("process"), format!("{} {started}", child.id())).expect("noted");
    // Reaps it, which a crashed server's child has init for.
    let reaper = std::thread::spawn(move || child.wait());
    site.builder.sweep().await.expect("swept");
    assert!(!reaper.join().expect("reaped").expect("waited").success());
    site.assert_clean();
}

fn log_has(job: &Job, text: &str) -> bool {
    fs::read_to_string(&job.log).is_ok_and(|log| log.contains(text))
}

async fn wait_for(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never came true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

//! Removes everything a server made, whatever state it is in. Runs when a stage is dropped, and when the tests are
//! interrupted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{machine, until};

/// Directories that are not swept yet.
static LEFT: Mutex<Vec<Ground>> = Mutex::new(Vec::new());

/// Network namespaces of the tests' own, each with this machine's end of the link to it.
static NAMESPACES: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// What is swept.
#[derive(Debug, Clone)]
struct Ground {
    data_dir: PathBuf,
    work_dir: PathBuf,
}

/// Notes that there will be something to sweep.
pub(crate) fn register(data_dir: &Path, work_dir: &Path) {
    let ground = Ground { data_dir: data_dir.to_owned(), work_dir: work_dir.to_owned() };
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(ground);
}

/// Sweeps what was registered with this working directory.
pub(crate) fn sweep(work_dir: &Path) {
    sweep_where(|ground| ground.work_dir == work_dir);
}

/// Notes that this network namespace and this link will have to go.
pub(crate) fn register_namespace(name: &str, link: &str) {
    NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), link.to_owned()));
}

/// Removes a network namespace that was registered. Connections may keep it for a while without a name, so its link goes
/// first.
pub(crate) fn namespace(name: &str, link: &str) {
    NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| known != name);
    run("ip", &["link", "delete", link]);
    run("ip", &["netns", "delete", name]);
}

/// Sweeps everything. Tests leave through `exit`, which drops nothing.
pub fn everything() {
    sweep_where(|_| true);
    let left: Vec<_> = NAMESPACES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    left.iter().for_each(|(name, link)| namespace(name, link));
}

// The list stays locked meanwhile: whoever comes second waits until the first is done, and may then end the process.
fn sweep_where(which: impl Fn(&Ground) -> bool) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain(|ground| {
        let now = which(ground);
        if now {
            ground.sweep();
        }
        !now
    });
}

/// Set by an interrupt: nothing is started any more.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has the program been told to end?
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// From now on, an interrupt sweeps before it ends the process.
pub fn on_interrupt() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
                return;
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
        eprintln!("interrupted: cleaning up");
        everything();
        std::process::exit(130);
    });
    Ok(())
}

fn run(program: &str, arguments: &[&str]) {
    // Best effort: what could not be removed here has most often been removed already.
    let _ = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

impl Ground {
    fn sweep(&self) {
        // Again and again, because what is killed may just have started another.
        let ended = until("the processes to end", Duration::from_secs(20), || {
            let processes = machine::processes_of(&self.data_dir);
            for process in &processes {
                // Gone is as good.
                let _ = machine::kill(process.pid);
            }
            anyhow::ensure!(processes.is_empty(), "{processes:?}");
            Ok(())
        });
        if let Err(error) = ended {
            eprintln!("cannot end processes: {error:#}");
        }
        for namespace in machine::namespaces_of(&self.data_dir) {
            run("ip", &["netns", "delete", &namespace]);
        }
        run("nft", &["delete", "table", "inet", &format!("pilotlight_{}", machine::owner(&self.data_dir))]);
        for point in machine::mounts_below(&self.work_dir) {
            run("umount", &["--lazy", &point.to_string_lossy()]);
        }
        if let Err(error) = fs::remove_dir_all(&self.work_dir) {
            eprintln!("could not remove {}: {error}", self.work_dir.display());
        }
    }
}

//! The pager of one VM: started before it, watched with it, ended with it.
//!
//! If the pager dies, the guest stands still at the next page it misses, and nothing else shows: Firecracker goes on
//! answering. So the pager is watched, and its end is its VM's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use crate::jail::{self, Inmate, Jail, Limits, Program, Sockets};
use crate::process::{self, Identity, Process, Unwatched};
use crate::spec::VmSpec;
use crate::start::{StartError, joined};

const SOCKET: &str = "pager.sock";
/// What a pager says goes into this file of its VM's directory.
const LOG: &str = "pager.log";
/// A pager's own memory: it copies from files straight into its VM's.
const MEMORY_BYTES: u64 = 64 << 20;

/// The most bytes of a list of touched pages: 16 a page of 64 GiB, were no two neighbours.
const MAX_RECORD: u64 = 256 << 20;

/// A pager that serves a VM.
#[derive(Debug)]
pub(super) struct Pager {
    identity: Identity,
    socket: PathBuf,
    /// Until it is bound to its VM; dropped with it, it is killed.
    process: Option<Process>,
    watcher: Option<JoinHandle<()>>,
}

impl Pager {
    /// Starts a pager for this VM that serves these files.
    pub(super) async fn start(spec: &VmSpec, program: &Program, files: Files) -> Result<Self, StartError> {
        let (spec, program) = (spec.clone(), program.clone());
        let dir = spec.dir.clone();
        let spawned = tokio::task::spawn_blocking(move || spawn(&spec, &program, &files)).await;
        let unwatched = joined(spawned)??;
        let identity = unwatched.identity();
        let process = unwatched.watch(&dir).map_err(|source| StartError::Prepare {
            what: "watch the pager in",
            path: dir.clone(),
            source,
        })?;
        Ok(Self { identity, socket: dir.join(SOCKET), process: Some(process), watcher: None })
    }

    /// Finds the pager of an adopted VM. One that is gone is its VM's end.
    pub(super) fn adopt(identity: &Identity, vmm: &Process, dir: &Path) -> io::Result<Self> {
        let Some(process) = Process::adopt(identity, dir, LOG)? else {
            vmm.kill_because(ENDED)?;
            return Err(io::Error::new(io::ErrorKind::NotFound, ENDED));
        };
        let mut pager =
            Self { identity: identity.clone(), socket: dir.join(SOCKET), process: Some(process), watcher: None };
        pager.bind_to(vmm);
        Ok(pager)
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// From here on the end of either is the end of both.
    pub(super) fn bind_to(&mut self, vmm: &Process) {
        let Some(process) = self.process.take() else { return };
        let vmm = vmm.handle();
        self.watcher = Some(tokio::spawn(async move {
            tokio::select! {
                report = process.exited() => {
                    tracing::error!(%report, pid = vmm.pid(), "a pager ended before its VM");
                    if let Err(error) = vmm.kill_because(ENDED) {
                        tracing::error!(%error, pid = vmm.pid(), "a VM without its pager could not be ended");
                    }
                }
                () = vmm.ended() => {
                    // It ends by itself when its VM does; one that does not is of no use.
                    let _ = process.kill();
                }
            }
        }));
    }
}

/// Why a VM without a pager is ended.
const ENDED: &str = "the process that serves its memory ended";

impl Drop for Pager {
    fn drop(&mut self) {
        // One that was never bound has no VM.
        if let Some(process) = self.process.take() {
            let _ = process.kill();
        }
        // The handle is gone, not the VM: both go on.
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

/// What a pager reads and writes.
pub(super) struct Files {
    pub(super) base: PathBuf,
    pub(super) layer: PathBuf,
    pub(super) touched: Option<PathBuf>,
    pub(super) record: Option<PathBuf>,
}

/// Starts a pager in a jail of its own. Blocks.
fn spawn(spec: &VmSpec, program: &Program, files: &Files) -> Result<Unwatched, StartError> {
    let prepare = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Prepare { what, path, source }
    };
    let dir = process::open_dir(&spec.dir).map_err(prepare("open the directory", &spec.dir))?;
    let path = spec.dir.join(SOCKET);
    let listener = process::listen(&spec.dir, &dir, SOCKET).map_err(prepare("listen on", &path))?;
    // The VMM connects as its own user.
    std::os::unix::fs::chown(&path, Some(spec.jail.uid), Some(spec.jail.uid)).map_err(prepare("give away", &path))?;
    let mut inherited =
        vec![("--base-fd", jail::open_for(&files.base, false)?), ("--layer-fd", jail::open_for(&files.layer, false)?)];
    if let Some(touched) = &files.touched {
        inherited.push(("--prefetch-fd", jail::open_for(touched, false)?));
    }
    if let Some(record) = &files.record {
        File::create(record).map_err(prepare("make", record))?;
        inherited.push(("--record-fd", jail::open_for(record, true)?));
    }
    let (log, words) = process::words().map_err(prepare("make a pipe for", &spec.dir))?;
    let words_too: OwnedFd = words.try_clone().map_err(prepare("make a pipe for", &spec.dir))?;
    let mount_point = spec.dir.join("pager-root");
    fs::create_dir_all(&mount_point).map_err(prepare("make", &mount_point))?;
    let mut arguments =
        vec![("--listen-fd", listener.as_raw_fd().to_string()), ("--memory-bytes", spec.memory_bytes().to_string())];
    arguments.extend(inherited.iter().map(|(name, (_, number))| (*name, number.to_string())));
    let mut keep = vec![listener.as_raw_fd()];
    keep.extend(inherited.iter().map(|(_, (_, number))| *number));
    let jail = Jail {
        uid: spec.jail.uid,
        // A group of its own: version 2 allows no processes beside groups.
        cgroup: spec.jail.cgroup.as_ref().map(|name| name.with_file_name(format!("{}-pager", name_of(name)))),
        limits: Limits { overhead_bytes: 0, ..spec.jail.limits.clone() },
    };
    let born = jail::start(Inmate {
        jail: &jail,
        program,
        arguments: arguments.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect(),
        mount_point: &mount_point,
        network: empty_network(spec)?,
        tap: None,
        shown: vec![],
        devices: &[],
        keep,
        output: words,
        error: words_too,
        asks: false,
        sockets: Sockets::Inherited,
        // Its list of pages, if it records one.
        file_bytes: MAX_RECORD,
        // The pages it copies are its VM's; those it reads are the page cache's, and are charged to whoever reads first.
        memory_bytes: MEMORY_BYTES + spec.memory_bytes(),
    })?;
    Unwatched::new(born, jail.cgroup, log, LOG).map_err(prepare("watch the pager in", &spec.dir))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The VM's network namespace, where there is nothing to be had without sockets.
fn empty_network(spec: &VmSpec) -> Result<Option<OwnedFd>, StartError> {
    let open = |path: &PathBuf| {
        File::open(path).map(OwnedFd::from).map_err(|source| StartError::Prepare {
            what: "open the network namespace",
            path: path.clone(),
            source,
        })
    };
    spec.network.as_ref().map(|network| open(&network.namespace)).transpose()
}

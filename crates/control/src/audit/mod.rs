//! The audit log: one line of JSON for every call, taken or refused, in `logs/audit.jsonl`. It says who called, from where,
//! what for, on what, and what came of it; never what was in the request.
//!
//! A thread writes it, so that no call waits for a disk. What it cannot take is not waited for either: the calls go on,
//! the lines that are lost are counted, and the count is the next line once there is room again. Calls of nobody known
//! leave a line as long as they are few; a flood of them is counted, so that it neither fills the disk nor pushes the lines
//! of others out of the files that are kept.

mod call;
mod file;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use api::timestamp::IsoTimestamp;
use serde_json::json;
use tokio::sync::oneshot;
use tracing::error;

pub(crate) use self::call::change;
pub use self::call::{Call, SourceAddress};
use self::file::RotatingFile;

/// Lines that wait for the disk; more are lost and counted.
const QUEUE_MAX: usize = 4096;

/// Lines of nobody known that can be written at once, and how long it takes until one more can.
const UNKNOWN_BURST: u32 = 120;
const UNKNOWN_EVERY: Duration = Duration::from_secs(1);

/// Time between two lines that say how many calls left none.
const COUNTS_EVERY: Duration = Duration::from_secs(10);

/// Time between two complaints in the server's own log that the audit log cannot be written.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size at which a file is put aside and a new one begun.
    pub file_bytes: u64,
    /// Files that were put aside and are kept.
    pub files_kept: u32,
}

impl Default for Limits {
    /// 128 MiB in all.
    fn default() -> Self {
        Self { file_bytes: 16 << 20, files_kept: 7 }
    }
}

/// Calls that left no line of their own.
#[derive(Debug, Default)]
struct Untold {
    /// Calls of nobody known, beyond what is written of those.
    unknown: AtomicU64,
    /// Lines that the queue had no room for, or the disk.
    lost: AtomicU64,
}

enum Message {
    Line(Vec<u8>),
    /// A line that is written down elsewhere until it is on the disk, and who waits for that.
    Kept(Vec<u8>, oneshot::Sender<io::Result<()>>),
    Stop,
}

/// Writes the log. Cloned for whoever has something to say.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: SyncSender<Message>,
    untold: Arc<Untold>,
    allowance: Arc<Mutex<Allowance>>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// How many lines of nobody known may be written now.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let more = now.duration_since(self.since).as_nanos() / UNKNOWN_EVERY.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(UNKNOWN_BURST);
            self.since = now;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

impl Audit {
    /// Begins to write to this file, behind what is in it. The directory is made if it is not there; a file that cannot be
    /// written is no reason not to begin.
    #[must_use]
    pub fn start(path: PathBuf, limits: Limits) -> Self {
        let (queue, lines) = sync_channel(QUEUE_MAX);
        let untold = Arc::new(Untold::default());
        let counts = Arc::clone(&untold);
        let writer = thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(&lines, RotatingFile::new(path, limits), &counts))
            .map_err(|failure| error!(error = &failure as &dyn std::error::Error, "no thread writes the audit log"))
            .ok();
        let allowance = Allowance { left: UNKNOWN_BURST, since: Instant::now() };
        Self { queue, untold, allowance: Arc::new(Mutex::new(allowance)), writer: Arc::new(Mutex::new(writer)) }
    }

    /// A log that nobody keeps, for tests of other things.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let allowance = Allowance { left: 0, since: Instant::now() };
        Self {
            queue: sync_channel(1).0,
            untold: Arc::default(),
            allowance: Arc::new(Mutex::new(allowance)),
            writer: Arc::default(),
        }
    }

    /// Takes a line, or counts it.
    fn say(&self, line: Vec<u8>, of_somebody_known: bool) {
        let allowed = || self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !of_somebody_known && !allowed() {
            self.untold.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.untold.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a line whose loss is not to be counted but made good by its giver; returns once it is on the disk.
    pub(crate) async fn keep(&self, line: Vec<u8>) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.queue
            .try_send(Message::Kept(line, done))
            .map_err(|_| io::Error::other("the audit log takes no line now"))?;
        written.await.unwrap_or_else(|_| Err(io::Error::other("the audit log has ended")))
    }

    /// Writes what is left and ends. What is said afterwards is lost.
    pub fn stop(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && self.queue.send(Message::Stop).is_ok()
        {
            let _ = writer.join();
        }
    }
}

fn write(lines: &Receiver<Message>, mut file: RotatingFile, untold: &Untold) {
    let (mut counted, mut complained) = (Instant::now(), None::<Instant>);
    loop {
        let message = match lines.recv_timeout(COUNTS_EVERY) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
        };
        let stop = matches!(message, Some(Message::Stop));
        let failure = match message {
            Some(Message::Line(line)) => {
                let failure = file.append(&line).err();
                untold.lost.fetch_add(u64::from(failure.is_some()), Ordering::Relaxed);
                failure
            }
            Some(Message::Kept(line, done)) => {
                // Nobody waits any more when the server stops; the line is then written once more by the next.
                let _ = done.send(file.append(&line).and_then(|()| file.sync()));
                None
            }
            Some(Message::Stop) | None => None,
        };
        if let Some(failure) = failure
            && complained.is_none_or(|last| last.elapsed() >= COMPLAINT_EVERY)
        {
            complained = Some(Instant::now());
            let error = &failure as &dyn std::error::Error;
            error!(error, "the audit log cannot be written; calls go on, and the lines that are lost are counted");
        }
        if stop || counted.elapsed() >= COUNTS_EVERY {
            counted = Instant::now();
            write_counts(&mut file, untold);
        }
        if stop {
            return;
        }
    }
}

/// Says how many calls left no line; what cannot be said now is said later.
fn write_counts(file: &mut RotatingFile, untold: &Untold) {
    for (count, event) in [(&untold.lost, "LinesLost"), (&untold.unknown, "UnauthenticatedCallsNotListed")] {
        let calls = count.swap(0, Ordering::Relaxed);
        if calls > 0 {
            let line = json!({ "time": IsoTimestamp(SystemTime::now().into()), "event": event, "count": calls });
            if file.append(format!("{line}\n").as_bytes()).is_err() {
                count.fetch_add(calls, Ordering::Relaxed);
            }
        }
    }
}

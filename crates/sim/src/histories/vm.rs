//! A VMM process that is none: memory, a disk, and an app that changes both.
//!
//! The app counts. Every number it has come to is in its memory and on its disk, on pages and in blocks that come round
//! again, so that a snapshot that has one of them from another time than the rest is found out.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use vmm::ExitReport;

use super::world::World;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The page with the number, and where the pages begin that a number fills.
const HEAD_PAGE: u64 = 256;
const PAGES: u64 = 24;

/// Pages that an app with much memory fills once: with them its memory is worth comparing with what was saved before.
const BALLAST: std::ops::Range<u64> = 1024..1324;

/// The same on the disk.
const HEAD_BLOCK: u64 = 16;
const BLOCKS: u64 = 8;

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Its guest runs.
    Running,
    /// It was told to stand still.
    Paused,
    /// Its disk is full.
    Stuck,
}

/// The devices' state, as a file of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Devices {
    /// What the app had come to.
    pub number: u64,
    /// How the app was.
    pub app: App,
}

/// Its memory.
pub struct Memory {
    file: File,
    /// The file is the memory; otherwise it is what the memory was at first.
    shared: bool,
    /// Pages that differ from the file.
    pub pages: BTreeMap<u64, Box<[u8]>>,
}

impl Memory {
    /// Memory in, or over, this file.
    pub fn of(file: File, shared: bool) -> Self {
        Self { file, shared, pages: BTreeMap::new() }
    }

    fn page(&self, number: u64) -> io::Result<Box<[u8]>> {
        if let Some(page) = self.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE].into_boxed_slice();
        self.file.read_exact_at(&mut page, number * PAGE as u64)?;
        Ok(page)
    }

    /// Changes a page.
    pub fn write(&mut self, number: u64, page: Box<[u8]>) -> io::Result<()> {
        if self.shared {
            return self.file.write_all_at(&page, number * PAGE as u64);
        }
        self.pages.insert(number, page);
        Ok(())
    }
}

/// How the app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum App {
    /// Not started yet.
    None,
    /// It runs.
    Runs,
    /// It has ended, with this code.
    Exited(i32),
}

/// One VM.
pub struct PretendVm {
    /// The number of its process.
    pub pid: u32,
    /// What it is called: a microVM's id, or a build's.
    pub who: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The network it is in.
    pub network: String,
    /// Whether its app has much memory.
    heavy: bool,
    /// What the devices knew when it was restored.
    restored: Option<Devices>,
    memory: Mutex<Memory>,
    disk: File,
    doing: watch::Sender<Doing>,
    /// How its app is.
    pub app: watch::Sender<App>,
    /// Whether its agent has been told that it was restored.
    pub greeted: watch::Sender<bool>,
    exit: watch::Sender<Option<ExitReport>>,
    /// Killed, and hangs in the kernel: its guest does nothing any more, and it will be gone by and by.
    doomed: watch::Sender<bool>,
}

/// What a VM is made of.
pub struct Parts {
    pub pid: u32,
    pub who: String,
    pub dir: PathBuf,
    pub network: String,
    pub memory: Memory,
    pub disk: File,
    pub heavy: bool,
    pub restored: Option<Devices>,
}

impl PretendVm {
    /// A VM: booted, it runs; restored, it stands still.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { pid, who, dir, network, memory, disk, heavy, restored } = parts;
        let app = restored.as_ref().map_or(App::None, |devices| devices.app);
        let doing = if restored.is_some() { Doing::Paused } else { Doing::Running };
        Arc::new(Self {
            pid,
            who,
            dir,
            network,
            greeted: watch::Sender::new(restored.is_none()),
            heavy,
            restored,
            memory: Mutex::new(memory),
            disk,
            doing: watch::Sender::new(doing),
            app: watch::Sender::new(app),
            exit: watch::Sender::new(None),
            doomed: watch::Sender::new(false),
        })
    }

    /// Its memory.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does its process exist?
    pub fn exists(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Can its guest still do anything, ever?
    pub fn lives(&self) -> bool {
        self.exists() && !*self.doomed.borrow()
    }

    /// What it is doing.
    pub fn doing(&self) -> Doing {
        *self.doing.borrow()
    }

    /// What its app has cost: a little for each number.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_millis(self.number().unwrap_or(0))
    }

    /// Lets the guest run or stand.
    pub fn set_doing(&self, doing: Doing) {
        self.doing.send_replace(doing);
    }

    /// Returns when the guest runs; never, once it cannot any more.
    pub async fn runs(&self) {
        let _ = self.doing.subscribe().wait_for(|doing| *doing == Doing::Running).await;
        if !self.lives() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when its process is gone.
    pub async fn exited(&self) -> ExitReport {
        match self.exit.subscribe().wait_for(Option::is_some).await.ok().and_then(|report| report.clone()) {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// Its process ends.
    pub fn end(&self, world: &World, report: ExitReport) {
        if self.exists() {
            self.exit.send_replace(Some(report));
            self.doing.send_replace(Doing::Paused);
            world.vms.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        }
    }

    /// It is killed and does not go.
    pub fn doom(&self) {
        self.doomed.send_replace(true);
        self.doing.send_replace(Doing::Paused);
    }

    /// What the devices know now.
    pub fn devices(&self) -> io::Result<Devices> {
        Ok(Devices { number: self.number()?, app: *self.app.borrow() })
    }

    /// What the app has come to, as its memory says.
    pub fn number(&self) -> io::Result<u64> {
        Ok(number_in(&self.memory().page(HEAD_PAGE)?, 0))
    }

    /// The `/run` hook was called.
    pub fn note_run_hook(&self) -> io::Result<()> {
        let mut memory = self.memory();
        let mut head = memory.page(HEAD_PAGE)?;
        head[8..16].copy_from_slice(&1u64.to_le_bytes());
        memory.write(HEAD_PAGE, head)
    }

    /// Has the `/run` hook been called?
    pub fn run_hook_was_called(&self) -> io::Result<bool> {
        Ok(number_in(&self.memory().page(HEAD_PAGE)?, 8) == 1)
    }

    /// The app goes on to the next number, and at the first fills its ballast, if it has any; fails where the disk is full, and
    /// nothing has changed then.
    pub fn count(&self) -> io::Result<u64> {
        let mut memory = self.memory();
        let mut head = memory.page(HEAD_PAGE)?;
        let number = number_in(&head, 0) + 1;
        self.disk.write_all_at(&filled(number), (HEAD_BLOCK + 1 + number % BLOCKS) * PAGE as u64)?;
        self.disk.write_all_at(&filled(number), HEAD_BLOCK * PAGE as u64)?;
        memory.write(HEAD_PAGE + 1 + number % PAGES, filled(number))?;
        if number == 1 && self.heavy {
            for page in BALLAST {
                memory.write(page, filled(page))?;
            }
            head[16..24].copy_from_slice(&1u64.to_le_bytes());
        }
        head[..8].copy_from_slice(&number.to_le_bytes());
        memory.write(HEAD_PAGE, head)?;
        Ok(number)
    }

    /// Everything in memory and on the disk is of one time; the number it came to.
    pub fn check(&self) -> Result<u64, String> {
        let number = self.number().map_err(|error| format!("its memory cannot be read: {error}"))?;
        let memory = self.memory();
        for past in number.saturating_sub(PAGES - 1).max(1)..=number {
            let page = memory.page(HEAD_PAGE + 1 + past % PAGES).map_err(|error| error.to_string())?;
            if page != filled(past) {
                return Err(format!("its memory has come to {number} and has {} for {past}", number_in(&page, 0)));
            }
        }
        if number_in(&memory.page(HEAD_PAGE).map_err(|error| error.to_string())?, 16) == 1 {
            for at in BALLAST {
                let page = memory.page(at).map_err(|error| error.to_string())?;
                if page != filled(at) {
                    return Err(format!("its page {at} has {}", number_in(&page, 0)));
                }
            }
        }
        let block = |at: u64| {
            let mut block = vec![0; PAGE].into_boxed_slice();
            // A disk that was never written to so far ends sooner.
            let _ = self.disk.read_at(&mut block, at * PAGE as u64);
            block
        };
        // Of a number that found the disk full on its way, one block may be there already.
        for past in number.saturating_sub(BLOCKS - 2).max(1)..=number {
            let found = block(HEAD_BLOCK + 1 + past % BLOCKS);
            if found != filled(past) {
                let found = number_in(&found, 0);
                return Err(format!("its memory has come to {number} and its disk has {found} for {past}"));
            }
        }
        match number_in(&block(HEAD_BLOCK), 0) {
            disk if disk == number => Ok(number),
            disk => Err(format!("its memory has come to {number} and its disk to {disk}")),
        }
    }

    /// The same, and the devices agree: asked before a restored guest runs for the first time.
    pub fn check_restored(&self) -> Result<(), String> {
        let number = self.check()?;
        match &self.restored {
            Some(devices) if !*self.greeted.borrow() && devices.number != number => {
                Err(format!("its memory has come to {number} and its devices to {}", devices.number))
            }
            _ => Ok(()),
        }
    }
}

fn filled(number: u64) -> Box<[u8]> {
    number.to_le_bytes().repeat(PAGE / 8).into_boxed_slice()
}

fn number_in(page: &[u8], at: usize) -> u64 {
    page[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

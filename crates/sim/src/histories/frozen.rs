//! The files as a killed daemon left them, out of the reach of whatever is still done when its tasks are dropped.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{server::database_dir, world::World};

/// What the database consists of: what it is, and its log. The index of the log is made anew when nobody has it open.
const DATABASE: &str = "state.db";
const DATABASE_LOG: &str = "state.db-wal";

/// Files that were set aside.
pub struct Frozen {
    away: PathBuf,
    life: u32,
    database: Option<Vec<u8>>,
    log: Option<Vec<u8>>,
    full: bool,
}

impl Frozen {
    /// Sets them aside.
    pub fn take(world: &World, away: PathBuf, life: u32) -> io::Result<Self> {
        // Not a fault: room is needed to put everything back, and is gone again afterwards.
        let full = world.disk_is_full();
        if full {
            std::fs::remove_file(&world.filler)?;
        }
        std::fs::rename(&world.data, &away)?;
        let dir = database_dir(&away, life);
        // A thread of the database may be writing. It changes the database itself only to what is in the log, so the two go
        // together if the log has not changed meanwhile.
        let (mut log, mut database);
        loop {
            log = read(&dir.join(DATABASE_LOG))?;
            database = read(&dir.join(DATABASE))?;
            if read(&dir.join(DATABASE_LOG))? == log {
                break;
            }
        }
        Ok(Self { away, life, database, log, full })
    }

    /// Puts them back, for the next daemon.
    pub fn put_back(self, world: &World) -> io::Result<()> {
        let data = &world.data;
        if data.exists() {
            std::fs::remove_dir_all(data)?;
        }
        std::fs::rename(&self.away, data)?;
        // Threads of the database may have the old files open still, and go on writing to them.
        std::fs::remove_dir_all(database_dir(data, self.life))?;
        let dir = database_dir(data, self.life + 1);
        std::fs::create_dir(&dir)?;
        for (name, content) in [(DATABASE, self.database), (DATABASE_LOG, self.log)] {
            if let Some(content) = content {
                std::fs::write(dir.join(name), content)?;
            }
        }
        if self.full {
            world.refill();
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

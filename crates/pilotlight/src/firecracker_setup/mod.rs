//! `pilotlight setup firecracker`: an official Firecracker release, checked, in place for KVM machines.
//!
//! What counts is under the program's name, and one rename puts it there, after everything was checked. The archive is
//! downloaded into a file without a name, which nothing can leave behind. The unpacked program needs a name, because it
//! is run to say its version: a killed run leaves `firecracker.new`, which nothing uses and the next run replaces.

mod checksum;
mod fetch;
mod program;
mod release;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
mod unpack;

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, BufWriter, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use self::{
    checksum::{Digest, Summed},
    fetch::Client,
    release::Release,
};
use crate::{
    cli::{AssetArguments, DataArguments, FirecrackerArguments},
    config::Config,
};

pub use self::release::{DEFAULT, RELEASES, Version};

/// The release archive has 7.5 MB (v1.16.1, x86_64); one with its debug information unstripped has ten times that.
const ARCHIVE_BYTES_MAX: u64 = 128 << 20;

/// The checksum file is one line of about a hundred bytes.
const CHECKSUM_BYTES_MAX: u64 = 4096;

/// How long is waited, and for what.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a server that says nothing, at any point.
    quiet: Duration,
    /// For one file, redirects included.
    file: Duration,
    /// For the program to say its version; it takes milliseconds.
    program: Duration,
}

/// Whole files in ten minutes: an archive of 7.5 MB at 13 kB/s, slower than which nobody waits for.
const PATIENCE: Patience =
    Patience { quiet: Duration::from_secs(30), file: Duration::from_secs(600), program: Duration::from_secs(10) };

/// Everything that was asked for.
struct Setup {
    /// What to fetch.
    release: Release,
    /// Where its releases are, by a URL that `<tag>/<file>` is added to.
    from: String,
    /// The directory the program goes into.
    into: PathBuf,
    /// Authorities to trust in place of this machine's.
    ca: Option<PathBuf>,
    /// How long to wait.
    patience: Patience,
}

/// Fetches, checks and installs what the arguments say, telling about it on standard output.
pub fn run(arguments: &FirecrackerArguments) -> anyhow::Result<()> {
    let mut config = Config::load_data(&DataArguments { config: arguments.config.clone(), data_dir: None })?;
    config.use_assets(&AssetArguments { assets_dir: arguments.assets_dir.clone(), initramfs: None });
    let usual = std::path::absolute(config.assets_dir.join("firecracker")).context("assets_dir")?;
    let into = arguments.into.as_ref().map(std::path::absolute).transpose().context("--into")?;
    let setup = Setup {
        release: Release::for_this_machine(arguments.version)?,
        from: arguments.from.clone(),
        into: into.unwrap_or_else(|| usual.clone()),
        ca: arguments.ca.clone(),
        patience: PATIENCE,
    };
    setup.run(&mut |line| println!("{line}"))?;
    if setup.into == usual {
        println!("KVM machines will use it from the next `pilotlight serve`");
    } else {
        println!("`pilotlight serve` looks in {}, unless it is told otherwise", usual.display());
    }
    Ok(())
}

impl Setup {
    fn run(&self, say: &mut dyn FnMut(String)) -> anyhow::Result<()> {
        let Self { release, into, .. } = self;
        // Before anything is touched: its settings may be refused.
        let client = Client::new(&self.from, self.ca.as_deref(), self.patience)?;
        fs::create_dir_all(into).with_context(|| {
            format!("cannot make {}: run it with sudo, or name another directory with --into", into.display())
        })?;
        // Held until this returns. On the directory itself, so that there is no lock file to leave behind.
        let dir = Lock::take(into)?;
        let (program, new) = (into.join("firecracker"), into.join("firecracker.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {} of an earlier run", new.display()));
            }
            _ => {}
        }
        match program::version(&program, self.patience.program) {
            Ok(version) if version == release.version => {
                say(format!("firecracker {version} is there already: {}", program.display()));
                return Ok(());
            }
            Ok(version) => say(format!("{} is {version}; replacing it", program.display())),
            Err(error) if program.exists() => say(format!("replacing {}: {error:#}", program.display())),
            Err(_) => {}
        }
        let (archive, digest) = self.download(&client, say)?;
        say(format!("it is what was published (SHA-256 {digest})"));
        let (new, file) = Unfinished::create(new)?;
        self.unpack(archive, file)?;
        self.check_program(&new.path)?;
        new.rename(&program)?;
        dir.0.sync_all().with_context(|| format!("cannot sync {}", into.display()))?;
        say(format!("firecracker {} is at {}", release.version, program.display()));
        Ok(())
    }

    /// The release archive, whose checksum is the published one.
    fn download(&self, client: &Client, say: &mut dyn FnMut(String)) -> anyhow::Result<(File, Digest)> {
        let release = &self.release;
        let url = |name: &str| format!("{}/{}/{name}", self.from.trim_end_matches('/'), release.version);
        let mut text = Vec::new();
        let sums = url(&release.checksum_name());
        client.fetch(&sums, CHECKSUM_BYTES_MAX, &mut text)?;
        let published =
            checksum::of_one(&text, &release.archive_name()).with_context(|| format!("cannot use {sums}"))?;
        // The checksum comes from where the archive does, and whoever can replace one can replace the other. Of the
        // usual release this program knows better.
        if let Some(known) = release.known_digest() {
            ensure!(
                published == known,
                "{sums} says {published}, but the {} this program knows has {known}: do not trust that source",
                release.archive_name()
            );
        }
        let from = url(&release.archive_name());
        say(format!("fetching {from}"));
        let file = tempfile::tempfile_in(&self.into)
            .with_context(|| format!("cannot make a temporary file in {}", self.into.display()))?;
        let mut archive = Summed::new(file);
        client.fetch(&from, ARCHIVE_BYTES_MAX, &mut archive)?;
        let (mut file, digest) = archive.finish();
        ensure!(
            digest == published,
            "{from} is not what was published: its SHA-256 is {digest}, {} says {published}; it was damaged on the \
             way or tampered with, try again",
            release.checksum_name()
        );
        file.rewind().context("cannot rewind the archive")?;
        Ok((file, digest))
    }

    fn unpack(&self, archive: File, new: File) -> anyhow::Result<()> {
        let release = &self.release;
        let mut out = BufWriter::new(new);
        unpack::unpack(archive, release, &mut out)
            .and_then(|()| out.flush().map_err(Into::into))
            .with_context(|| format!("cannot unpack {}", release.archive_name()))
    }

    fn check_program(&self, new: &Path) -> anyhow::Result<()> {
        let release = &self.release;
        program::check_machine(new, release.arch).with_context(|| format!("cannot use {}", release.program_entry()))?;
        fs::set_permissions(new, Permissions::from_mode(0o755)).context("cannot make the program executable")?;
        let version = program::version(new, self.patience.program)
            .with_context(|| format!("{} does not run here", release.program_entry()))?;
        ensure!(
            version == release.version,
            "the archive of {} holds a program that says it is {version}: do not trust that source",
            release.version
        );
        Ok(())
    }
}

/// One run at a time in this directory, for as long as this lives.
struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> anyhow::Result<Self> {
        let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                bail!("another `pilotlight setup firecracker` is at work in {}: let it end first", dir.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread is just starting has the file open too for a moment.
        let _ = self.0.unlock();
    }
}

/// A file that is removed unless it becomes what it is meant to be.
struct Unfinished {
    path: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// The file, and what to write into it. That is to be closed before the file is run.
    fn create(path: PathBuf) -> anyhow::Result<(Self, File)> {
        // Not executable, and nobody else's to read, until it has been checked; new, so that no link is followed.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        Ok((Self { path, finished: false }, file))
    }

    fn rename(mut self, to: &Path) -> anyhow::Result<()> {
        let context = || format!("cannot put {} in place", to.display());
        File::open(&self.path).and_then(|file| file.sync_all()).with_context(context)?;
        fs::rename(&self.path, to).with_context(context)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // The next run does it otherwise.
            let _ = fs::remove_file(&self.path);
        }
    }
}

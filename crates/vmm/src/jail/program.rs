//! What a jailed program sees for a file system: itself, its libraries and its data, copied once, shared by all jails.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The most of a program that is looked at to find its interpreter.
const ELF_HEAD: u64 = 64 * 1024;

/// A program that can be started in a jail. Made by [`Program::qemu`] or [`Program::plain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The directory that becomes the root of its jail.
    root: PathBuf,
    /// Its path, the same in the jail as on the host.
    path: PathBuf,
}

/// The firmware QEMU loads for the machines and devices we give it, by file name, where there is one.
const FIRMWARE: [&str; 9] = [
    "bios-256k.bin",
    "bios.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "linuxboot.bin",
    "multiboot_dma.bin",
    "multiboot.bin",
    "pvh.bin",
    "efi-virtio.rom",
];

/// QEMU asks whether memory can be mapped that is not reserved. A jail has no `/proc`, but a copy of this.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// The one device that is in every jail.
pub(crate) const NULL: &str = "/dev/null";

/// Where Linux distributions keep QEMU's modules, below the directory `lib` beside the program's.
const MODULE_DIRS: [&str; 4] = ["x86_64-linux-gnu/qemu", "aarch64-linux-gnu/qemu", "qemu", "../lib64/qemu"];

impl Program {
    /// Files that are empty in the copy; a jail shows its own there.
    pub(crate) const PLACES: [&str; 7] =
        ["kernel", "initrd", "memory", "state", "out.state", "out.memory", "pager.sock"];
    /// Places for disks, by their number.
    pub(crate) const DISKS: [&str; 12] =
        ["disk0", "disk1", "disk2", "disk3", "disk4", "disk5", "disk6", "disk7", "disk8", "disk9", "disk10", "disk11"];

    /// Copies QEMU, its modules for emulation, and its firmware into a directory below `store`, unless it is there.
    /// Blocks for as long as copying some 60 MB takes.
    pub fn qemu(binary: &Path, store: &Path) -> Result<Self, ProgramError> {
        let binary = find(binary)?;
        let mut files = BTreeSet::new();
        let lib = binary.parent().and_then(Path::parent).unwrap_or(Path::new("/usr")).join("lib");
        for dir in MODULE_DIRS {
            for entry in fs::read_dir(lib.join(dir)).into_iter().flatten().flatten() {
                if entry.file_name().as_bytes().starts_with(b"accel-") {
                    files.insert(entry.path());
                }
            }
        }
        let output = Command::new(&binary).args(["-L", "help"]).stdin(Stdio::null()).output();
        let output = output.map_err(|source| ProgramError::Run { program: binary.clone(), source })?;
        for dir in String::from_utf8_lossy(&output.stdout).lines().map(str::trim).filter(|dir| dir.starts_with('/')) {
            files.extend(FIRMWARE.iter().map(|name| normal(&Path::new(dir).join(name))).filter(|path| path.is_file()));
        }
        Self::install(binary, files, store)
    }

    /// Copies Firecracker, the pager, or another program that needs nothing but its libraries.
    pub fn plain(binary: &Path, store: &Path) -> Result<Self, ProgramError> {
        Self::install(find(binary)?, BTreeSet::new(), store)
    }

    /// Removes every copy in `store` but these: of programs that were upgraded since. VMs that run from one go on, with
    /// what they have loaded.
    pub fn sweep(store: &Path, keep: &[&Self]) {
        for entry in fs::read_dir(store).into_iter().flatten().flatten() {
            let path = entry.path();
            if keep.iter().any(|program| program.root == path) {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(%error, path = %path.display(), "an old copy of a program stays");
            }
        }
    }

    /// The directory that becomes the root of its jail.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The program's path, the same in the jail as on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For tests that start nothing.
    #[cfg(test)]
    pub(crate) fn pretend() -> Self {
        Self { root: "/nonexistent".into(), path: "/nonexistent/vmm".into() }
    }

    fn install(binary: PathBuf, mut files: BTreeSet<PathBuf>, store: &Path) -> Result<Self, ProgramError> {
        files.insert(binary.clone());
        for file in files.clone() {
            files.extend(libraries(&file)?);
        }
        let io = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| ProgramError::File { what, path, source }
        };
        // An upgrade changes a file's size or time, and so the name: a copy is never changed, because VMs run from it.
        let mut hasher = DefaultHasher::new();
        for file in &files {
            let found = fs::metadata(file).map_err(io("look at", file))?;
            (file, found.len(), found.mtime(), found.mtime_nsec()).hash(&mut hasher);
        }
        let overcommit = fs::read(OVERCOMMIT).map_err(io("read", Path::new(OVERCOMMIT)))?;
        (Self::PLACES, Self::DISKS, NULL, &overcommit).hash(&mut hasher);
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let root = store.join(format!("{name}-{:016x}", hasher.finish()));
        let program = Self { root: root.clone(), path: binary };
        if root.is_dir() {
            return Ok(program);
        }
        let fresh = store.join(format!(".{name}-{}-{:?}", std::process::id(), std::thread::current().id()));
        let made = (|| {
            let _ = fs::remove_dir_all(&fresh);
            fs::create_dir_all(&fresh).map_err(io("make", &fresh))?;
            for dir in ["dev", "run"] {
                fs::create_dir(fresh.join(dir)).map_err(io("make", &fresh))?;
            }
            File::create(fresh.join(NULL.trim_start_matches('/'))).map_err(io("make", &fresh))?;
            for place in Self::PLACES.iter().chain(&Self::DISKS) {
                File::create(fresh.join(place)).map_err(io("make", &fresh))?;
            }
            for file in &files {
                let to = fresh.join(file.strip_prefix("/").unwrap_or(file));
                let dir = to.parent().expect("a file is in a directory");
                fs::create_dir_all(dir).map_err(io("make", dir))?;
                fs::copy(file, &to).map_err(io("copy", file))?;
            }
            let to = fresh.join(OVERCOMMIT.trim_start_matches('/'));
            let dir = to.parent().expect("a file is in a directory");
            fs::create_dir_all(dir).and_then(|()| fs::write(&to, &overcommit)).map_err(io("write", &to))?;
            open_to_all(&fresh).map_err(io("set the rights of", &fresh))?;
            match fs::rename(&fresh, &root) {
                // Another one was first; it copied the same.
                Err(_) if root.is_dir() => Ok(()),
                result => result.map_err(io("put in place", &root)),
            }
        })();
        let _ = fs::remove_dir_all(&fresh);
        made.map(|()| program)
    }
}

/// Directories and programs `r-x`, other files `r--`, for everybody: jailed users are many, and none may write.
fn open_to_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_to_all(&entry.path())?;
        } else {
            let mode = if entry.metadata()?.mode() & 0o111 == 0 { 0o444 } else { 0o555 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// The program's absolute path: as it is, or from PATH if it is only a name.
fn find(binary: &Path) -> Result<PathBuf, ProgramError> {
    let found = if binary.components().count() == 1 && !binary.is_absolute() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(binary)).find(|path| path.is_file())
    } else {
        std::path::absolute(binary).ok().filter(|path| path.is_file())
    };
    found.ok_or_else(|| ProgramError::Missing { program: binary.to_owned() })
}

/// What a program or library is linked to, its interpreter included: nothing for a static one.
fn libraries(file: &Path) -> Result<Vec<PathBuf>, ProgramError> {
    let run = |source| ProgramError::Run { program: file.to_owned(), source };
    let head = || -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        File::open(file)?.take(ELF_HEAD).read_to_end(&mut head)?;
        Ok(head)
    };
    let head = head().map_err(run)?;
    if !head.starts_with(b"\x7fELF") {
        return Ok(Vec::new());
    }
    // A library has no interpreter of its own; what loads our programs can tell of it.
    let interpreter = interpreter(&head).or_else(|| {
        let own = fs::read("/proc/self/exe").ok()?;
        interpreter(&own).filter(|_| is_shared(&head))
    });
    let Some(interpreter) = interpreter else { return Ok(Vec::new()) };
    let output = Command::new(&interpreter).arg("--list").arg(file).stdin(Stdio::null()).output().map_err(run)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
        return Err(ProgramError::Libraries { program: file.to_owned(), words });
    }
    let mut found = vec![interpreter];
    found.extend(listed(&String::from_utf8_lossy(&output.stdout)));
    Ok(found)
}

/// Paths in lines such as `libc.so.6 => /lib/libc.so.6 (0x7f…)`.
fn listed(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let path = line.rsplit_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        path.starts_with('/').then(|| normal(Path::new(path)))
    })
}

/// Without `.` and `..`: the loader's search paths are full of them.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(normal.pop()),
            std::path::Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// ELF64: a shared object, which a library and a position-independent program are.
fn is_shared(head: &[u8]) -> bool {
    u16_at(head, 16) == Some(3)
}

/// The contents of an ELF64 program's `PT_INTERP`.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    let (table, size, count) = (u64_at(head, 32)?, u16_at(head, 54)?, u16_at(head, 56)?);
    (0..u64::from(count)).find_map(|index| {
        let at = usize::try_from(table + index * u64::from(size)).ok()?;
        let kind = u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?);
        if kind != PT_INTERP {
            return None;
        }
        let (offset, length) = (u64_at(head, at + 8)? as usize, u64_at(head, at + 32)? as usize);
        let text = head.get(offset..offset.checked_add(length)?)?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(text.strip_suffix(b"\0").unwrap_or(text))))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Why a program cannot be started in a jail.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there.
    #[error("there is no program {}", program.display())]
    Missing {
        /// Its path or name.
        program: PathBuf,
    },
    /// It could not be read or run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What it is linked to is not known.
    #[error("the libraries of {} are not known: {words}", program.display())]
    Libraries {
        /// The program or library.
        program: PathBuf,
        /// The loader's words.
        words: String,
    },
    /// A file of the copy.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_everything_and_is_made_once() {
        let store = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let program = Program::plain(&own, store.path()).unwrap();
        assert!(program.root().join(own.strip_prefix("/").unwrap()).is_file());
        let mut names = Vec::new();
        let mut dirs = vec![program.root().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path())
                } else {
                    names.push(entry.file_name())
                }
            }
        }
        assert!(names.iter().any(|name| name.as_bytes().starts_with(b"libc.so")), "{names:?}");
        let inode = fs::metadata(program.root()).unwrap().ino();
        assert_eq!(Program::plain(&own, store.path()).unwrap(), program);
        assert_eq!(fs::metadata(program.root()).unwrap().ino(), inode);
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1, "nothing half-made stays");
        fs::create_dir_all(store.path().join("qemu-of-before/lib")).unwrap();
        Program::sweep(store.path(), &[&program]);
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(program.root()).unwrap().ino(), inode);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let store = tempfile::tempdir().unwrap();
        let error = Program::plain(Path::new("no-such-vmm"), store.path()).unwrap_err();
        assert!(error.to_string().contains("no-such-vmm"), "{error}");
        assert!(Program::plain(Path::new("/nonexistent/vmm"), store.path()).is_err());
    }

    #[test]
    fn the_loaders_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x2)\n\t/lib64/ld.so (0x3)\n\
                    \tlibp.so => /usr/bin/../lib/libp.so (0x4)\n\tlibq.so => not found\n";
        let found: Vec<_> = listed(text).collect();
        assert_eq!(found, [Path::new("/lib/x/libz.so.1"), Path::new("/lib64/ld.so"), Path::new("/usr/lib/libp.so")]);
    }
}

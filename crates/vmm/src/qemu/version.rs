//! Which QEMU this is.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The most output of `--version` that is read.
const MAX_OUTPUT: u64 = 4096;

/// The version a QEMU program says it has, e.g. `7.2.22`. Blocks for as long as the program runs, some ten
/// milliseconds.
pub fn qemu_version(binary: &Path) -> Result<String, VersionError> {
    let (text, success) = program_says(binary, "--version")?;
    match parse(&text) {
        Some(version) if success => Ok(version.to_owned()),
        _ => Err(VersionError::Output {
            program: binary.to_owned(),
            first_line: text.lines().next().unwrap_or("").chars().take(200).collect(),
        }),
    }
}

/// What a program prints when it is called so, as far as it matters, and whether it succeeded.
pub(crate) fn program_says(binary: &Path, argument: &str) -> Result<(String, bool), VersionError> {
    let run = |source| VersionError::Run { program: binary.to_owned(), source };
    let mut child = Command::new(binary)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(run)?;
    let mut text = Vec::new();
    let read = match child.stdout.take() {
        Some(stdout) => stdout.take(MAX_OUTPUT).read_to_end(&mut text),
        None => Ok(0),
    };
    // The pipe is closed: a program that still writes gets an error and ends.
    let status = child.wait().map_err(run)?;
    read.map_err(run)?;
    Ok((String::from_utf8_lossy(&text).into_owned(), status.success()))
}

fn parse(text: &str) -> Option<&str> {
    let after = text.split_once("QEMU emulator version ")?.1;
    let version = after.split_ascii_whitespace().next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then_some(version)
}

/// Why a program's version is not known.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The program could not be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The program is not one that can be driven.
    #[error("{} is of version {version}; supported are {supported}", program.display())]
    Unsupported {
        /// The program.
        program: PathBuf,
        /// What it says it is.
        version: String,
        /// What would do.
        supported: &'static str,
    },
    /// The program did not answer as the VMM does.
    #[error("{} does not answer as the VMM does: {first_line:?}", program.display())]
    Output {
        /// The program.
        program: PathBuf,
        /// The first line of its answer.
        first_line: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some("7.2.22"));
        assert_eq!(parse("QEMU emulator version 10.0.0\n"), Some("10.0.0"));
        assert_eq!(parse("busybox"), None);
        assert!(matches!(qemu_version(Path::new("/bin/true")), Err(VersionError::Output { .. })));
        assert!(matches!(qemu_version(Path::new("/nonexistent")), Err(VersionError::Run { .. })));
    }
}

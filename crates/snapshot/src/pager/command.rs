//! The command line of `pilotlight-pager`, and what it means.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::serve::{Pager, PagerError, Served};
use super::touched::{TouchedError, read_touched};
use crate::sys;

/// How long a VMM may take from the start of its pager to its word, unless said otherwise. Starting one takes well below
/// a second; a busy host may take many times that.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// What a command line says. Every descriptor is inherited: the pager lives where there are no files to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// A listening unix socket.
    pub listen: RawFd,
    /// The memory file of the version, readable.
    pub base: RawFd,
    /// The layer, readable.
    pub layer: Option<RawFd>,
    /// A list of touched pages, readable.
    pub prefetch: Option<RawFd>,
    /// Where the list of touched pages goes, writable.
    pub record: Option<RawFd>,
    /// Size of the memory in bytes.
    pub memory_bytes: u64,
    /// How long the VMM may take to say what its memory is.
    pub patience: Duration,
}

impl Arguments {
    /// Reads the arguments that follow the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        const NAMES: [&str; 7] = [
            "--listen-fd",
            "--base-fd",
            "--layer-fd",
            "--prefetch-fd",
            "--record-fd",
            "--memory-bytes",
            "--handshake-seconds",
        ];
        let mut values = [None::<u64>; NAMES.len()];
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = argument.to_string_lossy().into_owned();
            let Some(index) = NAMES.iter().position(|name| *name == argument) else {
                return Err(UsageError::Unknown { argument });
            };
            let name = NAMES[index];
            let value = arguments.next().ok_or(UsageError::NoValue { name })?.to_string_lossy().into_owned();
            let number = value.parse().map_err(|source| UsageError::Number { name, value, source })?;
            if values[index].replace(number).is_some() {
                return Err(UsageError::Twice { name });
            }
        }
        let mut taken: Vec<RawFd> = Vec::new();
        let mut descriptor = |index: usize| {
            let Some(number) = values[index] else { return Ok(None) };
            // 0, 1 and 2 are not the parent's to give away like this: messages go to 2.
            let fd = RawFd::try_from(number).ok().filter(|fd| *fd > 2 && !taken.contains(fd));
            let fd = fd.ok_or(UsageError::Descriptor { name: NAMES[index], number })?;
            taken.push(fd);
            Ok(Some(fd))
        };
        let missing = |index: usize| UsageError::Missing { name: NAMES[index] };
        Ok(Self {
            listen: descriptor(0)?.ok_or(missing(0))?,
            base: descriptor(1)?.ok_or(missing(1))?,
            layer: descriptor(2)?,
            prefetch: descriptor(3)?,
            record: descriptor(4)?,
            memory_bytes: values[5].ok_or(missing(5))?,
            patience: values[6].map_or(DEFAULT_PATIENCE, Duration::from_secs),
        })
    }

    /// Takes the descriptors over and serves the VM until it ends, or SIGTERM or SIGINT comes. To be called once, by a
    /// program that has opened nothing and started no thread. A list of touched pages that cannot be used is complained
    /// about and done without: a hint must not cost a VM.
    pub fn run(self, complain: impl FnOnce(&TouchedError)) -> Result<Served, CommandError> {
        let take =
            |name, number| sys::inherited(number).map_err(|source| CommandError::Inherit { name, number, source });
        let file = |name, number: Option<RawFd>| number.map(|number| take(name, number).map(File::from)).transpose();
        let listener = take("--listen-fd", self.listen)?;
        let base = take("--base-fd", self.base)?.into();
        let layer = file("--layer-fd", self.layer)?;
        let record = file("--record-fd", self.record)?;
        let prefetch = match file("--prefetch-fd", self.prefetch)? {
            Some(list) => read_touched(&list, self.memory_bytes).unwrap_or_else(|error| {
                complain(&error);
                Vec::new()
            }),
            None => Vec::new(),
        };
        let stop = Some(sys::termination().map_err(CommandError::Signals)?);
        let (memory_bytes, patience) = (self.memory_bytes, self.patience);
        Ok(Pager { listener, stop, base, layer, memory_bytes, prefetch, record, patience }.serve()?)
    }
}

/// What is wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// There is no such argument.
    #[error("{argument:?} is no argument of pilotlight-pager")]
    Unknown {
        /// The argument.
        argument: String,
    },
    /// An argument that must be there is not.
    #[error("{name} is missing")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// An argument is there more than once.
    #[error("{name} is there twice")]
    Twice {
        /// Its name.
        name: &'static str,
    },
    /// An argument has no value.
    #[error("{name} has no value")]
    NoValue {
        /// Its name.
        name: &'static str,
    },
    /// A value is no number.
    #[error("{name} is {value:?}, which is no number")]
    Number {
        /// Its name.
        name: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        #[source]
        source: std::num::ParseIntError,
    },
    /// A value is no descriptor that can be inherited, or two are the same.
    #[error("{name} is {number}, which is no descriptor above 2 or that of another argument")]
    Descriptor {
        /// Its name.
        name: &'static str,
        /// The value.
        number: u64,
    },
}

/// Why a pager failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command line is wrong.
    #[error("the command line cannot be understood")]
    Usage(#[from] UsageError),
    /// A descriptor was not inherited.
    #[error("{name} {number} was not inherited")]
    Inherit {
        /// The argument.
        name: &'static str,
        /// The descriptor.
        number: RawFd,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Signals could not be set up.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// Serving failed.
    #[error("the pager failed")]
    Serve(#[from] PagerError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, UsageError> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_whole_line_is_understood() {
        let least = parse("--listen-fd 3 --base-fd 4 --memory-bytes 4096").unwrap();
        assert_eq!((least.listen, least.base, least.layer, least.memory_bytes), (3, 4, None, 4096));
        assert_eq!(least.patience, DEFAULT_PATIENCE);
        let all = "--memory-bytes 8192 --layer-fd 5 --prefetch-fd 6 --record-fd 7 --listen-fd 3 --base-fd 4 \
                   --handshake-seconds 2";
        let all = parse(all).unwrap();
        assert_eq!((all.layer, all.prefetch, all.record), (Some(5), Some(6), Some(7)));
        assert_eq!(all.patience, Duration::from_secs(2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, message) in [
            ("--base-fd 4 --memory-bytes 4096", "--listen-fd is missing"),
            ("--listen-fd 3 --memory-bytes 4096", "--base-fd is missing"),
            ("--listen-fd 3 --base-fd 4", "--memory-bytes is missing"),
            ("--listen-fd 3 --base-fd", "--base-fd has no value"),
            ("--listen-fd 3 --listen-fd 3", "--listen-fd is there twice"),
            ("--listen-fd three", "--listen-fd is \"three\", which is no number"),
            ("--base 4", "\"--base\" is no argument of pilotlight-pager"),
            ("--listen-fd 2", "--listen-fd is 2, which is no descriptor above 2 or that of another argument"),
            ("--listen-fd 3 --base-fd 3", "--base-fd is 3, which is no descriptor above 2 or that of another argument"),
            (
                "--listen-fd 99999999999",
                "--listen-fd is 99999999999, which is no descriptor above 2 or that of another argument",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), message, "{line}");
        }
    }
}

//! The serial console: the only way to say something when the boot fails.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

static CONSOLE: OnceLock<File> = OnceLock::new();

/// Opens the console once `/dev` is there; until then [`say`] writes to what the kernel opened for PID 1.
pub(crate) fn open() {
    if let Ok(console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = CONSOLE.set(console);
    }
}

/// Prints one line. A console that cannot be written to is not a reason to stop.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    let _ = match CONSOLE.get() {
        Some(mut console) => console.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::boot::BootError;

    #[test]
    fn chain_names_every_cause_once() {
        let error = BootError::Limit(std::io::Error::other("not permitted"));
        assert_eq!(super::chain(&error), "cannot raise the limit on open files: not permitted");
    }
}

//! Which Firecracker this is.

use std::path::Path;

use crate::qemu::{VersionError, program_says};

/// The oldest that is driven: the first that takes another network device at a load.
const OLDEST: (u32, u32) = (1, 12);

/// The version a Firecracker program says it has, e.g. `1.16.1`. Blocks for as long as the program runs, some ten
/// milliseconds.
pub fn firecracker_version(binary: &Path) -> Result<String, VersionError> {
    let (text, success) = program_says(binary, "--version")?;
    let first_line: String = text.lines().next().unwrap_or("").chars().take(200).collect();
    let version = first_line.strip_prefix("Firecracker v").filter(|_| success);
    match version.and_then(|version| Some((version, parse(version)?))) {
        None => Err(VersionError::Output { program: binary.to_owned(), first_line }),
        Some((version, (1, minor))) if (1, minor) >= OLDEST => Ok(version.to_owned()),
        Some((version, _)) => Err(VersionError::Unsupported {
            program: binary.to_owned(),
            version: version.to_owned(),
            supported: "1.12 and later, below 2.0",
        }),
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let says = |text: &str| {
            let path = dir.path().join("firecracker");
            let fresh = dir.path().join("fresh");
            fs::write(&fresh, format!("#!/bin/sh\nprintf '{text}'\n")).unwrap();
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(&fresh, &path).unwrap();
            firecracker_version(&path)
        };
        assert_eq!(says("Firecracker v1.17.0-dev\\n\\n2026 exiting\\n").unwrap(), "1.17.0-dev");
        assert_eq!(says("Firecracker v1.12.0\\n").unwrap(), "1.12.0");
        for old in ["Firecracker v1.11.9\\n", "Firecracker v0.25.0\\n", "Firecracker v2.0.0\\n"] {
            let error = says(old).unwrap_err();
            assert!(error.to_string().contains("1.12"), "{error}");
        }
        assert!(matches!(says("something else\\n"), Err(VersionError::Output { .. })));
        assert!(firecracker_version(Path::new("/nonexistent")).is_err());
    }
}

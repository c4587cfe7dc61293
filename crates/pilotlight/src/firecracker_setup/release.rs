//! Which Firecracker: its version, and what the files of a release are called.

use std::{fmt, str::FromStr};

use anyhow::{bail, ensure};

use super::checksum::Digest;

/// Where the project publishes its releases, as `<tag>/<file>` below it.
pub const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases/download";

/// The newest release of Firecracker's CHANGELOG.md (and docs/RELEASE_POLICY.md) when this was written; published on
/// 2026-07-02.
pub const DEFAULT: Version = Version { major: 1, minor: 16, patch: 1 };

/// SHA-256 of the archives of [`DEFAULT`], as published beside them and recorded by many projects that fetch them.
/// To be replaced together with it.
const DEFAULT_DIGESTS: [(&str, &str); 2] = [
    ("x86_64", "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6"),
    ("aarch64", "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e"),
];

/// The first whose `PUT /snapshot/load` takes `network_overrides` (its CHANGELOG, 1.12.0, #4731): every microVM is
/// restored from its image's snapshot onto a tap of its own. The other things needed are older: page faults served over
/// userfaultfd (`mem_backend`, 1.1.0), the entropy device (1.4.0), VMGenID (1.8.0).
const OLDEST: Version = Version { major: 1, minor: 12, patch: 0 };

/// Its API follows semantic versioning (docs/RELEASE_POLICY.md, "API support"): what is right for 1.12 is right for any
/// later 1.x, and a 2.0 may break it.
const TOO_NEW: Version = Version { major: 2, minor: 0, patch: 0 };

/// A version as Firecracker's tags have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when the API breaks.
    pub major: u16,
    /// Changes when it grows.
    pub minor: u16,
    /// Changes when something is put right.
    pub patch: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| part.parse().ok().filter(|_| part.bytes().all(|byte| byte.is_ascii_digit()));
        let parts: Option<Vec<u16>> =
            text.strip_prefix('v').and_then(|numbers| numbers.split('.').take(4).map(number).collect());
        // It becomes part of a URL and of file names: what does not print as it was written is refused, such as v1.07.0.
        match parts.as_deref() {
            Some(&[major, minor, patch]) => Some(Self { major, minor, patch }).filter(|v| v.to_string() == text),
            _ => None,
        }
        .ok_or_else(|| format!("not a version such as {DEFAULT}"))
    }
}

/// A release for one kind of machine.
#[derive(Debug, Clone, Copy)]
pub struct Release {
    /// Its version.
    pub version: Version,
    /// As `uname -m` says it.
    pub arch: &'static str,
}

impl Release {
    /// A release that this program can use on this machine.
    pub fn for_this_machine(version: Version) -> anyhow::Result<Self> {
        ensure!(
            (OLDEST..TOO_NEW).contains(&version),
            "--version {version} cannot be used: Pilotlight needs {OLDEST} or later, and below {TOO_NEW}"
        );
        let arch = std::env::consts::ARCH;
        if !DEFAULT_DIGESTS.iter().any(|(known, _)| *known == arch) {
            bail!("Firecracker is released for x86_64 and aarch64, and this machine is {arch}: it runs QEMU instead");
        }
        Ok(Self { version, arch })
    }

    fn suffix(&self) -> String {
        format!("{}-{}", self.version, self.arch)
    }

    /// The archive.
    pub fn archive_name(&self) -> String {
        format!("firecracker-{}.tgz", self.suffix())
    }

    /// The file beside the archive that has its checksum.
    pub fn checksum_name(&self) -> String {
        format!("{}.sha256.txt", self.archive_name())
    }

    /// The program's own name.
    pub fn program_name(&self) -> String {
        format!("firecracker-{}", self.suffix())
    }

    /// The program in the archive.
    pub fn program_entry(&self) -> String {
        format!("release-{}/{}", self.suffix(), self.program_name())
    }

    /// The checksums of the archive's files, in the archive.
    pub fn sums_entry(&self) -> String {
        format!("release-{}/SHA256SUMS", self.suffix())
    }

    /// The archive's checksum, where this program knows it.
    pub fn known_digest(&self) -> Option<Digest> {
        let (_, hex) = DEFAULT_DIGESTS.iter().find(|(arch, _)| *arch == self.arch && self.version == DEFAULT)?;
        Digest::from_hex(hex.as_bytes())
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn versions_are_read_strictly() {
        for good in ["v1.16.1", "v0.0.0", "v1.12.10"] {
            assert_eq!(good.parse::<Version>().expect(good).to_string(), good);
        }
        for bad in
            ["", "v", "1.16.1", "v1.16", "v1.16.1.0", "v1.16.1-dev", "v1.016.1", "v+1.16.1", "v1.16.99999", "v1/../2.3"]
        {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_is_in_the_range_and_its_archives_are_known() {
        for (arch, hex) in DEFAULT_DIGESTS {
            let digest = Release { version: DEFAULT, arch }.known_digest().expect("a digest");
            assert_eq!(digest.to_string(), hex);
            assert!(Release { version: OLDEST, arch }.known_digest().is_none());
        }
        assert!((OLDEST..TOO_NEW).contains(&DEFAULT));
    }
}

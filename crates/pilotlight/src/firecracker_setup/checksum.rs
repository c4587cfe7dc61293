//! SHA-256 sums, and the files `sha256sum` writes them to.

use std::{
    fmt,
    io::{self, Write},
};

use anyhow::{Context, bail, ensure};
use sha2::{Digest as _, Sha256};

/// A SHA-256 sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From exactly 64 hexadecimal digits.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut sum = [0; 32];
        hex::decode_to_slice(text, &mut sum).ok().map(|()| Self(sum))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Sums what is written through it.
pub struct Summed<W> {
    out: W,
    sum: Sha256,
}

impl<W: Write> Summed<W> {
    /// Writes to this.
    pub fn new(out: W) -> Self {
        Self { out, sum: Sha256::new() }
    }

    /// What was written to, and the sum.
    pub fn finish(self) -> (W, Digest) {
        (self.out, Digest(self.sum.finalize().into()))
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The sum in a file that is to have one line, for this file.
pub fn of_one(text: &[u8], name: &str) -> anyhow::Result<Digest> {
    let mut lines = lines(text)?;
    let (digest, named) = lines.next().context("it is empty")??;
    ensure!(lines.next().is_none(), "it has more than one line");
    ensure!(named == name, "it is the checksum of {named:?}, not of {name}");
    Ok(digest)
}

/// The sum of one file among those of many, all in one directory.
pub fn of_many(text: &[u8], name: &str) -> anyhow::Result<Digest> {
    let mut found = None;
    for line in lines(text)? {
        let (digest, named) = line?;
        // The release script runs `find .`, which puts a "./" before every name.
        if named.strip_prefix("./").unwrap_or(named) == name && found.replace(digest).is_some() {
            bail!("it has {name} twice");
        }
    }
    found.with_context(|| format!("it does not have {name}"))
}

fn lines(text: &[u8]) -> anyhow::Result<impl Iterator<Item = anyhow::Result<(Digest, &str)>>> {
    let text = std::str::from_utf8(text).ok().context("it is not text")?;
    Ok(text.lines().enumerate().map(|(index, line)| {
        parse(line).with_context(|| format!("line {} is not a SHA-256 sum, two spaces and a file's name", index + 1))
    }))
}

/// `<64 hexadecimal digits>  <name>`; a `*` for the second space says that the file was read as binary, which is the
/// same here.
fn parse(line: &str) -> Option<(Digest, &str)> {
    let (digits, rest) = line.split_at_checked(64)?;
    let name = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *"))?;
    let plain = !name.is_empty() && !name.contains(|c: char| c.is_control() || c.is_whitespace());
    Digest::from_hex(digits.as_bytes()).filter(|_| plain).map(|digest| (digest, name))
}

#[cfg(test)]
mod unit {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn one_line_for_the_right_file() {
        for good in [format!("{A}  x.tgz\n"), format!("{A}  x.tgz"), format!("{A} *x.tgz\n")] {
            assert_eq!(of_one(good.as_bytes(), "x.tgz").expect(&good).to_string(), A);
        }
        for bad in [
            String::new(),
            "\n".to_owned(),
            A.to_owned(),
            format!("{A} x.tgz"),
            format!("{A}x.tgz"),
            format!("{A}  y.tgz"),
            format!("{A}   x.tgz"),
            format!("{A}  ../x.tgz"),
            format!("{A}  x.tgz\n{B}  x.tgz\n"),
            format!("{}  x.tgz", &A[1..]),
            format!("{A}a  x.tgz"),
            format!("g{}  x.tgz", &A[1..]),
            format!("\\{A}  x.tgz"),
            format!("{}é  x.tgz", &A[1..]),
        ] {
            assert!(of_one(bad.as_bytes(), "x.tgz").is_err(), "{bad:?}");
        }
        assert!(of_one(b"\xff\xfe", "x.tgz").is_err());
    }

    #[test]
    fn one_line_of_many() {
        let text = format!("{A}  ./a\n{B}  ./b\n");
        assert_eq!(of_many(text.as_bytes(), "b").expect("there").to_string(), B);
        assert!(of_many(text.as_bytes(), "c").is_err());
        assert!(of_many(format!("{A}  ./b\n{B}  b\n").as_bytes(), "b").is_err());
        assert!(of_many(format!("{B}  ./b\nand more\n").as_bytes(), "b").is_err());
    }
}

//! A release archive as Firecracker's tools/release.sh and tools/gh_release.py make them, around a program of a few
//! machine instructions.

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub const X86_64: u16 = 62;
pub const AARCH64: u16 = 183;

/// write(1, text, length), then exit(0): x86-64 Linux system calls 1 and 60.
pub fn saying(text: &str) -> Vec<u8> {
    let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0]; // mov eax, 1; mov edi, 1
    code.extend([0x48, 0x8d, 0x35, 16, 0, 0, 0]); // lea rsi, [rip + 16]: past the 16 bytes of code that follow
    code.push(0xba); // mov edx, length
    code.extend(u32::try_from(text.len()).expect("short").to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]); // mov eax, 60; xor edi, edi; syscall
    code.extend(text.as_bytes());
    elf(X86_64, &code)
}

/// pause(): system call 34, which only a signal ends.
pub fn hanging() -> Vec<u8> {
    elf(X86_64, &[0xb8, 34, 0, 0, 0, 0x0f, 0x05])
}

/// A static program: the ELF header, one segment that is the whole file, and code.
pub fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    const LOADED_AT: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let bytes = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0]); // a program
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for number in [LOADED_AT + HEADERS, 64, 0] {
        file.extend(number.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend(0u32.to_le_bytes());
    for number in [64u16, 56, 1, 0, 0, 0] {
        file.extend(number.to_le_bytes()); // sizes and counts of the headers
    }
    file.extend(1u32.to_le_bytes()); // to be loaded
    file.extend(5u32.to_le_bytes()); // to be read and executed
    for number in [0, LOADED_AT, LOADED_AT, bytes, bytes, 0x1000] {
        file.extend(number.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    file.extend(code);
    file
}

pub fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// An archive in the making.
pub struct Pack(Builder<GzEncoder<Vec<u8>>>);

impl Pack {
    pub fn new() -> Self {
        Self(Builder::new(GzEncoder::new(Vec::new(), Compression::fast())))
    }

    /// A regular file of any name: the library would refuse the bad ones.
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, "", content)
    }

    pub fn entry(mut self, name: &str, kind: EntryType, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).expect("an entry");
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("an archive").finish().expect("compressed")
    }
}

/// The archive of a release with this program, as it is published.
pub fn release(version: &str, program: &[u8]) -> Vec<u8> {
    let name = format!("firecracker-{version}-x86_64");
    let sums = format!("{}  ./LICENSE\n{}  ./{name}\n", sum(b"Apache"), sum(program));
    let dir = format!("release-{version}-x86_64");
    // Python's tarfile writes an extended header where a time has a fraction.
    Pack::new()
        .file(&format!("{dir}/LICENSE"), b"Apache")
        .file(&format!("{dir}/jailer-{version}-x86_64"), &saying("Jailer v0.0.0\n"))
        .entry("././@PaxHeader", EntryType::XHeader, "", b"20 mtime=1700000.25\n")
        .file(&format!("{dir}/{name}"), program)
        .file(&format!("{dir}/{name}.debug"), &vec![7; 100_000])
        .file(&format!("{dir}/SHA256SUMS"), sums.as_bytes())
        .finish()
}

//! Hostile and ordinary archives.

use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;
use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

const LIMITS: ArchiveLimits = ArchiveLimits { entries: 100, bytes: 1 << 20 };

/// One member to put in: its name, Unix mode and bytes.
type Put<'a> = (&'a str, u32, &'a [u8]);

const DOCKERFILE: Put<'static> = ("Dockerfile", 0o100_644, b"FROM scratch\n");

/// The bytes of a zip. The modes' type bits, which the writer has no say in, are patched into the central directory.
fn zip(members: &[Put<'_>]) -> Vec<u8> {
    let mut bytes = io::Cursor::new(Vec::new());
    let mut writer = ZipWriter::new(&mut bytes);
    for (name, mode, content) in members {
        let options =
            SimpleFileOptions::default().unix_permissions(*mode).compression_method(CompressionMethod::Deflated);
        writer.start_file(*name, options).expect("a member");
        writer.write_all(content).expect("its bytes");
    }
    writer.finish().expect("a zip");
    let mut bytes = bytes.into_inner();
    let mut at = 0;
    for (_, mode, _) in members {
        at += bytes[at..].windows(4).position(|four| four == b"PK\x01\x02").expect("a central header");
        bytes[at + 38..at + 42].copy_from_slice(&(mode << 16).to_le_bytes());
        at += 4;
    }
    bytes
}

fn unpacked(bytes: &[u8]) -> (TempDir, Result<(), ArchiveError>) {
    let dir = tempfile::tempdir().expect("a directory");
    let archive = dir.path().join("a.zip");
    std::fs::write(&archive, bytes).expect("written");
    let result = unpack(&archive, &dir.path().join("tree"), LIMITS, &CancellationToken::new());
    (dir, result)
}

fn refusal(members: &[Put<'_>]) -> MemberError {
    let (dir, result) = unpacked(&zip(members));
    let outside: Vec<_> =
        std::fs::read_dir(dir.path()).expect("listed").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(outside.len(), 2, "only the archive and the tree: {outside:?}");
    match result {
        Err(ArchiveError::Member { source, .. }) => source,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_ordinary_archive() {
    let (dir, result) = unpacked(&zip(&[
        DOCKERFILE,
        ("app/", 0o040_755, b""),
        ("app/run.sh", 0o100_755, b"#!/bin/sh\n"),
        ("deep/er/file", 0o106_711, b"x"),
        ("app/link", 0o120_777, b"../deep/er"),
    ]));
    result.expect("unpacked");
    let tree = dir.path().join("tree");
    let mode = |path: &str| tree.join(path).symlink_metadata().expect(path).permissions().mode() & 0o7777;
    assert_eq!(mode("app/run.sh"), 0o755);
    assert_eq!(mode("Dockerfile"), 0o644);
    // Set-user-id and set-group-id are dropped.
    assert_eq!(mode("deep/er/file"), 0o711);
    assert_eq!(std::fs::read(tree.join("app/link/file")).expect("through the link"), b"x");
}

#[test]
fn zip_slips() {
    assert_eq!(refusal(&[DOCKERFILE, ("../../etc/passwd", 0o100_644, b"x")]), MemberError::Leaves);
    assert_eq!(refusal(&[DOCKERFILE, ("a/../../x", 0o100_644, b"x")]), MemberError::Leaves);
    assert_eq!(refusal(&[DOCKERFILE, ("/tmp/x", 0o100_644, b"x")]), MemberError::Absolute);
    assert_eq!(refusal(&[DOCKERFILE, ("..\\x", 0o100_644, b"x")]), MemberError::Backslash);
}

#[test]
fn links_that_lead_out() {
    for target in ["/etc", "..", "../..", "a/../.."] {
        let refused = refusal(&[DOCKERFILE, ("l", 0o120_777, target.as_bytes())]);
        assert_eq!(refused, MemberError::LinkLeaves { target: target.to_owned() });
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let through = refusal(&[DOCKERFILE, ("d/f", 0o100_644, b""), ("l", 0o120_777, b"d"), ("l/x", 0o100_644, b"x")]);
    assert_eq!(through, MemberError::Twice);
    // And a link that someone else put into the tree is refused by the kernel.
    let dir = tempfile::tempdir().expect("a directory");
    let mut tree = Tree::make(&dir.path().join("tree"), LIMITS.entries).expect("a tree");
    symlink("/", dir.path().join("tree/out")).expect("a link");
    let member = Member::parse("out/tmp/x").expect("a name");
    tree.directories.extend(["out".into(), "out/tmp".into()]);
    assert_eq!(tree.file(&member, None).expect_err("refused"), Errno::LOOP);
}

#[test]
fn special_and_repeated_members() {
    assert_eq!(refusal(&[DOCKERFILE, ("dev", 0o020_666, b"")]), MemberError::Special);
    assert_eq!(refusal(&[DOCKERFILE, ("pipe", 0o010_666, b"")]), MemberError::Special);
    assert_eq!(refusal(&[DOCKERFILE, ("a", 0o100_644, b""), ("./a", 0o100_644, b"")]), MemberError::Twice);
    assert_eq!(refusal(&[DOCKERFILE, ("a", 0o100_644, b""), ("a/b", 0o100_644, b"")]), MemberError::Twice);
    // The very same name twice: the writer refuses to make it, so one is renamed in the bytes.
    let mut bytes = zip(&[DOCKERFILE, ("aaaa", 0o100_644, b"1"), ("bbbb", 0o100_644, b"2")]);
    while let Some(at) = bytes.windows(4).position(|four| four == b"bbbb") {
        bytes[at..at + 4].copy_from_slice(b"aaaa");
    }
    assert!(matches!(unpacked(&bytes).1, Err(ArchiveError::Repeats)));
}

#[test]
fn bombs() {
    let zeros = vec![0; 2 << 20];
    let bytes = zip(&[DOCKERFILE, ("zeros", 0o100_644, &zeros)]);
    assert!(bytes.len() < 10_000);
    let (dir, result) = unpacked(&bytes);
    assert!(matches!(result, Err(ArchiveError::TooLarge { .. })));
    assert!(!dir.path().join("tree").exists(), "it was refused before anything was written");

    // Headers that promise less do not help.
    let mut lying = bytes;
    let size = u32::try_from(zeros.len()).expect("small").to_le_bytes();
    while let Some(at) = lying.windows(4).position(|four| four == size) {
        lying[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
    }
    let (dir, result) = unpacked(&lying);
    assert!(result.is_err());
    assert!(std::fs::metadata(dir.path().join("tree/zeros")).map_or(0, |meta| meta.len()) <= LIMITS.bytes);

    let names: Vec<String> = (0..101).map(|n| format!("f{n}")).collect();
    let many: Vec<Put<'_>> = names.iter().map(|name| (name.as_str(), 0o100_644, &b""[..])).collect();
    assert!(matches!(unpacked(&zip(&many)).1, Err(ArchiveError::TooMany { entries: 101, max: 100 })));
}

#[test]
fn directories_count_too() {
    let deep: Vec<String> = (0..3).map(|n| format!("{n}/").repeat(40) + "f").collect();
    let members: Vec<Put<'_>> = deep.iter().map(|name| (name.as_str(), 0o100_644, &b""[..])).collect();
    assert!(matches!(unpacked(&zip(&members)).1, Err(ArchiveError::TooMany { entries: 101, max: 100 })));
}

#[test]
fn what_is_no_archive() {
    assert!(matches!(unpacked(b"").1, Err(ArchiveError::NoEnd)));
    assert!(matches!(unpacked(b"hello").1, Err(ArchiveError::NoEnd)));
    let whole = zip(&[DOCKERFILE]);
    assert!(unpacked(&whole[..whole.len() - 1]).1.is_err());
    assert!(unpacked(&whole[10..]).1.is_err());
}

#[test]
fn the_dockerfile_is_a_file_at_the_root() {
    for members in [
        &[("app/Dockerfile", 0o100_644, &b"x"[..])][..],
        &[("Dockerfile/", 0o040_755, b"")],
        &[("f", 0o100_644, b"x"), ("Dockerfile", 0o120_777, b"f")],
    ] {
        assert!(matches!(unpacked(&zip(members)).1, Err(ArchiveError::NoDockerfile)), "{members:?}");
    }
}

#[test]
fn a_cancelled_unpacking_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let archive = dir.path().join("a.zip");
    std::fs::write(&archive, zip(&[DOCKERFILE])).expect("written");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let result = unpack(&archive, &dir.path().join("tree"), LIMITS, &cancel);
    assert!(matches!(result, Err(ArchiveError::Cancelled)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the names and modes, only the archive and the tree are in the directory afterwards, and a canary beside
    /// them is untouched.
    #[test]
    fn nothing_leaves_the_tree(
        members in prop::collection::btree_map("(\\.\\./|a/|b/|/){0,3}[abc.]{1,3}", prop_oneof![
            "[ab./]{1,6}".prop_map(|target| (0o120_777, target)),
            "[ab]{0,3}".prop_map(|content| (0o100_644, content)),
        ], 1..8),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("in")).expect("made");
        for canary in ["a", "b", "c"] {
            std::fs::write(dir.path().join(canary), "canary").expect("written");
        }
        let puts: Vec<Put<'_>> = members.iter().map(|(n, (m, c))| (n.as_str(), *m, c.as_bytes())).collect();
        let archive = dir.path().join("in/z.zip");
        std::fs::write(&archive, zip(&puts)).expect("written");
        let _ = unpack(&archive, &dir.path().join("in/tree"), LIMITS, &CancellationToken::new());
        let names = |at: &Path| std::fs::read_dir(at).expect("listed").count();
        prop_assert_eq!(names(dir.path()), 4);
        prop_assert!(names(&dir.path().join("in")) <= 2);
        for canary in ["a", "b", "c"] {
            prop_assert_eq!(std::fs::read(dir.path().join(canary)).expect("there"), b"canary");
        }
    }

    /// Any damage is an error or an unpacking, never a panic.
    #[test]
    fn damage_never_panics(at in 0usize..400, byte: u8) {
        let mut bytes = zip(&[DOCKERFILE, ("a/b", 0o100_644, b"hello"), ("l", 0o120_777, b"a")]);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = unpacked(&bytes);
    }
}

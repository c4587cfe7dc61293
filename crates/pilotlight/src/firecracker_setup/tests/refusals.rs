//! What is not installed, and that nothing of it stays.

use std::{fs, time::Duration};

use tar::EntryType;

use super::{
    Case, VERSION,
    archive::{AARCH64, Pack, elf, hanging, release, saying, sum},
    server::Reply,
};
use crate::firecracker_setup::{
    ARCHIVE_BYTES_MAX, CHECKSUM_BYTES_MAX, DEFAULT,
    release::{Release, Version},
};

const ENTRY: &str = "release-v1.15.0-x86_64/firecracker-v1.15.0-x86_64";
const SUMS: &str = "release-v1.15.0-x86_64/SHA256SUMS";

fn program() -> Vec<u8> {
    saying("Firecracker v1.15.0\n\n")
}

fn checksum_file(text: impl Into<Vec<u8>>) -> Case {
    let case = Case::good();
    case.server.put(&case.checksum(), Reply::File(text.into()));
    case
}

fn archive_reply(reply: Reply) -> Case {
    let case = Case::good();
    case.server.put(&case.archive(), reply);
    case
}

#[test]
fn what_is_not_what_was_published() {
    let name = "firecracker-v1.15.0-x86_64.tgz";
    let wrong = "0".repeat(64);
    checksum_file(format!("{wrong}  {name}\n")).fails(&["is not what was published", &wrong]);

    // One that is installed already stays.
    let case = checksum_file(format!("{wrong}  {name}\n"));
    fs::create_dir_all(&case.setup.into).expect("a directory");
    fs::write(case.program(), "the old one").expect("a file");
    let case = case.fails(&["is not what was published"]);
    assert_eq!(fs::read(case.program()).expect("there"), b"the old one");
}

#[test]
fn checksum_files_that_say_nothing() {
    let missing = Case::good();
    missing.server.put(&missing.checksum(), Reply::Status("404 Not Found"));
    let missing = missing.fails(&["sha256.txt is not there (404)", "--version"]);
    assert_eq!(missing.server.asked(), [missing.checksum()], "nothing is fetched that cannot be checked");

    checksum_file("<html>not found</html>").fails(&["cannot use http://", "line 1 is not a SHA-256 sum"]);
    checksum_file("").fails(&["it is empty"]);
    let sum = "a".repeat(64);
    checksum_file(format!("{sum}  firecracker-v1.15.0-aarch64.tgz\n")).fails(&["not of firecracker-v1.15.0-x86_64"]);
    checksum_file(vec![b'a'; 2 * 4096]).fails(&["sha256.txt has 8192 bytes, more than the 4096"]);
    let unmeasured = Case::good();
    unmeasured.server.put(&unmeasured.checksum(), Reply::Unmeasured(vec![b'a'; CHECKSUM_BYTES_MAX as usize + 1]));
    unmeasured.fails(&["sha256.txt", "more than the 4096 bytes"]);
}

#[test]
fn the_default_release_is_known_by_its_checksum() {
    let case = Case::new(&DEFAULT.to_string());
    case.publish(release(&DEFAULT.to_string(), &program()));
    let case = case.fails(&["this program knows has 382a02a8", "do not trust"]);
    assert_eq!(case.server.asked(), [case.checksum()]);
}

#[test]
fn downloads_that_do_not_end_well() {
    let whole = release(VERSION, &program());
    let half = whole.len() / 2;
    archive_reply(Reply::Truncated(whole.clone(), half)).fails(&["cannot download http://", ".tgz"]);
    // Without a length only the checksum tells.
    archive_reply(Reply::Unmeasured(whole[..half].to_vec())).fails(&["is not what was published"]);
    archive_reply(Reply::Declared(ARCHIVE_BYTES_MAX + 1)).fails(&["more than the 134217728 it may have"]);
    archive_reply(Reply::Status("503 Service Unavailable")).fails(&["answers 503"]);
    let mut quiet = archive_reply(Reply::Silence);
    quiet.setup.patience.quiet = Duration::from_millis(200);
    quiet.fails(&["cannot reach http://", "timeout"]);
    // Half a file, and then nothing: too quiet, or too long for a file.
    for (quiet, file) in [(1000, 20_000), (20_000, 1000)] {
        let mut stalled = archive_reply(Reply::Stalled(whole.clone(), half));
        stalled.setup.patience.quiet = Duration::from_millis(quiet);
        stalled.setup.patience.file = Duration::from_millis(file);
        stalled.fails(&["cannot download http://", "timeout"]);
    }
    let mut nobody = Case::good();
    nobody.setup.from = "http://127.0.0.1:1/".to_owned();
    nobody.fails(&["cannot reach http://127.0.0.1:1/"]);
}

#[test]
fn redirects_that_lead_nowhere() {
    for (to, words) in [
        ("http://example.com/x?key=secret", "http://example.com/x is not https"),
        ("http://127.0.0.1@example.com/x", "names and passwords"),
        ("ftp://127.0.0.1/x", "neither https nor http"),
        ("//example.com/x", "http://example.com/x is not https"),
        ("x", "neither https nor http"),
        ("", "not a URL"),
    ] {
        let case = archive_reply(Reply::Redirect(to.to_owned()));
        let error = format!("{:#}", case.fails(&["redirects to"]).run().expect_err(to));
        assert!(error.contains(words) && !error.contains("secret"), "{to}: {error}");
    }
    let case = Case::good();
    let archive = case.archive();
    case.server.put(&archive, Reply::Redirect(archive.clone()));
    let case = case.fails(&["redirects more than 5 times"]);
    assert_eq!(case.server.asked().len(), 1 + 6);
}

#[test]
fn sources_that_are_not_taken() {
    for (from, words) in [
        ("http://example.com/releases", "use https"),
        ("http://localhost:8000/", "use https"),
        ("https://me:secret@example.com/", "names and passwords"),
        ("https://example.com/?x=", "no '?'"),
        ("file:///x", "--from"),
        ("example.com", "--from"),
        ("", "not a URL"),
    ] {
        let mut case = Case::good();
        case.setup.from = from.to_owned();
        case.fails(&["--from", words]);
    }
}

#[test]
fn versions_that_cannot_be_used() {
    for (version, good) in [("v1.11.9", false), ("v1.12.0", true), ("v1.99.0", true), ("v2.0.0", false)] {
        let version: Version = version.parse().expect("a version");
        match Release::for_this_machine(version) {
            Ok(_) => assert!(good, "{version}"),
            Err(error) => assert!(!good && error.to_string().contains("needs v1.12.0 or later"), "{error}"),
        }
    }
}

#[test]
fn archives_without_the_program() {
    let others = Pack::new().file("release-v1.15.0-x86_64/jailer-v1.15.0-x86_64", &program());
    Case::publishing(others.finish()).fails(&["it has no release-v1.15.0-x86_64/firecracker-v1.15.0-x86_64"]);
    Case::publishing(Pack::new().finish()).fails(&["it has no release"]);
    let link = Pack::new().entry(ENTRY, EntryType::Symlink, "/bin/sh", b"");
    Case::publishing(link.finish()).fails(&["not a regular file but Symlink"]);
    let link = Pack::new().entry(ENTRY, EntryType::Link, "/bin/sh", b"");
    Case::publishing(link.finish()).fails(&["not a regular file but Link"]);
    let dir = Pack::new().entry(ENTRY, EntryType::Directory, "", b"");
    Case::publishing(dir.finish()).fails(&["not a regular file but Directory"]);
    let twice = Pack::new().file(ENTRY, &program()).file(ENTRY, &program());
    Case::publishing(twice.finish()).fails(&["twice"]);
    Case::publishing(b"not gzip".to_vec()).fails(&["cannot unpack firecracker-v1.15.0-x86_64.tgz"]);
    // Whole by its checksum, and yet not whole.
    let whole = release(VERSION, &program());
    Case::publishing(whole[..whole.len() - 100].to_vec()).fails(&["cannot unpack"]);
    let many = (0..1001).fold(Pack::new(), |pack, _| pack.file("x", b""));
    Case::publishing(many.file(ENTRY, &program()).finish()).fails(&["more than 1000 entries"]);
}

#[test]
fn entries_with_other_names_go_nowhere() {
    let mut case = Case::new(VERSION);
    let pack =
        ["/escaped", "../escaped", "../../../escaped", "release-v1.15.0-x86_64/../../escaped", "firecracker.new"]
            .iter()
            .fold(Pack::new(), |pack, name| pack.file(name, b"out"))
            .entry("escaped", EntryType::Symlink, "../..", b"");
    case.publish(pack.file(ENTRY, &program()).file("../firecracker", b"out").finish());
    case.succeeds();
    let all: Vec<_> = fs::read_dir(case.dir.path()).expect("there").map(|entry| entry.expect("there").path()).collect();
    assert_eq!(all, [case.dir.path().join("assets")]);
    assert!(!std::path::Path::new("/escaped").exists());
}

#[test]
fn programs_whose_own_sums_say_otherwise() {
    let sums = |text: String| {
        let pack = Pack::new().file(SUMS, text.as_bytes()).file(ENTRY, &program());
        Case::publishing(pack.finish())
    };
    let (right, wrong) = (sum(&program()), "1".repeat(64));
    sums(format!("{wrong}  ./firecracker-v1.15.0-x86_64\n")).fails(&["its own SHA256SUMS says", &wrong]);
    sums(format!("{right}  ./jailer-v1.15.0-x86_64\n")).fails(&["does not have firecracker-v1.15.0-x86_64"]);
    sums("x".repeat(70_000)).fails(&["it has 70000 bytes, more than the 65536"]);
    sums(format!("{right}  ./firecracker-v1.15.0-x86_64\n")).succeeds();
}

#[test]
fn programs_that_are_not_it() {
    let of = |program: &[u8]| Case::publishing(release(VERSION, program));
    of(&elf(AARCH64, &[0; 16])).fails(&["is for ELF machine 183, and x86_64 is 62"]);
    of(b"#!/bin/sh\necho Firecracker v1.15.0\n").fails(&["not a 64-bit ELF file"]);
    of(b"\x7fELF").fails(&["no ELF header"]);
    of(&saying("Firecracker v1.14.0\n")).fails(&["v1.15.0 holds a program that says it is v1.14.0"]);
    of(&saying("Firecracker v1.15.0-dev\n")).fails(&["says \"Firecracker v1.15.0-dev\""]);
    of(&saying("")).fails(&["does not run here", "says \"\""]);
    of(&elf(62, &[0x0f, 0x0b])).fails(&["does not run here", "signal"]);
    let mut hangs = of(&hanging());
    hangs.setup.patience.program = Duration::from_millis(200);
    hangs.fails(&["--version did not end within 200ms"]);
}

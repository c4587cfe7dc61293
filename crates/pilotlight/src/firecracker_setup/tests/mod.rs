//! The whole way, from a server's socket to a program that runs.

mod archive;
mod refusals;
mod server;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use tempfile::TempDir;

use self::{
    archive::{release, saying, sum},
    server::{Reply, Server},
};
use super::{Patience, Setup, release::Release};
use crate::cli::Cli;

/// Not the default one, whose checksum is known.
const VERSION: &str = "v1.15.0";

/// A server, a directory, and what is asked for.
struct Case {
    server: Server,
    setup: Setup,
    said: Vec<String>,
    dir: TempDir,
}

impl Case {
    fn new(version: &str) -> Self {
        Self::with(version, Server::start(None), "http")
    }

    fn with(version: &str, server: Server, scheme: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        let setup = Setup {
            release: Release::for_this_machine(version.parse().expect("a version")).expect("supported"),
            from: format!("{scheme}://{}/download/", server.address),
            into: dir.path().join("assets/firecracker"),
            ca: None,
            patience: Patience {
                quiet: Duration::from_secs(5),
                file: Duration::from_secs(20),
                program: Duration::from_secs(5),
            },
        };
        Self { server, setup, said: Vec::new(), dir }
    }

    /// A server with this archive and its true checksum.
    fn publishing(archive: Vec<u8>) -> Self {
        let case = Self::new(VERSION);
        case.publish(archive);
        case
    }

    fn good() -> Self {
        Self::publishing(release(VERSION, &saying("Firecracker v1.15.0\n\n")))
    }

    fn publish(&self, archive: Vec<u8>) {
        let line = format!("{}  {}\n", sum(&archive), self.setup.release.archive_name());
        self.server.put(&self.archive(), Reply::File(archive));
        self.server.put(&self.checksum(), Reply::File(line.into_bytes()));
    }

    fn archive(&self) -> String {
        format!("/download/{}/{}", self.setup.release.version, self.setup.release.archive_name())
    }

    fn checksum(&self) -> String {
        format!("/download/{}/{}", self.setup.release.version, self.setup.release.checksum_name())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let said = &mut self.said;
        self.setup.run(&mut |line| said.push(line))
    }

    fn program(&self) -> PathBuf {
        self.setup.into.join("firecracker")
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.setup.into).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }

    /// It fails in these words and leaves nothing.
    #[track_caller]
    fn fails(mut self, words: &[&str]) -> Self {
        let before = self.files();
        let error = format!("{:#}", self.run().expect_err("it is refused"));
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
        assert_eq!(self.files(), before, "after: {error}");
        self
    }

    #[track_caller]
    fn succeeds(&mut self) {
        self.run().expect("it is installed");
        assert_eq!(self.files(), ["firecracker"]);
        let mode = fs::metadata(self.program()).expect("a file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        let output = Command::new(self.program()).output().expect("it runs");
        assert_eq!(output.stdout, b"Firecracker v1.15.0\n\n");
    }
}

#[test]
fn a_release_is_installed_and_a_second_run_fetches_nothing() {
    let mut case = Case::good();
    case.succeeds();
    assert_eq!(case.server.asked(), [case.checksum(), case.archive()]);
    assert!(case.said.last().expect("words").ends_with(&format!("v1.15.0 is at {}", case.program().display())));
    case.succeeds();
    assert_eq!(case.server.asked().len(), 2);
    assert!(case.said.last().expect("words").contains("v1.15.0 is there already"));
}

#[test]
fn an_archive_without_sums_of_its_own_will_do() {
    let program = saying("Firecracker v1.15.0\n\n");
    let pack = archive::Pack::new().file("release-v1.15.0-x86_64/firecracker-v1.15.0-x86_64", &program);
    Case::publishing(pack.finish()).succeeds();
}

#[test]
fn another_version_is_replaced_and_so_is_what_does_not_run() {
    for there in [saying("Firecracker v1.14.0\n\n"), saying("something else"), b"\x7fELF and no more".to_vec()] {
        let mut case = Case::good();
        fs::create_dir_all(&case.setup.into).expect("a directory");
        fs::write(case.program(), there).expect("a file");
        fs::set_permissions(case.program(), PermissionsExt::from_mode(0o755)).expect("executable");
        case.succeeds();
        assert!(case.said[0].contains("replacing"), "{:?}", case.said);
    }
}

#[test]
fn what_a_killed_run_left_is_replaced_and_never_followed() {
    let mut case = Case::good();
    fs::create_dir_all(&case.setup.into).expect("a directory");
    let precious = case.dir.path().join("precious");
    fs::write(&precious, "mine").expect("a file");
    symlink(&precious, case.setup.into.join("firecracker.new")).expect("a link");
    case.succeeds();
    assert_eq!(fs::read(&precious).expect("still there"), b"mine");

    let mut case = Case::good();
    fs::create_dir_all(&case.setup.into).expect("a directory");
    fs::write(case.setup.into.join("firecracker.new"), "half").expect("a file");
    case.succeeds();
}

#[test]
fn one_at_a_time() {
    let case = Case::good();
    fs::create_dir_all(&case.setup.into).expect("a directory");
    let held = super::Lock::take(&case.setup.into).expect("nobody has it");
    let mut case = case.fails(&["another `pilotlight setup firecracker` is at work"]);
    assert!(case.server.asked().is_empty());
    drop(held);
    case.succeeds();
}

#[test]
fn redirects_are_followed_to_the_file() {
    let mut case = Case::good();
    let (archive, elsewhere) = (case.archive(), Server::start(None));
    let whole = release(VERSION, &saying("Firecracker v1.15.0\n\n"));
    elsewhere.put("/signed?key=secret", Reply::File(whole));
    case.server.put(&archive, Reply::Redirect("/moved".to_owned()));
    case.server.put("/moved", Reply::Redirect(format!("http://{}/signed?key=secret", elsewhere.address)));
    case.succeeds();
    assert_eq!(elsewhere.asked(), ["/signed?key=secret"]);
}

/// A certificate for 127.0.0.1, in PEM form, and a server's configuration with it.
fn certificate() -> (String, Arc<rustls::ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate with its key");
    (made.cert.pem(), Arc::new(config))
}

#[test]
fn over_tls_with_an_authority_that_is_named() {
    let (pem, config) = certificate();
    let mut case = Case::with(VERSION, Server::start(Some(config)), "https");
    case.publish(release(VERSION, &saying("Firecracker v1.15.0\n\n")));
    let ca = case.dir.path().join("ca.pem");
    fs::write(&ca, &pem).expect("a file");

    // The machine's authorities do not know it, and another one does not either.
    case = case.fails(&["cannot reach https://127.0.0.1", "certificate"]);
    let other = case.dir.path().join("other.pem");
    fs::write(&other, certificate().0).expect("a file");
    case.setup.ca = Some(other);
    case = case.fails(&["certificate"]);
    for (content, words) in [("", "no certificate in PEM form"), ("-----BEGIN CERTIFICATE-----\n", "--ca")] {
        let bad = case.dir.path().join("bad.pem");
        fs::write(&bad, content).expect("a file");
        case.setup.ca = Some(bad);
        case = case.fails(&["bad.pem", words]);
    }
    assert!(case.server.asked().is_empty());

    case.setup.ca = Some(ca);
    // To plain http, even of this machine: what was asked for is https.
    let plain = Server::start(None);
    let archive = case.archive();
    let whole = release(VERSION, &saying("Firecracker v1.15.0\n\n"));
    case.server.put(&archive, Reply::Redirect(format!("http://{}/x", plain.address)));
    case = case.fails(&["redirects to where it may not", "is not https"]);
    assert!(plain.asked().is_empty());
    case.server.put(&archive, Reply::File(whole));
    case.succeeds();
}

#[test]
fn the_command_line_takes_the_version_of_the_release() {
    Cli::command().debug_assert();
    let parse = |more: &[&str]| Cli::try_parse_from([&["pilotlight", "setup", "firecracker"], more].concat());
    let cli = parse(&["--version", "v1.13.2", "--into", "/x"]).expect("good");
    assert!(format!("{cli:?}").contains("minor: 13"), "{cli:?}");
    assert!(format!("{:?}", parse(&[]).expect("good")).contains(super::RELEASES));
    let error = parse(&["--version", "1.13"]).expect_err("bad").to_string();
    assert!(error.contains("--version") && error.contains("not a version such as v1."), "{error}");
}

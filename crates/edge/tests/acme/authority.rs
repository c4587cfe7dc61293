//! A real ACME server (Let's Encrypt's test server, pebble) and a real name server for it (pebble-challtestsrv), and a hook that
//! sets records there.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use tokio::process::{Child, Command};

/// How long anything may take here.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether pebble is installed. Where it is not, a test says so past the harness, which shows nothing of a test that passes.
pub fn is_here() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let both = here("pebble") && here("pebble-challtestsrv");
    if !both {
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: a test of ACME needs pebble and pebble-challtestsrv (Debian's package pebble; see make setup-tests)\n"
        );
    }
    both
}

/// How the authority behaves.
pub struct Behaviour {
    /// How long its certificates are good.
    pub seconds: u64,
    /// It registers only accounts that it knows from elsewhere: their name and key in base64url.
    pub external: Option<(&'static str, &'static str)>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { seconds: 90 * 24 * 3600, external: None }
    }
}

pub struct Authority {
    pub dir: tempfile::TempDir,
    behaviour: Behaviour,
    address: SocketAddr,
    management: SocketAddr,
    names: SocketAddr,
    /// Where it looks for proofs: in handshakes, and over plain HTTP.
    pub https: SocketAddr,
    pub http: SocketAddr,
    /// Where records are set.
    pub records: SocketAddr,
    _name_server: Option<Child>,
    pebble: Option<Child>,
}

/// One that nobody listens on, nor will before it is used: each is given once, and none is of those that the kernel hands out
/// itself, to whoever connects too (from 32768 on: ip(7), `ip_local_port_range`).
fn free() -> SocketAddr {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        // Other processes begin elsewhere, most likely.
        let number = std::process::id().wrapping_mul(101).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // The name server's is for datagrams.
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

impl Authority {
    pub async fn start(behaviour: Behaviour) -> Self {
        let authority = Self::prepare(behaviour).await;
        authority.up().await
    }

    /// Everything but the ACME server.
    pub async fn prepare(behaviour: Behaviour) -> Self {
        let mut authority = Self::nobody();
        authority.behaviour = behaviour;
        let Self { names, records, .. } = authority;
        let name_server = Command::new("pebble-challtestsrv")
            .args(["-dns01", &names.to_string(), "-management", &records.to_string()])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        authority._name_server = Some(name_server);
        listens(records).await;
        authority
    }

    /// One that is never there.
    pub fn nobody() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_certificate(dir.path());
        Self {
            dir,
            behaviour: Behaviour::default(),
            address: free(),
            management: free(),
            names: free(),
            https: free(),
            http: free(),
            records: free(),
            _name_server: None,
            pebble: None,
        }
    }

    /// Starts the ACME server, which knows nobody.
    pub async fn up(mut self) -> Self {
        let Behaviour { seconds, external } = &self.behaviour;
        let file = |name: &str| self.dir.path().join(name);
        let config = json!({ "pebble": {
            "listenAddress": self.address,
            "managementListenAddress": self.management,
            "certificate": file("server.pem"),
            "privateKey": file("server.key"),
            "httpPort": self.http.port(),
            "tlsPort": self.https.port(),
            "certificateValidityPeriod": seconds,
            "externalAccountBindingRequired": external.is_some(),
            "externalAccountMACKeys": external.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        }});
        fs::write(file("pebble.json"), config.to_string()).unwrap();
        let log = fs::File::create(file("pebble.log")).unwrap();
        let pebble = Command::new("pebble")
            .arg("-config")
            .arg(file("pebble.json"))
            .args(["-dnsserver", &self.names.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.pebble = Some(pebble);
        listens(self.address).await;
        listens(self.management).await;
        self
    }

    /// Ends the ACME server, which forgets everybody.
    pub async fn down(&mut self) {
        self.pebble.take().unwrap().kill().await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// Whom to trust for the ACME server itself.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_file(self.dir.path().join("ca.pem")).unwrap()]
    }

    /// Whom to trust for the certificates that it signs.
    pub async fn signs_with(&self) -> RootCertStore {
        let pem = self.ask("roots/0").await;
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        store
    }

    async fn ask(&self, path: &str) -> Vec<u8> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.roots());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(store)
            .with_no_client_auth();
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
        let answer = client.get(format!("https://{}/{path}", self.management)).send().await.unwrap();
        answer.bytes().await.unwrap().to_vec()
    }

    /// What the ACME server says it did.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("pebble.log")).unwrap_or_default()
    }

    /// How many certificates were ordered.
    pub fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }

    /// How many accounts it registered.
    pub fn accounts(&self) -> usize {
        self.log().matches(" accounts in memory").count()
    }

    /// A hook that writes down what it is told, then does `before`, then sets or clears the record.
    pub fn hook(&self, before: &str) -> Vec<String> {
        let path = self.dir.path().join("hook");
        let script = format!(
            r#"#!/bin/bash
echo "$@" >>'{told}'
{before}
case $1 in
present) to=set-txt; body="{{\"host\":\"$2.\",\"value\":\"$3\"}}" ;;
cleanup) to=clear-txt; body="{{\"host\":\"$2.\"}}" ;;
esac
exec 3<>/dev/tcp/127.0.0.1/{port}
printf 'POST /%s HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s' "$to" "${{#body}}" "$body" >&3
read -r status <&3
[[ $status == *" 200 "* ]]
"#,
            told = self.told_path().display(),
            port = self.records.port(),
        );
        // A script that is being written cannot be run, not even by the child of another test that was forked meanwhile.
        let draft = self.dir.path().join("hook.new");
        let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o755).open(&draft).unwrap();
        file.write_all(script.as_bytes()).unwrap();
        drop(file);
        fs::rename(draft, &path).unwrap();
        vec!["/bin/bash".to_owned(), path.to_str().unwrap().to_owned()]
    }

    fn told_path(&self) -> PathBuf {
        self.dir.path().join("told")
    }

    /// What the hook was told so far: action, name and value.
    pub fn told(&self) -> Vec<[String; 3]> {
        let told = fs::read_to_string(self.told_path()).unwrap_or_default();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        told.lines().map(words).collect()
    }

    pub fn actions(&self) -> Vec<String> {
        self.told().into_iter().map(|[action, ..]| action).collect()
    }
}

/// A server certificate for the ACME server's own address.
fn make_certificate(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &Issuer::new(ca, &ca_key)).unwrap();
    fs::write(dir.join("server.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
}

async fn listens(address: SocketAddr) {
    until("it listens", || std::net::TcpStream::connect(address).is_ok()).await;
}

/// Waits for something that will be so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

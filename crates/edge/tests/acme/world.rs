//! An edge that serves what a keeper of certificates gets, clients of it, and what is logged meanwhile.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{
    directory::{AppStream, Behind, DialError, Dialer, Directory, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
    shell::{Shell, ShellError},
    size::Size,
    token::TokenKeys,
};
use edge::{
    Certificate, Edge, EdgeConfig, Limits, ServedCertificate,
    acme::{Acme, AcmeSettings, Challenge, Endpoints, OnDemand, Pauses, Place},
    ca,
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::authority::{Authority, PATIENCE, until};

pub const SUFFIX: &str = "lambda-microvm.eu-west-1.example.test";

/// Endpoints that lead nowhere, and whether what was behind them has ended.
#[derive(Default)]
pub struct Known(Mutex<HashMap<EndpointId, bool>>);

impl Known {
    pub fn add(&self, ended: bool) -> EndpointId {
        let endpoint = EndpointId::random();
        self.0.lock().unwrap().insert(endpoint, ended);
        endpoint
    }
}

#[async_trait::async_trait]
impl Directory for Known {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        let known = self.0.lock().unwrap().get(endpoint).copied();
        Ok(known.map(|ended| Behind {
            microvm: MicrovmId::random(),
            size: Size::DEFAULT,
            http: true,
            shell: false,
            links: false,
            ended,
        }))
    }

    async fn awake(&self, _: &MicrovmId) -> Result<VmId, Unavailable> {
        Err(Unavailable::Ended)
    }

    fn touch(&self, _: &MicrovmId) {}
}

#[async_trait::async_trait]
impl Dialer for Known {
    async fn dial(&self, _: &MicrovmId, _: &VmId, _: u16) -> Result<Box<dyn AppStream>, DialError> {
        Err(DialError::Gone)
    }

    async fn shell(&self, _: &MicrovmId, _: &VmId, _: Option<String>) -> Result<Shell, ShellError> {
        Err(ShellError::Gone)
    }
}

/// What is logged by the test's thread, where all of its tasks run.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub async fn says(&self, words: &str) {
        until(&format!("the log says '{words}'; it says {}", self.text()), || self.text().contains(words)).await;
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The files of a server.
pub struct Data {
    pub dir: tempfile::TempDir,
    pub settings: AcmeSettings,
    pub log: Log,
    roots: Vec<CertificateDer<'static>>,
    _logging: tracing::subscriber::DefaultGuard,
}

impl Data {
    pub fn new(authority: &Authority) -> Self {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let settings = AcmeSettings {
            directory: authority.url(),
            terms_agreed: true,
            contact: vec!["mailto:ops@example.test".to_owned()],
            challenge: Challenge::Dns01,
            hook: authority.hook(""),
            hook_timeout_seconds: 20,
            http_listen: None,
            orders_per_hour: None,
            ca: None,
            external_account: None,
        };
        settings.check("example.test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let _logging = tracing::subscriber::set_default(subscriber);
        Self { dir, settings, log, roots: authority.roots(), _logging }
    }

    fn place(&self) -> Place {
        Place { dir: self.dir.path().join("secrets/acme"), domain_suffix: SUFFIX.to_owned(), roots: self.roots.clone() }
    }

    fn until_then(&self) -> Arc<ServedCertificate> {
        ca::load_or_create(&self.dir.path().join("tls"), SUFFIX).unwrap().served()
    }

    /// As a server that starts does.
    pub fn open(&self) -> Acme {
        Acme::open(self.settings.clone(), self.place(), pauses(), &self.until_then()).unwrap()
    }

    /// The same for certificates of single endpoints.
    pub fn open_endpoints(&self, limits: OnDemand) -> Arc<Endpoints> {
        Endpoints::open(self.settings.clone(), self.place(), limits, &self.until_then()).unwrap()
    }

    /// An edge that is being kept in certificates.
    pub async fn start(&self) -> Server {
        let acme = self.open();
        let served = acme.served();
        let (address, stop) = serve(Arc::clone(&served).into(), Arc::default(), "127.0.0.1:0".parse().unwrap()).await;
        let keeping = AbortOnDropHandle::new(tokio::spawn(async move {
            acme.keep().await;
        }));
        Server { address, served, keeping: Some(keeping), _stop: stop }
    }

    /// The development authority, whose certificate is served first.
    pub fn development(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_file(self.dir.path().join("tls/ca.pem")).unwrap()).unwrap();
        store
    }

    /// A file of the authority's directory.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        let all = std::fs::read_dir(self.dir.path().join("secrets/acme")).unwrap();
        let dirs: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
        let [dir] = &dirs[..] else { panic!("{dirs:?}") };
        dir.join(name)
    }
}

/// Short ones.
pub fn pauses() -> Pauses {
    Pauses { first: Duration::from_millis(20), longest: Duration::from_millis(200) }
}

/// An edge at this address, until what comes back with it is dropped.
pub async fn serve(certificate: Certificate, known: Arc<Known>, address: SocketAddr) -> (SocketAddr, DropGuard) {
    // A connection is to be there before and after an order, however long that takes on a machine with much to do.
    let limits = Limits { request_head: 10 * PATIENCE, ..Limits::standard() };
    serve_within(limits, certificate, known, address).await
}

/// The same with these limits.
pub async fn serve_within(
    limits: Limits,
    certificate: Certificate,
    known: Arc<Known>,
    address: SocketAddr,
) -> (SocketAddr, DropGuard) {
    let config = EdgeConfig { domain_suffix: SUFFIX.to_owned(), limits };
    let keys = Arc::new(TokenKeys::single(uuid::Uuid::from_u128(1), [1; 32]));
    let edge = Edge::new(config, certificate, Arc::clone(&known) as _, known, keys);
    let bound = edge.bind(&[address]).await.unwrap();
    let address = bound.local_addresses()[0];
    let stop = CancellationToken::new();
    tokio::spawn(bound.serve(stop.clone()));
    (address, stop.drop_guard())
}

pub struct Server {
    address: SocketAddr,
    pub served: Arc<ServedCertificate>,
    keeping: Option<AbortOnDropHandle<()>>,
    _stop: DropGuard,
}

impl Server {
    /// Its keeper is gone between two instructions.
    pub fn kill(&mut self) {
        self.keeping = None;
    }

    /// A connection to some endpoint, if the certificate is one that these have signed.
    pub async fn connect(&self, trusted: RootCertStore) -> io::Result<Client> {
        connect(self.address, &format!("{}.{SUFFIX}", EndpointId::random()), trusted, &[]).await
    }

    /// Waits until what is served is another one than this.
    pub async fn renewed(&self, expires: time::OffsetDateTime) {
        until("another certificate", || self.served.expires() != expires).await;
    }
}

/// A connection to this host, if the certificate is one that these have signed, with these protocols offered.
pub async fn connect(
    address: SocketAddr,
    host: &str,
    trusted: RootCertStore,
    protocols: &[&str],
) -> io::Result<Client> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let stream = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(Client { stream, host: host.to_owned() })
}

pub struct Client {
    stream: TlsStream<TcpStream>,
    host: String,
}

impl Client {
    pub fn certificate(&self) -> Vec<u8> {
        self.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// The head of the answer to a request without a token.
    pub async fn ask(&mut self) -> io::Result<String> {
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte).await?;
            answer.push(byte[0]);
        }
        let head = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        let length = head.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap().parse().unwrap();
        self.stream.read_exact(&mut vec![0; length]).await?;
        Ok(head)
    }
}

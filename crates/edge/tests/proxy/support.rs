//! A world of one microVM: its edge, its directory, its apps, and clients.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use api::{
    directory::{AppStream, Behind, DialError, Dialer, Directory, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
    shell::{FromShell, Shell, ShellError, Showing, ToShell, Typing},
    size::Size,
    token::{Claims, Grant, Ports, TokenKeys},
};
use bytes::Bytes;
use edge::{Drained, Edge, EdgeConfig, Limits};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1::SendRequest, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::servers::App;

pub const SUFFIX: &str = "lambda-microvm.us-east-1.localhost";

pub type Body = BoxBody<Bytes, hyper::Error>;

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body and how to feed it.
pub fn channel() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|frame| (Ok::<_, hyper::Error>(frame), receiver))
    });
    (sender, BodyExt::boxed(StreamBody::new(frames)))
}

/// A body of so many pieces of 64 KiB that counts those taken.
pub fn counted(pieces: usize, taken: Arc<AtomicUsize>) -> Body {
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let frames = stream::iter(0..pieces).map(move |_| {
        taken.fetch_add(1, Ordering::SeqCst);
        Ok::<_, hyper::Error>(Frame::data(piece.clone()))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

/// Control, with one microVM.
pub struct OneMicrovm {
    pub endpoint: EndpointId,
    pub microvm: MicrovmId,
    /// Do its connectors let shells in?
    pub has_shell: AtomicBool,
    /// Does its image let people in by links?
    pub has_links: AtomicBool,
    /// What a wake leads to; `None`: it has not yet.
    pub state: watch::Sender<Option<Result<VmId, Unavailable>>>,
    pub wakes: AtomicUsize,
    pub touches: AtomicUsize,
}

#[async_trait::async_trait]
impl Directory for OneMicrovm {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        let (shell, links) = (self.has_shell.load(Ordering::SeqCst), self.has_links.load(Ordering::SeqCst));
        let behind = Behind { microvm: self.microvm, size: Size::DEFAULT, http: true, shell, links, ended: false };
        Ok((*endpoint == self.endpoint).then_some(behind))
    }

    async fn awake(&self, microvm: &MicrovmId) -> Result<VmId, Unavailable> {
        assert_eq!(*microvm, self.microvm);
        self.wakes.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state.subscribe();
        let state = state.wait_for(Option::is_some).await.expect("the world outlives its requests");
        state.clone().expect("it was waited for")
    }

    fn touch(&self, microvm: &MicrovmId) {
        assert_eq!(*microvm, self.microvm);
        self.touches.fetch_add(1, Ordering::SeqCst);
    }
}

/// A host: which VM's which port is which local address.
#[derive(Default)]
pub struct Ground {
    pub apps: Mutex<HashMap<(VmId, u16), SocketAddr>>,
    pub vms: Mutex<Vec<VmId>>,
    pub dials: AtomicUsize,
    /// How many of the next do not reach the guest.
    pub lost: AtomicUsize,
    /// Shells that were opened and that no test has looked at yet.
    pub shells: Mutex<Vec<GuestShell>>,
    /// Why there are no more.
    pub no_shells: Mutex<Option<String>>,
    /// Called when a VM is found gone.
    pub on_gone: Mutex<Option<Box<dyn Fn() + Send>>>,
}

#[async_trait::async_trait]
impl Dialer for Ground {
    async fn dial(&self, _: &MicrovmId, vm: &VmId, port: u16) -> Result<Box<dyn AppStream>, DialError> {
        if !self.is_there(vm) {
            return Err(DialError::Gone);
        }
        let lose = |lost: usize| lost.checked_sub(1);
        if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_ok() {
            return Err(DialError::Unreachable(std::io::ErrorKind::TimedOut.into()));
        }
        let address = self.apps.lock().unwrap().get(&(*vm, port)).copied().ok_or(DialError::Refused { port })?;
        Ok(Box::new(TcpStream::connect(address).await.map_err(DialError::Unreachable)?))
    }

    async fn shell(&self, _: &MicrovmId, vm: &VmId, command: Option<String>) -> Result<Shell, ShellError> {
        if !self.is_there(vm) {
            return Err(ShellError::Gone);
        }
        if let Some(reason) = self.no_shells.lock().unwrap().clone() {
            return Err(ShellError::Refused { reason });
        }
        // Room for one: whoever does not read is noticed.
        let ((keys, typed), (shows, screen)) = (mpsc::channel(1), mpsc::channel(1));
        self.shells.lock().unwrap().push(GuestShell { vm: *vm, command, typed, shows });
        Ok(Shell { typing: Box::new(Keys(keys)), showing: Box::new(Screen(screen)) })
    }
}

impl Ground {
    fn is_there(&self, vm: &VmId) -> bool {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let there = self.vms.lock().unwrap().contains(vm);
        if !there && let Some(on_gone) = &*self.on_gone.lock().unwrap() {
            on_gone();
        }
        there
    }
}

/// The guest's side of a shell. Dropped, it is a VM that has gone.
pub struct GuestShell {
    pub vm: VmId,
    pub command: Option<String>,
    pub typed: mpsc::Receiver<ToShell>,
    pub shows: mpsc::Sender<FromShell>,
}

struct Keys(mpsc::Sender<ToShell>);

struct Screen(mpsc::Receiver<FromShell>);

#[async_trait::async_trait]
impl Typing for Keys {
    async fn send(&mut self, what: ToShell) -> std::io::Result<()> {
        self.0.send(what).await.map_err(|_| std::io::ErrorKind::ConnectionReset.into())
    }
}

#[async_trait::async_trait]
impl Showing for Screen {
    async fn next(&mut self) -> std::io::Result<FromShell> {
        self.0.recv().await.ok_or_else(|| std::io::ErrorKind::ConnectionReset.into())
    }
}

pub struct World {
    pub directory: Arc<OneMicrovm>,
    pub ground: Arc<Ground>,
    pub keys: Arc<TokenKeys>,
    pub address: SocketAddr,
    pub metrics: edge::Metrics,
    pub ca: tempfile::TempDir,
    pub shutdown: CancellationToken,
    pub serving: Option<JoinHandle<Drained>>,
    _end: DropGuard,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A world with other limits; its microVM runs, without an app.
    pub async fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let ca = tempfile::tempdir().unwrap();
        let certificate = edge::ca::load_or_create(ca.path(), SUFFIX).unwrap().served();
        let vm = VmId::random();
        let directory = Arc::new(OneMicrovm {
            endpoint: EndpointId::random(),
            microvm: MicrovmId::random(),
            has_shell: AtomicBool::new(true),
            has_links: AtomicBool::new(false),
            state: watch::Sender::new(Some(Ok(vm))),
            wakes: AtomicUsize::new(0),
            touches: AtomicUsize::new(0),
        });
        let ground = Arc::new(Ground::default());
        ground.vms.lock().unwrap().push(vm);
        let keys = Arc::new(TokenKeys::single(uuid::Uuid::new_v4(), [7; 32]));
        let mut limits = Limits::standard();
        change(&mut limits);
        let config = EdgeConfig { domain_suffix: SUFFIX.to_owned(), limits };
        let edge =
            Edge::new(config, certificate, Arc::clone(&directory) as _, Arc::clone(&ground) as _, Arc::clone(&keys));
        let metrics = edge.metrics();
        let bound = edge.bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
        let address = bound.local_addresses()[0];
        let shutdown = CancellationToken::new();
        let serving = Some(tokio::spawn(bound.serve(shutdown.clone())));
        let end = shutdown.clone().drop_guard();
        Self { directory, ground, keys, address, metrics, ca, shutdown, serving, _end: end }
    }

    pub fn host(&self) -> String {
        format!("{}.{SUFFIX}", self.directory.endpoint)
    }

    pub fn vm(&self) -> VmId {
        self.directory.state.borrow().clone().unwrap().unwrap()
    }

    pub fn wakes(&self) -> usize {
        self.directory.wakes.load(Ordering::SeqCst)
    }

    pub fn dials(&self) -> usize {
        self.ground.dials.load(Ordering::SeqCst)
    }

    pub fn touches(&self) -> usize {
        self.directory.touches.load(Ordering::SeqCst)
    }

    /// The value of one line of the metrics.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("pilotlight_edge_{name} ")));
        line.unwrap_or_else(|| panic!("there is no {name} in\n{text}")).parse().unwrap()
    }

    /// The shell that was opened last.
    pub async fn shell(&self) -> GuestShell {
        until("a shell", || !self.ground.shells.lock().unwrap().is_empty()).await;
        self.ground.shells.lock().unwrap().pop().unwrap()
    }

    /// The app on a port of the VM that runs now.
    pub fn place(&self, port: u16, app: &App) {
        self.ground.apps.lock().unwrap().insert((self.vm(), port), app.address);
    }

    /// Suspends and resumes: another VM.
    pub fn another_vm(&self) -> VmId {
        let vm = VmId::random();
        *self.ground.vms.lock().unwrap() = vec![vm];
        self.directory.state.send_replace(Some(Ok(vm)));
        vm
    }

    pub fn claims(&self) -> Claims {
        Claims {
            microvm_id: self.directory.microvm,
            grant: Grant::Http(Ports::from_ranges(vec![(8000, 8999)])),
            expires_unix: now() + 600,
        }
    }

    pub fn token(&self) -> String {
        self.keys.seal(&self.claims())
    }

    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(path).header("host", self.host()).header("x-aws-proxy-auth", self.token())
    }

    pub async fn tls(&self, server_name: &str) -> TlsStream<TcpStream> {
        self.tls_with(server_name, &[]).await
    }

    /// Offers these protocols.
    pub async fn tls_with(&self, server_name: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
        let pem = std::fs::read(self.ca.path().join("ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(server_name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }

    pub async fn client(&self) -> SendRequest<Body> {
        self.client_for(&self.host()).await
    }

    pub async fn client_for(&self, server_name: &str) -> SendRequest<Body> {
        let io = TokioIo::new(self.tls(server_name).await);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// An HTTP/2 connection.
    pub async fn client2(&self) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.tls_with(&self.host(), &["h2"]).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// An HTTP/2 connection with the frames' own names for things.
    pub async fn frames(&self) -> h2::client::SendRequest<Bytes> {
        let (sender, connection) = h2::client::Builder::new()
            .max_send_buffer_size(16 << 20)
            .handshake(self.tls_with(&self.host(), &["h2"]).await)
            .await
            .unwrap();
        // How it ended, its streams tell.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        sender.ready().await.unwrap()
    }

    /// A request as HTTP/2 has it: the host is in the target.
    pub fn request2(&self, method: &str, path: &str) -> http::request::Builder {
        let target = format!("https://{}{path}", self.host());
        Request::builder().method(method).uri(target).header("x-aws-proxy-auth", self.token())
    }

    pub async fn get(&self, path: &str) -> Response<Incoming> {
        self.send(self.request("GET", path).body(empty()).unwrap()).await
    }

    /// Sends on a connection of its own.
    pub async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        self.client().await.send_request(request).await.unwrap()
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

pub async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Waits until it is so, at most ten seconds.
pub async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! A certificate for each endpoint, proven by this server.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, Instant},
};

use api::ids::EndpointId;
use edge::{
    Limits,
    acme::{self, Challenge, Endpoints, OnDemand},
};
use futures_util::future::join_all;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::{
    authority::{self, Authority, Behaviour, PATIENCE, until},
    world::{Client, Data, Known, SUFFIX, connect, pauses, serve, serve_within},
};

/// Limits with which nobody waits in vain, nor long for the next try.
fn limits() -> OnDemand {
    OnDemand { wait: PATIENCE, pauses_of_endpoint: pauses(), pauses_of_all: pauses(), ..OnDemand::standard() }
}

fn data(authority: &Authority, challenge: Challenge) -> Data {
    let mut data = Data::new(authority);
    (data.settings.challenge, data.settings.hook) = (challenge, Vec::new());
    data.settings.check("example.test").unwrap();
    data
}

/// An edge where the authority looks for it.
struct Server {
    address: SocketAddr,
    known: Arc<Known>,
    _keeping: AbortOnDropHandle<()>,
    _stop: [DropGuard; 2],
}

impl Server {
    async fn start(authority: &Authority, data: &Data, known: &Arc<Known>, limits: OnDemand) -> Self {
        let endpoints = data.open_endpoints(limits);
        let (address, stop) = serve(Arc::clone(&endpoints).into(), Arc::clone(known), authority.https).await;
        let answering = CancellationToken::new();
        if endpoints.want_http() {
            let listener = TcpListener::bind(authority.http).await.unwrap();
            tokio::spawn(acme::answer(Arc::clone(&endpoints), vec![listener], address.port(), answering.clone()));
        }
        let keeping = AbortOnDropHandle::new(tokio::spawn(async move {
            Endpoints::keep(endpoints).await;
        }));
        Self { address, known: Arc::clone(known), _keeping: keeping, _stop: [stop, answering.drop_guard()] }
    }

    /// Returns once its address is another's to take.
    async fn stop(self) {
        let address = self.address;
        drop(self);
        until("nobody listens", || std::net::TcpStream::connect(address).is_err()).await;
    }

    async fn connect(&self, endpoint: EndpointId, trusted: &RootCertStore) -> io::Result<Client> {
        connect(self.address, &format!("{endpoint}.{SUFFIX}"), trusted.clone(), &[]).await
    }
}

fn file(data: &Data, endpoint: EndpointId) -> std::path::PathBuf {
    data.file(&format!("endpoints/{endpoint}.pem"))
}

async fn is_had_once_and_kept(challenge: Challenge) {
    let mut authority = Authority::start(Behaviour::default()).await;
    let data = data(&authority, challenge);
    let known = Arc::<Known>::default();
    let server = Server::start(&authority, &data, &known, limits()).await;
    let trusted = authority.signs_with().await;
    let [one, other] = [known.add(false), known.add(false)];
    let mut first = server.connect(one, &trusted).await.unwrap();
    assert!(first.ask().await.unwrap().starts_with("http/1.1 403 "));
    let second = server.connect(one, &trusted).await.unwrap();
    assert_eq!((second.certificate() == first.certificate(), authority.orders()), (true, 1), "{}", authority.log());
    let another = server.connect(other, &trusted).await.unwrap();
    assert_ne!(another.certificate(), first.certificate());
    assert_eq!((authority.orders(), authority.accounts()), (2, 1));
    // The proof is there for as long as it is looked for, and for nobody else.
    let proof = connect(server.address, &format!("{one}.{SUFFIX}"), trusted.clone(), &["acme-tls/1"]).await;
    assert!(proof.err().unwrap().to_string().contains("NoApplicationProtocol"));

    let mode = |path: std::path::PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(file(&data, one)), mode(data.file("endpoints"))), (0o600, 0o700));
    // The next server has them, and need not ask anybody.
    server.stop().await;
    authority.down().await;
    let server = Server::start(&authority, &data, &known, limits()).await;
    let again = server.connect(one, &trusted).await.unwrap();
    assert_eq!(again.certificate(), first.certificate());
}

#[tokio::test]
async fn one_by_a_handshake_is_had_once_and_kept() {
    if authority::is_here() {
        is_had_once_and_kept(Challenge::TlsAlpn01).await;
    }
}

#[tokio::test]
async fn one_over_plain_http_is_had_once_and_kept() {
    if authority::is_here() {
        is_had_once_and_kept(Challenge::Http01).await;
    }
}

#[tokio::test]
async fn twenty_handshakes_at_once_are_one_order() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let data = data(&authority, Challenge::TlsAlpn01);
    let server = Server::start(&authority, &data, &Arc::default(), limits()).await;
    let (trusted, endpoint) = (authority.signs_with().await, server.known.add(false));
    let clients = join_all((0..20).map(|_| server.connect(endpoint, &trusted))).await;
    let certificates: Vec<_> = clients.into_iter().map(|client| client.unwrap().certificate()).collect();
    assert!(certificates.iter().all(|certificate| *certificate == certificates[0]));
    assert_eq!(authority.orders(), 1, "{}", authority.log());
}

#[tokio::test]
async fn nobody_has_one_ordered_for_what_is_not_there() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let data = data(&authority, Challenge::TlsAlpn01);
    let server = Server::start(&authority, &data, &Arc::default(), limits()).await;
    let ended = server.known.add(true);
    let lives = server.known.add(false);
    for name in [EndpointId::random().to_string(), ended.to_string(), "x".to_owned()] {
        connect(server.address, &format!("{name}.{SUFFIX}"), data.development(), &[]).await.unwrap();
    }
    // Names of other people's, and no name at all, for which there is no certificate.
    for name in [format!("{lives}.{SUFFIX}.example.test"), format!("a.{lives}.{SUFFIX}"), "127.0.0.1".to_owned()] {
        let error = connect(server.address, &name, data.development(), &[]).await.err().unwrap();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
    connect(server.address, "localhost", data.development(), &[]).await.unwrap();
    // Who looks for a proof has nothing ordered either.
    let proof = connect(server.address, &format!("{lives}.{SUFFIX}"), data.development(), &["acme-tls/1"]).await;
    assert!(proof.is_err());
    assert_eq!((authority.orders(), authority.accounts()), (0, 0), "{}", authority.log());
    assert_eq!(fs::read_dir(data.file("endpoints")).unwrap().count(), 0);
    server.connect(lives, &authority.signs_with().await).await.unwrap();
}

#[tokio::test]
async fn one_that_ages_is_renewed_while_it_is_served() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let data = data(&authority, Challenge::TlsAlpn01);
    let known = Arc::<Known>::default();
    let endpoint = known.add(false);
    // Of an authority before, with a month left of three.
    data.open_endpoints(limits());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![format!("{endpoint}.{SUFFIX}")]).unwrap();
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(60);
    params.not_after = params.not_before + time::Duration::days(89);
    let aged = params.self_signed(&key).unwrap();
    fs::write(file(&data, endpoint), format!("{}{}", aged.pem(), key.serialize_pem())).unwrap();
    let server = Server::start(&authority, &data, &known, limits()).await;
    let mut trusted = authority.signs_with().await;
    trusted.add(CertificateDer::clone(aged.der())).unwrap();

    let mut before = server.connect(endpoint, &trusted).await.unwrap();
    assert_eq!(before.certificate(), aged.der().to_vec());
    let begin = Instant::now();
    while server.connect(endpoint, &trusted).await.unwrap().certificate() == before.certificate() {
        assert!(begin.elapsed() < PATIENCE, "it is never renewed: {}", authority.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(before.ask().await.unwrap().starts_with("http/1.1 403 "), "who was there stays");
    assert_eq!(authority.orders(), 1, "{}", authority.log());
    assert_ne!(fs::read_to_string(file(&data, endpoint)).unwrap(), format!("{}{}", aged.pem(), key.serialize_pem()));
}

#[tokio::test]
async fn without_the_authority_the_certificate_until_then_is_served_and_it_is_asked_again() {
    if !authority::is_here() {
        return;
    }
    let mut authority = Authority::prepare(Behaviour::default()).await;
    let data = data(&authority, Challenge::TlsAlpn01);
    let server = Server::start(&authority, &data, &Arc::default(), limits()).await;
    let endpoint = server.known.add(false);
    let mut early = server.connect(endpoint, &data.development()).await.unwrap();
    assert!(early.ask().await.unwrap().starts_with("http/1.1 403 "));
    data.log.says("there is no new certificate for the endpoint").await;
    authority = authority.up().await;
    let trusted = authority.signs_with().await;
    let begin = Instant::now();
    while server.connect(endpoint, &trusted).await.is_err() {
        assert!(begin.elapsed() < PATIENCE, "there is never a certificate: {}", data.log.text());
    }
    assert_eq!(authority.orders(), 1, "{}", authority.log());
}

#[tokio::test]
async fn who_waits_too_long_gets_the_certificate_until_then_and_the_order_goes_on() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let data = data(&authority, Challenge::TlsAlpn01);
    let short = OnDemand { wait: Duration::from_millis(1), ..limits() };
    let server = Server::start(&authority, &data, &Arc::default(), short).await;
    let endpoint = server.known.add(false);
    for _ in 0..3 {
        server.connect(endpoint, &data.development()).await.unwrap();
    }
    until("it is there", || file(&data, endpoint).exists()).await;
    data.log.says("the endpoint has a new certificate").await;
    server.connect(endpoint, &authority.signs_with().await).await.unwrap();
    assert_eq!(data.log.text().matches("is not there yet").count(), 1, "{}", data.log.text());
    assert_eq!(authority.orders(), 1);
}

#[tokio::test]
async fn there_are_no_more_orders_within_an_hour_than_may_be_over_restarts_too() {
    if !authority::is_here() {
        return;
    }
    let authority = Authority::start(Behaviour::default()).await;
    let mut data = data(&authority, Challenge::TlsAlpn01);
    data.settings.orders_per_hour = Some(2);
    let known = Arc::<Known>::default();
    let [one, two, three] = [(); 3].map(|()| known.add(false));
    let mut server = Server::start(&authority, &data, &known, limits()).await;
    let trusted = authority.signs_with().await;
    for endpoint in [one, two] {
        server.connect(endpoint, &trusted).await.unwrap();
    }
    server.connect(three, &data.development()).await.unwrap();
    data.log.says("tls.acme.orders_per_hour is 2, and as many were begun").await;
    server.stop().await;
    server = Server::start(&authority, &data, &known, limits()).await;
    server.connect(three, &data.development()).await.unwrap();
    server.connect(two, &trusted).await.unwrap();
    assert_eq!(authority.orders(), 2, "{}", authority.log());
    server.stop().await;
    data.settings.orders_per_hour = Some(3);
    let server = Server::start(&authority, &data, &known, limits()).await;
    server.connect(three, &trusted).await.unwrap();
}

/// As much of a handshake as this, of which it is an eternity until the rest; whether the edge has the last word in time.
async fn is_cut(address: SocketAddr, beginning: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(beginning).await.unwrap();
    // A reset is an end too.
    timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.is_ok()
}

#[tokio::test]
async fn who_is_slow_to_shake_hands_is_not_waited_for() {
    let authority = Authority::nobody();
    let data = data(&authority, Challenge::TlsAlpn01);
    let known = Arc::<Known>::default();
    let endpoint = known.add(false);
    let limits = Limits { tls_handshake: Duration::from_millis(200), ..Limits::standard() };
    let endpoints = data.open_endpoints(self::limits());
    let (address, _stop) = serve_within(limits, endpoints.into(), known, "127.0.0.1:0".parse().unwrap()).await;
    let hello = client_hello(&format!("{endpoint}.{SUFFIX}"));
    for beginning in [&[][..], &hello[..1], &hello[..hello.len() - 1], &hello] {
        assert!(is_cut(address, beginning).await, "{} bytes of {}", beginning.len(), hello.len());
    }
}

/// What a client says first.
fn client_hello(host: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn an_account_that_is_lost_is_registered_again() {
    if !authority::is_here() {
        return;
    }
    let mut authority = Authority::start(Behaviour::default()).await;
    let data = data(&authority, Challenge::TlsAlpn01);
    let server = Server::start(&authority, &data, &Arc::default(), limits()).await;
    server.connect(server.known.add(false), &authority.signs_with().await).await.unwrap();
    authority.down().await;
    authority = authority.up().await;
    let (trusted, endpoint) = (authority.signs_with().await, server.known.add(false));
    let begin = Instant::now();
    while server.connect(endpoint, &trusted).await.is_err() {
        assert!(begin.elapsed() < PATIENCE, "it is never registered: {}", data.log.text());
    }
    assert!(data.log.text().contains("accountDoesNotExist"), "{}", data.log.text());
    assert_eq!(authority.accounts(), 1);
}

use std::{fs, sync::atomic::AtomicUsize};

use api::{
    directory::{Behind, Unavailable},
    ids::{MicrovmId, VmId},
    size::Size,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{RootCertStore, pki_types::ServerName};
use time::Duration as Days;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca;

pub(crate) const SUFFIX: &str = "lambda-microvm.eu-west-1.example.test";

/// What there would be of an authority that nobody reaches.
pub(crate) fn endpoints(dir: &tempfile::TempDir, change: impl FnOnce(&mut AcmeSettings)) -> Arc<Endpoints> {
    with_limits(dir, change, OnDemand::standard())
}

fn with_limits(dir: &tempfile::TempDir, change: impl FnOnce(&mut AcmeSettings), limits: OnDemand) -> Arc<Endpoints> {
    let mut settings = AcmeSettings {
        directory: "https://127.0.0.1:1/".to_owned(),
        terms_agreed: true,
        contact: Vec::new(),
        challenge: Challenge::Http01,
        hook: Vec::new(),
        hook_timeout_seconds: 300,
        http_listen: None,
        orders_per_hour: None,
        ca: None,
        external_account: None,
    };
    change(&mut settings);
    let place = Place { dir: dir.path().join("acme"), domain_suffix: SUFFIX.to_owned(), roots: Vec::new() };
    let until_then = ca::load_or_create(&dir.path().join("tls"), SUFFIX).unwrap().served();
    Endpoints::open(settings, place, limits, &until_then).unwrap()
}

/// Endpoints, what is said of them, and how often it was.
struct Told {
    endpoints: HashMap<EndpointId, Result<Option<bool>, Unavailable>>,
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Directory for Told {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let ended = self.endpoints.get(endpoint).cloned().unwrap_or(Ok(None))?;
        let behind = |ended| Behind {
            microvm: MicrovmId::random(),
            size: Size::DEFAULT,
            http: true,
            shell: true,
            links: false,
            ended,
        };
        Ok(ended.map(behind))
    }

    async fn awake(&self, _: &MicrovmId) -> Result<VmId, Unavailable> {
        panic!("nobody is woken for a certificate");
    }

    fn touch(&self, _: &MicrovmId) {}
}

fn told<const N: usize>(
    said: [Result<Option<bool>, Unavailable>; N],
) -> ([EndpointId; N], Arc<Told>, Arc<dyn Directory>) {
    let endpoints = said.each_ref().map(|_| EndpointId::random());
    let told = Arc::new(Told { endpoints: endpoints.into_iter().zip(said).collect(), asked: AtomicUsize::new(0) });
    (endpoints, Arc::clone(&told), told)
}

/// A certificate for this name that begins and ends so many days from now, which signs itself, and the file with its key.
fn certificate(name: &str, from: i64, to: i64) -> (CertificateDer<'static>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = OffsetDateTime::now_utc() + Days::days(from);
    params.not_after = OffsetDateTime::now_utc() + Days::days(to);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().clone(), format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// Whether a client that trusts this certificate alone shakes hands.
async fn is_served(config: Arc<ServerConfig>, name: &str, trusted: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(served::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let accepting = TlsAcceptor::from(config).accept(ours);
    let connecting =
        TlsConnector::from(Arc::new(client)).connect(ServerName::try_from(name.to_owned()).unwrap(), theirs);
    let (_, connected) = tokio::join!(accepting, connecting);
    connected.is_ok()
}

#[tokio::test]
async fn what_is_on_the_disk_is_served_and_nobody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let endpoints = endpoints(&dir, |_| {});
    let ([endpoint], told, directory) = told([Ok(None)]);
    let name = format!("{endpoint}.{SUFFIX}");
    let (der, pem) = certificate(&name, -1, 89);
    fs::write(endpoints.files.path(&format!("{endpoint}.pem")), pem).unwrap();
    assert!(endpoints.certificate(endpoint, false, &directory).await.is_none(), "reading would be waiting");
    let config = endpoints.certificate(endpoint, true, &directory).await.unwrap();
    assert!(is_served(config, &name, &der).await);
    fs::remove_file(endpoints.files.path(&format!("{endpoint}.pem"))).unwrap();
    assert!(endpoints.certificate(endpoint, false, &directory).await.is_some(), "it is in memory");
    assert_eq!((told.asked.load(Ordering::Relaxed), endpoints.held()), (0, 1));
}

#[tokio::test]
async fn what_is_on_the_disk_and_no_good_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let endpoints = endpoints(&dir, |_| {});
    let ([endpoint], _, directory) = told([Ok(None)]);
    let name = format!("{endpoint}.{SUFFIX}");
    let good = certificate(&name, -1, 89).1;
    for (what, pem) in [
        ("over", certificate(&name, -90, -1).1),
        ("not yet", certificate(&name, 1, 90).1),
        ("another's", certificate(&format!("{}.{SUFFIX}", EndpointId::random()), -1, 89).1),
        ("half", good[..good.len() / 2].to_owned()),
        ("empty", String::new()),
    ] {
        fs::write(endpoints.files.path(&format!("{endpoint}.pem")), pem).unwrap();
        assert!(endpoints.certificate(endpoint, true, &directory).await.is_none(), "{what}");
    }
}

#[tokio::test]
async fn nothing_is_ordered_but_for_what_lives() {
    let dir = tempfile::tempdir().unwrap();
    let endpoints = endpoints(&dir, |_| {});
    let said = [Ok(None), Ok(Some(true)), Err(Unavailable::Late), Ok(Some(false)), Ok(Some(false))];
    let ([nobody, ended, unsure, lives, other], told, directory) = told(said);
    for endpoint in [nobody, ended, unsure] {
        assert!(endpoints.certificate(endpoint, true, &directory).await.is_none());
    }
    let asked = || told.asked.load(Ordering::Relaxed);
    let failed = || endpoints.counts.failed.to_string();
    assert_eq!((asked(), failed()), (3, "0".to_owned()));
    // The authority is not there; then nobody is looked up for nothing, and it is left alone.
    for endpoint in [lives, lives, other] {
        assert!(endpoints.certificate(endpoint, true, &directory).await.is_none());
    }
    assert_eq!((asked(), failed(), endpoints.counts.until_then.to_string()), (4, "1".to_owned(), "6".to_owned()));
    assert!(!endpoints.files.path("..").join("endpoint-orders.json").exists(), "it has counted nothing");
}

#[tokio::test]
async fn so_many_wait_and_so_many_are_looked_after() {
    let dir = tempfile::tempdir().unwrap();
    let ([one, other], told, directory) = told([Ok(None), Ok(None)]);
    let limits = OnDemand { waiting: 0, ..OnDemand::standard() };
    let none = with_limits(&dir, |_| {}, limits);
    assert!(none.certificate(one, true, &directory).await.is_none());
    assert_eq!(told.asked.load(Ordering::Relaxed), 0, "it does not wait");

    let limits = OnDemand { looked_after: 1, ..OnDemand::standard() };
    let endpoints = with_limits(&dir, |_| {}, limits);
    let first = endpoints.look_after(one, &directory).unwrap();
    assert!(endpoints.look_after(other, &directory).is_none());
    let same = endpoints.look_after(one, &directory).unwrap();
    assert!(Arc::ptr_eq(&first.is_late, &same.is_late), "nobody looks after it twice");
    let mut over = first.told;
    while over.changed().await.is_ok() {}
    assert!(endpoints.look_after(other, &directory).is_some());
}

#[tokio::test]
async fn orders_are_counted_before_they_are_made_over_restarts_too() {
    let dir = tempfile::tempdir().unwrap();
    let open = || endpoints(&dir, |settings| settings.orders_per_hour = Some(3));
    let first = open();
    first.begin().await.unwrap();
    first.begin().await.unwrap();
    let second = open();
    second.begin().await.unwrap();
    let error = second.begin().await.unwrap_err().to_string();
    assert!(error.starts_with("tls.acme.orders_per_hour is 3, and as many were begun; the next may be at "), "{error}");
    assert!(matches!(open().begin().await, Err(AcmeError::OrdersPerHour { .. })));
}

#[tokio::test]
async fn what_is_over_is_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let endpoints = endpoints(&dir, |_| {});
    let [over, good, damaged] = [(); 3].map(|()| EndpointId::random());
    let put = |name: &str, content: &str| fs::write(endpoints.files.path(name), content).unwrap();
    let of = |endpoint: EndpointId, from, to| certificate(&format!("{endpoint}.{SUFFIX}"), from, to).1;
    put(&format!("{over}.pem"), &of(over, -90, -1));
    put(&format!("{good}.pem"), &of(good, -89, 1));
    put(&format!("{damaged}.pem"), "?");
    put("notes.pem", &of(over, -90, -1));
    assert_eq!(endpoints.sweep(OffsetDateTime::now_utc()).unwrap(), 1);
    let mut left = endpoints.files.names().unwrap();
    left.sort();
    let mut wanted = vec![format!("{good}.pem"), format!("{damaged}.pem"), "notes.pem".to_owned()];
    wanted.sort();
    assert_eq!(left, wanted);

    // One that is looked after is about to be written anew.
    put(&format!("{over}.pem"), &of(over, -90, -1));
    let (_, told) = watch::channel(None);
    let flight = Flight { told, is_late: Arc::default() };
    endpoints.state().looked_after.insert(over, flight);
    assert_eq!(endpoints.sweep(OffsetDateTime::now_utc()).unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_ordered_once_this_is_kept_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let endpoints = endpoints(&dir, |_| {});
    let ([endpoint], told, directory) = told([Ok(Some(false))]);
    drop(Box::pin(Arc::clone(&endpoints).keep()));
    assert!(!endpoints.stop.is_cancelled(), "it was not begun");
    let keeping = tokio::spawn(Arc::clone(&endpoints).keep());
    tokio::task::yield_now().await;
    keeping.abort();
    let _ = keeping.await;
    assert!(endpoints.certificate(endpoint, true, &directory).await.is_none());
    assert_eq!(told.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn one_in_memory_that_ages_is_served_and_seen_to() {
    let dir = tempfile::tempdir().unwrap();
    let endpoints = endpoints(&dir, |_| {});
    let ([young, aged], told, directory) = told([Ok(Some(false)), Ok(Some(false))]);
    for (endpoint, from, to) in [(young, -50, 40), (aged, -60, 29)] {
        let name = format!("{endpoint}.{SUFFIX}");
        let pem = certificate(&name, from, to).1.into_bytes();
        let valid = keeper::read(&endpoints.files.path("x"), pem, &name).unwrap();
        endpoints.hold(endpoint, valid, &watch::channel(None).0);
    }
    assert!(endpoints.certificate(young, false, &directory).await.is_some());
    assert!(endpoints.state().looked_after.is_empty());
    assert!(endpoints.certificate(aged, false, &directory).await.is_some());
    let mut seen_to = endpoints.state().looked_after[&aged].told.clone();
    while seen_to.changed().await.is_ok() {}
    // The authority is not there, and what there is stays.
    assert_eq!((told.asked.load(Ordering::Relaxed), endpoints.counts.failed.to_string()), (1, "1".to_owned()));
    assert!(endpoints.certificate(aged, false, &directory).await.is_some());
}

//! One life of the server: the real control, host and edge, over a platform that is none, in a runtime whose clock moves
//! only when nothing else does.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::yield_now,
    time::Duration,
};

use api::{
    directory::Dialer,
    host::{ArtifactError, ArtifactSource, Host, Layout},
    ids::MicrovmId,
    token::{Claims, Grant, Ports, TokenKeys},
};
use bytes::Bytes;
use control::{Control, ControlConfig, Gauge, Simulation, auth::Caller};
use edge::{Edge, EdgeConfig, Limits, ServedCertificate, ca};
use failpoint::Listener;
use host::{HostConfig, LocalHost};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::{platform::Pretended, world::World};

/// The domain of the endpoints.
const DOMAIN: &str = "sim.localhost";

/// Bytes a client's connection holds in one direction.
const BUFFER: usize = 64 * 1024;

/// When a token stops being good: in 2100.
const LATE: u64 = 4_102_444_800;

/// How long a graceful stop lets transitions finish, as a server does.
const DRAIN: Duration = Duration::from_secs(60);

/// A runtime of one thread whose clock jumps to the next timer when there is nothing to do, and the database, which works on
/// threads of its own, has nothing to do either.
pub fn runtime(gauge: &Arc<OnceLock<Gauge>>, listener: &Listener) -> std::io::Result<Runtime> {
    let (listener, gauge) = (Arc::clone(listener), Arc::clone(gauge));
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        // One after the other, so that the order does not depend on the machine.
        .max_blocking_threads(1)
        // Its blocking threads come to steps too.
        .on_thread_start(move || failpoint::listen(Some(Arc::clone(&listener))))
        // What other threads have done is looked at when there is nothing else to do, so that it does not depend on how
        // fast they were.
        .global_queue_interval(u32::MAX)
        // The history itself gets its turn as soon as there is something for it, not after a number of others that waiting for
        // the database has gone into.
        .event_interval(1)
        .on_thread_park(move || {
            if gauge.get().is_some_and(Gauge::in_use) {
                yield_now();
                // With something to do, the runtime looks around once more instead of moving its clock.
                tokio::spawn(async {});
            }
        })
        .build()
}

/// A server.
pub struct Server {
    pub control: Arc<Control>,
    host: Arc<LocalHost>,
    edge: Arc<Edge>,
    keys: Arc<TokenKeys>,
    pub caller: Caller,
}

struct AnyArtifact;

#[async_trait::async_trait]
impl ArtifactSource for AnyArtifact {
    async fn fetch(&self, _: &str, _: &str, to: &Path, _: u64) -> Result<u64, ArtifactError> {
        tokio::fs::write(to, b"zip").await.map_err(ArtifactError::Other)?;
        Ok(3)
    }
}

/// The edge's certificate is made once; nobody looks at it.
fn certificate() -> Arc<ServedCertificate> {
    static CERTIFICATE: OnceLock<Arc<ServedCertificate>> = OnceLock::new();
    let certificate = CERTIFICATE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("there is a temporary directory");
        ca::load_or_create(dir.path(), DOMAIN).expect("a certificate authority can be made").served()
    });
    Arc::clone(certificate)
}

/// Where the database of a life is. Each has a place of its own, because SQLite, in a thread of the life before, may still be
/// about to remove its files by their names.
pub fn database_dir(data: &Path, life: u32) -> PathBuf {
    data.join(format!("db-{life}"))
}

impl Server {
    /// Starts, as `serve` does.
    pub async fn start(world: &Arc<World>, life: u32, gauge: Gauge) -> Result<Self, String> {
        let platform = Arc::new(Pretended::new(world, life));
        let config = HostConfig {
            layout: Layout { data: world.data.clone() },
            kernel: PathBuf::from("/kernel"),
            initramfs: PathBuf::from("/initramfs"),
            accel: vmm::Accel::Tcg,
            driver: vmm::Driver::Qemu,
            vmm: PathBuf::from("/vmm"),
            pager: PathBuf::from("/pager"),
            builder_storage: PathBuf::from("/storage"),
            artifacts: Arc::new(AnyArtifact),
            nameservers: vec![],
            namespaces_ready: 0,
            launches_ready: 1,
            wakes_ready: 1,
        };
        let host = LocalHost::start_over(config, platform).await.map_err(|error| format!("{error:?}"))?;
        let now = Arc::clone(world);
        let simulation = Simulation { now: Arc::new(move || now.now()), gauge };
        let config = ControlConfig { simulation: Some(simulation), ..ControlConfig::default() };
        let keys = Arc::new(TokenKeys::single(Uuid::from_u128(1), [1; 32]));
        let caller = Caller::root(&config.account, &config.region, "key");
        let (path, on) = (database_dir(&world.data, life).join("state.db"), Arc::clone(&host) as Arc<dyn Host>);
        let control =
            Control::open(config, &path, on, Arc::clone(&keys)).await.map_err(|error| format!("{error:?}"))?;
        let edge = Edge::new(
            EdgeConfig { domain_suffix: DOMAIN.to_owned(), limits: Limits::standard() },
            certificate(),
            Arc::clone(&control) as _,
            Arc::clone(&host) as Arc<dyn Dialer>,
            Arc::clone(&keys),
        );
        Ok(Self { control, host, edge: Arc::new(edge), keys, caller })
    }

    /// Stops in good order.
    pub async fn stop(self) {
        self.control.drain(DRAIN).await;
        self.host.stop().await;
    }

    /// A client that can send requests on its own.
    pub fn client(&self) -> Client {
        Client { edge: Arc::clone(&self.edge), keys: Arc::clone(&self.keys) }
    }
}

/// Whoever sends requests to endpoints.
#[derive(Clone)]
pub struct Client {
    edge: Arc<Edge>,
    keys: Arc<TokenKeys>,
}

impl Client {
    /// Posts to the app of a microVM; what it answered, or why there is no answer.
    pub async fn post(&self, microvm: MicrovmId, endpoint: &str, path: &str) -> Result<(StatusCode, String), String> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let edge = Arc::clone(&self.edge);
        tokio::spawn(async move { edge.serve_connection(theirs).await });
        let claims = Claims { microvm_id: microvm, grant: Grant::Http(Ports::all()), expires_unix: LATE };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let label = endpoint.split('.').next().unwrap_or_default();
        let request = Request::post(path)
            .header("host", format!("{label}.{DOMAIN}"))
            .header("x-aws-proxy-auth", self.keys.seal(&claims))
            .body(Full::new(Bytes::new()))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }
}

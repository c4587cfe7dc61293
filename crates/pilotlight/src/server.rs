//! A server: control, a host and the edge in one process, whatever the host runs its microVMs with.
//!
//! Files first, then what is left of the life before is looked at, then the doors open. At SIGTERM the doors close, what is
//! in progress finishes, and running microVMs stay for the next server.

use std::{
    fs::File,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use api::{
    directory::Dialer,
    host::{ArtifactSource, Host},
    sensitive::Sensitive,
};
use control::{
    Control, ControlConfig,
    audit::{self, Audit},
    auth::{AccessKey, Authenticator, Principals},
};
use edge::{Edge, EdgeConfig, Limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing_subscriber::EnvFilter;

use crate::{
    access,
    config::Config,
    external,
    gateway::Gateway,
    metrics,
    running::Running,
    s3_access::Gate,
    storage::Storage,
    tls::EndpointTls,
    token_keys::{Keeper, LOOK_EVERY},
};

/// How long transitions of microVMs may take to finish once the server is to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(60);

/// How long another server's lock is waited for.
const LOCK_TIME_MAX: Duration = Duration::from_secs(2);

/// What runs the microVMs of a server, for whoever starts it.
#[derive(Debug, Clone)]
pub struct Guests {
    /// In a word or two.
    pub name: String,
    /// Why that.
    pub because: String,
}

/// Logs to standard error, at the level `RUST_LOG` says.
pub fn log_to_stderr() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
}

/// Serves until SIGTERM or SIGINT, over the host that `start` makes; what it makes beside it is awaited at the end.
pub fn run<H, S>(
    config: &Config,
    limits: ControlConfig,
    guests: &Guests,
    start: impl AsyncFnOnce(Arc<dyn ArtifactSource>) -> anyhow::Result<(Arc<H>, S)>,
) -> anyhow::Result<()>
where
    H: Host + Dialer,
    S: Future<Output = ()>,
{
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data directory {}", config.data_dir.display()))?;
    let _lock = lock(&config.data_dir)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config, limits, guests, start));
    Running::retract(&config.data_dir);
    result
}

async fn serve<H, S>(
    config: &Config,
    limits: ControlConfig,
    guests: &Guests,
    start: impl AsyncFnOnce(Arc<dyn ArtifactSource>) -> anyhow::Result<(Arc<H>, S)>,
) -> anyhow::Result<()>
where
    H: Host + Dialer,
    S: Future<Output = ()>,
{
    let started = Instant::now();
    let data_dir = &config.data_dir;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let api_listener = bind(config.api_address).await.context("the API cannot be served")?;
    let api_address = api_listener.local_addr()?;
    let edge_listeners = bind_edge(config).await?;
    let metrics_listener = match config.metrics_address {
        Some(address) => Some(bind(address).await.context("metrics cannot be served")?),
        None => None,
    };
    let edge_port = edge_listeners[0].local_addr()?.port();

    let key = access::local_key(data_dir)?;
    let sealing_key = access::sealing_key(data_dir)?;
    let keeper = Keeper::open(data_dir, sealing_key.clone(), config.token_key_period())?;
    let token_keys = keeper.keys();
    let tls = EndpointTls::open(config)?;
    let storage = Storage::open(data_dir)?;
    tracing::info!(guests = guests.name, because = guests.because, "chosen");
    let artifacts = match &config.artifacts {
        None => storage.artifacts()?,
        Some(external) => external::artifacts(external)?,
    };
    let (host, host_stopped) = start(artifacts).await?;
    let control = Control::open(
        ControlConfig {
            region: config.region.clone(),
            account: config.account.clone(),
            endpoint_suffix: endpoint_suffix(config, edge_port),
            networks: config.networks(),
            lifecycle: config.lifecycle.clone(),
            links: config.links.clone(),
            ..limits
        },
        &data_dir.join("state.db"),
        Arc::clone(&host) as _,
        Arc::clone(&token_keys),
    )
    .await
    .context("the state cannot be opened")?;

    let stop = CancellationToken::new();
    let root = AccessKey { id: key.access_key_id.clone(), secret: Sensitive::new(key.secret_access_key.clone()) };
    let principals = Principals::new(config.account.clone(), root);
    control
        .follow_principals(Arc::clone(&principals), sealing_key)
        .await
        .context("users and policies cannot be read")?;
    let audit = Audit::start(data_dir.join("logs/audit.jsonl"), audit::Limits::default());
    control.tell_changes(audit.clone());
    let authenticator = Arc::new(Authenticator::new(Arc::clone(&principals), config.region.clone()));
    let gateway = Gateway {
        lambda: control::http::router(
            Arc::clone(&control) as _,
            Arc::clone(&authenticator),
            config.throttles()?,
            audit.clone(),
        ),
        sts: control::http::sts_router(authenticator, audit.clone()),
        s3: storage.service(Gate { principals, region: config.region.clone() })?,
        audit: audit.clone(),
    };
    let edge = Edge::new(
        EdgeConfig { domain_suffix: config.endpoint_suffix(), limits: edge_limits(config) },
        tls.served().server_config().context("TLS cannot be served")?,
        Arc::clone(&control) as _,
        Arc::clone(&host) as _,
        token_keys,
    );
    // It ends with this: what is counted while the server stops is of no use to anybody.
    let counted = edge.metrics().with_certificate(tls.served());
    let _metrics =
        metrics_listener.map(|listener| AbortOnDropHandle::new(tokio::spawn(metrics::serve(listener, counted))));
    let edge = edge.listen_on(edge_listeners)?;
    let api = tokio::spawn(gateway.serve(api_listener, stop.clone()));
    let edge = tokio::spawn(edge.serve(stop.clone()));

    let running = Running {
        pid: std::process::id(),
        api_url: format!("http://{api_address}"),
        edge_port,
        ca: tls.ca_path(),
        region: config.region.clone(),
    };
    let _following = AbortOnDropHandle::new(tokio::spawn(tls.follow()));
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeper.keep(LOOK_EVERY)));
    running.announce(data_dir)?;
    println!("API        {}", running.api_url);
    println!("endpoints  https://<uuid>.{}", endpoint_suffix(config, edge_port));
    println!("guests     {}: {}", guests.name, guests.because);
    println!("ready in {:.1} s; point AWS clients here with: {}", started.elapsed().as_secs_f64(), env_line(data_dir));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: letting what is in progress finish");
    Running::retract(data_dir);
    stop.cancel();
    let (api, edge) = tokio::join!(api, edge);
    api.context("the API failed")?;
    let drained = edge.context("the edge failed")?;
    if drained.cut > 0 {
        tracing::warn!(connections = drained.cut, "requests were still in progress at the end of the drain");
    }
    control.drain(DRAIN_TIME_MAX).await;
    host_stopped.await;
    audit.stop();
    tracing::info!("stopped; running microVMs stay for the next server");
    Ok(())
}

/// The limits of the endpoints, fitted to what this process may have open; a quarter of that is for everything else.
fn edge_limits(config: &Config) -> Limits {
    let files = allow_open_files(config.edge.files().saturating_mul(4).div_ceil(3));
    let (limits, lowered) = config.edge.limits(files - files / 4);
    if lowered {
        tracing::warn!(
            files,
            connections = limits.connections,
            upstream_connections = limits.upstream_connections,
            "this process may not have enough files open for edge.connections and edge.upstream_connections, so they are \
             lowered; raise its limit (LimitNOFILE, ulimit -n), or lower the two"
        );
    }
    limits
}

/// How many files this process may have open, after asking for so many. For no more than that: what it starts inherits it,
/// and some programs in containers go through all descriptors there might be.
fn allow_open_files(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (Some(current), maximum) = (limit.current, limit.maximum.unwrap_or(u64::MAX)) else { return u64::MAX };
    let raised = wanted.min(maximum);
    if raised <= current || setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit }).is_err() {
        return current;
    }
    raised
}

fn env_line(data_dir: &Path) -> String {
    if data_dir == Path::new("/var/lib/pilotlight") {
        r#"eval "$(pilotlight env)""#.to_owned()
    } else {
        format!(r#"eval "$(pilotlight env --data-dir {})""#, data_dir.display())
    }
}

/// What follows the first label in the `endpoint` a client is given; without the port where clients assume it.
fn endpoint_suffix(config: &Config, edge_port: u16) -> String {
    match edge_port {
        443 => config.endpoint_suffix(),
        port => format!("{}:{port}", config.endpoint_suffix()),
    }
}

/// Two servers on one data directory would take each other's microVMs for orphans.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let file = File::create(data_dir.join("lock")).context("cannot make the data directory's lock")?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A server that was killed while it started a VM is not quite gone.
            Err(_) if begin.elapsed() < LOCK_TIME_MAX => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "another server runs with the data directory {}; stop it, or use another",
                        data_dir.display()
                    )
                });
            }
        }
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// The same port on every address, a free one if it is 0.
async fn bind_edge(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let mut port = config.edge_port;
    let mut listeners = Vec::new();
    for &address in &config.edge_addresses {
        match bind(SocketAddr::new(address, port)).await {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            // A machine without IPv6 has no ::1, and its names do not resolve to it either.
            Err(error) if address.is_ipv6() && address.is_loopback() && !listeners.is_empty() => {
                tracing::warn!(error = format!("{error:#}"), "the endpoints are not served on {address}");
            }
            Err(error) => return Err(error.context("the endpoints cannot be served")),
        }
    }
    Ok(listeners)
}

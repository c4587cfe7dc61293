//! A server: control, a host and the edge, in one process or the edge in another, whatever the host runs its microVMs with.
//!
//! Files first, then what is left of the life before is looked at, then the doors open. At SIGTERM the doors close, what is
//! in progress finishes, and running microVMs stay for the next server.

use std::{
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use api::{
    apart::Residents,
    directory::Dialer,
    host::{ArtifactSource, Host},
    sensitive::Sensitive,
};
use control::{
    Control, ControlConfig,
    audit::{self, Audit},
    auth::{AccessKey, Authenticator, Principals},
};
use futures_util::future::{LocalBoxFuture, OptionFuture};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing_subscriber::EnvFilter;

use crate::{
    access, apart,
    config::Config,
    door::{self, Door, Opened},
    external,
    gateway::Gateway,
    running::Running,
    s3_access::Gate,
    storage::Storage,
    tls,
    token_keys::{self, Keeper, LOOK_EVERY},
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

/// Where the edge of a server is.
pub enum EdgeIs<H> {
    /// In its process.
    Here,
    /// In a process of its own, which is told by this where the host's VMs are.
    Apart(fn(Arc<H>) -> Arc<dyn Residents>),
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
    edge_is: EdgeIs<H>,
    start: impl AsyncFnOnce(Arc<dyn ArtifactSource>) -> anyhow::Result<(Arc<H>, S)>,
) -> anyhow::Result<()>
where
    H: Host + Dialer,
    S: Future<Output = ()> + 'static,
{
    let residents_of = match edge_is {
        EdgeIs::Here => None,
        EdgeIs::Apart(residents_of) => Some(residents_of),
    };
    let edge_is_here = residents_of.is_none();
    let start: Start<'_> = Box::new(move |artifacts| {
        Box::pin(async move {
            let (host, stopped) = start(artifacts).await?;
            let residents = residents_of.map(|residents_of| residents_of(Arc::clone(&host)));
            Ok(Started { dialer: Arc::clone(&host) as _, host: host as _, residents, stopped: Box::pin(stopped) })
        })
    });
    run_over(config, limits, guests, edge_is_here, start)
}

/// A host of any kind: what follows is compiled once, and not in each program that has one of its own.
struct Started {
    host: Arc<dyn Host>,
    dialer: Arc<dyn Dialer>,
    /// For an edge elsewhere.
    residents: Option<Arc<dyn Residents>>,
    stopped: LocalBoxFuture<'static, ()>,
}

type Start<'a> = Box<dyn FnOnce(Arc<dyn ArtifactSource>) -> LocalBoxFuture<'a, anyhow::Result<Started>> + 'a>;

fn run_over(
    config: &Config,
    limits: ControlConfig,
    guests: &Guests,
    edge_is_here: bool,
    start: Start<'_>,
) -> anyhow::Result<()> {
    make(&config.data_dir)?;
    let _lock = lock(&config.data_dir, "lock", "server", "stop it")?;
    let _edges = match edge_is_here {
        true => Some(lock_edge(config, "stop it, or serve with --roles control,host beside it")?),
        false => None,
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    // On the heap, as below and in `iam`: otherwise each unit of compilation that waits for it gets a copy.
    let serving: LocalBoxFuture<'_, _> = Box::pin(serve(config, limits, guests, edge_is_here, start));
    let result = runtime.block_on(serving);
    Running::retract(&config.data_dir);
    result
}

/// Serves the endpoints of a server that is another process, until SIGTERM or SIGINT.
pub fn run_edge(config: &Config) -> anyhow::Result<()> {
    make(&config.data_dir)?;
    let _edges = lock_edge(config, "stop it")?;
    let serving: LocalBoxFuture<'_, _> = Box::pin(serve_edge(config));
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(serving)
}

fn make(data_dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot make the data directory {}", data_dir.display()))
}

async fn serve_edge(config: &Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let door = Door::bind(config).await?;
    let port = door.port();
    let sealing_key = access::sealing_key(&config.data_dir)?;
    let keys = Arc::new(apart::follow(token_keys::stored_path(&config.data_dir), sealing_key));
    let _looking = AbortOnDropHandle::new(tokio::spawn(apart::drop_old(Arc::clone(&keys))));
    let client = apart::Client::new(apart::Limits::standard());
    let (asking, socket) = (Arc::clone(&client), apart::socket_path(&config.data_dir));
    let _asking = AbortOnDropHandle::new(tokio::spawn(async move { asking.run(&socket).await }));
    let stop = CancellationToken::new();
    let edge = door.open(config, Arc::clone(&client) as _, client, keys, stop.clone())?;
    println!("endpoints  https://<uuid>.{}", endpoint_suffix(config, port));
    println!("ready in {:.1} s", started.elapsed().as_secs_f64());
    signals.next().await;
    tracing::info!("stopping: letting what is in progress finish");
    stop.cancel();
    edge.closed().await
}

async fn serve(
    config: &Config,
    limits: ControlConfig,
    guests: &Guests,
    edge_is_here: bool,
    start: Start<'_>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let data_dir = &config.data_dir;
    let mut signals = Signals::new()?;

    let api_listener = door::bind(config.api_address).await.context("the API cannot be served")?;
    let api_address = api_listener.local_addr()?;
    let door = match edge_is_here {
        true => Some(Door::bind(config).await?),
        false => None,
    };
    let edge_port = door.as_ref().map_or(config.edge_port, Door::port);

    let key = access::local_key(data_dir)?;
    let sealing_key = access::sealing_key(data_dir)?;
    let keeper = Keeper::open(data_dir, sealing_key.clone(), config.token_key_period())?;
    let token_keys = keeper.keys();
    let storage = Storage::open(data_dir)?;
    tracing::info!(guests = guests.name, because = guests.because, "chosen");
    let artifacts = match &config.artifacts {
        None => storage.artifacts()?,
        Some(external) => external::artifacts(external)?,
    };
    let Started { host, dialer, residents, stopped: host_stopped } = start(artifacts).await?;
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
        host,
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
    let edge = match door {
        Some(door) => Some(door.open(config, Arc::clone(&control) as _, dialer, token_keys, stop.clone())?),
        None => None,
    };
    let desk = match residents {
        Some(residents) => {
            let desk = apart::Desk::new(Arc::clone(&control) as _, residents, apart::Limits::standard());
            Some(tokio::spawn(desk.serve(apart::listen(data_dir)?, stop.clone())))
        }
        None => None,
    };
    let api = tokio::spawn(gateway.serve(api_listener, stop.clone()));

    let running = Running {
        pid: std::process::id(),
        api_url: format!("http://{api_address}"),
        edge_port,
        ca: tls::trusted(config),
        region: config.region.clone(),
    };
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeper.keep(LOOK_EVERY)));
    running.announce(data_dir)?;
    println!("API        {}", running.api_url);
    let by = if desk.is_some() { ", by `pilotlight serve --roles edge`" } else { "" };
    println!("endpoints  https://<uuid>.{}{by}", endpoint_suffix(config, edge_port));
    println!("guests     {}: {}", guests.name, guests.because);
    println!("ready in {:.1} s; point AWS clients here with: {}", started.elapsed().as_secs_f64(), env_line(data_dir));

    signals.next().await;
    tracing::info!("stopping: letting what is in progress finish");
    Running::retract(data_dir);
    stop.cancel();
    let (edge, desk) = (OptionFuture::from(edge.map(Opened::closed)), OptionFuture::from(desk));
    let (api, edge, desk) = tokio::join!(api, edge, desk);
    api.context("the API failed")?;
    edge.transpose()?;
    desk.transpose().context("what answers the edge failed")?;
    control.drain(DRAIN_TIME_MAX).await;
    host_stopped.await;
    audit.stop();
    tracing::info!("stopped; running microVMs stay for the next server");
    Ok(())
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

/// What ends a server.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// Two would only take each other's ports, and make each other's certificates.
fn lock_edge(config: &Config, remedy: &str) -> anyhow::Result<File> {
    lock(&config.data_dir, "edge.lock", "edge", remedy)
}

/// Two servers on one data directory would take each other's microVMs for orphans.
fn lock(data_dir: &Path, name: &str, who: &str, remedy: &str) -> anyhow::Result<File> {
    let file = File::create(data_dir.join(name)).context("cannot make the data directory's lock")?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A server that was killed while it started a VM is not quite gone.
            Err(_) if begin.elapsed() < LOCK_TIME_MAX => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "another {who} runs with the data directory {}; {remedy}, or use another",
                        data_dir.display()
                    )
                });
            }
        }
    }
}

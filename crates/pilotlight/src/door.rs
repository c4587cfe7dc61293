//! Where the clients of microVMs come in: the edge, with its listeners, its certificate and what it counts. In the process
//! of control and the host, or in one of its own.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use api::{
    directory::{Dialer, Directory},
    token::TokenKeys,
};
use edge::{Drained, Edge, EdgeConfig, Limits};
use futures_util::future::OptionFuture;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{config::Config, metrics, tls::EndpointTls};

/// The port of plain HTTP, where an authority looks for proofs.
const HTTP: u16 = 80;

/// What is bound and read before anything else is begun.
pub struct Door {
    listeners: Vec<TcpListener>,
    metrics: Option<TcpListener>,
    /// Where an authority looks for proofs over plain HTTP.
    http: Vec<TcpListener>,
    tls: EndpointTls,
    port: u16,
}

/// An edge that serves.
pub struct Opened {
    edge: JoinHandle<Drained>,
    http: Option<JoinHandle<()>>,
    // They end with this: what is counted while the server stops is of no use to anybody.
    _beside: Vec<AbortOnDropHandle<std::convert::Infallible>>,
}

impl Door {
    /// Listens, and reads or makes the certificate.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let listeners = bind_edge(config).await?;
        let metrics = match config.metrics_address {
            Some(address) => Some(bind(address).await.context("metrics cannot be served")?),
            None => None,
        };
        let port = listeners[0].local_addr()?.port();
        let tls = EndpointTls::open(config)?;
        let http = match tls.wants_http() {
            Some(_) => bind_http(config).await?,
            None => Vec::new(),
        };
        Ok(Self { listeners, metrics, http, tls, port })
    }

    /// The port of the endpoints.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves until it is to stop.
    pub fn open(
        self,
        config: &Config,
        directory: Arc<dyn Directory>,
        dialer: Arc<dyn Dialer>,
        keys: Arc<TokenKeys>,
        stop: CancellationToken,
    ) -> anyhow::Result<Opened> {
        let limits = edge_limits(config);
        let edge_config = EdgeConfig { domain_suffix: config.endpoint_suffix(), limits };
        let edge = Edge::new(edge_config, self.tls.certificate(), directory, dialer, keys);
        let http = self
            .tls
            .wants_http()
            .map(|endpoints| tokio::spawn(edge::acme::answer(endpoints, self.http, self.port, stop.clone())));
        let mut beside = vec![AbortOnDropHandle::new(tokio::spawn(self.tls.follow()))];
        if let Some(listener) = self.metrics {
            beside.push(AbortOnDropHandle::new(tokio::spawn(metrics::serve(listener, edge.metrics()))));
        }
        let edge = tokio::spawn(edge.listen_on(self.listeners)?.serve(stop));
        Ok(Opened { edge, http, _beside: beside })
    }
}

impl Opened {
    /// Returns once it has stopped.
    pub async fn closed(self) -> anyhow::Result<()> {
        let drained = self.edge.await.context("the edge failed")?;
        OptionFuture::from(self.http).await.transpose().context("what answers the ACME server failed")?;
        if drained.cut > 0 {
            tracing::warn!(connections = drained.cut, "requests were still in progress at the end of the drain");
        }
        Ok(())
    }
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

/// Listens on an address.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn bind_edge(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    bind_endpoints(config, config.edge_port).await.context("the endpoints cannot be served")
}

/// Where an authority looks: on port 80, wherever that is here.
async fn bind_http(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let told = config.tls.as_ref().and_then(|tls| tls.acme.as_ref()?.http_listen.as_ref());
    let Some(addresses) = told else {
        return bind_endpoints(config, HTTP).await.context("the ACME server cannot be answered (tls.acme.http_listen)");
    };
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        listeners.push(bind(address).await.context("tls.acme.http_listen")?);
    }
    Ok(listeners)
}

/// The same port on every address of the endpoints, a free one if it is 0.
async fn bind_endpoints(config: &Config, mut port: u16) -> anyhow::Result<Vec<TcpListener>> {
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
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use edge::acme::{AcmeSettings, Challenge};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{apart, config::Tls};

    /// A configuration with an authority that nobody reaches, and which looks for proofs over plain HTTP at these addresses.
    fn config(dir: &std::path::Path, http_listen: &[SocketAddr]) -> Config {
        let other = edge::ca::load_or_create(&dir.join("other"), "other.test").unwrap();
        let acme = AcmeSettings {
            directory: "https://127.0.0.1:1/directory".to_owned(),
            terms_agreed: true,
            contact: Vec::new(),
            challenge: Challenge::Http01,
            hook: Vec::new(),
            hook_timeout_seconds: 300,
            http_listen: Some(http_listen.to_vec()),
            orders_per_hour: None,
            ca: Some(other.ca_path().to_owned()),
            external_account: None,
        };
        let tls = Some(Tls { certificate: None, key: None, acme: Some(acme) });
        Config { data_dir: dir.join("data"), edge_port: 0, domain: "example.test".to_owned(), tls, ..Config::default() }
    }

    #[tokio::test]
    async fn an_authority_is_answered_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &["127.0.0.1:0".parse().unwrap()]);
        let door = Door::bind(&config).await.unwrap();
        let (http, port) = (door.http[0].local_addr().unwrap(), door.port());
        let (keys, stop) = (Arc::new(TokenKeys::single(uuid::Uuid::from_u128(1), [1; 32])), CancellationToken::new());
        let nobody = apart::Client::new(apart::Limits::standard());
        let opened = door.open(&config, Arc::clone(&nobody) as _, nobody, keys, stop.clone()).unwrap();
        let host = format!("{}.{}", api::ids::EndpointId::random(), config.endpoint_suffix());
        let mut stream = TcpStream::connect(http).await.unwrap();
        stream.write_all(format!("GET /x HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(&format!("location: https://{host}:{port}/x\r\n")), "{answer}");
        stop.cancel();
        opened.closed().await.unwrap();
        assert!(TcpStream::connect(http).await.is_err());
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_refused_by_the_setting() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = ["127.0.0.1:0".parse().unwrap(), taken.local_addr().unwrap()];
        let error = Door::bind(&config(dir.path(), &addresses)).await.err().unwrap();
        let words = format!("tls.acme.http_listen: cannot listen on {}", taken.local_addr().unwrap());
        assert!(format!("{error:#}").starts_with(&words), "{error:#}");
    }
}

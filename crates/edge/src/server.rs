//! The edge as a whole: listen, serve, drain.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::{
    directory::{Dialer, Directory},
    token::TokenKeys,
};
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    addresses::{AddressPlace, Addresses},
    allowance::Allowances,
    app_tls::AppTls,
    apps::Apps,
    config::EdgeConfig,
    connection,
    metrics::{Counters, Limit, Metrics},
    pool::Pool,
    refusal::{Refusal, chain},
    served::Certificate,
    waiting::Waiting,
};

/// How often unused connections to apps are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Rest after a failed accept: out of file descriptors, most likely, and trying harder does not help.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An address that could not be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Binding failed.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Which address was bound could not be found out.
    #[error("cannot tell the address of a listener")]
    LocalAddress(#[source] std::io::Error),
}

/// How the shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because they did not end in time.
    pub cut: usize,
}

/// What every connection needs.
pub(crate) struct Shared {
    pub(crate) config: EdgeConfig,
    pub(crate) tls: TlsAcceptor,
    /// What `tls` resolves to, or is stood in for by.
    pub(crate) certificate: Certificate,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) keys: Arc<TokenKeys>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) apps: Apps,
    pub(crate) app_tls: AppTls,
    pub(crate) waiting: Waiting,
    pub(crate) allowances: Allowances,
    pub(crate) counters: Arc<Counters>,
    /// Clients' connections that there may be yet.
    pub(crate) served: Arc<Semaphore>,
    /// Those that there are, by the clients' addresses.
    addresses: Arc<Addresses>,
    /// Connections that may be told yet that there are too many from their address.
    told: Arc<Semaphore>,
    /// Connections to apps that there may be yet.
    pub(crate) upstream: Arc<Semaphore>,
    /// Connections and tunnels.
    pub(crate) tasks: TaskTracker,
    /// Ends them all, at the end of the drain.
    pub(crate) cut: CancellationToken,
}

/// A connection's share of the limits on connections.
pub(crate) struct Places {
    _accepted: OwnedSemaphorePermit,
    served: Result<(OwnedSemaphorePermit, Option<AddressPlace>), Full>,
}

/// Why a connection was accepted only to be told that there are too many.
enum Full {
    All,
    Address { _told: OwnedSemaphorePermit },
}

impl Places {
    pub(crate) fn is_refused(&self) -> bool {
        self.served.is_err()
    }

    /// What its requests are told, if it is refused.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.served.as_ref().err().map(|full| match full {
            Full::All => Refusal::TooManyConnections,
            Full::Address { .. } => Refusal::TooManyFromAddress,
        })
    }
}

/// An edge that does not listen yet.
pub struct Edge {
    shared: Arc<Shared>,
}

impl Edge {
    /// An edge for this domain, which serves this certificate, or one for each endpoint.
    #[must_use]
    pub fn new(
        config: EdgeConfig,
        certificate: impl Into<Certificate>,
        directory: Arc<dyn Directory>,
        dialer: Arc<dyn Dialer>,
        keys: Arc<TokenKeys>,
    ) -> Self {
        let certificate = certificate.into();
        let limits = &config.limits;
        let pool = Pool::new(limits.upstream_idle, limits.upstream_idle_per_port, limits.upstream_idle_total);
        let waiting = Waiting::new(limits.waiting_per_microvm, limits.waiting_total);
        let allowances = Allowances::new(limits.per_microvm.clone());
        let served = Arc::new(Semaphore::new(limits.connections));
        let addresses = Addresses::new(limits.connections_per_address);
        let told = Arc::new(Semaphore::new(limits.connections_refused));
        let upstream = Arc::new(Semaphore::new(limits.upstream_connections));
        let mut config = config;
        config.domain_suffix = config.domain_suffix.trim_matches('.').to_ascii_lowercase();
        Self {
            shared: Arc::new(Shared {
                config,
                tls: TlsAcceptor::from(certificate.server_config()),
                certificate,
                directory,
                dialer,
                keys,
                pool,
                apps: Apps::default(),
                app_tls: AppTls::new(),
                waiting,
                allowances,
                counters: Arc::default(),
                served,
                addresses,
                told,
                upstream,
                tasks: TaskTracker::new(),
                cut: CancellationToken::new(),
            }),
        }
    }

    /// What is counted, while it serves.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics(Arc::clone(&self.shared))
    }

    /// Serves one HTTP/1.1 connection that was accepted elsewhere and is plain by now, until it ends: for whoever has a way in of
    /// their own, such as a simulation without sockets. The limit on connections does not count it.
    pub async fn serve_connection(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let place = || Arc::new(Semaphore::new(1)).try_acquire_owned().expect("nobody else knows this semaphore");
        let places = Places { _accepted: place(), served: Ok((place(), None)) };
        let (version, never) = (http::Version::HTTP_11, CancellationToken::new());
        connection::exchange(Arc::clone(&self.shared), io, version, None, places, never).await;
    }

    /// Listens on these addresses; all of them, or none. `*.localhost` may resolve to either loopback address, so both
    /// are usually given.
    pub async fn bind(self, addresses: &[SocketAddr]) -> Result<BoundEdge, BindError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let listener = TcpListener::bind(address).await.map_err(|source| BindError::Bind { address, source })?;
            listeners.push(listener);
        }
        self.listen_on(listeners)
    }

    /// Listens on sockets that were bound elsewhere, by a service manager say.
    pub fn listen_on(self, listeners: Vec<TcpListener>) -> Result<BoundEdge, BindError> {
        let addresses =
            listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(BindError::LocalAddress)?;
        Ok(BoundEdge { shared: self.shared, listeners, addresses })
    }
}

/// An edge that listens and can begin to serve.
pub struct BoundEdge {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
}

impl BoundEdge {
    /// The addresses, in the order given, with the ports the kernel chose.
    #[must_use]
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until `shutdown` is cancelled; then accepts nothing more, lets requests in flight finish within the
    /// drain's limit, and cuts what is left.
    //
    // Boxed: an `async fn` would be compiled once more, with all that it calls, in each program.
    pub fn serve(self, shutdown: CancellationToken) -> BoxFuture<'static, Drained> {
        Box::pin(self.serve_until(shutdown))
    }

    async fn serve_until(self, shutdown: CancellationToken) -> Drained {
        let Self { shared, listeners, addresses: _ } = self;
        let limits = &shared.config.limits;
        let accepted = Arc::new(Semaphore::new(limits.connections + limits.connections_refused));
        let acceptors = TaskTracker::new();
        for listener in listeners {
            let (shared, accepted) = (Arc::clone(&shared), Arc::clone(&accepted));
            let shutdown = shutdown.clone();
            acceptors.spawn(async move {
                tokio::select! {
                    () = accept_all(&shared, listener, &accepted, &shutdown) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
        acceptors.close();
        tokio::select! {
            () = acceptors.wait() => {}
            () = sweep_forever(&shared) => {}
        }
        // Without listeners there is nothing to wait for but the order to stop.
        shutdown.cancelled().await;
        shared.tasks.close();
        let mut cut = 0;
        if timeout(limits.drain, shared.tasks.wait()).await.is_err() {
            cut = shared.tasks.len();
            shared.cut.cancel();
            shared.tasks.wait().await;
        }
        tracing::info!(cut, "edge drained");
        Drained { cut }
    }
}

async fn sweep_forever(shared: &Shared) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        shared.pool.sweep();
        shared.allowances.sweep();
    }
}

async fn accept_all(shared: &Arc<Shared>, listener: TcpListener, accepted: &Arc<Semaphore>, drain: &CancellationToken) {
    loop {
        let place = Arc::clone(accepted).acquire_owned().await.expect("the semaphore is never closed");
        let (socket, client): (TcpStream, SocketAddr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(fault = "platform", cause = chain(&error), "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let served = match shared.addresses.enter(client.ip()) {
            Some(of_address) => match Arc::clone(&shared.served).try_acquire_owned() {
                Ok(permit) => Ok((permit, Some(of_address))),
                Err(_) => Err(Full::All),
            },
            None => match Arc::clone(&shared.told).try_acquire_owned() {
                Ok(told) => Err(Full::Address { _told: told }),
                // Whoever does not listen is not told more often; it would be a way to take all the places after all.
                Err(_) => {
                    shared.counters.refused_by(Limit::AddressConnections);
                    continue;
                }
            },
        };
        let places = Places { _accepted: place, served };
        shared.tasks.spawn(connection::serve(Arc::clone(shared), socket, places, drain.clone()));
    }
}

//! TLS with a client, in the time that it has. With a certificate for each endpoint, what the client says first is looked at
//! before it is answered: whose name it asks for, and whether it is an authority that looks for a proof.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use api::ids::EndpointId;
use rustls::server::{Acceptor, ClientHello};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{
    acme::{ACME_TLS, Endpoints},
    route,
    served::Certificate,
    server::Shared,
};

/// Shakes hands; `None` if that was all that the client wanted. `may_wait`: for a certificate that is ordered first.
pub(crate) async fn accept(
    shared: &Shared,
    socket: TcpStream,
    may_wait: bool,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let time_max = shared.config.limits.tls_handshake;
    match &shared.certificate {
        Certificate::ForAll(_) => within(time_max, shared.tls.accept(socket)).await.map(Some),
        // On the heap, so that connections of the other kind do not keep the room for it.
        Certificate::ForEach(endpoints) => Box::pin(accept_for(endpoints, shared, socket, may_wait)).await,
    }
}

async fn accept_for(
    endpoints: &Arc<Endpoints>,
    shared: &Shared,
    socket: TcpStream,
    may_wait: bool,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let time_max = shared.config.limits.tls_handshake;
    let begin = Instant::now();
    let start = within(time_max, LazyConfigAcceptor::new(Acceptor::default(), socket)).await?;
    // What the client takes counts, and not what it is made to wait for.
    let left = time_max.saturating_sub(begin.elapsed());
    let (endpoint, looks_for_proof) = read(&start.client_hello(), &shared.config.domain_suffix);
    if looks_for_proof {
        // Without a proof the usual TLS refuses, as it does not know the protocol.
        let shown = endpoint.and_then(|endpoint| endpoints.pending().tls_alpn(&endpoint));
        let config = shown.unwrap_or_else(|| Arc::clone(shared.tls.config()));
        let mut tls = within(left, start.into_stream(config)).await?;
        within(left, tls.shutdown()).await?;
        return Ok(None);
    }
    let config = match endpoint {
        Some(endpoint) => endpoints.certificate(endpoint, may_wait, &shared.directory).await,
        None => None,
    };
    let config = config.unwrap_or_else(|| Arc::clone(shared.tls.config()));
    within(left, start.into_stream(config)).await.map(Some)
}

/// Which endpoint a client asks for, and whether it is an authority that looks for a proof: then it offers that protocol alone
/// (RFC 8737, 3).
fn read(hello: &ClientHello<'_>, suffix: &str) -> (Option<EndpointId>, bool) {
    let endpoint = hello.server_name().and_then(|name| route::endpoint_of(&name.to_ascii_lowercase(), suffix));
    let looks_for_proof =
        hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(ACME_TLS) && protocols.next().is_none());
    (endpoint, looks_for_proof)
}

async fn within<T>(time_max: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(time_max, step).await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "too slow")))
}

//! One client connection: TLS, then HTTP/1.1, until either side is done.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    client_io::{ClientIo, Served},
    proxy::{self, Client},
    refusal::chain,
    server::{Places, Shared},
};

/// A client that vanished without a word is noticed after this long plus eight probes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Time between probes.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Serves the connection until it ends. Once `drain` is cancelled it takes no further request.
pub(crate) async fn serve(shared: Arc<Shared>, socket: TcpStream, places: Places, drain: CancellationToken) {
    let cut = shared.cut.clone();
    tokio::select! {
        () = serve_uncut(shared, socket, places, drain) => {}
        () = cut.cancelled() => {}
    }
}

async fn serve_uncut(shared: Arc<Shared>, socket: TcpStream, places: Places, drain: CancellationToken) {
    let limits = &shared.config.limits;
    if let Err(error) = tune(&socket) {
        tracing::debug!(cause = chain(&error), "socket options not set");
    }
    let handshake = timeout(limits.tls_handshake, shared.tls.accept(socket));
    let tls = tokio::select! {
        tls = handshake => tls,
        () = drain.cancelled() => return,
    };
    let tls = match tls {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(fault = "client", cause = chain(&error), "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(fault = "client", cause = "too slow", "TLS handshake failed");
            return;
        }
    };
    let server_name = tls.get_ref().1.server_name().map(str::to_owned);
    let served = Served::default();
    let keep_alive = !places.is_refused();
    let io = TokioIo::new(ClientIo::new(tls, served.clone(), limits.request_head));
    let client = Arc::new(Client { server_name, served, places });
    let service = service_fn({
        let shared = Arc::clone(&shared);
        move |request| proxy::answer(Arc::clone(&shared), Arc::clone(&client), request)
    });
    // Only HTTP/1.1 is offered by ALPN so far; the choice between it and h2 belongs here.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(keep_alive)
        .header_read_timeout(limits.client_idle)
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes)
        .max_headers(limits.header_fields)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(cause = chain(&error), "client connection ended");
    }
}

fn tune(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(socket, KEEPALIVE_AFTER)?;
    rustix::net::sockopt::set_tcp_keepintvl(socket, KEEPALIVE_EVERY)?;
    rustix::net::sockopt::set_tcp_keepcnt(socket, 8)?;
    Ok(())
}

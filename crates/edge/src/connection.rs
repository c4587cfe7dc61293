//! One client connection: TLS, then HTTP/2 or HTTP/1.1, until either side is done.

use std::{pin::pin, sync::Arc, time::Duration};

use http::Version;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    client_io::{ClientIo, Served},
    config::HEADER_FIELDS_OF_LIBRARY,
    flood::Guarded,
    handshake,
    metrics::Limit,
    proxy::{self, Client},
    refusal::chain,
    route::ServerName,
    server::{Places, Shared},
    stall::Impatient,
    streams::Together,
};

/// A client that vanished without a word is noticed after this long plus eight probes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Time between probes.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// How long an HTTP/2 connection beyond the limit may be without a request to be refused.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// Serves the connection until it ends. Once `drain` is cancelled it takes no further request.
pub(crate) async fn serve(shared: Arc<Shared>, socket: TcpStream, places: Places, drain: CancellationToken) {
    let cut = shared.cut.clone();
    tokio::select! {
        biased;
        () = serve_uncut(shared, socket, places, drain) => {}
        () = cut.cancelled() => {}
    }
}

async fn serve_uncut(shared: Arc<Shared>, socket: TcpStream, places: Places, drain: CancellationToken) {
    if let Err(error) = tune(&socket) {
        tracing::debug!(cause = chain(&error), "socket options not set");
    }
    let tls = tokio::select! {
        tls = handshake::accept(&shared, socket, !places.is_refused()) => tls,
        () = drain.cancelled() => return,
    };
    let tls = match tls {
        Ok(Some(tls)) => tls,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(fault = "client", cause = chain(&error), "TLS handshake failed");
            return;
        }
    };
    let (_, session) = tls.get_ref();
    let server_name = session.server_name().map(|name| ServerName::read(name, &shared.config.domain_suffix));
    let version = if session.alpn_protocol() == Some(b"h2") { Version::HTTP_2 } else { Version::HTTP_11 };
    exchange(shared, tls, version, server_name, places, drain).await;
}

/// Answers the requests that come over plain bytes.
pub(crate) async fn exchange(
    shared: Arc<Shared>,
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    version: Version,
    server_name: Option<ServerName>,
    places: Places,
    drain: CancellationToken,
) {
    let served = Served::default();
    let io = Impatient::new(io, shared.config.limits.client_stall);
    let client = Arc::new(Client::new(server_name, served.clone(), places));
    let ended = match version {
        Version::HTTP_2 => http2(&shared, io, client, served, drain).await,
        _ => http1(&shared, io, client, served, drain).await,
    };
    if let Err(error) = ended {
        if error.is_parse_too_large() {
            shared.counters.refused_by(Limit::Head);
        }
        tracing::debug!(cause = chain(&error), "client connection ended");
    }
}

async fn http1(
    shared: &Arc<Shared>,
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: Arc<Client>,
    served: Served,
    drain: CancellationToken,
) -> hyper::Result<()> {
    let limits = &shared.config.limits;
    let keep_alive = !client.places.is_refused();
    let io = TokioIo::new(ClientIo::new(io, served.clone(), limits.request_head));
    let service = service_fn(|request| proxy::answer(Arc::clone(shared), Arc::clone(&client), request));
    let mut builder = http1::Builder::new();
    builder
        .keep_alive(keep_alive)
        .header_read_timeout(None)
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes);
    if limits.header_fields != HEADER_FIELDS_OF_LIBRARY {
        builder.max_headers(limits.header_fields);
    }
    let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = drain.cancelled() => {}
        () = served.idle(limits.client_idle, limits.client_idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// A head that trickles in is bounded by the idle limit here: frames of other kinds come at any time, so the bytes on the
/// wire do not tell when a head begins. The library bounds how many frames a head may be spread over.
async fn http2(
    shared: &Arc<Shared>,
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: Arc<Client>,
    served: Served,
    drain: CancellationToken,
) -> hyper::Result<()> {
    let limits = &shared.config.limits;
    let (first, then) = match client.places.is_refused() {
        true => (REFUSED_FOR, REFUSED_FOR),
        false => (limits.request_head, limits.client_idle),
    };
    let service = service_fn({
        let shared = Arc::clone(shared);
        move |request| proxy::answer(Arc::clone(&shared), Arc::clone(&client), request)
    });
    let mut connection = Together::new(|streams| {
        let connection = http2::Builder::new(streams)
            .timer(TokioTimer::new())
            .initial_stream_window_size(limits.h2_stream_window)
            .initial_connection_window_size(limits.h2_connection_window)
            .max_send_buf_size(limits.h2_send_buffer)
            .max_concurrent_streams(limits.h2_streams)
            .max_pending_accept_reset_streams(limits.h2_resets_unseen)
            .max_local_error_reset_streams(limits.h2_resets_for_errors)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            // WebSocket as one stream of many.
            .enable_connect_protocol()
            .serve_connection(TokioIo::new(Guarded::new(io, served.clone(), limits)), service);
        Box::pin(connection)
    });
    tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = drain.cancelled() => {}
        () = served.idle(first, then) => {}
        () = served.stalled(limits.client_stall) => {
            tracing::debug!(fault = "client", "the client took nothing of what it was sent for too long");
            return Ok(());
        }
    }
    connection.connection.as_mut().graceful_shutdown();
    // The farewell wants an answer. A client that gives none is not waited for once its requests are done.
    loop {
        match timeout(limits.request_head, &mut connection).await {
            Ok(ended) => return ended,
            Err(_) if served.is_busy() => {}
            Err(_) => return Ok(()),
        }
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

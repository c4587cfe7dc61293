//! A connection to an app that suits a request, kept or new.
//!
//! What the app speaks is found out as cheaply as it can be without troubling apps that are plain HTTP/1.1, which most are:
//!
//! - Nothing is asked of a port before a request comes, and the request goes to it in plain HTTP/1.1. A server that expects
//!   TLS answers that with an alert, with 400, or by hanging up. Only then is a TLS handshake tried; if it works, the port
//!   is TLS and the request is sent again (`upstream`). An app that answers properly never sees a handshake.
//! - HTTP/2 in the clear is spoken to whoever the request says speaks it, and to gRPC. The greeting of the server is
//!   waited for before a request is sent, so one that does not speak it is noticed with the request still in hand.
//! - Beneath TLS, ALPN decides.
//!
//! `apps` remembers it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use api::{
    directory::{AppStream, DialError},
    ids::{MicrovmId, VmId},
};
use http::{HeaderMap, HeaderValue, header};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    allowance::Seat,
    app_tls::{Offer, TlsError},
    apps::{Known, Transport},
    config::HEADER_FIELDS_OF_LIBRARY,
    greeting,
    headers::FORCE_H2,
    pool::{AppAddress, Share, Shared, Single},
    refusal::{Refusal, chain},
    server::Shared as Edge,
    shell::{self, Wanted},
    through::writes_through,
};

/// How long a request waits for a connection to an app to end when there may be no more of them.
const PERMIT_WITHIN: Duration = Duration::from_secs(1);

/// What a request asks of the connection to its app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// HTTP/1.1: it upgrades.
    Http1,
    /// HTTP/2 and nothing else: it says so.
    Http2,
    /// HTTP/2 if the app speaks it: it is gRPC, which has no other protocol; some servers find out by themselves.
    Grpc,
    /// HTTP/1.1, or what the app prefers if it can say so.
    Any,
}

impl Wants {
    /// Reads a client's headers.
    pub(crate) fn read(headers: &HeaderMap, upgrades: bool, by_http2: bool) -> Self {
        let is_true = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"true");
        // gRPC-Web has a type that begins alike, and is made for HTTP/1.1.
        let is_grpc = |value: &HeaderValue| {
            let rest = value.as_bytes().strip_prefix(b"application/grpc");
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        };
        if upgrades {
            Self::Http1
        } else if headers.get(FORCE_H2).is_some_and(is_true) {
            Self::Http2
        } else if by_http2 && headers.get(header::CONTENT_TYPE).is_some_and(is_grpc) {
            Self::Grpc
        } else {
            Self::Any
        }
    }

    /// Can many requests like this share a connection to such an app?
    fn shares(self, known: Known) -> bool {
        match self {
            Self::Http1 => false,
            Self::Http2 => true,
            Self::Grpc => known.http2 != Some(false),
            Self::Any => known == Known { transport: Some(Transport::Tls), http2: Some(true) },
        }
    }
}

/// A connection that a request may be sent on.
pub(crate) enum Sender {
    Single(Single),
    Shared(Shared, Share),
}

/// One found or made.
pub(crate) struct Way {
    pub(crate) sender: Sender,
    /// It served others before, and may be closed by now.
    pub(crate) kept: bool,
    /// The app is known to speak what is spoken on it.
    pub(crate) proven: bool,
}

pub(crate) enum ConnectError {
    /// The VM is.
    Gone,
    Refused(Refusal),
}

impl From<Refusal> for ConnectError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Where to, for whom, and until when.
pub(crate) struct Reach<'a> {
    pub(crate) edge: &'a Edge,
    pub(crate) microvm: MicrovmId,
    pub(crate) vm: VmId,
    pub(crate) port: u16,
    pub(crate) shell: Option<(&'a Wanted, &'a Seat)>,
    pub(crate) host: &'a HeaderValue,
    pub(crate) wants: Wants,
    pub(crate) deadline: Instant,
}

impl Reach<'_> {
    fn app(&self) -> AppAddress {
        AppAddress { vm: self.vm, port: self.port }
    }

    fn learn(&self, transport: Transport, http2: Option<bool>) {
        self.edge.apps.learn(self.microvm, self.port, transport, http2);
    }

    /// Finds or makes a connection. The making is in a box: most requests find one, and none should carry its room about.
    pub(crate) async fn reach(&self, kept_allowed: bool) -> Result<Way, ConnectError> {
        let known = self.edge.apps.get(self.microvm, self.port);
        let shares = self.wants.shares(known);
        if let Some(way) = self.kept(shares).filter(|_| kept_allowed) {
            return Ok(way);
        }
        if !shares {
            return Box::pin(self.connect(known)).await;
        }
        let turn = self.edge.pool.turn(&self.app());
        let _turn = timeout_at(self.deadline, turn.lock()).await.map_err(|_| late())?;
        match self.kept(shares) {
            Some(way) => Ok(way),
            None => Box::pin(self.connect(self.edge.apps.get(self.microvm, self.port))).await,
        }
    }

    fn kept(&self, shares: bool) -> Option<Way> {
        let pool = &self.edge.pool;
        let sender = if shares {
            pool.join(&self.app()).map(|(shared, share)| Sender::Shared(shared, share))
        } else {
            pool.take(&self.app()).map(Sender::Single)
        };
        sender.map(|sender| Way { sender, kept: true, proven: true })
    }

    async fn connect(&self, known: Known) -> Result<Way, ConnectError> {
        if let Some((wanted, seat)) = self.shell {
            let permit = self.permit().await?;
            let dialled = timeout_at(self.deadline, shell::dial(self.edge, self.microvm, self.vm, wanted, seat));
            let inner = dialled.await.map_err(|_| late())??;
            let sender = self.http1(Permitted { inner, _permit: permit }).await?;
            return Ok(Way { sender: Sender::Single(sender), kept: false, proven: true });
        }
        if known.transport == Some(Transport::Tls) {
            if let Some(way) = self.connect_tls().await? {
                return Ok(way);
            }
            self.edge.apps.forget(self.microvm, self.port);
        }
        if self.wants == Wants::Http2 || self.wants == Wants::Grpc && known.http2 != Some(false) {
            if let Some(way) = self.connect_http2().await? {
                return Ok(way);
            }
            if known.transport.is_none()
                && let Some(way) = self.connect_tls().await?
            {
                return Ok(way);
            }
            if self.wants == Wants::Http2 {
                return Err(Refusal::NotHttp2.into());
            }
            self.learn(Transport::Plain, Some(false));
        }
        let sender = self.http1(self.dial().await?).await?;
        Ok(Way { sender: Sender::Single(sender), kept: false, proven: known.transport == Some(Transport::Plain) })
    }

    /// Is there TLS on this port after all?
    pub(crate) async fn proves_to_be_tls(&self) -> bool {
        let is_tls = match self.dial().await {
            Ok(stream) => matches!(self.handshake(stream, Offer::Both).await, Ok(_) | Err(TlsError::Failed(_))),
            Err(_) => return false,
        };
        self.learn(if is_tls { Transport::Tls } else { Transport::Plain }, None);
        is_tls
    }

    /// The app answered in the clear.
    pub(crate) fn proves_to_be_plain(&self) {
        self.learn(Transport::Plain, None);
    }

    /// One more connection to an app, if there may be one. When there are none left, those that nobody uses go first.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, ConnectError> {
        let free = Arc::clone(&self.edge.upstream);
        if let Ok(permit) = Arc::clone(&free).try_acquire_owned() {
            return Ok(permit);
        }
        self.edge.pool.close_unused();
        let permit = timeout(PERMIT_WITHIN, free.acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or(ConnectError::Refused(Refusal::TooManyUpstream))
    }

    async fn dial(&self) -> Result<Box<dyn AppStream>, ConnectError> {
        let permit = self.permit().await?;
        let dialling = timeout(self.edge.config.limits.dial, self.edge.dialer.dial(&self.microvm, &self.vm, self.port));
        let dialled = timeout_at(self.deadline, dialling).await.and_then(|inner| inner).map_err(|_| late())?;
        let dialled = dialled.map(|inner| Box::new(Permitted { inner, _permit: permit }) as Box<dyn AppStream>);
        dialled.map_err(|error| match error {
            DialError::Gone => ConnectError::Gone,
            DialError::Refused { port } => Refusal::NothingListens(port).into(),
            DialError::Unreachable(source) => Refusal::Unreachable(source).into(),
        })
    }

    async fn handshake(
        &self,
        stream: Box<dyn AppStream>,
        offer: Offer,
    ) -> Result<tokio_rustls::client::TlsStream<Box<dyn AppStream>>, TlsError> {
        let host = self.host.to_str().unwrap_or_default();
        let connecting = self.edge.app_tls.connect(stream, offer, host);
        // Somebody who waits for the end of a line, most likely.
        timeout(self.edge.config.limits.dial, connecting).await.unwrap_or(Err(TlsError::NotTls))
    }

    /// `None`: the app does not speak TLS.
    async fn connect_tls(&self) -> Result<Option<Way>, ConnectError> {
        let offer = match self.wants {
            Wants::Http1 => Offer::Http1,
            Wants::Http2 => Offer::Http2,
            Wants::Grpc | Wants::Any => Offer::Both,
        };
        let stream = match self.handshake(self.dial().await?, offer).await {
            Ok(stream) => stream,
            Err(TlsError::NotTls) => return Ok(None),
            Err(TlsError::Failed(error)) => return Err(Refusal::TlsToApp(error).into()),
        };
        let chosen = stream.get_ref().1.alpn_protocol();
        // Who has no ALPN may still speak HTTP/2, and was said to.
        let http2 = chosen == Some(b"h2") || chosen.is_none() && self.wants == Wants::Http2;
        let sender = if http2 {
            let Some(sender) = self.http2(stream, true).await? else { return Err(Refusal::NotHttp2.into()) };
            sender
        } else {
            Sender::Single(self.http1(stream).await?)
        };
        // What an upgrade is offered does not tell what others would be.
        self.learn(Transport::Tls, (self.wants != Wants::Http1).then_some(http2));
        Ok(Some(Way { sender, kept: false, proven: true }))
    }

    /// `None`: the app does not speak HTTP/2 in the clear.
    async fn connect_http2(&self) -> Result<Option<Way>, ConnectError> {
        let Some(sender) = self.http2(self.dial().await?, false).await? else { return Ok(None) };
        self.learn(Transport::Plain, Some(true));
        Ok(Some(Way { sender, kept: false, proven: true }))
    }

    async fn http1(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Single, ConnectError> {
        let limits = &self.edge.config.limits;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(limits.head_bytes).max_header_size(limits.head_bytes);
        if limits.header_fields != HEADER_FIELDS_OF_LIBRARY {
            builder.max_headers(limits.header_fields);
        }
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(Refusal::NoAnswer)?;
        self.drive(Box::pin(connection.with_upgrades()));
        Ok(sender)
    }

    async fn http2(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        tls: bool,
    ) -> Result<Option<Sender>, ConnectError> {
        let limits = &self.edge.config.limits;
        let (stream, greeted) = greeting::watch(stream);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(limits.h2_stream_window)
            .initial_connection_window_size(limits.h2_connection_window)
            .max_send_buf_size(limits.h2_send_buffer)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Refusal::NoAnswer)?;
        let mut connection = Box::pin(connection);
        tokio::select! {
            greeted = timeout(limits.dial, greeted) => match greeted {
                Ok(Ok(true)) => {}
                _ => return Ok(None),
            },
            _ = connection.as_mut() => return Ok(None),
        }
        let shared = Shared::new(sender, tls, connection.current_max_send_streams());
        self.drive(connection);
        let share = shared.share();
        self.edge.pool.open(self.app(), shared.clone());
        Ok(Some(Sender::Shared(shared, share)))
    }

    /// A connection lives as long as its senders or its exchanges, whichever is longer.
    fn drive(&self, connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>) {
        let (vm, port) = (self.vm, self.port);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%vm, port, cause = chain(&error), "connection to app ended");
            }
        });
    }
}

/// An app's stream, which counts among all.
struct Permitted<S> {
    inner: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Permitted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

writes_through!(Permitted);

fn late() -> Refusal {
    Refusal::Unreachable(std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_wants_is_read_from_its_head() {
        let wants = |pairs: &[(&'static str, &'static str)], by_http2| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            Wants::read(&headers.collect(), false, by_http2)
        };
        assert_eq!(wants(&[], true), Wants::Any);
        assert_eq!(wants(&[("x-aws-proxy-force-h2", "True")], false), Wants::Http2);
        assert_eq!(wants(&[("x-aws-proxy-force-h2", "false")], true), Wants::Any);
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            assert_eq!(wants(&[("content-type", grpc)], true), Wants::Grpc);
            assert_eq!(wants(&[("content-type", grpc)], false), Wants::Any);
        }
        assert_eq!(wants(&[("content-type", "application/grpc-web")], true), Wants::Any);
        assert_eq!(Wants::read(&HeaderMap::new(), true, false), Wants::Http1);
    }
}

//! `sim upstream`: a server with as little to do as can be, for measuring what is in front of it, and for training it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

/// What a small request is answered.
pub const SMALL: &[u8] = &[b'x'; 100];

/// Pieces of a long answer.
static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

/// So many bytes, without having them.
struct Long(u64);

impl Body for Long {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.0.min(PIECE.len() as u64);
        self.0 -= length;
        let piece = Bytes::from_static(&PIECE).slice(..usize::try_from(length).unwrap_or(0));
        Poll::Ready((length > 0).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

type Answer = Response<Either<Full<Bytes>, Long>>;

fn small(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response
}

/// `/` is small, `/bytes/N` long; a body is read and counted; an upgrade echoes.
async fn answer(mut request: Request<Incoming>) -> Result<Answer, Infallible> {
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        let upgrading = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrading.await {
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                // Its end is its client's.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        });
        let mut response = small(StatusCode::SWITCHING_PROTOCOLS, "");
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(header::UPGRADE, protocol);
        return Ok(response);
    }
    if request.method() == Method::PUT || request.method() == Method::POST {
        let mut body = request.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => length += frame.data_ref().map_or(0, Bytes::len),
                Err(_) => return Ok(small(StatusCode::BAD_REQUEST, "")),
            }
        }
        return Ok(small(StatusCode::OK, length.to_string()));
    }
    let length = request.uri().path().strip_prefix("/bytes/").and_then(|length| length.parse().ok());
    Ok(match length {
        Some(length) => Response::new(Either::Right(Long(length))),
        None => small(StatusCode::OK, SMALL),
    })
}

/// Serves until it is killed. Its first line says where.
pub fn serve() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", json!({ "port": listener.local_addr()?.port() }));
        serve_on(listener).await
    })
}

/// Serves whoever connects.
pub async fn serve_on(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).with_upgrades());
    }
}

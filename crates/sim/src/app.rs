//! The app in a pretend VM: it listens on one port and says who it is.

use std::convert::Infallible;

use api::{
    directory::AppStream,
    ids::{MicrovmId, VmId},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

/// The one port it listens on, the edge's default.
pub const PORT: u16 = 8080;

/// Bytes on the way in one direction.
const BUFFER_BYTES: usize = 64 * 1024;

/// A connection to it. It ends with the VM.
pub fn connect(microvm: MicrovmId, vm: VmId, ended: impl Future<Output = ()> + Send + 'static) -> Box<dyn AppStream> {
    let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
    let answer = move |request: Request<Incoming>| async move {
        let said = serde_json::json!({
            "microvmId": microvm, "vmId": vm, "method": request.method().as_str(), "path": request.uri().path(),
        });
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said.to_string()))))
    };
    tokio::spawn(async move {
        tokio::select! {
            // How a connection ends is its client's business.
            _ = http1::Builder::new().serve_connection(TokioIo::new(theirs), service_fn(answer)) => {}
            () = ended => {}
        }
    });
    Box::new(ours)
}

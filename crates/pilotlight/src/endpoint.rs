//! The connection to an endpoint: TLS with the authorities that the caller trusts.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::authorities;

/// The port of endpoints that name none.
const HTTPS: u16 = 443;

/// Connects to an endpoint.
pub async fn connect(endpoint: &str, ca: Option<&Path>) -> anyhow::Result<TlsStream<TcpStream>> {
    let (host, port) = match endpoint.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().with_context(|| format!("{endpoint} names no port"))?),
        None => (endpoint, HTTPS),
    };
    let failed = || format!("the endpoint {endpoint} cannot be reached");
    // Names below localhost are this machine's by definition (RFC 6761), whether its resolver knows that or not.
    let socket = if host.ends_with(".localhost") {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(socket) => socket,
            Err(_) => TcpStream::connect(("::1", port)).await.with_context(failed)?,
        }
    } else {
        TcpStream::connect((host, port)).await.with_context(failed)?
    };
    // One key, one packet.
    socket.set_nodelay(true)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(authorities::trusted(ca)?);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no name of a host"))?;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.with_context(failed)
}

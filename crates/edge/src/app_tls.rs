//! TLS to apps.

use std::{io, sync::Arc};

use api::directory::AppStream;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{route, served::provider};

/// The protocols to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Http1,
    Http2,
    Both,
}

/// How TLS is spoken to apps.
pub(crate) struct AppTls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    both: Arc<ClientConfig>,
}

/// Why there is no TLS.
pub(crate) enum TlsError {
    /// What answered does not speak it.
    NotTls,
    /// It speaks it, but not like this.
    Failed(io::Error),
}

impl AppTls {
    pub(crate) fn new() -> Self {
        let provider = provider();
        let config = |protocols: &[&str]| {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .expect("the provider has what its own versions need")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(Arc::clone(&provider))))
                .with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            // Connections are kept; to remember sessions of VMs that are gone is not worth it.
            config.resumption = Resumption::disabled();
            Arc::new(config)
        };
        Self { http1: config(&["http/1.1"]), http2: config(&["h2"]), both: config(&["h2", "http/1.1"]) }
    }

    /// Greets the app, as a client of this `Host` would.
    pub(crate) async fn connect(
        &self,
        stream: Box<dyn AppStream>,
        offer: Offer,
        host: &str,
    ) -> Result<TlsStream<Box<dyn AppStream>>, TlsError> {
        let config = match offer {
            Offer::Http1 => &self.http1,
            Offer::Http2 => &self.http2,
            Offer::Both => &self.both,
        };
        let name = route::parse_host(host).and_then(|host| ServerName::try_from(host.name.into_owned()).ok());
        let name = name.unwrap_or_else(|| ServerName::try_from("localhost").expect("it is a name"));
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(|error| {
            // Who sends an alert speaks TLS. Anything else may be the words of another protocol, or silence.
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::AlertReceived(_)) => TlsError::Failed(error),
                _ => TlsError::NotTls,
            }
        })
    }
}

/// Takes every certificate. The app is inside its VM, reached through the VM's own agent: there is nobody in between whom
/// a name could tell apart from it, and what apps have inside is self-signed. The handshake is still checked against the
/// key of the certificate, because a server that gets that wrong is broken.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

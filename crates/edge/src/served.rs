//! The certificate that is served, wherever it is from: whoever renews it puts the new one here, and it is served from the
//! next handshake on.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::acme::Endpoints;

/// A certificate with its key, and the time that it is good for.
#[derive(Debug, Clone)]
pub(crate) struct Valid {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) from: OffsetDateTime,
    pub(crate) to: OffsetDateTime,
}

impl Valid {
    /// Nothing if it cannot be read as a certificate.
    pub(crate) fn new(key: CertifiedKey) -> Option<Self> {
        let (from, to) = validity(key.cert.first()?)?;
        Some(Self { key: Arc::new(key), from, to })
    }
}

/// The time that a certificate is good for; nothing if it cannot be read as one.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

/// What all handshakes of an edge are served with.
#[derive(Debug)]
pub struct ServedCertificate(RwLock<Valid>);

impl ServedCertificate {
    pub(crate) fn new(first: Valid) -> Arc<Self> {
        Arc::new(Self(RwLock::new(first)))
    }

    pub(crate) fn replace(&self, next: Valid) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    pub(crate) fn current(&self) -> Valid {
        // It is replaced in one step, so what is behind a poisoned lock is still good.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last moment that it is good for.
    #[must_use]
    pub fn expires(&self) -> OffsetDateTime {
        self.current().to
    }

    /// TLS that serves it.
    pub(crate) fn server_config(self: &Arc<Self>) -> Arc<rustls::ServerConfig> {
        Arc::new(server_config(Arc::clone(self) as _))
    }
}

/// TLS that serves what this says.
pub(crate) fn server_config(resolver: Arc<dyn ResolvesServerCert>) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the versions")
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Where the certificates of handshakes are from.
#[derive(Clone)]
pub enum Certificate {
    /// One for all endpoints.
    ForAll(Arc<ServedCertificate>),
    /// One for each.
    ForEach(Arc<Endpoints>),
}

impl From<Arc<ServedCertificate>> for Certificate {
    fn from(one: Arc<ServedCertificate>) -> Self {
        Self::ForAll(one)
    }
}

impl From<Arc<Endpoints>> for Certificate {
    fn from(each: Arc<Endpoints>) -> Self {
        Self::ForEach(each)
    }
}

impl Certificate {
    /// TLS that serves the one for all, or what is served where there is none for an endpoint.
    pub(crate) fn server_config(&self) -> Arc<rustls::ServerConfig> {
        match self {
            Self::ForAll(one) => one.server_config(),
            Self::ForEach(each) => each.until_then(),
        }
    }
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().key)
    }
}

/// Named rather than the process's default, so that it does not matter who else links which provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

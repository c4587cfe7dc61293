//! What the authority is shown at the moment where it looks at endpoints' names. There are as many as orders under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::ids::EndpointId;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    ServerConfig,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::PrivateKeyDer;

use crate::served;

/// The protocol that an authority asks for when it looks (RFC 8737).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum AlpnError {
    /// It could not be made.
    #[error("the certificate of the challenge cannot be made")]
    Sign(#[source] rcgen::Error),
    /// TLS does not take it.
    #[error("the certificate of the challenge cannot be used")]
    Use(#[source] rustls::Error),
}

/// What is shown for one endpoint.
pub(crate) enum Shown {
    /// The answer to a request over plain HTTP.
    Http { token: String, answer: String },
    /// How a handshake is answered.
    TlsAlpn(Arc<ServerConfig>),
}

impl Shown {
    pub(crate) fn http(token: &str, answer: &str) -> Self {
        Self::Http { token: token.to_owned(), answer: answer.to_owned() }
    }

    /// A certificate that has the name and the digest, and signs itself.
    pub(crate) fn tls_alpn(name: &str, digest: &[u8]) -> Result<Self, AlpnError> {
        let key = KeyPair::generate().map_err(AlpnError::Sign)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(AlpnError::Sign)?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key).map_err(AlpnError::Sign)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = served::provider().key_provider.load_private_key(key).map_err(AlpnError::Use)?;
        // Not compared with the key, as the library refuses to read what has the extension.
        let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate.der().clone()], key));
        let mut config = served::server_config(Arc::new(resolver));
        config.alpn_protocols = vec![ACME_TLS.to_vec()];
        // A session that is resumed would show nothing.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self::TlsAlpn(Arc::new(config)))
    }
}

/// All of it.
#[derive(Default)]
pub(crate) struct Pending(Mutex<HashMap<EndpointId, Shown>>);

impl Pending {
    // Each act is one step, so a poisoned lock is still good.
    fn shown(&self) -> MutexGuard<'_, HashMap<EndpointId, Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn show(&self, endpoint: EndpointId, what: Shown) {
        self.shown().insert(endpoint, what);
    }

    pub(crate) fn hide(&self, endpoint: &EndpointId) {
        self.shown().remove(endpoint);
    }

    /// The answer to who asks an endpoint for this token.
    pub(crate) fn http(&self, endpoint: &EndpointId, asked: &str) -> Option<String> {
        match self.shown().get(endpoint)? {
            Shown::Http { token, answer } if token == asked => Some(answer.clone()),
            _ => None,
        }
    }

    /// How a handshake with an endpoint is answered that looks for the proof.
    pub(crate) fn tls_alpn(&self, endpoint: &EndpointId) -> Option<Arc<ServerConfig>> {
        match self.shown().get(endpoint)? {
            Shown::TlsAlpn(config) => Some(Arc::clone(config)),
            Shown::Http { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_answered_at_its_endpoint_alone_and_until_it_is_hidden() {
        let pending = Pending::default();
        let (one, other) = (EndpointId::random(), EndpointId::random());
        pending.show(one, Shown::http("token", "token.key"));
        assert_eq!(pending.http(&one, "token").as_deref(), Some("token.key"));
        assert_eq!(pending.http(&other, "token"), None);
        for wrong in ["", "toke", "token2", "token/", "../token"] {
            assert_eq!(pending.http(&one, wrong), None, "{wrong}");
        }
        assert!(pending.tls_alpn(&one).is_none());
        pending.hide(&one);
        assert_eq!(pending.http(&one, "token"), None);
    }
}

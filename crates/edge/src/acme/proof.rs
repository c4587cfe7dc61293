//! How the authority is shown that a name is ours: where it looks, for each of its challenges.

use api::ids::EndpointId;
use instant_acme::KeyAuthorization;

use super::{
    hook::{Hook, HookError},
    ledger::{Ledger, Record},
    pending::{AlpnError, Pending, Shown},
    settings::Challenge,
    store::StoreError,
};

/// Why a proof could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The hook did not do it.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What is put up could not be written down.
    #[error("the order cannot be written down")]
    Store(#[from] StoreError),
    /// There is no certificate to show.
    #[error(transparent)]
    Alpn(#[from] AlpnError),
}

/// What proves names.
pub(crate) trait Proof: Send {
    /// Which challenge it answers.
    fn challenge(&self) -> Challenge;

    /// Puts the proof of a name where the authority looks for it.
    fn put_up(
        &mut self,
        name: &str,
        token: &str,
        key: &KeyAuthorization,
    ) -> impl Future<Output = Result<(), ProofError>> + Send;
}

/// In the DNS, by the operator's program. It is in the ledger before, and stays until it is cleaned up.
pub(crate) struct Dns<'a> {
    pub(crate) hook: &'a Hook,
    pub(crate) ledger: &'a mut Ledger,
}

impl Proof for Dns<'_> {
    fn challenge(&self) -> Challenge {
        Challenge::Dns01
    }

    async fn put_up(&mut self, name: &str, _token: &str, key: &KeyAuthorization) -> Result<(), ProofError> {
        let record =
            Record { name: format!("_acme-challenge.{}", name.trim_start_matches("*.")), value: key.dns_value() };
        self.ledger.presenting(record.clone()).await?;
        Ok(self.hook.present(&record).await?)
    }
}

/// By this server itself, which the endpoint's name leads to. It is gone when this is dropped.
pub(crate) struct Here<'a> {
    pending: &'a Pending,
    challenge: Challenge,
    endpoint: EndpointId,
}

impl<'a> Here<'a> {
    pub(crate) fn new(pending: &'a Pending, challenge: Challenge, endpoint: EndpointId) -> Self {
        Self { pending, challenge, endpoint }
    }
}

impl Proof for Here<'_> {
    fn challenge(&self) -> Challenge {
        self.challenge
    }

    async fn put_up(&mut self, name: &str, token: &str, key: &KeyAuthorization) -> Result<(), ProofError> {
        let shown = match self.challenge {
            Challenge::TlsAlpn01 => Shown::tls_alpn(name, key.digest().as_ref())?,
            Challenge::Http01 | Challenge::Dns01 => Shown::http(token, key.as_str()),
        };
        self.pending.show(self.endpoint, shown);
        Ok(())
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.pending.hide(&self.endpoint);
    }
}

//! One order: the names are asked for, proven, and a certificate for a new key is fetched.

use std::time::Duration;

use instant_acme::{Account, AuthorizationStatus, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy};

use super::proof::{Proof, ProofError};

/// How the authority is asked whether it is done: it looks from several places of the world, which takes seconds.
const ASKING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.3).timeout(Duration::from_secs(300));

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The authority does not take the order.
    #[error("the ACME server does not take the order")]
    New(#[source] instant_acme::Error),
    /// It cannot be asked what it wants to see.
    #[error("the ACME server does not say how to prove the names")]
    Authorization(#[source] instant_acme::Error),
    /// It wants to see something else.
    #[error("the ACME server does not offer tls.acme.challenge {challenge} for {name}")]
    NotOffered {
        /// The name.
        name: String,
        /// What it was asked for.
        challenge: &'static str,
    },
    /// The proof could not be put up.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The authority saw something else.
    #[error("the ACME server does not see the proof: {reasons}")]
    Unproven {
        /// What it says about each name.
        reasons: String,
    },
    /// It did not get to an end.
    #[error("the ACME server did not finish the order")]
    Unfinished(#[source] instant_acme::Error),
}

impl OrderError {
    /// The authority does not know the account.
    pub(crate) fn is_of_no_account(&self) -> bool {
        let Self::New(instant_acme::Error::Api(Problem { r#type: Some(kind), .. })) = self else { return false };
        kind == "urn:ietf:params:acme:error:accountDoesNotExist"
    }
}

/// What an order leads to.
pub(crate) struct Issued {
    /// The certificate and those that lead to its authority, in PEM.
    pub(crate) chain: String,
    /// In PEM.
    pub(crate) key: String,
}

/// Orders a certificate for these names.
pub(crate) async fn obtain(account: &Account, names: &[String], proof: &mut impl Proof) -> Result<Issued, OrderError> {
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(OrderError::New)?;
    put_up(&mut order, proof).await?;
    // Only now: the proofs of all names may be seen at once, as records of one zone are.
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(OrderError::Authorization)?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(proof.challenge().kind())
        {
            challenge.set_ready().await.map_err(OrderError::Authorization)?;
        }
    }
    match order.poll_ready(&ASKING).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) | Err(instant_acme::Error::Api(_)) => {
            return Err(OrderError::Unproven { reasons: reasons(&mut order).await });
        }
        Err(error) => return Err(OrderError::Unfinished(error)),
    }
    let key = order.finalize().await.map_err(OrderError::Unfinished)?;
    let chain = order.poll_certificate(&ASKING).await.map_err(OrderError::Unfinished)?;
    Ok(Issued { chain, key })
}

async fn put_up(order: &mut Order, proof: &mut impl Proof) -> Result<(), OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(OrderError::Authorization)?;
        // One may be good from an order before.
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let Some(challenge) = authorization.challenge(proof.challenge().kind()) else {
            return Err(OrderError::NotOffered { name, challenge: proof.challenge().name() });
        };
        proof.put_up(&name, &challenge.token, &challenge.key_authorization()).await?;
    }
    Ok(())
}

/// What the authority says about the names that it could not verify.
async fn reasons(order: &mut Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        // What is known of it is from before it was looked at.
        let _ = authorization.refresh().await;
        let name = authorization.identifier().to_string();
        let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(problems.map(|problem| format!("{name}: {problem}")));
    }
    if reasons.is_empty() { "it does not say why".to_owned() } else { reasons.join("; ") }
}

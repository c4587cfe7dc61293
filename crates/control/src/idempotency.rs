//! Client tokens: the same request sent twice makes one thing.
//!
//! A token is good for as long as what it made lives, and for a day at most. The real service keeps it for ever, and
//! replays what is long gone; that helps nobody and is not copied.

use api::error::ServiceError;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// How long a token is kept.
pub(crate) const TOKEN_LIFE_MS: i64 = 24 * 3600 * 1000;

/// A client's token with what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientToken {
    /// The operation; each has its own tokens.
    pub(crate) operation: &'static str,
    /// The client's text.
    pub(crate) token: String,
    /// Digest of the other parameters.
    pub(crate) fingerprint: String,
}

impl ClientToken {
    /// A token with the digest of these parameters, which leave the token out.
    pub(crate) fn new(operation: &'static str, token: String, parameters: &impl Serialize) -> Self {
        // Through a `Value`, whose maps are sorted: the order in which a client sends members says nothing.
        let value = serde_json::to_value(parameters).expect("parameters are plain data with text keys");
        let fingerprint = hex::encode(Sha256::digest(value.to_string()));
        Self { operation, token, fingerprint }
    }
}

/// What was kept under a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Digest of the first request's parameters.
    pub(crate) fingerprint: String,
    /// What it made.
    pub(crate) resource_id: String,
    /// When.
    pub(crate) created_at: i64,
}

/// What a token stands for: it was used before, not too long ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Used {
    /// What the first request made.
    pub(crate) resource_id: String,
    /// Did that have the same parameters?
    pub(crate) same: bool,
}

impl Used {
    /// What to answer again: what the first request made, if it lives still. If it does not, something new is to be made;
    /// if the parameters are others, the request is refused so.
    pub(crate) fn answer<T>(self, alive: Option<T>, refusal: fn() -> ServiceError) -> Result<Option<T>, ServiceError> {
        if alive.is_some() && !self.same { Err(refusal()) } else { Ok(alive) }
    }
}

/// Compares a token with what was kept under it; nothing, if it was never seen, or too long ago.
pub(crate) fn used(token: &ClientToken, kept: Option<Kept>, now: i64) -> Option<Used> {
    let kept = kept.filter(|kept| now.saturating_sub(kept.created_at) < TOKEN_LIFE_MS)?;
    Some(Used { same: kept.fingerprint == token.fingerprint, resource_id: kept.resource_id })
}

#[cfg(test)]
mod tests {
    use api::catalogue;
    use serde_json::json;

    use super::*;

    fn token(parameters: serde_json::Value) -> ClientToken {
        ClientToken::new("Run", "t".into(), &parameters)
    }

    #[test]
    fn the_order_of_members_says_nothing_and_their_values_all() {
        assert_eq!(token(json!({"a": 1, "b": 2})), token(json!({"b": 2, "a": 1})));
        assert_ne!(token(json!({"a": 1})), token(json!({"a": 2})));
    }

    #[test]
    fn a_token_replays_for_a_day() {
        let token = token(json!({}));
        let kept = |fingerprint: &str| {
            Some(Kept { fingerprint: fingerprint.into(), resource_id: "r".into(), created_at: 1000 })
        };
        let same = || kept(&token.fingerprint);
        let found = |same| Some(Used { resource_id: "r".into(), same });
        assert_eq!(used(&token, None, 0), None);
        assert_eq!(used(&token, same(), 999 + TOKEN_LIFE_MS), found(true));
        assert_eq!(used(&token, same(), 1000 + TOKEN_LIFE_MS), None);
        assert_eq!(used(&token, kept("x"), 1000), found(false));
    }

    #[test]
    fn what_is_gone_is_neither_replayed_nor_in_the_way() {
        let used = |same| Used { resource_id: "r".into(), same };
        let refusal = catalogue::client_token_reused;
        assert_eq!(used(true).answer(Some(1), refusal), Ok(Some(1)));
        assert_eq!(used(true).answer(None::<i32>, refusal), Ok(None));
        assert_eq!(used(false).answer(Some(1), refusal), Err(refusal()));
        assert_eq!(used(false).answer(None::<i32>, refusal), Ok(None));
    }
}

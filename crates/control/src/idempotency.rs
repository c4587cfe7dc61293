//! Client tokens: the same request sent twice makes one thing.
//!
//! A token is good for as long as what it made lives, and for a day at most. The real service keeps it for ever, and
//! replays what is long gone; that helps nobody and is not copied.

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

/// What a token means for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Never seen, or too long ago: make something new.
    Fresh,
    /// Answer as the first time, if this lives still; make something new if not.
    Replay {
        /// What the first request made.
        resource_id: String,
    },
    /// Used for something else: refuse, if what it made lives still.
    Mismatch {
        /// What the first request made.
        resource_id: String,
    },
}

/// Compares a token with what was kept under it.
pub(crate) fn meaning(token: &ClientToken, kept: Option<Kept>, now: i64) -> Meaning {
    match kept {
        None => Meaning::Fresh,
        Some(kept) if now.saturating_sub(kept.created_at) >= TOKEN_LIFE_MS => Meaning::Fresh,
        Some(kept) if kept.fingerprint == token.fingerprint => Meaning::Replay { resource_id: kept.resource_id },
        Some(kept) => Meaning::Mismatch { resource_id: kept.resource_id },
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(meaning(&token, None, 0), Meaning::Fresh);
        assert_eq!(meaning(&token, same(), 999 + TOKEN_LIFE_MS), Meaning::Replay { resource_id: "r".into() });
        assert_eq!(meaning(&token, same(), 1000 + TOKEN_LIFE_MS), Meaning::Fresh);
        assert_eq!(meaning(&token, kept("x"), 1000), Meaning::Mismatch { resource_id: "r".into() });
    }
}

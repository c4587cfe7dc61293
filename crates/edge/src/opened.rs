//! The token that a client connection used last, opened. Clients send the same one with each request, and opening it is the
//! dearest thing that the edge does with a small one.

use std::sync::{Arc, Mutex, PoisonError};

use api::token::{Claims, TokenError, TokenKeys};
use subtle::ConstantTimeEq;

/// None yet, or one and what it says. Whether it has expired is for whoever asks.
#[derive(Default)]
pub(crate) struct LastToken(Mutex<Option<Opened>>);

struct Opened {
    token: Box<str>,
    /// By [`TokenKeys::replaced`].
    keys: u64,
    claims: Arc<Claims>,
}

impl LastToken {
    /// Opens a token, unless it is the one that was opened last.
    pub(crate) fn open(&self, token: &str, keys: &TokenKeys) -> Result<Arc<Claims>, TokenError> {
        // It is written in one step, so a poisoned lock is still good.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it is opened: if they are replaced meanwhile, it is opened once more.
        let now = keys.replaced();
        if let Some(opened) = last.as_ref()
            && opened.keys == now
            && same(opened.token.as_bytes(), token.as_bytes())
        {
            return Ok(Arc::clone(&opened.claims));
        }
        let claims = Arc::new(keys.open(token)?);
        *last = Some(Opened { token: token.into(), keys: now, claims: Arc::clone(&claims) });
        Ok(claims)
    }
}

/// Compares in a time that the lengths alone decide. A proxy before this one may send requests of several clients over one
/// connection, and none may learn how much of another's token it has guessed.
fn same(one: &[u8], other: &[u8]) -> bool {
    // The library's own comparison of slices keeps the compiler from taking more than a byte at a time.
    let differ = one.iter().zip(other).fold(0, |differ, (one, other)| differ | (one ^ other));
    one.len() == other.len() && bool::from(differ.ct_eq(&0u8))
}

#[cfg(test)]
mod tests {
    use api::{
        ids::MicrovmId,
        token::{Grant, Ports, TokenKey},
    };
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_token_is_opened_once_and_no_other_passes_for_it() {
        let keys = TokenKeys::single(Uuid::from_u128(1), [1; 32]);
        let claims =
            |expires_unix| Claims { microvm_id: MicrovmId::random(), grant: Grant::Http(Ports::all()), expires_unix };
        let (one, other) = (claims(1), claims(2));
        let (one_token, other_token) = (keys.seal(&one), keys.seal(&other));
        let last = LastToken::default();
        let opened = last.open(&one_token, &keys).unwrap();
        assert_eq!(*opened, one);
        // Another key cannot open it, and need not.
        let none = TokenKeys::single(Uuid::from_u128(1), [2; 32]);
        assert!(Arc::ptr_eq(&last.open(&one_token, &none).unwrap(), &opened));
        assert_eq!(last.open(&one_token[1..], &keys), Err(TokenError::Malformed));
        assert_eq!(last.open(&other_token, &none), Err(TokenError::Forged));
        // What was refused has not taken its place.
        assert!(Arc::ptr_eq(&last.open(&one_token, &none).unwrap(), &opened));
        assert_eq!(*last.open(&other_token, &keys).unwrap(), other);
        assert_eq!(last.open(&one_token, &none), Err(TokenError::Forged));
    }

    #[test]
    fn a_token_whose_key_is_gone_is_forgotten() {
        let key = |id: u8| TokenKey::new(Uuid::from_u128(id.into()), [id; 32]);
        let keys = TokenKeys::new(key(1), vec![]);
        let grant = Grant::Http(Ports::all());
        let token = keys.seal(&Claims { microvm_id: MicrovmId::random(), grant, expires_unix: 1 });
        let last = LastToken::default();
        last.open(&token, &keys).unwrap();
        keys.replace(key(2), vec![key(1)]);
        last.open(&token, &keys).unwrap();
        keys.replace(key(2), vec![]);
        assert_eq!(last.open(&token, &keys), Err(TokenError::Forged));
    }
}

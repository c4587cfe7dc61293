//! Secrets at rest. A signature can only be checked with the secret access key itself, so that is sealed, not hashed.

use std::fmt;

use api::sensitive::Sensitive;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

/// The key that secrets are sealed with: AES-256-GCM with random nonces, of which a few thousand are ever used.
#[derive(Clone)]
pub struct SealingKey(LessSafeKey);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

/// No random numbers could be had from the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random numbers")]
pub struct RandomError;

/// What a secret is bound to: moved to another row it does not open.
fn bound_to(access_key_id: &str, user_id: &str) -> String {
    format!("{access_key_id}/{user_id}")
}

impl SealingKey {
    /// The key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).expect("32 bytes are a key")))
    }

    /// Seals bytes; what they are bound to has to be named to open them again.
    pub fn seal(&self, bound_to: &str, text: &[u8]) -> Result<Vec<u8>, RandomError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| RandomError)?;
        let mut text = text.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound_to), &mut text)
            .expect("what is sealed is short");
        Ok([nonce.as_slice(), &text].concat())
    }

    /// Opens them; `None` if they were sealed with another key, bound to something else, or have been changed.
    #[must_use]
    pub fn open(&self, bound_to: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        Some(self.0.open_in_place(nonce, Aad::from(bound_to), &mut text).ok()?.to_vec())
    }

    /// Seals the secret of a user's access key.
    pub fn seal_secret(&self, access_key_id: &str, user_id: &str, secret: &Sensitive) -> Result<Vec<u8>, RandomError> {
        self.seal(&bound_to(access_key_id, user_id), secret.expose().as_bytes())
    }

    /// Opens it again, in its own row alone.
    #[must_use]
    pub fn open_secret(&self, access_key_id: &str, user_id: &str, sealed: &[u8]) -> Option<Sensitive> {
        let opened = self.open(&bound_to(access_key_id, user_id), sealed)?;
        std::str::from_utf8(&opened).ok().map(Sensitive::new)
    }
}

/// Random characters of an alphabet of 32 or 64, so that each is as likely as any other.
pub(super) fn random_text(length: usize, alphabet: &[u8]) -> Result<String, RandomError> {
    debug_assert!([32, 64].contains(&alphabet.len()));
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RandomError)?;
    Ok(bytes.iter().map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_in_its_row_with_its_key_and_nowhere_else() {
        let key = SealingKey::new([7; 32]);
        let secret = Sensitive::new("wJalrXUtnFEMI/K7MDENG");
        let sealed = key.seal_secret("AKIA1", "AIDA1", &secret).expect("sealed");
        assert_eq!(key.open_secret("AKIA1", "AIDA1", &sealed), Some(secret.clone()));
        assert!(!sealed.windows(5).any(|window| window == b"wJalr"));
        assert_ne!(sealed, key.seal_secret("AKIA1", "AIDA1", &secret).expect("sealed"), "the nonce is fresh");
        assert_eq!(key.open_secret("AKIA1", "AIDA2", &sealed), None);
        assert_eq!(key.open_secret("AKIA2", "AIDA1", &sealed), None);
        assert_eq!(SealingKey::new([8; 32]).open_secret("AKIA1", "AIDA1", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open_secret("AKIA1", "AIDA1", &changed), None);
        }
        assert_eq!(key.open_secret("AKIA1", "AIDA1", &sealed[..5]), None);
    }
}

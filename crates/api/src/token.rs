//! Endpoint tokens: what control mints and the edge checks.
//!
//! A token is a JWE in compact form, `{"kid":…,"alg":"dir","enc":"A256GCM"}`, as the real service's are (its shape was
//! measured; its claims are opaque, so the claims here are our own).

use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::MicrovmId;

/// Longest token that is looked at, in bytes; the model's bound on the value.
pub const TOKEN_BYTES_MAX: usize = 8000;

/// Longest life of a token in minutes, a rule of the real service.
pub const EXPIRATION_MINUTES_MAX: u32 = 60;

/// A set of ports, the union of its ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// The ports from the first to the last of each pair, both included.
    #[must_use]
    pub fn from_ranges(ranges: Vec<(u16, u16)>) -> Self {
        Self(ranges)
    }

    /// Every port.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![(1, u16::MAX)])
    }

    /// The one port that is in, if there is no other.
    #[must_use]
    pub fn only(&self) -> Option<u16> {
        let &(first, _) = self.0.first()?;
        self.0.iter().all(|range| *range == (first, first)).then_some(first)
    }

    /// Is this one in?
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&port))
    }
}

/// What a token lets its holder do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// HTTP to these ports of the app.
    Http(Ports),
    /// An interactive shell.
    Shell,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The only microVM it is good for.
    pub microvm_id: MicrovmId,
    /// What for.
    pub grant: Grant,
    /// Seconds since the Unix epoch at which it stops being good.
    pub expires_unix: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    kid: Uuid,
    alg: String,
    enc: String,
}

/// A text that is not a token of ours. Which part was wrong is not told: it helps only a forger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not have a token's form.
    #[error("not a token")]
    Malformed,
    /// It has the form, but no key of ours opens it.
    #[error("the token was not made here")]
    Forged,
}

/// A key that tokens are sealed with.
pub struct TokenKey {
    kid: Uuid,
    aead: LessSafeKey,
}

impl TokenKey {
    /// A key from its stored parts.
    #[must_use]
    pub fn new(kid: Uuid, secret: [u8; 32]) -> Self {
        Self { kid, aead: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).expect("the secret is 32 bytes")) }
    }

    fn seal(&self, claims: &Claims) -> String {
        let header = Header { kid: self.kid, alg: "dir".into(), enc: "A256GCM".into() };
        let header = serde_json::to_vec(&header).expect("a header is plain data");
        let header = URL_SAFE_NO_PAD.encode(header);
        let mut nonce = [0u8; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the kernel gives random bytes");
        let mut text = serde_json::to_vec(claims).expect("claims are plain data");
        let tag = self
            .aead
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header.as_bytes()), &mut text)
            .expect("claims are far below the cipher's limit");
        let (nonce, text, tag) =
            (URL_SAFE_NO_PAD.encode(nonce), URL_SAFE_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(tag));
        // The second part, the encrypted key, is empty with `dir`.
        format!("{header}..{nonce}.{text}.{tag}")
    }

    /// The tag is compared in constant time.
    fn open(&self, mut sealed: Sealed<'_>) -> Result<Claims, TokenError> {
        let nonce = Nonce::assume_unique_for_key(sealed.nonce);
        let text = self
            .aead
            .open_in_place(nonce, Aad::from(sealed.header.as_bytes()), &mut sealed.text)
            .map_err(|_| TokenError::Forged)?;
        serde_json::from_slice(text).map_err(|_| TokenError::Forged)
    }
}

/// A token taken apart.
struct Sealed<'a> {
    kid: Uuid,
    header: &'a str,
    nonce: [u8; NONCE_LEN],
    /// With the tag after it.
    text: Vec<u8>,
}

impl<'a> Sealed<'a> {
    fn read(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let mut parts = token.split('.');
        let mut part = || parts.next().ok_or(TokenError::Malformed);
        let (header, key, nonce, text, tag) = (part()?, part()?, part()?, part()?, part()?);
        if parts.next().is_some() || !key.is_empty() {
            return Err(TokenError::Malformed);
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed);
        let parsed: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if parsed.alg != "dir" || parsed.enc != "A256GCM" {
            return Err(TokenError::Malformed);
        }
        let nonce: [u8; NONCE_LEN] = decode(nonce)?.try_into().map_err(|_| TokenError::Malformed)?;
        let mut text = decode(text)?;
        text.extend(decode(tag)?);
        Ok(Self { kid: parsed.kid, header, nonce, text })
    }
}

/// The newest key, which seals, and the ones before it, which still open what they sealed.
struct Ring {
    newest: TokenKey,
    older: Vec<TokenKey>,
}

impl Ring {
    fn key(&self, kid: Uuid) -> Option<&TokenKey> {
        std::iter::once(&self.newest).chain(&self.older).find(|key| key.kid == kid)
    }
}

/// Gives the keys, the newest first, if they are others than when it was asked before.
type Source = Box<dyn FnMut() -> Option<(TokenKey, Vec<TokenKey>)> + Send>;

/// The keys of tokens. Whoever keeps them may replace them while tokens are made and opened.
pub struct TokenKeys {
    // Read for every request and written once a day; nobody holds it for longer than it takes to clone what is in it.
    ring: RwLock<Arc<Ring>>,
    replaced: AtomicU64,
    /// Where they are from, if somebody else keeps them.
    source: Option<Mutex<Source>>,
}

impl TokenKeys {
    /// Keys of which the newest seals. Which of them opens a token is told by the key's id in it.
    #[must_use]
    pub fn new(newest: TokenKey, older: Vec<TokenKey>) -> Self {
        Self { ring: RwLock::new(Arc::new(Ring { newest, older })), replaced: AtomicU64::new(0), source: None }
    }

    /// Keys that somebody else keeps and replaces. The source is asked when a token names a key that is not among them, so it
    /// has to be quick to say that they are the same. Until it gives some, nothing opens.
    #[must_use]
    pub fn following(source: impl FnMut() -> Option<(TokenKey, Vec<TokenKey>)> + Send + 'static) -> Self {
        let mut secret = [0u8; 32];
        SystemRandom::new().fill(&mut secret).expect("the kernel gives random bytes");
        // A key that nobody has sealed anything with.
        let keys = Self { source: Some(Mutex::new(Box::new(source))), ..Self::single(Uuid::new_v4(), secret) };
        keys.look();
        keys
    }

    /// Asks the source, if there is one.
    pub fn look(&self) {
        let Some(source) = &self.source else { return };
        // Held until they are in place: who looks meanwhile finds them there.
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((newest, older)) = source() {
            self.replace(newest, older);
        }
    }

    /// One key alone.
    #[must_use]
    pub fn single(kid: Uuid, secret: [u8; 32]) -> Self {
        Self::new(TokenKey::new(kid, secret), Vec::new())
    }

    /// From now on these; what is not among them opens nothing any more.
    pub fn replace(&self, newest: TokenKey, older: Vec<TokenKey>) {
        // It is written in one step, so a poisoned lock is still good.
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Ring { newest, older });
        self.replaced.fetch_add(1, Ordering::Release);
    }

    /// How often they were replaced. What a token was found to say need not hold once this is another: its key may be gone.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a token.
    #[must_use]
    pub fn seal(&self, claims: &Claims) -> String {
        self.ring().newest.seal(claims)
    }

    /// Opens a token. The caller checks expiry, microVM and grant.
    pub fn open(&self, token: &str) -> Result<Claims, TokenError> {
        let sealed = Sealed::read(token)?;
        let mut ring = self.ring();
        if ring.key(sealed.kid).is_none() {
            self.look();
            ring = self.ring();
        }
        ring.key(sealed.kid).ok_or(TokenError::Forged)?.open(sealed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> TokenKey {
        TokenKey::new(Uuid::from_u128(7), [9; 32])
    }

    fn keys() -> TokenKeys {
        TokenKeys::new(key(), Vec::new())
    }

    fn other(id: u128, secret: u8) -> TokenKey {
        TokenKey::new(Uuid::from_u128(id), [secret; 32])
    }

    fn claims() -> Claims {
        Claims {
            microvm_id: "microvm-00000000-0000-4000-8000-000000000001".parse().unwrap(),
            grant: Grant::Http(Ports::from_ranges(vec![(80, 80), (8000, 8010)])),
            expires_unix: 1_800_000_000,
        }
    }

    #[test]
    fn a_token_is_a_compact_jwe() {
        let token = keys().seal(&claims());
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(parts.len(), 5);
        assert_eq!((parts[1].len(), parts[2].len(), parts[4].len()), (0, 16, 22));
        let header = URL_SAFE_NO_PAD.decode(parts[0]).unwrap();
        assert_eq!(
            String::from_utf8(header).unwrap(),
            r#"{"kid":"00000000-0000-0000-0000-000000000007","alg":"dir","enc":"A256GCM"}"#
        );
        assert_eq!(keys().open(&token), Ok(claims()));
    }

    #[test]
    fn another_key_does_not_open_it() {
        let token = keys().seal(&claims());
        assert_eq!(TokenKeys::new(other(7, 8), vec![]).open(&token), Err(TokenError::Forged));
        assert_eq!(TokenKeys::new(other(8, 9), vec![]).open(&token), Err(TokenError::Forged));
    }

    #[test]
    fn the_newest_key_seals_and_the_older_ones_open_until_they_are_dropped() {
        let keys = keys();
        let first = keys.seal(&claims());
        keys.replace(other(8, 8), vec![key()]);
        let second = keys.seal(&claims());
        assert_eq!((keys.open(&first), keys.open(&second)), (Ok(claims()), Ok(claims())));
        assert_eq!(TokenKeys::new(other(8, 8), vec![]).open(&second), Ok(claims()), "the newest sealed it");
        keys.replace(other(9, 9), vec![other(8, 8), key()]);
        assert_eq!((keys.open(&first), keys.open(&second)), (Ok(claims()), Ok(claims())));
        keys.replace(other(9, 9), vec![other(8, 8)]);
        assert_eq!((keys.open(&first), keys.open(&second)), (Err(TokenError::Forged), Ok(claims())));
    }

    #[test]
    fn ports_are_a_union_with_both_ends() {
        let ports = Ports::from_ranges(vec![(80, 80), (8000, 8010)]);
        assert_eq!(
            [79, 80, 81, 7999, 8000, 8010, 8011].map(|port| ports.contains(port)),
            [false, true, false, false, true, true, false]
        );
    }

    #[test]
    fn one_port_is_the_only_one() {
        let only = |ranges: &[(u16, u16)]| Ports::from_ranges(ranges.to_vec()).only();
        assert_eq!([&[(80, 80)][..], &[(80, 80), (80, 80)]].map(only), [Some(80); 2]);
        assert_eq!([&[][..], &[(80, 81)], &[(80, 80), (81, 81)]].map(only), [None; 3]);
        assert_eq!(Ports::all().only(), None);
    }

    #[test]
    fn keys_that_somebody_else_keeps_are_asked_for_when_a_token_names_another() {
        let (give, given) = std::sync::mpsc::channel();
        let (asked, asks) = (Arc::new(Mutex::new(0)), |asked: &Mutex<i32>| *asked.lock().unwrap());
        let counted = Arc::clone(&asked);
        let keys = TokenKeys::following(move || {
            *counted.lock().unwrap() += 1;
            given.try_recv().ok()
        });
        let token = TokenKeys::new(other(8, 8), vec![]).seal(&claims());
        assert_eq!((keys.open(&token), asks(&asked)), (Err(TokenError::Forged), 2));
        give.send((other(8, 8), vec![])).unwrap();
        assert_eq!((keys.open(&token), keys.open(&token), asks(&asked)), (Ok(claims()), Ok(claims()), 3));
        // One that names a key of ours and is not sealed with it is no reason to ask.
        let forged = TokenKeys::new(other(8, 9), vec![]).seal(&claims());
        assert_eq!((keys.open(&forged), asks(&asked)), (Err(TokenError::Forged), 3));
        give.send((other(9, 9), vec![])).unwrap();
        keys.look();
        assert_eq!(keys.open(&token), Err(TokenError::Forged), "it is gone where they are kept");
    }

    proptest! {
        #[test]
        fn no_changed_byte_opens(index in 0usize..1000, flip in 1u8..=127) {
            let mut token = keys().seal(&claims()).into_bytes();
            let index = index % token.len();
            token[index] ^= flip;
            if let Ok(token) = String::from_utf8(token) {
                prop_assert!(keys().open(&token).is_err());
            }
        }

        #[test]
        fn any_text_is_refused_without_panic(text in ".{0,200}") {
            prop_assert!(keys().open(&text).is_err());
        }
    }
}

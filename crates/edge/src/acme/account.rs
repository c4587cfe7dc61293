//! The account with the authority: registered once, and kept.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use instant_acme::{Account, ExternalAccountKey, Key, NewAccount};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{
    client::Client,
    settings::AcmeSettings,
    store::{Store, StoreError},
};
use crate::files;

const FILE: &str = "account.json";

/// No key is longer.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The authority does not register it.
    #[error("the ACME server does not register the account")]
    Register(#[source] instant_acme::Error),
    /// It does not take the addresses.
    #[error("the ACME server does not take tls.acme.contact")]
    Contact(#[source] instant_acme::Error),
    /// What is stored is not an account.
    #[error("the account's key in {path} is of no use; restore the file, or remove it to register another account")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key of the account that is known to the authority from elsewhere cannot be read.
    #[error("tls.acme.external_account.key_file {path} cannot be read as a key in base64url")]
    External {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be kept.
    #[error("the account cannot be kept")]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// The authority's directory, for whoever looks at the file.
    directory: String,
    /// In PKCS#8 and base64url.
    key: String,
    /// What the authority calls the account; absent: not registered yet, or not known any more.
    id: Option<String>,
    /// The addresses that the authority knows.
    contact: Vec<String>,
}

/// The account of this directory, registered if it is not yet. With an external account, the key is made by the library while
/// it registers: killed in the moment before it is written down, the next try registers another account.
pub(crate) async fn open(store: &Store, client: &Client, settings: &AcmeSettings) -> Result<Account, AccountError> {
    let directory = &settings.directory;
    let builder = || Account::builder_with_http(Box::new(client.clone()));
    let known = store.read_json::<Stored>(FILE)?;
    let (account, mut stored) = match (known, &settings.external_account) {
        (Some(stored), _) if stored.id.is_some() => {
            let (key, id) = (decode(store, &stored.key)?, stored.id.clone().unwrap_or_default());
            let account = builder().from_parts(id, key, directory.clone()).await.map_err(AccountError::Register)?;
            (account, stored)
        }
        (_, Some(external)) => {
            let contact: Vec<_> = settings.contact.iter().map(String::as_str).collect();
            let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let key = ExternalAccountKey::new(external.key_id.clone(), &external_key(&external.key_file)?);
            let made = builder().create(&new, directory.clone(), Some(&key)).await;
            let (account, credentials) = made.map_err(AccountError::Register)?;
            let key = BASE64_URL_SAFE_NO_PAD.encode(credentials.private_key().secret_pkcs8_der());
            let stored = Stored { directory: directory.clone(), key, id: None, contact: settings.contact.clone() };
            (account, stored)
        }
        (known, None) => {
            let stored = match known {
                Some(stored) => stored,
                None => {
                    let (_, key) = Key::generate_pkcs8().map_err(AccountError::Register)?;
                    let key = BASE64_URL_SAFE_NO_PAD.encode(key.secret_pkcs8_der());
                    Stored { directory: directory.clone(), key, id: None, contact: Vec::new() }
                }
            };
            // An authority answers a key it knows with the account it has: so killed from here on, there is still one.
            store.write_json(FILE, &stored).await?;
            let der = decode(store, &stored.key)?;
            let key = Key::from_pkcs8_der(der.clone_key()).map_err(|error| unusable(store, error))?;
            let made = builder().create_from_key((key, PrivateKeyDer::Pkcs8(der)), directory.clone()).await;
            let (account, _) = made.map_err(AccountError::Register)?;
            (account, stored)
        }
    };
    if stored.id.is_none() {
        stored.id = Some(account.id().to_owned());
        store.write_json(FILE, &stored).await?;
        tracing::info!(directory, account = account.id(), "registered with the ACME server");
    }
    if stored.contact != settings.contact {
        let contact: Vec<_> = settings.contact.iter().map(String::as_str).collect();
        account.update_contacts(&contact).await.map_err(AccountError::Contact)?;
        stored.contact.clone_from(&settings.contact);
        store.write_json(FILE, &stored).await?;
    }
    Ok(account)
}

/// The authority does not know the account any more: the next order registers it again, with the key that it had.
pub(crate) async fn forget_id(store: &Store) -> Result<(), StoreError> {
    if let Some(mut stored) = store.read_json::<Stored>(FILE)? {
        (stored.id, stored.contact) = (None, Vec::new());
        store.write_json(FILE, &stored).await?;
    }
    Ok(())
}

fn unusable(store: &Store, source: impl std::error::Error + Send + Sync + 'static) -> AccountError {
    AccountError::Key { path: store.path(FILE), source: Box::new(source) }
}

fn decode(store: &Store, key: &str) -> Result<PrivatePkcs8KeyDer<'static>, AccountError> {
    let der = BASE64_URL_SAFE_NO_PAD.decode(key).map_err(|error| unusable(store, error))?;
    Ok(PrivatePkcs8KeyDer::from(der))
}

fn external_key(path: &Path) -> Result<Vec<u8>, AccountError> {
    let read = || {
        let text = String::from_utf8(files::read(path, KEY_FILE_BYTES_MAX)?).map_err(io::Error::other)?;
        let key = text.trim().trim_end_matches('=');
        let key = BASE64_URL_SAFE_NO_PAD.decode(key).map_err(io::Error::other)?;
        if key.is_empty() { Err(io::Error::other("it is empty")) } else { Ok(key) }
    };
    read().map_err(|source| AccountError::External { path: path.to_owned(), source })
}

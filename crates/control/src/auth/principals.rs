//! Who there is: the account's own key, and the users with theirs. Requests look here, never into the database; whoever
//! changes something there puts the whole new picture here.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use api::sensitive::Sensitive;

use super::caller::{Caller, Identity, User};

/// An access key.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// Its public half.
    pub id: String,
    /// Its secret half.
    pub secret: Sensitive,
}

/// A key and whose it is.
#[derive(Debug, Clone)]
struct Known {
    secret: Sensitive,
    identity: Identity,
}

/// The principals of an account.
pub struct Principals {
    account: String,
    root: AccessKey,
    users: RwLock<Arc<HashMap<String, Known>>>,
}

impl fmt::Debug for Principals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.users().len();
        f.debug_struct("Principals").field("account", &self.account).field("keys", &keys).finish_non_exhaustive()
    }
}

impl Principals {
    /// The account's own key, and no users yet.
    #[must_use]
    pub fn new(account: String, root: AccessKey) -> Arc<Self> {
        Arc::new(Self { account, root, users: RwLock::default() })
    }

    /// The account everybody here is of.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    fn users(&self) -> Arc<HashMap<String, Known>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these are the users' keys that are good. The root's is not replaced by one of the same id.
    pub fn replace(&self, keys: impl IntoIterator<Item = (AccessKey, Arc<User>)>) {
        let known = keys
            .into_iter()
            .map(|(key, user)| (key.id, Known { secret: key.secret, identity: Identity::User(user) }))
            .collect();
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
    }

    /// The secret of a key that is good now, and whose it is.
    #[must_use]
    pub fn signer(&self, access_key_id: &str, region: &str) -> Option<(Sensitive, Caller)> {
        let known = self.known(access_key_id)?;
        let caller = match known.identity {
            Identity::Root => Caller::root(&self.account, region, access_key_id),
            Identity::User(user) => Caller::of_user(user, &self.account, region, access_key_id),
        };
        Some((known.secret, caller))
    }

    fn known(&self, access_key_id: &str) -> Option<Known> {
        if access_key_id == self.root.id {
            return Some(Known { secret: self.root.secret.clone(), identity: Identity::Root });
        }
        self.users().get(access_key_id).cloned()
    }

    /// The secret of a key that is good now.
    #[must_use]
    pub fn secret(&self, access_key_id: &str) -> Option<Sensitive> {
        self.known(access_key_id).map(|known| known.secret)
    }

    /// Whose key it is, if it is good now.
    #[must_use]
    pub fn caller(&self, access_key_id: &str, region: &str) -> Option<Caller> {
        self.signer(access_key_id, region).map(|(_, caller)| caller)
    }
}

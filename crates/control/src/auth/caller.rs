//! An authenticated caller.

use std::sync::Arc;

use crate::iam::Policy;

/// A user, as of the last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its id: `AIDA…`. A user of the same name made later has another.
    pub id: String,
    /// What it may do.
    pub policies: Vec<Policy>,
}

/// Whose key a request is signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The account's own: it may do everything.
    Root,
    /// A user's.
    User(Arc<User>),
}

/// Who signed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub identity: Identity,
    /// The caller's own ARN.
    pub arn: String,
    /// The account it acts in.
    pub account: String,
    /// The region it calls in.
    pub region: String,
    /// The access key it signed with.
    pub access_key_id: String,
}

impl Caller {
    /// One who signed with a key of the account's own.
    #[must_use]
    pub fn root(account: &str, region: &str, access_key_id: &str) -> Self {
        Self::new(Identity::Root, format!("arn:aws:iam::{account}:root"), account, region, access_key_id)
    }

    /// One who signed with a key of a user's.
    #[must_use]
    pub fn of_user(user: Arc<User>, account: &str, region: &str, access_key_id: &str) -> Self {
        let arn = format!("arn:aws:iam::{account}:user/{}", user.name);
        Self::new(Identity::User(user), arn, account, region, access_key_id)
    }

    fn new(identity: Identity, arn: String, account: &str, region: &str, access_key_id: &str) -> Self {
        Self {
            identity,
            arn,
            account: account.to_owned(),
            region: region.to_owned(),
            access_key_id: access_key_id.to_owned(),
        }
    }

    /// What `sts get-caller-identity` calls its `UserId`.
    #[must_use]
    pub fn user_id(&self) -> &str {
        match &self.identity {
            Identity::Root => &self.account,
            Identity::User(user) => &user.id,
        }
    }
}

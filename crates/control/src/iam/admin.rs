//! Users, keys and policies as the command manages them, whether a server runs or not: each change is one transaction in
//! the database, and a server that runs sees it a moment later (`iam::follow`).

use std::{path::Path, time::SystemTime};

use api::{sensitive::Sensitive, timestamp::Timestamp};

use super::{
    policy::{Policy, PolicyError},
    records::{KeyRecord, PolicyRecord, UserRecord},
    seal::{RandomError, SealingKey, random_text},
};
use crate::{
    audit,
    store::{Connection, Store, StoreError, audit as audit_rows, commit, iam as rows},
};

/// Most users of an account, as in AWS.
pub const USERS_MAX: i64 = 5000;

/// Most access keys of a user, as in AWS: the one in use, and its successor.
pub const KEYS_PER_USER_MAX: usize = 2;

/// Most policies of a user, as AWS's quota for managed policies.
pub const POLICIES_PER_USER_MAX: usize = 10;

/// Most changes that no server has written into its audit log yet. A server that runs writes them within a second.
pub const UNTOLD_MAX: i64 = 10_000;

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum IamError {
    /// A name that users or policies cannot have.
    #[error("{what} '{name}' does not fit: 1 to {max} letters, digits and _+=,.@- are allowed")]
    Name {
        /// The name of what.
        what: &'static str,
        /// What was given.
        name: String,
        /// The longest.
        max: usize,
    },
    /// The name is taken.
    #[error("there is a user named {0} already (names that differ in case alone are one name)")]
    UserExists(String),
    /// There is no such user.
    #[error("there is no user named {0}; see `pilotlight iam user list`")]
    NoSuchUser(String),
    /// The user still has something.
    #[error(
        "user {user} still has {keys} access key(s) and {policies} policy(s); delete those first, or use --force to delete \
         all together"
    )]
    InUse {
        /// The user.
        user: String,
        /// How many keys.
        keys: usize,
        /// How many policies.
        policies: usize,
    },
    /// There is no such key.
    #[error("there is no access key {0}; see `pilotlight iam key list`")]
    NoSuchKey(String),
    /// There is no such policy.
    #[error("user {user} has no policy named {name}; see `pilotlight iam policy list --user {user}`")]
    NoSuchPolicy {
        /// The user.
        user: String,
        /// The policy.
        name: String,
    },
    /// There are too many.
    #[error("{0}")]
    Limit(String),
    /// The document is refused.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No randomness.
    #[error("no access key can be made")]
    Random(#[from] RandomError),
    /// The database.
    #[error("the database could not be used")]
    Store(#[from] StoreError),
}

/// An access key as it is handed out, once.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its public half.
    pub id: String,
    /// Its secret half, which cannot be had again.
    pub secret: Sensitive,
}

/// Who makes changes at this machine, for the audit log.
#[derive(Debug, Clone)]
pub struct LocalUser {
    /// What the machine knows them as, such as `local:root`.
    pub name: String,
    /// The account whose users they change.
    pub account: String,
}

/// Manages what is in a database.
#[derive(Debug)]
pub struct Admin {
    store: Store,
    key: SealingKey,
    by: LocalUser,
}

fn check_name(what: &'static str, name: &str, max: usize) -> Result<(), IamError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if name.is_empty() || name.len() > max || !name.bytes().all(fits) {
        let name = name.chars().take(200).collect();
        return Err(IamError::Name { what, name, max });
    }
    Ok(())
}

async fn user(connection: &mut Connection, name: &str) -> Result<UserRecord, IamError> {
    rows::find_user(connection, name).await?.ok_or_else(|| IamError::NoSuchUser(name.chars().take(200).collect()))
}

/// The name of the user that a key is of.
async fn owner_of(connection: &mut Connection, id: &str) -> Result<String, IamError> {
    rows::owner_of(connection, id).await?.ok_or_else(|| IamError::NoSuchKey(id.chars().take(200).collect()))
}

/// A policy of a user, as the audit log names it.
fn policy_of(name: &str) -> String {
    format!("policy/{name}")
}

fn now() -> i64 {
    Timestamp::from(SystemTime::now()).unix_ms()
}

impl Admin {
    /// Opens the database, making it as needed.
    pub async fn open(database: &Path, key: SealingKey, by: LocalUser) -> Result<Self, IamError> {
        Ok(Self { store: Store::open(database).await?, key, by })
    }

    /// Lets a running server see that something has changed, and notes the line that its audit log gets. Part of the
    /// change's transaction, so there is no change without its line and no line without its change.
    async fn changed(
        &self,
        connection: &mut Connection,
        (command, action): (&str, &str),
        user: &str,
        more: impl IntoIterator<Item = String>,
    ) -> Result<(), IamError> {
        if audit_rows::count(connection).await? >= UNTOLD_MAX {
            return Err(IamError::Limit(format!(
                "there are {UNTOLD_MAX} changes that are not in the audit log yet, as no server has run since: run \
                 `pilotlight serve` once"
            )));
        }
        let mut about = vec![format!("arn:aws:iam::{}:user/{user}", self.by.account)];
        about.extend(more);
        let line = audit::change(&self.by.name, &format!("pilotlight iam {command}"), action, &about);
        audit_rows::add(connection, &line).await?;
        Ok(rows::changed(connection).await?)
    }

    /// Closes it.
    pub async fn close(self) {
        self.store.close().await;
    }

    /// Makes a user, who may do nothing yet.
    pub async fn create_user(&self, name: &str) -> Result<UserRecord, IamError> {
        check_name("user name", name, 64)?;
        let made =
            UserRecord { name: name.to_owned(), id: format!("AIDA{}", random_text(17, BASE32)?), created_at: now() };
        let mut transaction = self.store.begin().await?;
        if let Some(taken) = rows::find_user(&mut transaction, name).await? {
            return Err(IamError::UserExists(taken.name));
        }
        if rows::count_users(&mut transaction).await? >= USERS_MAX {
            return Err(IamError::Limit(format!("there are {USERS_MAX} users already, the most an account can have")));
        }
        rows::insert_user(&mut transaction, &made).await?;
        self.changed(&mut transaction, ("user create", "iam:CreateUser"), &made.name, []).await?;
        commit(transaction).await?;
        Ok(made)
    }

    /// Every user.
    pub async fn users(&self) -> Result<Vec<UserRecord>, IamError> {
        Ok(rows::users(&mut *self.store.read().await?).await?)
    }

    /// Deletes a user; one that has keys or policies only together with them.
    pub async fn delete_user(&self, name: &str, force: bool) -> Result<(), IamError> {
        let mut transaction = self.store.begin().await?;
        let user = user(&mut transaction, name).await?;
        let keys = rows::keys(&mut transaction, Some(&user.id)).await?;
        let policies = rows::policies(&mut transaction, Some(&user.id)).await?;
        if keys.len() + policies.len() > 0 && !force {
            return Err(IamError::InUse { user: user.name, keys: keys.len(), policies: policies.len() });
        }
        rows::delete_user(&mut transaction, &user.id).await?;
        let with_it = keys.into_iter().map(|key| key.id).chain(policies.into_iter().map(|it| policy_of(&it.name)));
        self.changed(&mut transaction, ("user delete", "iam:DeleteUser"), &user.name, with_it).await?;
        Ok(commit(transaction).await?)
    }

    /// Makes an access key for a user.
    pub async fn create_key(&self, user_name: &str) -> Result<NewKey, IamError> {
        let id = format!("AKIA{}", random_text(16, BASE32)?);
        let secret = Sensitive::new(random_text(40, BASE64)?);
        let mut transaction = self.store.begin().await?;
        let user = user(&mut transaction, user_name).await?;
        if rows::keys(&mut transaction, Some(&user.id)).await?.len() >= KEYS_PER_USER_MAX {
            return Err(IamError::Limit(format!(
                "user {} has {KEYS_PER_USER_MAX} access keys already, the most a user can have: delete one first",
                user.name
            )));
        }
        let sealed_secret = self.key.seal_secret(&id, &user.id, &secret)?;
        let made = KeyRecord { id: id.clone(), user_id: user.id, sealed_secret, active: true, created_at: now() };
        rows::insert_key(&mut transaction, &made).await?;
        let done = ("key create", "iam:CreateAccessKey");
        self.changed(&mut transaction, done, &user.name, [id.clone()]).await?;
        commit(transaction).await?;
        Ok(NewKey { id, secret })
    }

    /// The keys of a user, or of all.
    pub async fn keys(&self, user_name: Option<&str>) -> Result<Vec<KeyRecord>, IamError> {
        let mut connection = self.store.read().await?;
        let id = match user_name {
            Some(name) => Some(user(&mut connection, name).await?.id),
            None => None,
        };
        Ok(rows::keys(&mut connection, id.as_deref()).await?)
    }

    /// Makes a key good, or good for nothing until it is made good again.
    pub async fn set_key_active(&self, id: &str, active: bool) -> Result<(), IamError> {
        let mut transaction = self.store.begin().await?;
        let owner = owner_of(&mut transaction, id).await?;
        rows::set_key_active(&mut transaction, id, active).await?;
        let command = if active { "key activate" } else { "key deactivate" };
        let done = (command, "iam:UpdateAccessKey");
        self.changed(&mut transaction, done, &owner, [id.to_owned()]).await?;
        Ok(commit(transaction).await?)
    }

    /// Deletes a key.
    pub async fn delete_key(&self, id: &str) -> Result<(), IamError> {
        let mut transaction = self.store.begin().await?;
        let owner = owner_of(&mut transaction, id).await?;
        rows::delete_key(&mut transaction, id).await?;
        self.changed(&mut transaction, ("key delete", "iam:DeleteAccessKey"), &owner, [id.to_owned()]).await?;
        Ok(commit(transaction).await?)
    }

    /// Puts a policy of a user, in place of one of the same name.
    pub async fn put_policy(&self, user_name: &str, name: &str, document: &str) -> Result<(), IamError> {
        check_name("policy name", name, 128)?;
        Policy::parse(document)?;
        let mut transaction = self.store.begin().await?;
        let user = user(&mut transaction, user_name).await?;
        let there = rows::policies(&mut transaction, Some(&user.id)).await?;
        if there.len() >= POLICIES_PER_USER_MAX && there.iter().all(|policy| policy.name != name) {
            return Err(IamError::Limit(format!(
                "user {} has {POLICIES_PER_USER_MAX} policies already, the most a user can have: delete one first",
                user.name
            )));
        }
        let put =
            PolicyRecord { user_id: user.id, name: name.to_owned(), document: document.to_owned(), updated_at: now() };
        rows::put_policy(&mut transaction, &put).await?;
        self.changed(&mut transaction, ("policy put", "iam:PutUserPolicy"), &user.name, [policy_of(name)]).await?;
        Ok(commit(transaction).await?)
    }

    /// The policies of a user.
    pub async fn policies(&self, user_name: &str) -> Result<Vec<PolicyRecord>, IamError> {
        let mut connection = self.store.read().await?;
        let user = user(&mut connection, user_name).await?;
        Ok(rows::policies(&mut connection, Some(&user.id)).await?)
    }

    /// One policy of a user.
    pub async fn policy(&self, user_name: &str, name: &str) -> Result<PolicyRecord, IamError> {
        let mut policies = self.policies(user_name).await?.into_iter();
        policies.find(|policy| policy.name == name).ok_or_else(|| no_such_policy(user_name, name))
    }

    /// Deletes a policy of a user.
    pub async fn delete_policy(&self, user_name: &str, name: &str) -> Result<(), IamError> {
        let mut transaction = self.store.begin().await?;
        let user = user(&mut transaction, user_name).await?;
        if !rows::delete_policy(&mut transaction, &user.id, name).await? {
            return Err(no_such_policy(user_name, name));
        }
        let done = ("policy delete", "iam:DeleteUserPolicy");
        self.changed(&mut transaction, done, &user.name, [policy_of(name)]).await?;
        Ok(commit(transaction).await?)
    }
}

fn no_such_policy(user: &str, name: &str) -> IamError {
    IamError::NoSuchPolicy { user: user.to_owned(), name: name.chars().take(200).collect() }
}

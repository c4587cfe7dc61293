//! Users, keys and policies as they are kept.

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// Its name, as it was first written.
    pub name: String,
    /// Its id: `AIDA…`.
    pub id: String,
    /// Milliseconds since the epoch.
    pub created_at: i64,
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its public half: `AKIA…`.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// Its secret half, sealed.
    pub sealed_secret: Vec<u8>,
    /// Whether it is good.
    pub active: bool,
    /// Milliseconds since the epoch.
    pub created_at: i64,
}

/// A policy of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Whose it is.
    pub user_id: String,
    /// Its name.
    pub name: String,
    /// Its text, as it was given.
    pub document: String,
    /// Milliseconds since the epoch.
    pub updated_at: i64,
}

//! An authenticated caller.

/// Who signed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The caller's own ARN.
    pub arn: String,
    /// The account it acts in.
    pub account: String,
    /// The access key it signed with.
    pub access_key_id: String,
}

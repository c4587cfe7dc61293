//! Why a request is not taken for anybody's.

/// A refusal, in the words of AWS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// It is not signed at all.
    #[error("Missing Authentication Token")]
    Missing,
    /// Parts of the signature's description are missing or cannot be read.
    #[error("{message}")]
    Incomplete {
        /// Which.
        message: String,
    },
    /// The access key, or the session token with it, is not one of ours.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// The signature is for another place, service or time.
    #[error("{message}")]
    Scope {
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The signature is not that of this request with this key.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
         and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

impl AuthError {
    /// The error's name, for the header `X-Amzn-Errortype`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationTokenException",
            Self::Incomplete { .. } => "IncompleteSignatureException",
            Self::UnknownKey => "UnrecognizedClientException",
            Self::Scope { .. } | Self::Mismatch => "InvalidSignatureException",
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        403
    }
}

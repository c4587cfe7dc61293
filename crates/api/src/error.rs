//! The service's errors, as values and as they travel.

use serde_json::{Value, json};

/// An error the service would answer with. The sentences stand in [`crate::catalogue`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The request breaks a rule.
    #[error("{message}")]
    Validation {
        /// Which, in the service's words.
        message: String,
    },
    /// The request cannot be read at all.
    #[error("the request could not be read")]
    Serialization {
        /// What is wrong; the service often says nothing.
        message: Option<String>,
    },
    /// The caller may not do this.
    #[error("access denied")]
    AccessDenied {
        /// Why; the service sometimes says nothing.
        message: Option<String>,
    },
    /// There is no such thing.
    #[error("{message}")]
    ResourceNotFound {
        /// What is missing.
        message: String,
        /// Its id; null in everything recorded.
        resource_id: Option<String>,
        /// Its kind; null in everything recorded.
        resource_type: Option<String>,
    },
    /// It cannot be done now, or contradicts an earlier request.
    #[error("{message}")]
    Conflict {
        /// Why.
        message: String,
        /// Of what.
        resource_id: Option<String>,
        /// Of what kind.
        resource_type: Option<String>,
    },
    /// The request breaks a rule, in the family of errors that tags and connectors have.
    #[error("{message}")]
    InvalidParameterValue {
        /// Which.
        message: String,
    },
    /// There is no such connector. The service says it with a capital letter.
    #[error("{message}")]
    ConnectorNotFound {
        /// What is missing.
        message: String,
    },
    /// There are too many connectors, or versions of one.
    #[error("{message}")]
    NetworkConnectorLimitExceeded {
        /// Which limit.
        message: String,
    },
    /// Something broke on this side, in that family.
    #[error("{message}")]
    Service {
        /// What the caller may know.
        message: String,
    },
    /// It cannot be done now, in that family.
    #[error("{message}")]
    ResourceConflict {
        /// Why.
        message: String,
    },
    /// Too many requests.
    #[error("{message}")]
    Throttling {
        /// Which limit.
        message: String,
        /// When to try again.
        retry_after_seconds: Option<u32>,
    },
    /// The same, in that family.
    #[error("{message}")]
    TooManyRequests {
        /// Which limit.
        message: String,
        /// When to try again.
        retry_after_seconds: Option<u32>,
    },
    /// A limit of the account is reached.
    #[error("{message}")]
    ServiceQuotaExceeded {
        /// Which.
        message: String,
    },
    /// There is no room for another microVM.
    #[error("{message}")]
    InsufficientCapacity {
        /// What is short.
        message: String,
    },
    /// Something broke on this side. The cause is for the log, not for the caller.
    #[error("{message}")]
    InternalServer {
        /// What the caller may know.
        message: String,
        /// When to try again.
        retry_after_seconds: Option<u32>,
    },
    /// No operation has this method and path, or it is not implemented.
    #[error("{message}")]
    UnknownOperation {
        /// Which.
        message: String,
    },
    /// The body is larger than any request of the service.
    #[error("{message}")]
    RequestTooLarge {
        /// The limit.
        message: String,
    },
}

/// An error as it travels.
#[derive(Debug, Clone, PartialEq)]
pub struct WireError {
    /// The HTTP status.
    pub status: u16,
    /// What the header `X-Amzn-Errortype` says.
    pub kind: &'static str,
    /// The JSON body.
    pub body: Value,
    /// What the header `Retry-After` says, in seconds.
    pub retry_after_seconds: Option<u32>,
}

impl ServiceError {
    /// The same as the connector operations say it: their model has neither
    /// `InternalServerException` nor `ThrottlingException`.
    #[must_use]
    pub fn of_connectors(self) -> Self {
        match self {
            Self::InternalServer { message, retry_after_seconds: _ } => Self::Service { message },
            Self::Throttling { message, retry_after_seconds } => Self::TooManyRequests { message, retry_after_seconds },
            other => other,
        }
    }

    /// The error's name in the service's model.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Validation { .. } => "ValidationException",
            Self::Serialization { .. } => "SerializationException",
            Self::AccessDenied { .. } => "AccessDeniedException",
            Self::ResourceNotFound { .. } => "ResourceNotFoundException",
            Self::Conflict { .. } => "ConflictException",
            Self::InvalidParameterValue { .. } => "InvalidParameterValueException",
            Self::ConnectorNotFound { .. } => "ResourceNotFoundException",
            Self::NetworkConnectorLimitExceeded { .. } => "NetworkConnectorLimitExceededException",
            Self::Service { .. } => "ServiceException",
            Self::ResourceConflict { .. } => "ResourceConflictException",
            Self::Throttling { .. } => "ThrottlingException",
            Self::TooManyRequests { .. } => "TooManyRequestsException",
            Self::ServiceQuotaExceeded { .. } => "ServiceQuotaExceededException",
            Self::InsufficientCapacity { .. } => "InsufficientCapacityException",
            Self::InternalServer { .. } => "InternalServerException",
            Self::UnknownOperation { .. } => "UnknownOperationException",
            Self::RequestTooLarge { .. } => "RequestTooLargeException",
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Validation { .. }
            | Self::Serialization { .. }
            | Self::InvalidParameterValue { .. }
            | Self::NetworkConnectorLimitExceeded { .. } => 400,
            Self::ServiceQuotaExceeded { .. } => 402,
            Self::AccessDenied { .. } => 403,
            Self::ResourceNotFound { .. } | Self::ConnectorNotFound { .. } | Self::UnknownOperation { .. } => 404,
            Self::Conflict { .. } | Self::ResourceConflict { .. } => 409,
            Self::RequestTooLarge { .. } => 413,
            Self::Throttling { .. } | Self::TooManyRequests { .. } => 429,
            Self::InsufficientCapacity { .. } | Self::InternalServer { .. } | Self::Service { .. } => 500,
        }
    }

    /// The error as it travels; modelled members that are unset are explicit nulls, as the service writes them.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let mut retry_after = None;
        let body = match self {
            // What the parser of the real service says comes with a capital letter; silence comes with a small one.
            Self::Serialization { message: Some(message) } => json!({ "Message": message }),
            Self::Serialization { message: None } => json!({ "message": null }),
            Self::AccessDenied { message } => json!({ "message": message }),
            Self::ResourceNotFound { message, resource_id, resource_type }
            | Self::Conflict { message, resource_id, resource_type } => {
                json!({ "message": message, "resourceId": resource_id, "resourceType": resource_type })
            }
            // What Lambda's older operations say of every fault of the caller's.
            Self::InvalidParameterValue { message }
            | Self::ResourceConflict { message }
            | Self::NetworkConnectorLimitExceeded { message } => json!({ "Type": "User", "message": message }),
            // As recorded: without a type.
            Self::ConnectorNotFound { message } => json!({ "Message": message }),
            Self::Service { message } => json!({ "Type": "Service", "Message": message }),
            Self::Throttling { message, retry_after_seconds } => {
                retry_after = *retry_after_seconds;
                json!({ "message": message, "serviceCode": null, "quotaCode": null })
            }
            Self::TooManyRequests { message, retry_after_seconds } => {
                retry_after = *retry_after_seconds;
                json!({ "Type": "User", "message": message, "Reason": "CallerRateLimitExceeded" })
            }
            Self::ServiceQuotaExceeded { message } => json!({
                "message": message,
                "resourceId": null,
                "resourceType": null,
                "serviceCode": null,
                "quotaCode": null,
            }),
            Self::InternalServer { message, retry_after_seconds } => {
                retry_after = *retry_after_seconds;
                json!({ "message": message })
            }
            Self::Validation { message }
            | Self::InsufficientCapacity { message }
            | Self::UnknownOperation { message }
            | Self::RequestTooLarge { message } => json!({ "message": message }),
        };
        WireError { status: self.status(), kind: self.kind(), body, retry_after_seconds: retry_after }
    }
}

//! Why the edge itself answers, instead of the app.

use std::error::Error;

use api::directory::Unavailable;
use http::{HeaderValue, Method, StatusCode};

use crate::metrics::Limit;

/// Who would have to change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Client,
    App,
    Platform,
}

impl Fault {
    /// As logs, metrics and clients see it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::Platform => "platform",
        }
    }
}

/// One reason, each with its row in the table of [`Refusal::status`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    #[error("the head has more than {0} fields")]
    TooManyFields(usize),
    #[error("the TLS connection is for another host")]
    Misdirected,
    #[error("no token, or not a token")]
    MissingAuthentication,
    #[error("the token is not good for this: {0}")]
    AuthenticationFailed(&'static str),
    #[error("no token in a header, and that in the link or the cookie is not good for this: {0}")]
    NotByLink(&'static str),
    #[error("the cookie is not enough: {0}")]
    Stranger(&'static str),
    #[error("the token does not cover port {0}")]
    PortDenied(u16),
    #[error("the body has more than {0} bytes")]
    BodyTooLong(u64),
    #[error("too many connections")]
    TooManyConnections,
    #[error("too many connections from this address")]
    TooManyFromAddress,
    #[error("more than {0} connections to this microVM")]
    TooManyToMicrovm(u32),
    #[error("too many requests a second to this microVM")]
    TooFast { retry_after_seconds: u64 },
    #[error("too many connections to apps")]
    TooManyUpstream,
    #[error("too many shells are open in this microVM")]
    TooManyShells,
    #[error("a token for shells opens nothing else")]
    ShellOnly,
    #[error("the guest opens no shell: {0}")]
    NoShell(String),
    #[error("too many requests wait for this microVM, or for all")]
    TooManyWaiting,
    #[error("the microVM is not available")]
    Unavailable(#[source] Unavailable),
    #[error("the microVM did not become ready within the edge's limit")]
    WakeTooSlow,
    #[error("the VM went away at every attempt")]
    Gone,
    #[error("nothing listens on port {0}")]
    NothingListens(u16),
    #[error("the VM could not be reached")]
    Unreachable(#[source] std::io::Error),
    #[error("the app did not give a proper answer")]
    NoAnswer(#[source] hyper::Error),
    #[error("the app does not speak HTTP/2, which the request asks for")]
    NotHttp2,
    #[error("the TLS handshake with the app failed")]
    TlsToApp(#[source] std::io::Error),
    #[error("the app's answer is malformed: {0}")]
    BadAnswer(&'static str),
    #[error("no byte crossed for too long")]
    Silent,
}

impl Refusal {
    /// The status that the client sees.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::MissingAuthentication
            | Self::AuthenticationFailed(_)
            | Self::NotByLink(_)
            | Self::Stranger(_)
            | Self::PortDenied(_) => StatusCode::FORBIDDEN,
            Self::BodyTooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyConnections
            | Self::TooManyFromAddress
            | Self::TooManyToMicrovm(_)
            | Self::TooFast { .. }
            | Self::TooManyUpstream
            | Self::TooManyShells
            | Self::TooManyWaiting => StatusCode::TOO_MANY_REQUESTS,
            // As the service has it: what a shell's token leads to speaks no HTTP.
            Self::ShellOnly
            | Self::NoShell(_)
            | Self::Unavailable(_)
            | Self::WakeTooSlow
            | Self::Gone
            | Self::NothingListens(_)
            | Self::Unreachable(_)
            | Self::NoAnswer(_)
            | Self::NotHttp2
            | Self::TlsToApp(_)
            | Self::BadAnswer(_)
            | Self::Silent => StatusCode::BAD_GATEWAY,
        }
    }

    /// When the client may try again, in seconds, if it helps to wait.
    pub(crate) fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::TooFast { retry_after_seconds } => Some(*retry_after_seconds),
            _ => (self.status() == StatusCode::TOO_MANY_REQUESTS).then_some(1),
        }
    }

    /// The body that the client sees: the real service's words, which clients match on. It never says more than they do.
    pub(crate) fn body(&self) -> &'static str {
        match self {
            // As if there were neither links nor cookies.
            Self::MissingAuthentication | Self::NotByLink(_) => "Request missing authentication",
            Self::AuthenticationFailed(_) => "Token authentication failed",
            Self::PortDenied(_) => "Access to port denied",
            _ => "",
        }
    }

    /// Who would have to change something.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Malformed(_)
            | Self::TooManyFields(_)
            | Self::Misdirected
            | Self::MissingAuthentication
            | Self::AuthenticationFailed(_)
            | Self::NotByLink(_)
            | Self::Stranger(_)
            | Self::PortDenied(_)
            | Self::BodyTooLong(_)
            | Self::TooManyConnections
            | Self::TooManyFromAddress
            | Self::TooManyToMicrovm(_)
            | Self::TooFast { .. }
            | Self::TooManyUpstream
            | Self::TooManyShells
            | Self::ShellOnly
            | Self::TooManyWaiting
            | Self::Unavailable(Unavailable::Asleep | Unavailable::Ended) => Fault::Client,
            Self::NothingListens(_)
            | Self::NoShell(_)
            | Self::NoAnswer(_)
            | Self::NotHttp2
            | Self::TlsToApp(_)
            | Self::BadAnswer(_)
            | Self::Silent => Fault::App,
            Self::Unavailable(Unavailable::WakeFailed { .. } | Unavailable::Late)
            | Self::WakeTooSlow
            | Self::Gone
            | Self::Unreachable(_) => Fault::Platform,
        }
    }

    /// The limit that it is about, if it is about one.
    pub(crate) fn limit(&self) -> Option<Limit> {
        match self {
            Self::TooManyFields(_) => Some(Limit::Head),
            Self::BodyTooLong(_) => Some(Limit::RequestBody),
            Self::TooManyConnections => Some(Limit::Connections),
            Self::TooManyFromAddress => Some(Limit::AddressConnections),
            Self::TooManyToMicrovm(_) => Some(Limit::MicrovmConnections),
            Self::TooFast { .. } => Some(Limit::MicrovmRequests),
            Self::TooManyUpstream => Some(Limit::UpstreamConnections),
            Self::TooManyShells => Some(Limit::MicrovmShells),
            Self::TooManyWaiting | Self::Unavailable(Unavailable::Late) => Some(Limit::Waiting),
            _ => None,
        }
    }

    /// The reason for the client, as a `Proxy-Status` field has it (RFC 9209), with whose fault it was. Nothing beneath the
    /// first sentence is told, which may name what is the host's; and to those without a good token nothing at all.
    pub(crate) fn proxy_status(&self) -> String {
        let error = match self {
            Self::Malformed(_) | Self::TooManyFields(_) | Self::Misdirected | Self::BodyTooLong(_) => {
                "http_request_error"
            }
            Self::MissingAuthentication | Self::AuthenticationFailed(_) | Self::NotByLink(_) | Self::PortDenied(_) => {
                return "pilotlight; error=http_request_denied; fault=client".to_owned();
            }
            Self::TooManyConnections
            | Self::TooManyFromAddress
            | Self::TooManyToMicrovm(_)
            | Self::TooFast { .. }
            | Self::TooManyUpstream
            | Self::TooManyShells
            | Self::TooManyWaiting => "connection_limit_reached",
            Self::ShellOnly | Self::Stranger(_) => "http_request_denied",
            Self::Unavailable(_) | Self::WakeTooSlow | Self::Gone => "destination_unavailable",
            Self::NothingListens(_) | Self::NoShell(_) => "connection_refused",
            Self::Unreachable(_) => "connection_terminated",
            Self::NoAnswer(_) => "http_response_incomplete",
            Self::NotHttp2 | Self::BadAnswer(_) => "http_protocol_error",
            Self::TlsToApp(_) => "tls_protocol_error",
            Self::Silent => "http_response_timeout",
        };
        let fault = self.fault().as_str();
        format!("pilotlight; error={error}; fault={fault}; details=\"{}\"", self.told())
    }

    /// What is wrong, in words without quotes.
    fn told(&self) -> String {
        match self {
            Self::Unavailable(why @ (Unavailable::Asleep | Unavailable::Ended | Unavailable::Late)) => why.to_string(),
            Self::Unavailable(Unavailable::WakeFailed { .. }) => "the microVM could not be woken".to_owned(),
            // In part a guest's words, which are its user's own, but may be anything.
            Self::NoShell(_) => self.to_string().chars().filter(|it| is_plain(*it)).take(TOLD_CHARS_MAX).collect(),
            other => other.to_string(),
        }
    }

    /// Writes it down. Only the method of the request is told: its path and headers may hold secrets.
    pub(crate) fn log(&self, request_id: &HeaderValue, host: &str, method: &Method) {
        let cause = chain(self);
        let request_id = request_id.to_str().unwrap_or_default();
        let status = self.status().as_u16();
        match self.fault() {
            // Counted; a line for each would cost more than what is saved.
            Fault::Client if self.limit().is_some() => {
                tracing::debug!(request_id, host, %method, status, fault = "client", cause, "refused");
            }
            Fault::Client => tracing::info!(request_id, host, %method, status, fault = "client", cause, "refused"),
            Fault::App => tracing::info!(request_id, host, %method, status, fault = "app", cause, "refused"),
            Fault::Platform => tracing::warn!(request_id, host, %method, status, fault = "platform", cause, "refused"),
        }
    }
}

/// Longest of a guest's words in an answer.
const TOLD_CHARS_MAX: usize = 200;

/// May it be in a quoted string of a header?
fn is_plain(character: char) -> bool {
    matches!(character, ' '..='~') && !matches!(character, '"' | '\\')
}

/// The error of this kind that is beneath another, if one is.
pub(crate) fn beneath<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(found) = source.downcast_ref() {
            return Some(found);
        }
        next = source.source();
    }
    None
}

/// Did the other side say that it has not looked at the request (RFC 9113, 8.7)?
pub(crate) fn was_not_looked_at(error: &hyper::Error) -> bool {
    beneath::<h2::Error>(error).filter(|error| error.is_remote()).is_some_and(|error| match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
        Some(h2::Reason::NO_ERROR) => error.is_go_away(),
        _ => false,
    })
}

/// Did the other side end this one request?
pub(crate) fn is_reset(error: &hyper::Error) -> bool {
    beneath::<h2::Error>(error).is_some_and(|error| error.is_remote() && error.is_reset())
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

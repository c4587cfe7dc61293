//! A shell in a microVM, as an app that the edge itself serves.
//!
//! It is reached as an app is, so that it is woken, counted, paced, drained and cut off as one: only what is at the other
//! end of the connection differs.
//!
//! ```text
//! client ◄─ WebSocket ─► tunnel ◄─ bytes in memory ─► serve, session ◄─ api::shell ─► host ◄─► agent ◄─► terminal
//! ```
//!
//! The handshake is looked at here before anything is woken (`Wanted`), the shell is opened when the app would be connected
//! to (`dial`), and answers its handshake itself (`serve`).

mod message;
mod serve;
mod session;

use std::borrow::Cow;

use api::{
    directory::AppStream,
    ids::{MicrovmId, VmId},
    shell::ShellError,
    subprotocol,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Uri, header};

use crate::{allowance::Seat, connect::ConnectError, headers::tokens, refusal::Refusal, server::Shared};

/// The path of the shell.
pub(crate) const PATH: &str = "/shell";

/// The port that a client may name, though it need not.
pub(crate) const PORT_NAMED: u16 = 8022;

/// The port by which the edge knows it. No client can name this one, so it is nobody's.
pub(crate) const PORT: u16 = 0;

/// What a handshake asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// To be carried out in place of a shell to type into.
    command: Option<String>,
}

impl Wanted {
    /// Reads a WebSocket handshake for the shell, and checks it: the shell is open by the time it is answered.
    pub(crate) fn read(uri: &Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
        let only = |name| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())
        };
        if only(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Refusal::Malformed("Sec-WebSocket-Version is not 13"));
        }
        let key = only(header::SEC_WEBSOCKET_KEY).and_then(|key| STANDARD.decode(key).ok());
        if key.is_none_or(|key| key.len() != 16) {
            return Err(Refusal::Malformed("Sec-WebSocket-Key is not 16 bytes in base64"));
        }
        if !is_extended(headers) {
            return Ok(Self { command: None });
        }
        Ok(Self { command: command(uri.query().unwrap_or_default())? })
    }
}

/// Does the client know of the extension?
fn is_extended(headers: &HeaderMap) -> bool {
    tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|offer| offer == subprotocol::SHELL)
}

/// The value of `command` in a query.
fn command(query: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = query.split('&').find_map(|pair| pair.strip_prefix("command=")) else { return Ok(None) };
    match percent_encoding::percent_decode_str(value).decode_utf8() {
        Ok(command) if command.is_empty() || command.contains('\0') => {
            Err(Refusal::Malformed("the command in the query is empty or holds a zero byte"))
        }
        Ok(command) => Ok(Some(Cow::into_owned(command))),
        Err(_) => Err(Refusal::Malformed("the command in the query is not UTF-8")),
    }
}

/// Opens a shell, and gives what an app's connection would be.
pub(crate) async fn dial(
    edge: &Shared,
    microvm: MicrovmId,
    vm: VmId,
    wanted: &Wanted,
    seat: &Seat,
) -> Result<Box<dyn AppStream>, ConnectError> {
    let place = seat.shell()?;
    let shell = match edge.dialer.shell(&microvm, &vm, wanted.command.clone()).await {
        Ok(shell) => shell,
        Err(ShellError::Gone) => return Err(ConnectError::Gone),
        Err(ShellError::Refused { reason }) => return Err(Refusal::NoShell(reason).into()),
        Err(ShellError::Unreachable(source)) => return Err(Refusal::Unreachable(source).into()),
    };
    Ok(serve::behind(shell, place, edge.config.limits.shell_message_bytes))
}

/// What the edge says of itself where a client's offers name it.
fn chosen(headers: &HeaderMap) -> Option<HeaderValue> {
    is_extended(headers).then(|| HeaderValue::from_static(subprotocol::SHELL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(target: &str, pairs: &[(&'static str, &'static str)]) -> Result<Wanted, u16> {
        let headers = pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        Wanted::read(&target.parse().unwrap(), &headers).map_err(|refusal| refusal.status().as_u16())
    }

    const VERSION: (&str, &str) = ("sec-websocket-version", "13");
    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const OFFER: (&str, &str) = ("sec-websocket-protocol", "lambda-microvms, pilotlight.shell");

    #[test]
    fn a_handshake_is_whole_or_refused() {
        assert_eq!(wanted("/shell", &[VERSION, KEY]), Ok(Wanted { command: None }));
        for bad in [
            &[KEY][..],
            &[VERSION],
            &[("sec-websocket-version", "8"), KEY],
            &[VERSION, VERSION, KEY],
            &[VERSION, KEY, KEY],
            &[VERSION, ("sec-websocket-key", "dGhl")],
            &[VERSION, ("sec-websocket-key", "not base64")],
        ] {
            assert_eq!(wanted("/shell", bad), Err(400), "{bad:?}");
        }
    }

    #[test]
    fn a_command_is_for_those_who_know_of_it() {
        let command = |text: &str| Ok(Wanted { command: Some(text.to_owned()) });
        assert_eq!(wanted("/shell?command=ls", &[VERSION, KEY]), Ok(Wanted { command: None }));
        assert_eq!(wanted("/shell", &[VERSION, KEY, OFFER]), Ok(Wanted { command: None }));
        assert_eq!(wanted("/shell?x=1&command=ls%20%26%26+%CE%BB", &[VERSION, KEY, OFFER]), command("ls &&+λ"));
        for bad in ["command=", "command=a%00b", "command=%ff"] {
            assert_eq!(wanted(&format!("/shell?{bad}"), &[VERSION, KEY, OFFER]), Err(400), "{bad}");
        }
    }
}

//! A session with a shell: keys one way, a screen the other.

use std::io::Write;

use anyhow::{Context, bail};
use api::subprotocol::{AUTHENTICATION, MARKER, SHELL};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::CloseFrame},
};

use super::{
    escape::{Escapes, Part, Said},
    terminal,
};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// What ends what is read from a terminal, where it is not one.
const END_OF_INPUT: u8 = 4;

const HELP: &str = "\r\n~.  disconnect\r\n~~  type a tilde\r\n~?  this\r\n(at the beginning of a line)\r\n";

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The shell ended; with its exit code, if the server tells.
    Exited(Option<i32>),
    /// The connection ended before.
    Lost(String),
    /// The person said so, or a signal.
    Left,
}

/// Opens a session; the shell runs by then.
pub async fn open(
    stream: TlsStream<TcpStream>,
    endpoint: &str,
    token: &str,
    command: Option<&str>,
) -> anyhow::Result<Socket> {
    let query = command.map(|command| format!("?command={}", utf8_percent_encode(command, NON_ALPHANUMERIC)));
    let mut request = format!("wss://{endpoint}/shell{}", query.unwrap_or_default()).into_client_request()?;
    // Servers that do not know the last choose the first.
    let offers = format!("{MARKER}, {AUTHENTICATION}{token}, {SHELL}");
    request.headers_mut().insert("sec-websocket-protocol", offers.parse().context("the token is no header's value")?);
    match client_async(request, stream).await {
        Ok((socket, response)) => {
            let chosen = response.headers().get("sec-websocket-protocol");
            if command.is_some() && chosen.is_none_or(|chosen| chosen != SHELL) {
                bail!("this server opens shells to type into and carries out no commands");
            }
            Ok(socket)
        }
        Err(Error::Http(response)) => {
            let why = response.headers().get("proxy-status").and_then(|value| value.to_str().ok()).and_then(details);
            match why {
                Some(why) => bail!("there is no shell: {why}"),
                None => bail!("the endpoint refuses the shell: {}", response.status()),
            }
        }
        Err(error) => Err(error).context("the endpoint opens no WebSocket"),
    }
}

/// What a `Proxy-Status` field says in words (RFC 9209).
fn details(status: &str) -> Option<&str> {
    let (_, words) = status.split_once("details=\"")?;
    words.split('"').next()
}

/// Carries a session to its end.
pub async fn run(socket: Socket, is_terminal: bool) -> anyhow::Result<End> {
    let (mut to_shell, mut from_shell) = socket.split();
    let keys = terminal::keys();
    let mut resized = signal(SignalKind::window_change())?;
    let mut signals =
        [signal(SignalKind::terminate())?, signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?];
    let [terminated, hung_up, interrupted] = &mut signals;
    // Two halves that do not wait for each other: a shell that has much to say does not hear until it has said it.
    let end = tokio::select! {
        end = show(&mut from_shell) => end,
        end = send(&mut to_shell, keys, &mut resized, is_terminal) => match end {
            Ok(Hung::Up) => Ok(End::Left),
            // The other half knows why.
            Err(_) => show(&mut from_shell).await,
        },
        _ = terminated.recv() => Ok(End::Left),
        _ = hung_up.recv() => Ok(End::Left),
        _ = interrupted.recv() => Ok(End::Left),
    };
    // The shell hangs up, if it has not ended yet; nobody waits for it.
    let _ = to_shell.close().await;
    end
}

/// Shows what comes, until nothing does.
async fn show(from_shell: &mut SplitStream<Socket>) -> anyhow::Result<End> {
    let mut code = None;
    loop {
        match from_shell.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                let mut screen = std::io::stdout().lock();
                screen.write_all(&bytes).and_then(|()| screen.flush()).context("cannot write to standard output")?;
            }
            Some(Ok(Message::Text(text))) => code = exit_code(&text).or(code),
            Some(Ok(Message::Close(frame))) => return Ok(closed(frame, code)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Ok(End::Lost(error.to_string())),
            None => return Ok(End::Lost("it broke off".to_owned())),
        }
    }
}

fn closed(frame: Option<CloseFrame>, code: Option<i32>) -> End {
    match frame {
        Some(frame) if u16::from(frame.code) == 1000 => End::Exited(code),
        Some(frame) if !frame.reason.is_empty() => End::Lost(frame.reason.to_string()),
        Some(frame) => End::Lost(format!("the endpoint closed it with {}", frame.code)),
        None => End::Lost("the endpoint closed it".to_owned()),
    }
}

/// The code in a message that tells one.
fn exit_code(text: &str) -> Option<i32> {
    let message: serde_json::Value = serde_json::from_str(text).ok()?;
    (message["type"] == "exit").then(|| message["code"].as_i64())?.and_then(|code| i32::try_from(code).ok())
}

enum Hung {
    Up,
}

/// Sends what is typed, and the size of the terminal whenever it changes.
async fn send(
    to_shell: &mut SplitSink<Socket, Message>,
    mut keys: mpsc::Receiver<Vec<u8>>,
    resized: &mut tokio::signal::unix::Signal,
    is_terminal: bool,
) -> Result<Hung, Error> {
    let mut escapes = Escapes::default();
    send_size(to_shell).await?;
    let mut ended = false;
    loop {
        let typed = tokio::select! {
            typed = keys.recv(), if !ended => typed,
            Some(()) = resized.recv() => {
                send_size(to_shell).await?;
                continue;
            }
        };
        let Some(typed) = typed else {
            ended = true;
            to_shell.send(Message::binary(vec![END_OF_INPUT])).await?;
            continue;
        };
        // What a program writes is never meant for this one.
        let parts = if is_terminal { escapes.feed(&typed) } else { vec![Part::Typed(typed)] };
        for part in parts {
            match part {
                Part::Typed(bytes) => to_shell.send(Message::binary(bytes)).await?,
                Part::Said(Said::Disconnect) => return Ok(Hung::Up),
                Part::Said(Said::Help) => eprint!("{HELP}"),
            }
        }
    }
}

async fn send_size(to_shell: &mut SplitSink<Socket, Message>) -> Result<(), Error> {
    let Some((cols, rows)) = terminal::size() else { return Ok(()) };
    to_shell.send(Message::text(json!({"type": "resize", "cols": cols, "rows": rows}).to_string())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_from_what_the_endpoint_says() {
        let frame = |code: u16, reason: &'static str| Some(CloseFrame { code: code.into(), reason: reason.into() });
        assert_eq!(closed(frame(1000, "shell exited"), Some(3)), End::Exited(Some(3)));
        assert_eq!(closed(frame(1001, "suspended"), None), End::Lost("suspended".to_owned()));
        assert!(matches!(closed(frame(1011, ""), None), End::Lost(why) if why.contains("1011")));
        assert_eq!(exit_code(r#"{"type":"exit","code":130}"#), Some(130));
        for other in [r#"{"type":"session_init","code":1}"#, r#"{"type":"exit","code":"1"}"#, "exit", "[]"] {
            assert_eq!(exit_code(other), None, "{other}");
        }
        let status = "pilotlight; error=connection_refused; fault=app; details=\"there is none\"";
        assert_eq!(details(status), Some("there is none"));
        assert_eq!(details("pilotlight; error=http_request_denied; fault=client"), None);
    }
}

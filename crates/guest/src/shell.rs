//! A shell's terminal, carried to the host and back.
//!
//! The shell ends with its connection and the connection with its shell: who closes it, or whom a restore drops, hangs up.
//! Nothing is collected for a host that does not read: the terminal fills, and who writes to it waits, as at any terminal.

use crate::agent::Agent;
use crate::app::shell::{self, Shell};
use crate::boot::console;
use crate::connections::Kind;
use crate::stream::refuse;
use crate::sys;
use guest_protocol::{
    FrameError, GENERATION, Opened, SHELL_BYTES_MAX, ShellFrame, read_shell_frame, write_frame, write_shell_frame,
};
use rustix::termios::{Winsize, tcsetwinsize};
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;

/// Frames that were typed and that nobody in the guest has read yet. Beyond them the host has to wait, and only then is its
/// end of the connection not noticed at once.
const TYPED_FRAMES_MAX: usize = 64;

/// What is shown after the shell's end at most, if something it has left behind goes on writing.
const SHOWN_AFTER_END_MAX: usize = 1024 * 1024;

/// Opens a shell, if there can be one, and carries its terminal until it ends or the host closes the connection.
pub(crate) async fn serve(agent: &Agent, mut host: TcpStream, command: Option<String>) -> Result<(), FrameError> {
    let Some(_place) = agent.connections.open(Kind::Shell) else {
        return refuse(&mut host, "too many shells are open".to_owned()).await;
    };
    let Shell { terminal, mut ended } = match shell::open(agent, command.as_deref()).await {
        Ok(shell) => shell,
        Err(error) => return refuse(&mut host, console::chain(&error)).await,
    };
    let terminal = sys::watch(terminal).map_err(FrameError::Io)?;
    write_frame(&mut host, &Opened { generation: GENERATION, error: None }).await?;
    let (mut reader, mut writer) = host.split();
    let (typed, waiting) = mpsc::channel(TYPED_FRAMES_MAX);
    tokio::select! {
        code = show(&terminal, &mut writer, &mut ended) => {
            write_shell_frame(&mut writer, &ShellFrame::Ended { code: code? }).await?;
            writer.shutdown().await.map_err(FrameError::Io)?;
        }
        ended = hear(&terminal, &mut reader, typed) => return ended,
        never = type_in(&terminal, waiting) => match never {},
    }
    // To close with something unread would take back what the host has not read yet.
    discard(reader).await
}

/// Shows what is written to the terminal; returns the shell's exit code once it has ended and all was shown.
async fn show(
    terminal: &AsyncFd<OwnedFd>,
    host: &mut WriteHalf<'_>,
    ended: &mut tokio::sync::oneshot::Receiver<i32>,
) -> Result<i32, FrameError> {
    let mut buffer = vec![0u8; SHELL_BYTES_MAX];
    let code = loop {
        tokio::select! {
            code = &mut *ended => break code.unwrap_or(255),
            bytes = read(terminal, &mut buffer) => match bytes {
                Some(bytes) => write_shell_frame(host, &ShellFrame::Bytes(buffer[..bytes].to_vec())).await?,
                // Nobody has it open any more, the shell included; but it may go on without.
                None => break (&mut *ended).await.unwrap_or(255),
            }
        }
    };
    let mut shown = 0;
    while shown < SHOWN_AFTER_END_MAX
        && let Ok(bytes) = rustix::io::read(terminal, &mut buffer)
        && bytes > 0
    {
        write_shell_frame(host, &ShellFrame::Bytes(buffer[..bytes].to_vec())).await?;
        shown += bytes;
    }
    Ok(code)
}

/// The next bytes; `None` if nobody is left to write any.
async fn read(terminal: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Option<usize> {
    loop {
        let mut ready = terminal.readable().await.ok()?;
        match ready.try_io(|terminal| Ok(rustix::io::read(terminal, &mut *buffer)?)) {
            Ok(Ok(0)) => return None,
            Ok(Ok(bytes)) => return Some(bytes),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // EIO is how a terminal says that.
            Ok(Err(_)) => return None,
            Err(_would_block) => {}
        }
    }
}

/// Does what the host says; returns when it says no more.
async fn hear(
    terminal: &AsyncFd<OwnedFd>,
    host: &mut ReadHalf<'_>,
    typed: mpsc::Sender<Vec<u8>>,
) -> Result<(), FrameError> {
    loop {
        match read_shell_frame(host).await? {
            ShellFrame::Bytes(bytes) => {
                if typed.send(bytes).await.is_err() {
                    return Ok(());
                }
            }
            ShellFrame::Resize { cols, rows } => {
                let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
                // It has a size of some kind in any case.
                let _ = tcsetwinsize(terminal, size);
            }
            // Not the host's to say.
            ShellFrame::Ended { .. } => return Ok(()),
        }
    }
}

/// Types as fast as the terminal takes it.
async fn type_in(terminal: &AsyncFd<OwnedFd>, mut typed: mpsc::Receiver<Vec<u8>>) -> std::convert::Infallible {
    while let Some(bytes) = typed.recv().await {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Ok(mut ready) = terminal.writable().await else { return pending().await };
            match ready.try_io(|terminal| Ok(rustix::io::write(terminal, rest)?)) {
                Ok(Ok(written)) => rest = &rest[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody is left to read it; the shell's end is told elsewhere.
                Ok(Err(_)) => break,
                Err(_would_block) => {}
            }
        }
    }
    pending().await
}

/// Waits for the host to close.
async fn discard(mut host: ReadHalf<'_>) -> Result<(), FrameError> {
    let mut buffer = vec![0u8; SHELL_BYTES_MAX];
    while host.read(&mut buffer).await.map_err(FrameError::Io)? > 0 {}
    Ok(())
}

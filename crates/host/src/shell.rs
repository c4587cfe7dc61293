//! A shell in a guest, over the connection that was opened for it.

use std::io;

use api::{
    directory::AppStream,
    shell::{FromShell, PIECE_BYTES_MAX, Shell, Showing, ToShell, Typing},
};
use guest_protocol::{FrameError, SHELL_BYTES_MAX, ShellFrame, read_shell_frame, write_shell_frame};
use tokio::io::{BufReader, ReadHalf, WriteHalf};

const _: () = assert!(PIECE_BYTES_MAX == SHELL_BYTES_MAX, "one piece fits one frame");

/// The shell behind an opened connection.
pub fn over(stream: impl AppStream + 'static) -> Shell {
    let (reader, writer) = tokio::io::split(stream);
    Shell { typing: Box::new(Keys(writer)), showing: Box::new(Screen(BufReader::new(reader))) }
}

struct Keys<S>(WriteHalf<S>);

struct Screen<S>(BufReader<ReadHalf<S>>);

#[async_trait::async_trait]
impl<S: AppStream> Typing for Keys<S> {
    async fn send(&mut self, what: ToShell) -> io::Result<()> {
        let frame = match what {
            ToShell::Bytes(bytes) => ShellFrame::Bytes(bytes),
            ToShell::Resize { cols, rows } => ShellFrame::Resize { cols, rows },
        };
        write_shell_frame(&mut self.0, &frame).await.map_err(failed)
    }
}

#[async_trait::async_trait]
impl<S: AppStream> Showing for Screen<S> {
    async fn next(&mut self) -> io::Result<FromShell> {
        match read_shell_frame(&mut self.0).await.map_err(failed)? {
            ShellFrame::Bytes(bytes) => Ok(FromShell::Bytes(bytes)),
            ShellFrame::Ended { code } => Ok(FromShell::Ended { code }),
            ShellFrame::Resize { .. } => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "a guest resizes its terminal"))
            }
        }
    }
}

fn failed(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        FrameError::Closed => io::Error::from(io::ErrorKind::UnexpectedEof),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    fn pair() -> (Shell, DuplexStream) {
        let (host, guest) = duplex(64 * 1024);
        (over(host), guest)
    }

    #[tokio::test]
    async fn a_terminals_bytes_its_size_and_its_end_cross() {
        let (mut shell, mut guest) = pair();
        shell.typing.send(ToShell::Resize { cols: 120, rows: 40 }).await.unwrap();
        shell.typing.send(ToShell::Bytes(vec![b'x'; PIECE_BYTES_MAX])).await.unwrap();
        assert_eq!(read_shell_frame(&mut guest).await.unwrap(), ShellFrame::Resize { cols: 120, rows: 40 });
        assert_eq!(read_shell_frame(&mut guest).await.unwrap(), ShellFrame::Bytes(vec![b'x'; PIECE_BYTES_MAX]));
        write_shell_frame(&mut guest, &ShellFrame::Bytes(b"$ ".to_vec())).await.unwrap();
        write_shell_frame(&mut guest, &ShellFrame::Ended { code: 130 }).await.unwrap();
        assert_eq!(shell.showing.next().await.unwrap(), FromShell::Bytes(b"$ ".to_vec()));
        assert_eq!(shell.showing.next().await.unwrap(), FromShell::Ended { code: 130 });
    }

    #[tokio::test]
    async fn a_guest_that_says_something_else_is_not_listened_to() {
        for said in [&b"\0\xff\xff"[..], b"\0\0\0", b"\x01\0\x04\0\x50\0\x18", b"\x09\0\0", b"\x02\0\x02\0\0"] {
            let (mut shell, mut guest) = pair();
            guest.write_all(said).await.unwrap();
            let next = timeout(Duration::from_secs(10), shell.showing.next()).await.expect("an answer");
            assert_eq!(next.unwrap_err().kind(), io::ErrorKind::InvalidData, "{said:?}");
        }
    }

    #[tokio::test]
    async fn both_halves_dropped_are_the_end_for_the_guest() {
        let (shell, mut guest) = pair();
        let Shell { typing, showing } = shell;
        drop(typing);
        assert!(timeout(Duration::from_millis(50), guest.read(&mut [0])).await.is_err(), "one half is still there");
        drop(showing);
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
    }
}

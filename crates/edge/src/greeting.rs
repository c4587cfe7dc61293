//! Does what answers speak HTTP/2?

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};
use tokio_util::io::InspectReader;

/// A frame's header (RFC 9113, 4.1).
const HEADER: usize = 9;
const SETTINGS: u8 = 4;

/// The same stream, and whether its first bytes are a server's greeting: a SETTINGS frame, which must come first.
pub(crate) fn watch<S: AsyncRead + AsyncWrite + Send + Unpin>(
    stream: S,
) -> (impl AsyncRead + AsyncWrite + Send + Unpin, oneshot::Receiver<bool>) {
    let (tell, told) = oneshot::channel();
    let mut waiting = Some((Vec::with_capacity(HEADER), tell));
    let watched = InspectReader::new(stream, move |new: &[u8]| {
        let Some((mut seen, tell)) = waiting.take() else { return };
        // Nothing at all is the end.
        seen.extend(new.iter().take(HEADER - seen.len()));
        if seen.len() == HEADER || new.is_empty() {
            // Nobody may wait for it any more.
            let _ = tell.send(seen.len() == HEADER && is_greeting(&seen));
        } else {
            waiting = Some((seen, tell));
        }
    });
    (watched, told)
}

fn is_greeting(header: &[u8]) -> bool {
    let acknowledges = header[4] & 1 != 0;
    header[3] == SETTINGS && !acknowledges && header[5..HEADER] == [0; 4]
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn told(pieces: &[&[u8]]) -> bool {
        let (mut app, ours) = tokio::io::duplex(64);
        let (mut greeted, told) = watch(ours);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            greeted.read_to_end(&mut all).await.unwrap();
        });
        for piece in pieces {
            app.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(app);
        reading.await.unwrap();
        told.await.unwrap()
    }

    #[tokio::test]
    async fn settings_are_a_greeting_and_nothing_else_is() {
        assert!(told(&[&[0, 0, 6, 4, 0, 0, 0, 0, 0], &[0; 6]]).await);
        assert!(told(&[&[0, 0, 0], &[4, 0, 0, 0], &[0, 0]]).await);
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            // A TLS alert.
            &[21, 3, 3, 0, 2, 2, 70],
            // An acknowledgement of ours, before a greeting.
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[0, 0, 0, 4, 0],
            b"",
        ] {
            assert!(!told(&[other]).await, "{other:?}");
        }
    }
}

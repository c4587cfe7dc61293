//! Frames at the edges of what is allowed.

use guest_protocol::{FRAME_BYTES_MAX, FrameError, read_frame, write_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// A text whose JSON, with its two quotation marks, has that many bytes.
fn text(bytes: usize) -> String {
    "x".repeat(bytes - 2)
}

#[tokio::test]
async fn a_frame_of_exactly_the_limit_passes() {
    let (mut left, mut right) = duplex(4096);
    let message = text(FRAME_BYTES_MAX);
    let (written, read) = tokio::join!(write_frame(&mut left, &message), read_frame::<String>(&mut right));
    written.expect("it is written");
    assert_eq!(read.expect("it is read"), message);
}

#[tokio::test]
async fn one_byte_more_is_not_written() {
    let mut sink = Vec::new();
    let result = write_frame(&mut sink, &text(FRAME_BYTES_MAX + 1)).await;
    assert!(matches!(result, Err(FrameError::TooLarge { bytes }) if bytes == FRAME_BYTES_MAX + 1));
    assert!(sink.is_empty());
}

#[tokio::test]
async fn one_byte_more_is_not_read() {
    let (mut left, mut right) = duplex(4096);
    left.write_all(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes()).await.expect("it is written");
    left.write_all(b"\"next").await.expect("it is written");
    let result = read_frame::<String>(&mut right).await;
    assert!(matches!(result, Err(FrameError::TooLarge { bytes }) if bytes == FRAME_BYTES_MAX + 1));
    // Nothing past the length was touched.
    let mut next = [0; 5];
    right.read_exact(&mut next).await.expect("it is still there");
    assert_eq!(&next, b"\"next");
}

#[tokio::test]
async fn the_end_between_frames_is_not_a_failure_and_the_end_inside_one_is() {
    assert!(matches!(read_frame::<String>(&mut &b""[..]).await, Err(FrameError::Closed)));
    assert!(matches!(read_frame::<String>(&mut &b"\0\0"[..]).await, Err(FrameError::Io(_))));
    assert!(matches!(read_frame::<String>(&mut &b"\0\0\0\x04\"a"[..]).await, Err(FrameError::Io(_))));
}

#[tokio::test]
async fn what_is_no_json_of_that_kind_is_malformed() {
    assert!(matches!(read_frame::<String>(&mut &b"\0\0\0\0"[..]).await, Err(FrameError::Malformed(_))));
    assert!(matches!(read_frame::<String>(&mut &b"\0\0\0\x02{}"[..]).await, Err(FrameError::Malformed(_))));
    assert!(matches!(read_frame::<String>(&mut &b"\0\0\0\x02\xff\xff"[..]).await, Err(FrameError::Malformed(_))));
}

#[tokio::test]
async fn frames_follow_one_another() {
    let mut bytes = Vec::new();
    for word in ["one", "two"] {
        write_frame(&mut bytes, &word).await.expect("it is written");
    }
    let mut rest = bytes.as_slice();
    assert_eq!(read_frame::<String>(&mut rest).await.expect("the first"), "one");
    assert_eq!(read_frame::<String>(&mut rest).await.expect("the second"), "two");
    assert!(matches!(read_frame::<String>(&mut rest).await, Err(FrameError::Closed)));
}

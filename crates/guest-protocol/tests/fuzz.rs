//! Frames with anything in them, as a host reads an agent's and an agent a host's.
//!
//! An ordinary run tries what it comes upon in a second a test. `cargo bolero test -p guest-protocol <test>` looks for
//! what it has not seen yet, for as long as it is left.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use allocation_counter::measure;
use bolero::TypeGenerator;
use guest_protocol::{
    FRAME_BYTES_MAX, FrameError, Message, Open, Opened, Request, SHELL_BYTES_MAX, ShellFrame, read_frame,
    read_shell_frame, write_frame, write_shell_frame,
};
use serde::{Serialize, de::DeserializeOwned};

/// How much an edited body grows at most: enough that a cost for each byte stands out from the fixed ones.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Bodies that edits begin with; the first is for bodies that are made of edits alone.
const SAMPLES: [&str; 13] = [
    "",
    r#"{"generation":1,"purpose":"control"}"#,
    r#"{"generation":1,"purpose":{"connect":{"port":8080}}}"#,
    r#"{"generation":3,"purpose":{"shell":{"command":"make test"}}}"#,
    r#"{"generation":1,"error":"nothing listens on port 8080"}"#,
    r#"{"id":7,"body":{"start":{"argv":["a","b"],"env":[["LANG","C"]],"cwd":"/","user":"a:b","hostname":"h","all_capabilities":false,"nameservers":["1.1.1.1"]}}}"#,
    r#"{"id":7,"body":{"restored":{"unix_nanos":1785000000123456789,"seed":"AAEC"}}}"#,
    r#"{"id":7,"body":"quiesce"}"#,
    r#"{"reply":{"id":7,"reply":{"app":"running"}}}"#,
    r#"{"reply":{"id":7,"reply":{"app":{"exited":{"code":137}}}}}"#,
    r#"{"reply":{"id":7,"reply":{"failed":{"reason":"no"}}}}"#,
    r#"{"event":{"output":{"stream":"stdout","data":"aGVsbG8K"}}}"#,
    r#"{"event":{"app_exited":{"code":-1}}}"#,
];

/// What means something to a reader of JSON.
const WORDS: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "null",
    "\"\",",
    "-1",
    "18446744073709551615",
    "1e999",
    "\\ud800",
    "\\u0000",
    "\"id\":1,",
    "\u{202e}",
];

/// A change to a body. Positions go around its end.
#[derive(Debug, TypeGenerator)]
enum Edit {
    Set { at: u16, byte: u8 },
    Cut { at: u16, bytes: u8 },
    End { at: u16 },
    Put { at: u16, bytes: Vec<u8> },
    Word { at: u16, which: u8 },
    Repeat { at: u16, bytes: u8, times: u8 },
    Splice { at: u16, sample: u8, from: u8 },
}

/// A frame whose body is an edited sample.
#[derive(Debug, TypeGenerator)]
struct Frame {
    sample: u8,
    /// Few: what is edited much is soon refused for the first thing wrong with it.
    #[generator(bolero::produce::<Vec<Edit>>().with().len(0usize..5))]
    edits: Vec<Edit>,
    /// A length that need not be the body's.
    length: Option<u32>,
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let mut body = sample(self.sample).to_vec();
        for edit in &self.edits {
            edit.apply(&mut body);
            body.truncate(BODY_BYTES_MAX);
        }
        let length = self.length.unwrap_or(body.len() as u32);
        [&length.to_be_bytes()[..], &body].concat()
    }
}

impl Edit {
    fn apply(&self, body: &mut Vec<u8>) {
        let place = |at: &u16| usize::from(*at) % (body.len() + 1);
        let stretch = |at: &u16, bytes: &u8| place(at)..(place(at) + usize::from(*bytes)).min(body.len());
        let (replaced, by) = match self {
            Self::Set { at, byte } => (stretch(at, &1), vec![*byte]),
            Self::Cut { at, bytes } => (stretch(at, bytes), vec![]),
            Self::End { at } => (place(at)..body.len(), vec![]),
            Self::Put { at, bytes } => (stretch(at, &0), bytes.clone()),
            Self::Word { at, which } => (stretch(at, &0), WORDS[usize::from(*which) % WORDS.len()].into()),
            Self::Repeat { at, bytes, times } => (stretch(at, &0), body[stretch(at, bytes)].repeat((*times).into())),
            Self::Splice { at, sample: other, from } => {
                let other = sample(*other);
                (place(at)..body.len(), other[usize::from(*from) % (other.len() + 1)..].to_vec())
            }
        };
        body.splice(replaced, by);
    }
}

fn sample(which: u8) -> &'static [u8] {
    SAMPLES[usize::from(which) % SAMPLES.len()].as_bytes()
}

/// What a future is at once; nothing here waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a slice is always ready"),
    }
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let claimed = bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    let mut rest = bytes;
    let mut result = None;
    let used = measure(|| result = Some(now(read_frame::<T>(&mut rest)))).bytes_max as usize;
    // One frame of the largest size before it has come, and what JSON needs for what did: 48 bytes, in a vector with
    // room for twice as many and while its half is still there, for a pair of strings of 8 bytes.
    assert!(used <= claimed.unwrap_or(0).min(FRAME_BYTES_MAX) + 24 * bytes.len() + 4096, "{used} bytes of memory");
    match result.expect("it ran") {
        Ok(message) => {
            assert_eq!(Some(bytes.len() - rest.len() - 4), claimed, "a frame is read to its end and no further");
            let mut again = Vec::new();
            now(write_frame(&mut again, &message)).expect("what was read can be written");
            assert_eq!(now(read_frame::<T>(&mut again.as_slice())).expect("and read again"), message);
        }
        Err(FrameError::Closed) => assert!(bytes.is_empty()),
        Err(FrameError::TooLarge { bytes: said }) => {
            assert!(Some(said) == claimed && said > FRAME_BYTES_MAX);
            assert_eq!(rest.len(), bytes.len() - 4, "nothing past the length is read");
        }
        Err(FrameError::Io(_)) => assert!(claimed.is_none_or(|claimed| bytes.len() < 4 + claimed)),
        Err(FrameError::Malformed(_)) => assert!(claimed.is_some_and(|claimed| bytes.len() >= 4 + claimed)),
        Err(error @ (FrameError::ShellLength { .. } | FrameError::ShellKind { .. })) => {
            panic!("no shell here: {error}")
        }
    }
}

#[test]
fn a_host_reads_anything_from_an_agent() {
    bolero::check!().with_type::<Frame>().for_each(|frame| {
        let bytes = frame.bytes();
        check::<Opened>(&bytes);
        check::<Message>(&bytes);
    });
}

#[test]
fn an_agent_reads_anything_from_a_host() {
    bolero::check!().with_type::<Frame>().for_each(|frame| {
        let bytes = frame.bytes();
        check::<Open>(&bytes);
        check::<Request>(&bytes);
    });
}

/// A frame of a shell whose parts need not fit each other.
#[derive(Debug, TypeGenerator)]
struct OfShell {
    kind: u8,
    /// A length that need not be the body's.
    length: Option<u16>,
    #[generator(bolero::produce::<Vec<u8>>().with().len(0usize..SHELL_BYTES_MAX + 16))]
    body: Vec<u8>,
}

#[test]
fn either_side_reads_anything_of_a_shell() {
    bolero::check!().with_type::<OfShell>().for_each(|OfShell { kind, length, body }| {
        // Every other kind is one that there is, more or less.
        let kind = if kind % 2 == 0 { kind % 4 } else { *kind };
        let length = length.unwrap_or(body.len() as u16);
        let bytes = [&[kind][..], &length.to_be_bytes(), body].concat();
        let mut rest = bytes.as_slice();
        let mut result = None;
        let used = measure(|| result = Some(now(read_shell_frame(&mut rest)))).bytes_max as usize;
        assert!(used <= SHELL_BYTES_MAX + 64, "{used} bytes of memory");
        match result.expect("it ran") {
            Ok(frame) => {
                assert_eq!(bytes.len() - rest.len(), 3 + usize::from(length), "to its end and no further");
                let mut again = Vec::new();
                now(write_shell_frame(&mut again, &frame)).expect("what was read can be written");
                assert_eq!(again, bytes[..again.len()]);
                assert_eq!(again.len(), 3 + usize::from(length));
            }
            Err(FrameError::ShellKind { kind: said }) => assert!(said == kind && kind > 2),
            Err(FrameError::ShellLength { kind: said, bytes }) => {
                let good = if kind == 0 { 1..=SHELL_BYTES_MAX } else { 4..=4 };
                assert!(said == kind && bytes == usize::from(length) && !good.contains(&bytes));
            }
            Err(FrameError::Io(_)) => assert!(body.len() < usize::from(length)),
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn a_shells_bytes_are_written_up_to_the_limit_and_no_further() {
    let write = |bytes: usize| {
        let mut written = Vec::new();
        now(write_shell_frame(&mut written, &ShellFrame::Bytes(vec![7; bytes]))).map(|()| written)
    };
    let written = write(SHELL_BYTES_MAX).expect("the limit is allowed");
    assert_eq!(written[..3], [0, 0x10, 0]);
    for bytes in [0, SHELL_BYTES_MAX + 1, 1 << 16] {
        assert!(matches!(write(bytes), Err(FrameError::ShellLength { kind: 0, .. })));
    }
    let mut rest = &b""[..];
    assert!(matches!(now(read_shell_frame(&mut rest)), Err(FrameError::Closed)));
}

//! What the app printed and no host has taken yet: a bounded queue of bytes that drops its oldest and says so.
//!
//! Every byte has a position, counted since the app started. A reader looks at the front ([`Output::peek`]), sends
//! it, and only then says up to which position it is done ([`Output::taken`]): a connection that dies in the middle
//! costs nothing, and bytes that were dropped or appended meanwhile confuse nobody.

use guest_protocol::Stream;
use std::collections::VecDeque;

/// Bytes kept in total.
pub(crate) const OUTPUT_BYTES_MAX: usize = 256 * 1024;

/// Bytes of one chunk; half of what an event may carry.
pub(crate) const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// The queue.
#[derive(Default)]
pub(crate) struct Output {
    segments: VecDeque<Segment>,
    /// Position of the first byte kept.
    start: u64,
    /// Bytes kept.
    len: usize,
    /// Bytes dropped and not yet told about.
    dropped: u64,
}

struct Segment {
    stream: Stream,
    bytes: VecDeque<u8>,
}

/// A piece of output to send.
#[derive(Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Where it was printed.
    pub(crate) stream: Stream,
    /// What was printed.
    pub(crate) data: Vec<u8>,
    /// To be given back to [`Output::taken`] once sent.
    pub(crate) mark: Mark,
}

/// How far a [`Chunk`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mark {
    /// It is output up to this position.
    Position(u64),
    /// It is the notice that this many bytes were dropped.
    Dropped(u64),
}

impl Output {
    /// Appends what the app printed.
    pub(crate) fn push(&mut self, stream: Stream, data: &[u8]) {
        match self.segments.back_mut() {
            // Small writes of one stream become one segment, so that their number is bounded as their bytes are.
            Some(last) if last.stream == stream => last.bytes.extend(data),
            _ => self.segments.push_back(Segment { stream, bytes: data.iter().copied().collect() }),
        }
        self.len += data.len();
        if self.len > OUTPUT_BYTES_MAX {
            let excess = self.len - OUTPUT_BYTES_MAX;
            self.dropped += excess as u64;
            self.remove(excess);
        }
    }

    /// The oldest piece that was not taken yet.
    pub(crate) fn peek(&self) -> Option<Chunk> {
        if self.dropped > 0 {
            let data = format!("pilotlight-agent: {} bytes of output were dropped here\n", self.dropped);
            let mark = Mark::Dropped(self.dropped);
            return Some(Chunk { stream: Stream::Stderr, data: data.into_bytes(), mark });
        }
        let front = self.segments.front()?;
        let data: Vec<u8> = front.bytes.iter().copied().take(CHUNK_BYTES_MAX).collect();
        let mark = Mark::Position(self.start + data.len() as u64);
        Some(Chunk { stream: front.stream, data, mark })
    }

    /// A chunk of [`Output::peek`] was sent.
    pub(crate) fn taken(&mut self, mark: Mark) {
        match mark {
            Mark::Dropped(bytes) => self.dropped = self.dropped.saturating_sub(bytes),
            Mark::Position(position) => {
                let bytes = position.saturating_sub(self.start).min(self.len as u64);
                self.remove(bytes as usize);
            }
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0 && self.dropped == 0
    }

    fn remove(&mut self, mut bytes: usize) {
        self.start += bytes as u64;
        self.len -= bytes;
        while bytes > 0 {
            let Some(front) = self.segments.front_mut() else { return };
            let here = bytes.min(front.bytes.len());
            front.bytes.drain(..here);
            bytes -= here;
            if front.bytes.is_empty() {
                self.segments.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_BYTES_MAX, Chunk, Mark, OUTPUT_BYTES_MAX, Output};
    use guest_protocol::Stream::{Stderr, Stdout};

    fn take_all(output: &mut Output) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        while let Some(chunk) = output.peek() {
            output.taken(chunk.mark);
            chunks.push(chunk);
        }
        chunks
    }

    #[test]
    fn small_writes_of_one_stream_become_one_chunk_and_streams_keep_their_order() {
        let mut output = Output::default();
        output.push(Stdout, b"a");
        output.push(Stdout, b"b");
        output.push(Stderr, b"c");
        output.push(Stdout, b"d");
        let chunks = take_all(&mut output);
        let seen: Vec<_> = chunks.iter().map(|chunk| (chunk.stream, chunk.data.as_slice())).collect();
        assert_eq!(seen, [(Stdout, &b"ab"[..]), (Stderr, b"c"), (Stdout, b"d")]);
        assert!(output.is_empty());
    }

    #[test]
    fn the_oldest_bytes_go_and_a_notice_says_how_many() {
        let mut output = Output::default();
        output.push(Stdout, b"old");
        output.push(Stderr, &vec![b'x'; OUTPUT_BYTES_MAX - 1]);
        let chunks = take_all(&mut output);
        assert_eq!(chunks[0].data, b"pilotlight-agent: 2 bytes of output were dropped here\n");
        assert_eq!(chunks[1].data, b"d");
        assert_eq!(chunks[1..].iter().map(|chunk| chunk.data.len()).sum::<usize>(), OUTPUT_BYTES_MAX);
        assert!(chunks.iter().all(|chunk| chunk.data.len() <= CHUNK_BYTES_MAX));
    }

    #[test]
    fn exactly_the_limit_drops_nothing() {
        let mut output = Output::default();
        output.push(Stdout, &vec![b'x'; OUTPUT_BYTES_MAX]);
        assert!(matches!(output.peek().expect("there is output").mark, Mark::Position(_)));
    }

    #[test]
    fn what_was_appended_while_a_chunk_was_on_its_way_is_not_lost() {
        let mut output = Output::default();
        output.push(Stdout, b"first");
        let chunk = output.peek().expect("there is output");
        output.push(Stdout, b"second");
        output.taken(chunk.mark);
        assert_eq!(output.peek().expect("there is more").data, b"second");
    }

    #[test]
    fn what_was_dropped_while_a_chunk_was_on_its_way_is_not_taken_twice() {
        let mut output = Output::default();
        output.push(Stdout, b"first");
        let chunk = output.peek().expect("there is output");
        output.push(Stderr, &vec![b'y'; OUTPUT_BYTES_MAX]);
        output.taken(chunk.mark);
        let chunks = take_all(&mut output);
        assert_eq!(chunks[1..].iter().map(|chunk| chunk.data.len()).sum::<usize>(), OUTPUT_BYTES_MAX);
    }

    #[test]
    fn a_chunk_that_was_not_sent_comes_again() {
        let mut output = Output::default();
        output.push(Stdout, b"again");
        assert_eq!(output.peek(), output.peek());
    }
}

//! A message that is on its way: its bytes as they came, until the last of them is there.
//!
//! Fragments are joined as they end. A message of the smallest fragments would hold seven times its size in
//! headers, and cost the codec a hundred thousand frames in the turn in which it is whole. What came in
//! pieces is unmasked where it lies: the codec would copy it once more.

use std::mem;
use std::ops::Range;
use std::time::Instant;

use super::follower::{Follower, Header, Step};
use crate::close::Close;

/// The bytes of the message in progress. What is held of a message is these bytes and nothing else.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    pub(super) follower: Follower,
    /// The payloads of the fragments that have ended, unmasked.
    joined: Vec<u8>,
    /// Whether there are any; they may be empty.
    has_joined: bool,
    /// Whether the first of them announced text.
    is_text: bool,
    /// The frame in progress, as it came.
    frame: Vec<u8>,
}

/// A message or a control frame that is whole.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Whole {
    /// It is these bytes of the input.
    Input(Range<usize>),
    /// A control frame that came in pieces.
    Control(Vec<u8>),
    /// A message that came in pieces.
    Message(Payload),
}

/// The payload of a message, unmasked.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Payload {
    /// Whether it was announced as text.
    pub(super) is_text: bool,
    /// It, behind a header.
    pub(super) bytes: Vec<u8>,
    /// Where it begins.
    pub(super) at: usize,
}

impl Assembly {
    /// Takes input until a message or a control frame is whole, a header is refused, or `frames` have
    /// ended, which is counted down. Returns how much of the input that took.
    pub(super) fn take(
        &mut self,
        input: &[u8],
        now: Instant,
        largest: usize,
        frames: &mut usize,
    ) -> (usize, Option<Result<Whole, Close>>) {
        let (mut at, mut begun) = (0, 0);
        while at < input.len() && *frames > 0 {
            let (taken, step) = self.follower.follow(&input[at..], now, largest);
            at += taken;
            match step {
                Step::Within => break,
                Step::Refused(close) => return (at, Some(Err(close))),
                Step::Fragment => self.join(&input[begun..at]),
                Step::Control | Step::Message => {
                    *frames -= 1;
                    let is_message = step == Step::Message;
                    return (at, Some(Ok(self.complete(is_message, input, begun..at))));
                }
            }
            *frames -= 1;
            begun = at;
        }
        let remaining = self.follower.remaining();
        keep(&mut self.frame, &input[begun..at], remaining);
        (at, None)
    }

    /// Memory held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.frame.capacity() + self.joined.capacity()
    }

    /// The frame whose last bytes are `range` of the input completes a message, or is a control frame.
    fn complete(&mut self, is_message: bool, input: &[u8], range: Range<usize>) -> Whole {
        if is_message && self.has_joined {
            self.join(&input[range]);
            self.has_joined = false;
            let bytes = mem::take(&mut self.joined);
            return Whole::Message(Payload { is_text: self.is_text, bytes, at: 0 });
        }
        if self.frame.is_empty() {
            return Whole::Input(range);
        }
        let mut bytes = mem::take(&mut self.frame);
        bytes.reserve_exact(range.len());
        bytes.extend_from_slice(&input[range]);
        if !is_message {
            return Whole::Control(bytes);
        }
        let Header { first, length: at, mask } = self.follower.last_header();
        unmask(&mut bytes[at..], mask);
        Whole::Message(Payload { is_text: is_text(first), bytes, at })
    }

    /// Joins a fragment, whose last bytes are `rest`, to those before it.
    fn join(&mut self, rest: &[u8]) {
        let Header { first, length: header, mask } = self.follower.last_header();
        if !self.has_joined {
            (self.has_joined, self.is_text) = (true, is_text(first));
        }
        let begun = mem::take(&mut self.frame);
        // Of the rest, what is left of the header comes first.
        let (early, late) = (begun.get(header..), &rest[header.saturating_sub(begun.len())..]);
        let start = self.joined.len();
        keep(&mut self.joined, early.unwrap_or_default(), late.len());
        keep(&mut self.joined, late, 0);
        unmask(&mut self.joined[start..], mask);
    }
}

/// Whether a frame that begins with this byte announces text (RFC 6455 section 5.2).
fn is_text(first: u8) -> bool {
    first & 0x0f == 0x1
}

/// RFC 6455 section 5.3, eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for chunk in &mut words {
        let masked = u64::from_ne_bytes((&*chunk).try_into().expect("bug: chunks of eight"));
        chunk.copy_from_slice(&(masked ^ word).to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Appends `bytes`. The buffer grows by what is known to follow, within a quarter of what is there:
/// doubling would hold up to twice of what has arrived, and an announced length costs nothing.
fn keep(buffer: &mut Vec<u8>, bytes: &[u8], following: usize) {
    let room = buffer.capacity() - buffer.len();
    if room < bytes.len() {
        let ahead = ((buffer.len() + bytes.len()) / 4).max(LEAST_GROWTH);
        buffer.reserve_exact(bytes.len() + ahead.min(following.max(buffer.len() / 8).max(64)));
    }
    buffer.extend_from_slice(bytes);
}

const LEAST_GROWTH: usize = 512;

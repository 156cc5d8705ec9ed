//! A message that is on its way: its bytes as they came, until the last of them is there.
//!
//! Fragments are joined as they end. A message of the smallest fragments would hold seven times its size in
//! headers, and cost the codec a hundred thousand frames in the turn in which it is whole.

use std::mem;
use std::ops::Range;
use std::time::Instant;

use super::follower::{Follower, Step};
use crate::close::Close;

/// The bytes of the message in progress. What is held of a message is these bytes and nothing else.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    pub(super) follower: Follower,
    /// The payloads of the fragments that have ended, unmasked, behind room for the header of a frame;
    /// empty before there are any.
    joined: Vec<u8>,
    /// The opcode of the first of them.
    opcode: u8,
    /// The frame in progress, as it came.
    frame: Vec<u8>,
}

/// A message or a control frame that is whole.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Whole {
    /// It is these bytes of the input.
    Input(Range<usize>),
    /// It came in pieces.
    Pieces(Vec<u8>),
    /// It came in fragments and begins at this place.
    Joined(Vec<u8>, usize),
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
                Step::Message if !self.joined.is_empty() => {
                    self.join(&input[begun..at]);
                    *frames -= 1;
                    return (at, Some(Ok(self.whole_message())));
                }
                Step::Control | Step::Message => {
                    *frames -= 1;
                    return (at, Some(Ok(self.whole_frame(input, begun..at))));
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

    /// A frame that stands for itself and whose last bytes are `range` of the input.
    fn whole_frame(&mut self, input: &[u8], range: Range<usize>) -> Whole {
        if self.frame.is_empty() {
            return Whole::Input(range);
        }
        let mut pieces = mem::take(&mut self.frame);
        pieces.reserve_exact(range.len());
        pieces.extend_from_slice(&input[range]);
        Whole::Pieces(pieces)
    }

    /// Joins a fragment, whose last bytes are `rest`, to those before it.
    fn join(&mut self, rest: &[u8]) {
        let (first, header, mask) = self.follower.last_header();
        if self.joined.is_empty() {
            self.opcode = first & 0x0f;
            self.joined.reserve_exact(HEADER_ROOM + LEAST_GROWTH);
            self.joined.resize(HEADER_ROOM, 0);
        }
        let begun = mem::take(&mut self.frame);
        let payload = begun.len().saturating_sub(header);
        // Of the rest, what is left of the header comes first.
        let (early, late) =
            (&begun[begun.len() - payload..], &rest[header.saturating_sub(begun.len())..]);
        let start = self.joined.len();
        keep(&mut self.joined, early, late.len());
        keep(&mut self.joined, late, 0);
        for four in self.joined[start..].chunks_mut(4) {
            for (byte, mask) in four.iter_mut().zip(mask) {
                *byte ^= mask;
            }
        }
    }

    /// The joined fragments as one frame (RFC 6455 section 5.2), with a mask that changes nothing.
    fn whole_message(&mut self) -> Whole {
        const MASKED: u8 = 0x80;
        let mut pieces = mem::take(&mut self.joined);
        let length = pieces.len() - HEADER_ROOM;
        let mut header = vec![0x80 | self.opcode];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..126), _) => header.push(MASKED | short),
            (_, Ok(medium)) => {
                header.push(MASKED | 126);
                header.extend(medium.to_be_bytes());
            }
            _ => {
                header.push(MASKED | 127);
                header.extend((length as u64).to_be_bytes());
            }
        }
        header.extend([0; 4]);
        let start = HEADER_ROOM - header.len();
        pieces[start..HEADER_ROOM].copy_from_slice(&header);
        Whole::Joined(pieces, start)
    }
}

/// Appends `bytes`. The buffer grows by what is known to follow, within a quarter of what is there:
/// doubling would hold up to twice of what has arrived, and an announced length costs nothing.
fn keep(buffer: &mut Vec<u8>, bytes: &[u8], following: usize) {
    let room = buffer.capacity() - buffer.len();
    if room < bytes.len() {
        let ahead = (buffer.len() / 4).max(LEAST_GROWTH);
        buffer.reserve_exact(bytes.len() + ahead.min(following.max(buffer.len() / 8).max(64)));
    }
    buffer.extend_from_slice(bytes);
}

/// Longest header of a frame, in bytes.
const HEADER_ROOM: usize = 14;
const LEAST_GROWTH: usize = 512;

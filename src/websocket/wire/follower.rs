//! Where the frames of a peer begin and end, read from their headers alone.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::close::Close;
use crate::limits::MAX_EMPTY_FRAGMENTS;

/// Follows the frames of a peer by their headers (RFC 6455 section 5.2). It refuses a header as soon
/// as it is there; what is in the frames is the codec's part.
#[derive(Debug, Default)]
pub(super) struct Follower {
    header: [u8; 14],
    header_length: usize,
    /// Payload bytes of the frame in progress that are still to come.
    remaining: u64,
    in_payload: bool,
    /// Payload bytes of the completed fragments of the message in progress.
    message: u64,
    fragmented: bool,
    /// Empty fragments of the message in progress.
    empty_fragments: usize,
    begun: Option<Instant>,
    /// The first two payload bytes of a control frame, unmasked.
    control: [u8; 2],
}

/// The same as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FrozenFollower {
    header: [u8; 14],
    header_length: usize,
    remaining: u64,
    in_payload: bool,
    message: u64,
    fragmented: bool,
    empty_fragments: usize,
    begun: Option<Duration>,
    control: [u8; 2],
}

impl FrozenFollower {
    /// `None` for what no follower can have come to.
    pub(super) fn thaw(self, now: Instant) -> Option<Follower> {
        let whole = header_length(self.header);
        let is_possible = if self.in_payload {
            let is_masked = self.header[1] & 0x80 != 0;
            is_masked
                && self.header_length == whole
                && self.remaining <= payload_length(self.header)
        } else {
            self.header_length < whole
        };
        is_possible.then(|| Follower {
            header: self.header,
            header_length: self.header_length,
            remaining: self.remaining,
            in_payload: self.in_payload,
            message: self.message,
            fragmented: self.fragmented,
            empty_fragments: self.empty_fragments,
            begun: self.begun.map(|age| clock::ago(now, age)),
            control: self.control,
        })
    }
}

/// Bytes that were followed.
pub(super) struct Followed {
    /// How many.
    pub(super) taken: usize,
    /// Where the payload begins among them.
    pub(super) payload: usize,
    /// How many bytes of the payload came before them.
    pub(super) offset: u64,
    pub(super) step: Step,
}

/// How far the bytes came that were followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Into a frame; all of them belong to it.
    Within,
    /// To the end of a fragment whose message goes on.
    Fragment,
    /// To the end of a control frame.
    Control,
    /// To the end of a message.
    Message,
    /// To a header that the peer may not send.
    Refused(Close),
}

impl Follower {
    pub(super) fn freeze(&self, now: Instant) -> FrozenFollower {
        FrozenFollower {
            header: self.header,
            header_length: self.header_length,
            remaining: self.remaining,
            in_payload: self.in_payload,
            message: self.message,
            fragmented: self.fragmented,
            empty_fragments: self.empty_fragments,
            begun: clock::age(now, self.begun),
            control: self.control,
        }
    }

    /// Since when a message or a control frame is begun and not complete.
    pub(super) fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// The first byte of the last frame that began: flags and opcode.
    pub(super) fn first_byte(&self) -> u8 {
        self.header[0]
    }

    /// The masking key of the last frame whose header is whole.
    pub(super) fn masking_key(&self) -> [u8; 4] {
        let end = header_length(self.header);
        let key = self.header[..end].last_chunk();
        *key.expect("bug: a masked header is longer than its key")
    }

    /// The first two payload bytes of the last control frame: a close code, if it was a close frame.
    pub(super) fn control(&self) -> [u8; 2] {
        self.control
    }

    /// Follows `bytes`, which is not empty, to the end of the frame in progress, or of the one that
    /// begins with them. `now` is when a message that begins here begins; messages may have `largest`
    /// bytes.
    pub(super) fn follow(&mut self, bytes: &[u8], now: Instant, largest: usize) -> Followed {
        let mut taken = 0;
        while !self.in_payload {
            let header = |taken, step| Followed { taken, payload: taken, offset: 0, step };
            let Some(byte) = bytes.get(taken) else { return header(taken, Step::Within) };
            if self.header_length == 0 && !self.fragmented {
                self.begun = Some(now);
            }
            self.header[self.header_length] = *byte;
            self.header_length += 1;
            taken += 1;
            if self.header_length == header_length(self.header) {
                self.remaining = payload_length(self.header);
                self.in_payload = true;
                if let Err(close) = self.judge(largest) {
                    return header(taken, Step::Refused(close));
                }
            }
        }
        let payload = taken;
        let offset = payload_length(self.header) - self.remaining;
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let length = remaining.min(bytes.len() - taken);
        self.note_control(&bytes[taken..taken + length]);
        self.remaining -= length as u64;
        taken += length;
        let step = if self.remaining == 0 { self.finish_frame() } else { Step::Within };
        Followed { taken, payload, offset, step }
    }

    /// Whether the peer may send a frame with this header now. The codec judges it once more when the
    /// message is whole; it would be late if the message never is.
    fn judge(&self, largest: usize) -> Result<(), Close> {
        let [first, second, ..] = self.header;
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
        let may_follow = match opcode {
            0x0 => self.fragmented,
            0x1 | 0x2 => !self.fragmented,
            0x8..=0xa => is_final && self.remaining <= 125,
            _ => false,
        };
        let (is_reserved, is_masked) = (first & 0x70 != 0, second & 0x80 != 0);
        if is_reserved || !is_masked || !may_follow {
            return Err(Close::Protocol);
        }
        let fits = self.message.saturating_add(self.remaining) <= largest as u64;
        if opcode < 0x8 && !fits { Err(Close::TooBig) } else { Ok(()) }
    }

    /// Keeps the beginning of a control frame's payload.
    fn note_control(&mut self, payload: &[u8]) {
        if self.header[0] & 0x08 == 0 {
            return;
        }
        let done = payload_length(self.header) - self.remaining;
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        if done >= self.control.len() {
            return;
        }
        let mask = &self.header[self.header_length.saturating_sub(4)..self.header_length];
        let noted = self.control[done..].iter_mut().zip(&mask[done..]).zip(payload);
        for ((kept, mask), byte) in noted {
            *kept = byte ^ mask;
        }
    }

    fn finish_frame(&mut self) -> Step {
        let [first, ..] = self.header;
        let (is_final, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
        let length = payload_length(self.header);
        (self.header_length, self.in_payload) = (0, false);
        if is_control {
            if !self.fragmented {
                self.begun = None;
            }
            return Step::Control;
        }
        self.fragmented = !is_final;
        if is_final {
            (self.begun, self.message, self.empty_fragments) = (None, 0, 0);
            return Step::Message;
        }
        self.message = self.message.saturating_add(length);
        self.empty_fragments += usize::from(length == 0);
        match self.empty_fragments > MAX_EMPTY_FRAGMENTS {
            true => Step::Refused(Close::EmptyFragments),
            false => Step::Fragment,
        }
    }
}

/// Length of the header that begins with these bytes, as far as they tell: 2 to 14.
fn header_length(header: [u8; 14]) -> usize {
    let [_, second, ..] = header;
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & 0x80 == 0 { 0 } else { 4 }
}

fn payload_length(header: [u8; 14]) -> u64 {
    let [_, second, a, b, c, d, e, f, g, h, ..] = header;
    match second & 0x7f {
        126 => u64::from(u16::from_be_bytes([a, b])),
        127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        short => u64::from(short),
    }
}

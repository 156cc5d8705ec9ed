//! A message that is on its way: its payload as far as it has arrived.
//!
//! Frames are unmasked and joined as they come. Kept as they are, a message of the smallest fragments would
//! hold seven times its size in headers, and cost the codec a hundred thousand frames in the turn in which it
//! is whole.

use std::mem;
use std::ops::Range;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::follower::{Followed, Follower, FrozenFollower, Step};
use super::pieces::{Mask, Pieces};
use crate::close::Close;

/// How far the message in progress has come, and a control frame between its fragments.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    pub(super) follower: Follower,
    /// Whether a message is in progress that began in earlier input, or in an earlier fragment.
    in_progress: bool,
    /// Whether that message was announced as text.
    is_text: bool,
    /// The beginning of a control frame, as it came.
    control: Vec<u8>,
}

/// The same as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FrozenAssembly {
    follower: FrozenFollower,
    in_progress: bool,
    is_text: bool,
    control: ByteBuf,
}

impl FrozenAssembly {
    /// `None` if the headers make no sense.
    pub(super) fn thaw(self, now: Instant) -> Option<Assembly> {
        Some(Assembly {
            follower: self.follower.thaw(now)?,
            in_progress: self.in_progress,
            is_text: self.is_text,
            control: self.control.into_vec(),
        })
    }
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
    pub(super) bytes: Vec<u8>,
}

impl Assembly {
    /// Takes input until a message or a control frame is whole, a header is refused, or `frames` have
    /// ended, which is counted down. What arrives of a message goes to `payload`. Returns how much of the
    /// input that took.
    pub(super) fn take(
        &mut self,
        input: &[u8],
        payload: &Pieces,
        now: Instant,
        largest: usize,
        frames: &mut usize,
    ) -> (usize, Option<Result<Whole, Close>>) {
        let mut at = 0;
        while at < input.len() && *frames > 0 {
            let begun = at;
            let followed = self.follower.follow(&input[at..], now, largest);
            at += followed.taken;
            match followed.step {
                Step::Within if self.is_in_control_frame() => {
                    self.control.reserve_exact(followed.taken);
                    self.control.extend_from_slice(&input[begun..at]);
                    break;
                }
                Step::Within => {
                    self.keep(&input[begun..at], payload, &followed);
                    break;
                }
                Step::Refused(close) => return (at, Some(Err(close))),
                Step::Fragment => self.keep(&input[begun..at], payload, &followed),
                Step::Control => {
                    *frames -= 1;
                    return (at, Some(Ok(self.complete_control(input, begun..at))));
                }
                Step::Message => {
                    *frames -= 1;
                    return (at, Some(Ok(self.complete(input, begun..at, payload, &followed))));
                }
            }
            *frames -= 1;
        }
        (at, None)
    }

    pub(super) fn freeze(&self, now: Instant) -> FrozenAssembly {
        FrozenAssembly {
            follower: self.follower.freeze(now),
            in_progress: self.in_progress,
            is_text: self.is_text,
            control: ByteBuf::from(self.control.as_slice()),
        }
    }

    /// Memory held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.control.capacity()
    }

    fn is_in_control_frame(&self) -> bool {
        self.follower.first_byte() & 0x08 != 0
    }

    /// Keeps what these bytes hold of a message's payload.
    fn keep(&mut self, bytes: &[u8], payload: &Pieces, followed: &Followed) {
        if !self.in_progress {
            // RFC 6455 section 5.2.
            self.is_text = self.follower.first_byte() & 0x0f == 0x1;
            self.in_progress = true;
        }
        let arrived = &bytes[followed.payload..];
        if !arrived.is_empty() {
            payload.append(arrived, &mut self.mask(followed));
        }
    }

    fn mask(&self, followed: &Followed) -> Mask {
        Mask::new(self.follower.masking_key(), followed.offset)
    }

    /// The last frame of a message ends with these bytes of the input.
    fn complete(
        &mut self,
        input: &[u8],
        range: Range<usize>,
        payload: &Pieces,
        followed: &Followed,
    ) -> Whole {
        if !mem::take(&mut self.in_progress) {
            return Whole::Input(range);
        }
        let rest = &input[range][followed.payload..];
        let mut bytes = Vec::with_capacity(payload.len() + rest.len());
        for piece in payload.drain() {
            bytes.extend_from_slice(&piece);
        }
        if !rest.is_empty() {
            self.mask(followed).append(&mut bytes, rest);
        }
        Whole::Message(Payload { is_text: self.is_text, bytes })
    }

    /// A control frame ends with these bytes of the input.
    fn complete_control(&mut self, input: &[u8], range: Range<usize>) -> Whole {
        if self.control.is_empty() {
            return Whole::Input(range);
        }
        let mut bytes = mem::take(&mut self.control);
        bytes.reserve_exact(range.len());
        bytes.extend_from_slice(&input[range]);
        Whole::Control(bytes)
    }
}

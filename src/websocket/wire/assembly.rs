//! A message that is on its way: its frames as they came, until the last of them is there.

use std::mem;
use std::ops::Range;
use std::time::Instant;

use super::follower::{Follower, Step};
use crate::close::Close;

/// The frames of the message in progress. What is held of a message is these bytes and nothing else.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    pub(super) follower: Follower,
    /// The frames so far, without the control frames between them.
    message: Vec<u8>,
    /// Where the frame in progress begins in it.
    frame_at: usize,
}

/// A message or a control frame that is whole.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Whole {
    /// It is these bytes of the input.
    Input(Range<usize>),
    /// It came in pieces.
    Pieces(Vec<u8>),
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
        // Where the frame in progress begins, in the input; and whether it began before.
        let (mut at, mut frame) = (0, 0);
        let mut is_carried = self.frame_at < self.message.len();
        while at < input.len() && *frames > 0 {
            let (taken, step) = self.follower.follow(&input[at..], now, largest);
            at += taken;
            let whole = match step {
                Step::Within => break,
                Step::Refused(close) => return (at, Some(Err(close))),
                Step::Fragment => None,
                Step::Control if self.follower.is_within_a_message() => {
                    Some(self.control(input, frame..at, is_carried))
                }
                Step::Control | Step::Message => Some(self.complete(&input[..at])),
            };
            *frames -= 1;
            if let Some(whole) = whole {
                return (at, Some(Ok(whole)));
            }
            (frame, is_carried) = (at, false);
        }
        if !is_carried {
            self.frame_at = self.message.len() + frame;
        }
        self.keep(&input[..at]);
        (at, None)
    }

    /// Memory held, in bytes.
    pub(super) fn held(&self) -> usize {
        self.message.capacity()
    }

    /// The last bytes of a message, or of a control frame between messages.
    fn complete(&mut self, rest: &[u8]) -> Whole {
        self.frame_at = 0;
        if self.message.is_empty() {
            return Whole::Input(0..rest.len());
        }
        let mut pieces = mem::take(&mut self.message);
        pieces.reserve_exact(rest.len());
        pieces.extend_from_slice(rest);
        Whole::Pieces(pieces)
    }

    /// A control frame within a message, whose last bytes are `range` of the input.
    fn control(&mut self, input: &[u8], range: Range<usize>, is_carried: bool) -> Whole {
        if is_carried {
            let mut pieces = self.message.split_off(self.frame_at);
            pieces.extend_from_slice(&input[range]);
            return Whole::Pieces(pieces);
        }
        self.keep(&input[..range.start]);
        self.frame_at = self.message.len();
        Whole::Input(range)
    }

    /// Grows by what the frame in progress still needs, within a quarter of what is there: doubling
    /// would hold up to twice of what has arrived, and an announced length costs nothing.
    fn keep(&mut self, bytes: &[u8]) {
        let room = self.message.capacity() - self.message.len();
        if room < bytes.len() {
            let ahead = (self.message.len() / 4).max(LEAST_GROWTH).min(self.follower.remaining());
            self.message.reserve_exact(bytes.len() + ahead);
        }
        self.message.extend_from_slice(bytes);
    }
}

const LEAST_GROWTH: usize = 512;

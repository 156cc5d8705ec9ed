//! What the binary has proved to have read, in plain counters (contract, The grace window).
//!
//! The socket accepts a message long before the binary reads it, and forgets it when the path breaks. A ping
//! behind the message is answered by whoever has read the message (RFC 6455 section 5.5.2).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::websocket::frames::Frame;

/// While something is unproven, a ping is sent so often at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Proofs of one lane. Its messages are numbered from 1 as a socket accepts them.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    accepted: u64,
    proven: u64,
    /// The number of the last ping, which is its payload.
    ping: u64,
    /// Its frame, while it is not queued: the next one goes out in the same memory.
    frame: Vec<u8>,
    asked_at: Option<Instant>,
    state: Asked,
}

/// The same as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Frozen {
    accepted: u64,
    proven: u64,
    ping: u64,
    asked: Option<Duration>,
    state: Asked,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
enum Asked {
    #[default]
    No,
    /// The ping is in the queue.
    Queued,
    /// It is sent, behind the message with this number.
    Sent(u64),
}

impl Proofs {
    /// When a ping is due, seen at `now`; `None` while one is under way or nothing needs a proof.
    /// `is_queued` says whether a message waits to be written.
    pub(super) fn due(&self, now: Instant, is_queued: impl FnOnce() -> bool) -> Option<Instant> {
        match self.state {
            Asked::Queued | Asked::Sent(_) => None,
            Asked::No if self.accepted > self.proven => {
                Some(self.asked_at.map_or(now, |asked_at| asked_at + INTERVAL))
            }
            Asked::No => is_queued().then_some(now),
        }
    }

    /// A ping is queued; returns its frame.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<u8> {
        self.ping += 1;
        (self.asked_at, self.state) = (Some(now), Asked::Queued);
        let payload = self.ping.to_be_bytes();
        let mut frame = std::mem::take(&mut self.frame);
        match frame.last_chunk_mut() {
            Some(last) => *last = payload,
            None => frame = Frame::ping(&payload).into_bytes(),
        }
        frame
    }

    /// The socket has accepted it.
    pub(super) fn sent(&mut self, frame: Vec<u8>) {
        (self.state, self.frame) = (Asked::Sent(self.accepted), frame);
    }

    /// The binary sent a pong.
    pub(super) fn answered(&mut self, payload: &[u8]) {
        if let Asked::Sent(last) = self.state {
            if payload == self.ping.to_be_bytes() {
                (self.proven, self.state) = (last, Asked::No);
            }
        }
    }

    /// The socket has accepted one more message; returns its number.
    pub(super) fn accepted(&mut self) -> u64 {
        self.accepted += 1;
        self.accepted
    }

    /// Whether everything up to this number is proven.
    pub(super) fn is_proven(&self, number: u64) -> bool {
        number <= self.proven
    }

    /// Another connection takes the place of the one that was asked: what is unproven stays so, and matters no
    /// more.
    pub(super) fn begin_anew(&mut self) {
        self.proven = self.accepted;
        if let Asked::Sent(_) = self.state {
            self.state = Asked::No;
        }
    }

    pub(super) fn freeze(&self, now: Instant) -> Frozen {
        Frozen {
            accepted: self.accepted,
            proven: self.proven,
            ping: self.ping,
            asked: clock::age(now, self.asked_at),
            state: self.state,
        }
    }
}

impl Frozen {
    pub(super) fn thaw(self, now: Instant) -> Proofs {
        Proofs {
            accepted: self.accepted,
            proven: self.proven,
            ping: self.ping,
            frame: Vec::new(),
            asked_at: self.asked.map(|age| clock::ago(now, age)),
            state: self.state,
        }
    }
}

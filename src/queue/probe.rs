//! The question to the holder of a claimed server-id: is anybody there?

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::clock;
use crate::ids::random_payload;
use crate::limits::PROBE_BLIND;

/// One probe of one holder. The holder's link reports what it hears, the newcomer waits.
#[derive(Debug)]
pub struct Probe {
    payload: [u8; 8],
    asked: Instant,
    last_call: Cell<bool>,
    outcome: Cell<Option<Outcome>>,
    waiting: RefCell<Option<Waker>>,
}

/// A probe as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FrozenProbe {
    payload: ByteArray<8>,
    asked: Duration,
    last_call: bool,
    outcome: Option<Outcome>,
}

/// What became of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The holder answered: the newcomer loses.
    Answered,
    /// The holder's connection ended meanwhile: the slot is free to take.
    HolderGone,
    /// The time is over, and nothing was there when the holder's socket was read for the last time.
    Silent,
}

impl Probe {
    /// A probe whose ping is sent at `asked`.
    pub fn new(asked: Instant) -> Self {
        Self {
            payload: random_payload(),
            asked,
            last_call: Cell::new(false),
            outcome: Cell::new(None),
            waiting: RefCell::new(None),
        }
    }

    /// How far it has come.
    pub(crate) fn freeze(&self, now: Instant) -> FrozenProbe {
        FrozenProbe {
            payload: ByteArray::new(self.payload),
            asked: now.saturating_duration_since(self.asked),
            last_call: self.last_call.get(),
            outcome: self.outcome.get(),
        }
    }

    /// Goes on from there.
    pub(crate) fn thaw(frozen: FrozenProbe, now: Instant) -> Self {
        Self {
            payload: frozen.payload.into_array(),
            asked: clock::ago(now, frozen.asked),
            last_call: Cell::new(frozen.last_call),
            outcome: Cell::new(frozen.outcome),
            waiting: RefCell::new(None),
        }
    }

    /// When its ping was sent.
    pub(crate) fn asked(&self) -> Instant {
        self.asked
    }

    /// The payload of its ping.
    pub fn payload(&self) -> &[u8; 8] {
        &self.payload
    }

    /// The holder sent bytes. They are an answer if they come later than 1 s after the ping; what
    /// arrives earlier may have been on its way when the peer vanished.
    pub fn heard(&self, now: Instant) {
        if now.saturating_duration_since(self.asked) > PROBE_BLIND {
            self.settle(Outcome::Answered);
        }
    }

    /// The holder sent a pong; its own payload is an answer at any time.
    pub fn pong(&self, payload: &[u8]) {
        if payload == self.payload {
            self.settle(Outcome::Answered);
        }
    }

    /// The holder's connection ended. Its close frame was heard like any byte, and is no answer.
    pub fn holder_gone(&self) {
        self.outcome.take();
        self.settle(Outcome::HolderGone);
    }

    /// The time is over: what has arrived by now still counts, once the holder's link has read it.
    pub fn call_last(&self) {
        self.last_call.set(true);
    }

    /// Whether the time is over.
    pub fn is_last_call(&self) -> bool {
        self.last_call.get()
    }

    /// The holder's link has read all there is.
    pub fn nothing_more(&self) {
        if self.last_call.get() {
            self.settle(Outcome::Silent);
        }
    }

    /// The outcome so far.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.get()
    }

    /// Waits for the outcome; cancel safe, for one waiter.
    pub fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                *self.waiting.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn settle(&self, outcome: Outcome) {
        if self.outcome.get().is_none() {
            self.outcome.set(Some(outcome));
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn its_pong_answers_at_once_and_no_other_does() {
        let now = clock::now();
        let probe = Probe::new(now);
        probe.pong(b"");
        probe.pong(b"whatever");
        assert_eq!(probe.outcome(), None);
        probe.pong(probe.payload().as_ref());
        assert_eq!(probe.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn bytes_count_only_later_than_a_second_after_the_ping() {
        let now = clock::now();
        let probe = Probe::new(now);
        probe.heard(now);
        probe.heard(now + PROBE_BLIND);
        assert_eq!(probe.outcome(), None);
        probe.heard(now + PROBE_BLIND + Duration::from_millis(1));
        assert_eq!(probe.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn silence_is_an_outcome_once_the_time_is_over_and_all_is_read() {
        let probe = Probe::new(clock::now());
        probe.nothing_more();
        assert_eq!(probe.outcome(), None);
        probe.call_last();
        assert_eq!(probe.outcome(), None);
        probe.nothing_more();
        assert_eq!(probe.outcome(), Some(Outcome::Silent));
    }

    #[test]
    fn an_upgrade_keeps_its_age_its_payload_and_its_outcome() {
        let start = clock::now();
        let second = Duration::from_secs(1);
        let upgraded = |probe: &Probe, at, now| {
            let frozen = rmp_serde::to_vec_named(&probe.freeze(at)).unwrap();
            Probe::thaw(rmp_serde::from_slice(&frozen).unwrap(), now)
        };
        let probe = Probe::new(start);
        let payload = *probe.payload();
        let (frozen_at, now) = (start + second / 2, start + 9 * second);
        let probe = upgraded(&probe, frozen_at, now);
        assert_eq!(now - probe.asked(), second / 2);
        probe.heard(now + second / 2);
        probe.call_last();
        let probe = upgraded(&probe, now, now);
        assert_eq!((probe.outcome(), probe.is_last_call()), (None, true));
        probe.pong(&payload);
        let probe = upgraded(&probe, now, now);
        assert_eq!(probe.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn the_end_of_the_holder_outweighs_an_answer() {
        let probe = Probe::new(clock::now());
        probe.pong(probe.payload().as_ref());
        probe.holder_gone();
        assert_eq!(probe.outcome(), Some(Outcome::HolderGone));
        probe.pong(probe.payload().as_ref());
        assert_eq!(probe.outcome(), Some(Outcome::HolderGone));
    }
}

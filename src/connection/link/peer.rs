//! What one leg does with its connection, as the link asks for it.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::close::{Close, Ended};
use crate::leg::Leg;
use crate::queue::budget::Account;
use crate::queue::outbox::{FrozenOutbox, Outbox};
use crate::queue::probe::Inquiry;
use crate::registry::{FrozenPhoneSeat, FrozenServerSeat};
use crate::relay::Relay;
use crate::telemetry::metrics::{Metrics, Side};

/// What one leg does with its connection.
pub(crate) trait Peer {
    /// Which leg it is.
    fn leg(&self) -> Leg;

    /// The connection id, for the log.
    fn conn_id(&self) -> String;

    /// Largest message that is taken from the peer, in bytes.
    fn largest_message(&self) -> usize;

    /// Who pays for the memory that its input takes.
    fn account(&self) -> Rc<Account>;

    /// The probe that it has to answer for, while there is one; `None` for a leg that is never probed.
    fn inquiry(&self) -> Option<&Inquiry> {
        None
    }

    /// A data message arrived; `None` if it is not UTF-8. The turn began at `now`.
    fn message(&mut self, text: Option<&str>, now: Instant) -> Verdict;

    /// Tries to go on after [`Verdict::Hold`]; pending keeps the waker.
    fn poll_resume(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// What it is, as plain data, with what `outbox` still has to write.
    fn freeze(&self, outbox: &Outbox, now: Instant) -> FrozenPeer;

    /// The connection is decided to end; `amid` a message if some of one has arrived. Called once, at the
    /// moment of the decision.
    fn ended(&mut self, ended: Ended, amid: bool, now: Instant);
}

/// A leg's part of a connection as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FrozenPeer {
    /// A binary.
    Binary {
        /// Its seat.
        seat: FrozenServerSeat,
        /// The part of its connection id that is its own.
        suffix: u32,
        /// Envelopes that were not carried out.
        dropped: u64,
    },
    /// A phone.
    Phone {
        /// Its seat.
        seat: FrozenPhoneSeat,
    },
    /// A peer that is only being sent off.
    Rejected {
        /// Whether it wanted to be a binary, else a phone.
        is_binary: bool,
        /// What it is still sent.
        outbox: FrozenOutbox,
    },
}

/// What becomes of a connection after a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Go on.
    Continue,
    /// Stop reading until [`Peer::poll_resume`] is ready.
    Hold,
    /// Close it.
    Close(Close),
}

/// A peer that is only being sent off.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) leg: Leg,
    pub(crate) account: Rc<Account>,
    pub(crate) relay: Rc<Relay>,
}

impl Peer for Rejected {
    fn leg(&self) -> Leg {
        self.leg
    }

    fn conn_id(&self) -> String {
        String::from("-")
    }

    fn largest_message(&self) -> usize {
        self.relay.config.max_envelope_bytes()
    }

    fn account(&self) -> Rc<Account> {
        Rc::clone(&self.account)
    }

    fn message(&mut self, _text: Option<&str>, _now: Instant) -> Verdict {
        Verdict::Continue
    }

    fn poll_resume(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn freeze(&self, outbox: &Outbox, now: Instant) -> FrozenPeer {
        let is_binary = self.leg == Leg::Binary;
        FrozenPeer::Rejected { is_binary, outbox: outbox.freeze(None, now) }
    }

    fn ended(&mut self, _ended: Ended, _amid: bool, _now: Instant) {}
}

/// Counts the end of a connection by who decided on it and the code that went, or would have gone,
/// with it (RFC 6455 section 7.1.5: `1005` for an empty close frame, `1006` for none).
pub(super) fn count_end(metrics: &Metrics, leg: Leg, ended: Ended) {
    let peer = match leg {
        Leg::Binary => Side::Binary,
        Leg::Phone => Side::Phone,
    };
    let (side, code) = match ended {
        Ended::ByRelay(Close::Directive(code)) => (Side::Binary, Some(code)),
        Ended::ByRelay(close) => (Side::Relay, close.code()),
        Ended::ByPeer(code) => (peer, code),
        Ended::Dropped | Ended::Unreachable => (peer, Some(1006)),
        Ended::WriteTimeout => (Side::Relay, Some(1006)),
    };
    metrics.closed(leg, side, code.unwrap_or(1005));
}

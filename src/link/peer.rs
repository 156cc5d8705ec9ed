//! What one leg does with its connection, as the link asks for it.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::budget::Account;
use crate::close::{Close, Ended};
use crate::relay::Relay;

/// What one leg does with its connection.
pub trait Peer {
    /// The connection id, for the log.
    fn conn_id(&self) -> String;

    /// Largest message that is taken from the peer, in bytes.
    fn largest_message(&self) -> usize;

    /// Who pays for the memory that its input takes.
    fn account(&self) -> Rc<Account>;

    /// A data message arrived; `None` if it is not UTF-8.
    fn message(&mut self, text: Option<&str>) -> Verdict;

    /// Tries to go on after [`Verdict::Hold`]; pending keeps the waker.
    fn poll_resume(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// The connection is decided to end. Called once, at the moment of the decision.
    fn ended(&mut self, ended: Ended, now: Instant);
}

/// What becomes of a connection after a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Stop reading until [`Peer::poll_resume`] is ready.
    Hold,
    /// Close it.
    Close(Close),
}

/// A peer that is only being sent off.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) relay: Rc<Relay>,
}

impl Peer for Rejected {
    fn conn_id(&self) -> String {
        String::from("-")
    }

    fn largest_message(&self) -> usize {
        self.relay.config.max_envelope_bytes()
    }

    fn account(&self) -> Rc<Account> {
        Account::open(&self.relay.ledger)
    }

    fn message(&mut self, _text: Option<&str>) -> Verdict {
        Verdict::Continue
    }

    fn poll_resume(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn ended(&mut self, _ended: Ended, _now: Instant) {}
}

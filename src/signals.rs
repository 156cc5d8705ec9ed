//! What the operator asks of a running relay: to stop, and to read its files again.

use std::convert::Infallible;
use std::io;
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use smol::channel::{Receiver, Sender, bounded};

use crate::limits::STOP_AGAIN;

/// The stop: raised once, seen by everybody who waits for it. Clones share it, across threads too.
#[derive(Clone, Debug)]
pub struct Stop {
    sender: Sender<Infallible>,
    receiver: Receiver<Infallible>,
}

impl Stop {
    /// A signal that has not been raised.
    pub fn new() -> Self {
        let (sender, receiver) = bounded(1);
        Self { sender, receiver }
    }

    /// Raises it.
    pub fn raise(&self) {
        self.sender.close();
    }

    /// Whether it has been raised.
    pub(crate) fn is_raised(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until it is raised. Cancel safe.
    pub(crate) async fn raised(&self) {
        // Nothing is ever sent: the channel's closing is the signal.
        let _closed = self.receiver.recv().await;
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

/// What a signal to stop means, by when it comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopRequest {
    /// It begins the stop.
    First,
    /// It belongs to the stop that has just begun.
    Same,
    /// Somebody is tired of waiting: the relay ends at once.
    Again,
}

/// The signals to stop so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct StopRequests(Option<Instant>);

impl StopRequests {
    /// Another signal to stop came at `now` (contract, Stopping).
    pub fn note(&mut self, now: Instant) -> StopRequest {
        match self.0 {
            None => {
                self.0 = Some(now);
                StopRequest::First
            }
            Some(first) if now < first + STOP_AGAIN => StopRequest::Same,
            Some(_) => StopRequest::Again,
        }
    }
}

/// The signals that mean something to the relay.
fn watched() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]
        .into_iter()
        .collect()
}

/// From now on signals to this thread wait, in the program too that this process may become: until it handles
/// them, they would end it. Threads that are started meanwhile never get any.
pub fn hold() -> io::Result<()> {
    Ok(watched().thread_block()?)
}

/// Signals arrive again, those that have waited first.
pub fn release() -> io::Result<()> {
    Ok(watched().thread_unblock()?)
}

/// A request that may be made any number of times, and is served one at a time: to read files again, or to upgrade.
/// Clones share it, across threads too.
#[derive(Clone, Debug)]
pub struct Request {
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl Request {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        let (sender, receiver) = bounded(1);
        Self { sender, receiver }
    }

    /// Asks for it. Requests that have not begun yet are one.
    pub fn ask(&self) {
        // Full: it is about to happen.
        let _ = self.sender.try_send(());
    }

    /// Forgets requests that have not begun yet.
    pub(crate) fn forget(&self) {
        let _ = self.receiver.try_recv();
    }

    /// Waits until somebody asks; for one waiter. Cancel safe.
    pub(crate) async fn asked(&self) {
        // It never fails: this handle is a sender as well.
        let _ = self.receiver.recv().await;
    }
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::clock;

    #[test]
    fn a_second_signal_is_the_same_stop_for_half_a_second_and_then_an_order() {
        let mut requests = StopRequests::default();
        let start = clock::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(requests.note(start), StopRequest::First);
        for early in [0, 1, 499] {
            assert_eq!(requests.note(after(early)), StopRequest::Same, "{early} ms later");
        }
        assert_eq!(requests.note(after(500)), StopRequest::Again);
    }

    #[test]
    fn it_is_heard_once_however_often_it_was_asked_before() {
        let reload = Request::new();
        block_on(async {
            assert!(poll_once(reload.asked()).await.is_none());
            for _ in 0..3 {
                reload.ask();
            }
            assert!(poll_once(reload.asked()).await.is_some());
            assert!(poll_once(reload.asked()).await.is_none());
            reload.clone().ask();
            assert!(poll_once(reload.asked()).await.is_some());
        });
    }
}

//! What the operator asks of a running relay: to stop, and to read its files again.

use std::convert::Infallible;

use smol::channel::{Receiver, Sender, bounded};

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

/// The request to read files again: may be made any number of times, and is served one at a time.
/// Clones share it, across threads too.
#[derive(Clone, Debug)]
pub struct Reload {
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl Reload {
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

    /// Waits until somebody asks; for one waiter. Cancel safe.
    pub(crate) async fn asked(&self) {
        // It never fails: this handle is a sender as well.
        let _ = self.receiver.recv().await;
    }
}

impl Default for Reload {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn it_is_heard_once_however_often_it_was_asked_before() {
        let reload = Reload::new();
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

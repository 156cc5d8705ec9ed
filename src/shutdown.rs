//! The stop signal: raised once, seen by everybody who waits for it.

use std::convert::Infallible;

use smol::channel::{Receiver, Sender, bounded};

/// A handle to the stop signal; clones share it, across threads too.
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
    pub fn is_raised(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until it is raised. Cancel safe.
    pub async fn raised(&self) {
        // Nothing is ever sent: the channel's closing is the signal.
        let _closed = self.receiver.recv().await;
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

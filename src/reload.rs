//! The wish to read files anew: may be uttered again and again, and is heard once at a time.

use smol::channel::{Receiver, Sender, bounded};

/// A handle to the wish; clones share it, across threads too.
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

    /// Asks for it. What was asked for and not begun yet is the same wish.
    pub fn ask(&self) {
        // Full: it is about to happen.
        let _ = self.sender.try_send(());
    }

    /// Waits until somebody asks; for one waiter. Cancel safe.
    pub async fn asked(&self) {
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

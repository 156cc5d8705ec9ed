//! Wakers that count.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

/// How often a waker was woken.
#[derive(Default, Debug)]
pub struct Wakes(AtomicUsize);

impl Wakes {
    /// A waker, and what it counts.
    pub fn counting() -> (Arc<Self>, Waker) {
        let wakes = Arc::new(Self::default());
        (Arc::clone(&wakes), Waker::from(wakes))
    }

    /// Since the beginning, or since [`Self::take`].
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// The count, which begins again at zero.
    pub fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

//! Whether a socket is worth reading, asked without a system call.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_io::{Async, ReadableOwned};

/// Waits for a socket to become readable.
///
/// One wait is kept until it is over. `Async::poll_readable` begins another one at each event that it
/// misses, and while this thread is busy for longer than a moment it misses every one of them:
/// async-io's own thread delivers them within the very tick in which the wait began, and such an
/// event counts as an old one (async-io issues 78, 79 and 156).
pub(crate) struct Readiness<T> {
    socket: Arc<Async<T>>,
    /// In a box of its own, made once: a task carries its socket from stage to stage.
    wait: Box<Option<ReadableOwned<T>>>,
}

impl<T> Readiness<T> {
    /// The readiness of `socket`.
    pub(crate) fn of(socket: Arc<Async<T>>) -> Self {
        Self { socket, wait: Box::default() }
    }

    /// The socket itself.
    pub(crate) fn socket(&self) -> &T {
        self.socket.as_ref().get_ref()
    }

    /// The same, for somebody who keeps it.
    pub(crate) fn shared(&self) -> Arc<Async<T>> {
        Arc::clone(&self.socket)
    }

    /// Ready once for each time the socket becomes readable; an error shows itself to the read as
    /// well. Cancel safe.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wait = self.wait.get_or_insert_with(|| Arc::clone(&self.socket).readable_owned());
        let outcome = ready!(Pin::new(wait).poll(cx));
        *self.wait = None;
        Poll::Ready(outcome)
    }
}

impl<T> fmt::Debug for Readiness<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("waits", &self.wait.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Sender, channel};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use super::*;

    /// Tells of every wake.
    struct Bell(Sender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    /// Nobody calls `block_on` here: async-io's own thread delivers the events, as it does while the
    /// event loop is busy.
    #[test]
    fn an_event_that_the_other_thread_delivers_is_not_missed() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let mut readiness = Readiness::of(Arc::new(Async::new(socket).unwrap()));
        let (bell, rung) = channel();
        let waker = Waker::from(Arc::new(Bell(bell)));
        let mut cx = Context::from_waker(&waker);
        for _ in 0..20 {
            assert!(readiness.poll(&mut cx).is_pending());
            // The other thread is back at its wait by then, so that the wait began in its tick.
            std::thread::sleep(Duration::from_millis(5));
            peer.write_all(b"x").unwrap();
            let mut wakes = 0;
            loop {
                rung.recv_timeout(PATIENCE).expect("the socket is readable");
                wakes += 1;
                if readiness.poll(&mut cx).is_ready() {
                    break;
                }
                assert!(wakes < 3, "readable, and told so {wakes} times for nothing");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(readiness.socket().read(&mut [0; 8]).unwrap(), 1);
            while rung.try_recv().is_ok() {}
        }
    }
}

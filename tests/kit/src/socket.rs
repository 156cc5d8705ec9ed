//! A socket in memory.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};

use crate::frame::Received;

/// A socket that does as it was told. It wakes nobody: whoever drives it polls again.
#[derive(Default, Debug)]
pub struct MockSocket {
    /// What arrives, a chunk in each read. With none left, a read waits.
    pub arriving: VecDeque<Vec<u8>>,
    /// With no chunk left, a read finds the end of the stream.
    pub is_at_end: bool,
    /// How many bytes each write takes, none where it blocks. Past the plan, all of them.
    pub plan: VecDeque<usize>,
    /// How many bytes it takes in all before every write blocks. Without it, any number.
    pub room: Option<usize>,
    /// What was written.
    pub taken: Vec<u8>,
    /// Bytes that each write offered.
    pub offered: Vec<usize>,
    /// A write takes nothing and does not block, as no sound socket does.
    pub is_closed: bool,
    /// A write, a flush and a close panic.
    pub is_read_only: bool,
    /// How every read and every write fails.
    pub failure: Option<io::ErrorKind>,
}

impl MockSocket {
    /// A socket with a plan for its writes.
    pub fn planned(plan: impl IntoIterator<Item = usize>) -> Self {
        Self { plan: plan.into_iter().collect(), ..Self::default() }
    }

    /// A socket that takes so many bytes.
    pub fn taking(room: usize) -> Self {
        Self { room: Some(room), ..Self::default() }
    }

    /// A socket that nobody may write to.
    pub fn read_only() -> Self {
        Self { is_read_only: true, ..Self::default() }
    }

    /// The frames that were written.
    ///
    /// # Panics
    ///
    /// If the last one is not whole.
    pub fn frames(&self) -> Vec<Received> {
        let (frames, rest) = Received::decode_all(&self.taken);
        assert!(rest.is_empty(), "the last frame is not whole");
        frames
    }

    fn check_writable(&self) {
        assert!(!self.is_read_only, "nothing is to be written, flushed or closed here");
    }
}

impl AsyncRead for MockSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failure {
            return Poll::Ready(Err(kind.into()));
        }
        match self.arriving.pop_front() {
            Some(chunk) => {
                buffer[..chunk.len()].copy_from_slice(&chunk);
                Poll::Ready(Ok(chunk.len()))
            }
            None if self.is_at_end => Poll::Ready(Ok(0)),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for MockSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_writable();
        assert!(!bytes.is_empty(), "nothing is no reason to write");
        self.offered.push(bytes.len());
        if let Some(kind) = self.failure {
            return Poll::Ready(Err(kind.into()));
        }
        if self.is_closed {
            return Poll::Ready(Ok(0));
        }
        let planned = self.plan.pop_front().unwrap_or(usize::MAX);
        let taken = bytes.len().min(planned).min(self.room.unwrap_or(usize::MAX));
        if taken == 0 {
            return Poll::Pending;
        }
        self.room = self.room.map(|room| room - taken);
        self.taken.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writable();
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writable();
        Poll::Ready(Ok(()))
    }
}

//! A TLS connection as a link drives it.

mod frozen;

use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::{fmt, io};

use futures_lite::{AsyncRead, AsyncWrite};

pub(crate) use self::frozen::Frozen;
pub(crate) use super::keys::Unusable;
use super::record::{Inbound, LONGEST_RECORD, Outbound, SEALED_BATCH};
use crate::limits::TLS_HELD;
use crate::net::scratch::Scratch;
use crate::net::transport::{Tcp, Transport};
use crate::queue::budget::Charge;

/// A TLS connection whose handshake is done. Boxed: a link weighs the same over TLS and without.
#[derive(Debug)]
pub(crate) struct Tls(Box<Session>);

struct Session {
    tcp: Tcp,
    inbound: Inbound,
    outbound: Outbound,
    /// Records that were read and are not opened: complete ones behind a handshake, else the beginning of one.
    records: Vec<u8>,
    /// What found no room with whoever reads.
    plaintext: Vec<u8>,
    /// Records that the socket has not accepted, from `sent` on.
    unsent: Vec<u8>,
    sent: usize,
    /// The last read took all there was.
    is_drained: bool,
    /// The peer's stream has ended.
    has_ended: bool,
    /// What there is to say about it, to whoever reads next.
    failed: Option<rustls::Error>,
    /// Bytes read since the last that came to something.
    fruitless: usize,
    /// Something was written since this was last asked.
    wrote: bool,
    /// Pays until somebody else does.
    charge: Option<Charge>,
    /// For what is sealed at once.
    scratch: Rc<Scratch>,
}

/// Bytes that one turn reads at most without any of them coming to plaintext: the largest record and the
/// read that it ends in. A key update, of which there may be 32 in a row, is 27 bytes.
const FRUITLESS_BYTES: usize = 20 * 1024;

impl Tls {
    /// `records` is what the peer has sent behind its handshake, and `charge` pays until somebody else does.
    pub(super) fn new(
        tcp: Tcp,
        mut records: Vec<u8>,
        charge: Charge,
        inbound: Inbound,
        outbound: Outbound,
        scratch: &Rc<Scratch>,
    ) -> Self {
        records.shrink_to_fit();
        let mut session = Session {
            tcp,
            inbound,
            outbound,
            records,
            plaintext: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            is_drained: false,
            has_ended: false,
            failed: None,
            fruitless: 0,
            wrote: false,
            charge: Some(charge),
            scratch: Rc::clone(scratch),
        };
        session.pay();
        Self(Box::new(session))
    }
}

impl Session {
    fn held(&self) -> usize {
        let buffers = [&self.records, &self.plaintext, &self.unsent];
        TLS_HELD + buffers.iter().map(|buffer| buffer.capacity()).sum::<usize>()
    }

    fn pay(&mut self) {
        let held = self.held();
        if let Some(charge) = &mut self.charge {
            charge.set(held);
        }
    }

    /// Reads records into `room`, which has space for any, behind what was read before, and opens what is complete.
    /// Returns how much plaintext is at the beginning of `room` now: none may be a record without any, or the end.
    fn poll_records(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let before = self.records.len();
        room[..before].copy_from_slice(&self.records);
        let mut opened = self.inbound.open(&mut room[..before], &mut self.outbound);
        let mut length = before;
        if opened.used == 0 && opened.failed.is_none() {
            if !self.is_drained && self.fruitless >= FRUITLESS_BYTES {
                // The others get their turn. The socket does not count as drained.
                self.fruitless = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let read = ready!(self.poll_tcp(cx, &mut room[before..]))?;
            if read == 0 {
                // The end of a WebSocket is told by its close frame; many peers send no close_notify.
                self.has_ended = true;
                self.records = Vec::new();
                return Poll::Ready(Ok(0));
            }
            self.fruitless += read;
            length += read;
            opened = self.inbound.open(&mut room[..length], &mut self.outbound);
        }
        if opened.used > 0 || length > before {
            self.records = Vec::new();
            self.records.extend_from_slice(&room[opened.used..length]);
        }
        self.failed = opened.failed;
        // Whoever asks whether there is something to read is told so.
        self.is_drained &= !opened.has_more;
        if self.inbound.is_over() || self.failed.is_some() {
            self.has_ended = true;
            self.records = Vec::new();
        }
        if opened.plaintext > 0 {
            self.fruitless = 0;
        }
        Poll::Ready(Ok(opened.plaintext))
    }

    /// A read of a socket that is known to be drained costs no system call.
    fn poll_tcp(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.is_drained {
            // An error shows itself to the read.
            self.is_drained = self.tcp.poll_readable(cx).is_pending();
            if self.is_drained {
                return Poll::Pending;
            }
        }
        let read = Pin::new(&mut self.tcp).poll_read(cx, room);
        match read {
            Poll::Pending => self.is_drained = true,
            Poll::Ready(Ok(length)) => self.is_drained = length > 0 && length < room.len(),
            Poll::Ready(Err(_)) => {}
        }
        read
    }

    /// Sends what the socket has not accepted yet, and what is due besides data.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.unsent.len() {
                let unsent = &self.unsent[self.sent..];
                let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, unsent))?;
                self.wrote = true;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += written;
            }
            (self.unsent, self.sent) = (Vec::new(), 0);
            if !self.outbound.has_due() {
                return Poll::Ready(Ok(()));
            }
            let mut lent = self.scratch.lend();
            let sealed = self.outbound.seal_due(&mut lent);
            self.unsent = lent[..sealed].to_vec();
        }
    }

    /// Tells the peer what it is to be told, if there is room. The task is woken when there is.
    fn answer(&mut self, cx: &mut Context<'_>) {
        if self.outbound.has_due() || !self.unsent.is_empty() {
            // A connection that cannot be written to tells whoever writes.
            let _ = self.poll_unsent(cx);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the content: it is a peer's.
        f.debug_struct("Session").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl Drop for Session {
    /// A peer is told that nothing follows, whoever ends the connection (RFC 8446, section 6.1), unless there is no
    /// room for that.
    fn drop(&mut self) {
        self.outbound.close();
        self.answer(&mut Context::from_waker(Waker::noop()));
    }
}

impl Transport for Tls {
    /// What is opened and was not read makes no socket readable.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let session = &mut *self.0;
        if !session.is_drained || session.has_ended || !session.plaintext.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let readable = session.tcp.poll_readable(cx);
        session.is_drained = readable.is_pending();
        readable
    }

    fn look_again(&mut self) {
        self.0.is_drained = false;
    }

    fn has_hung_up(&self) -> bool {
        self.0.tcp.has_hung_up()
    }

    fn reset(&mut self) {
        self.0.outbound.give_up();
        self.0.tcp.reset();
    }

    fn socket(&self) -> Option<Arc<dyn AsFd>> {
        self.0.tcp.socket()
    }

    fn freeze(&self) -> Option<Vec<u8>> {
        let session = Self::freeze(self);
        Some(rmp_serde::to_vec_named(&session).expect("bug: plain data can be told"))
    }

    fn held(&self) -> usize {
        self.0.held()
    }

    fn is_paid_for(&mut self) {
        self.0.charge = None;
    }

    fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.0.wrote)
    }
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let session = &mut *self.0;
        loop {
            if !session.plaintext.is_empty() {
                let length = session.plaintext.len().min(buffer.len());
                buffer[..length].copy_from_slice(&session.plaintext[..length]);
                session.plaintext.drain(..length);
                if session.plaintext.is_empty() {
                    session.plaintext = Vec::new();
                }
                return Poll::Ready(Ok(length));
            }
            if let Some(failed) = session.failed.take() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failed)));
            }
            if session.has_ended || buffer.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let opened = if buffer.len() >= LONGEST_RECORD.max(session.records.len() + 1) {
                session.poll_records(cx, buffer)
            } else {
                let mut room = vec![0; LONGEST_RECORD.max(session.records.len() + 1)];
                session.poll_records(cx, &mut room).map_ok(|length| {
                    let taken = length.min(buffer.len());
                    buffer[..taken].copy_from_slice(&room[..taken]);
                    session.plaintext = room[taken..length].to_vec();
                    taken
                })
            };
            session.answer(cx);
            session.pay();
            match opened {
                Poll::Ready(Ok(0)) => {}
                other => return other,
            }
        }
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let session = &mut *self.0;
        // One batch waits here at most.
        ready!(session.poll_unsent(cx))?;
        let mut lent = session.scratch.lend();
        let sealed = session.outbound.seal(bytes, &mut lent[..SEALED_BATCH]);
        let (taken, sealed) =
            sealed.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
        let written = match Pin::new(&mut session.tcp).poll_write(cx, &lent[..sealed]) {
            Poll::Ready(Ok(written)) => {
                session.wrote = true;
                written
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => 0,
        };
        session.unsent = lent[written..sealed].to_vec();
        session.pay();
        if taken == 0 && !bytes.is_empty() {
            // These keys are used up, and there are no others.
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_unsent(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let session = &mut *self.0;
        session.outbound.close();
        ready!(session.poll_unsent(cx))?;
        Pin::new(&mut session.tcp).poll_close(cx)
    }
}

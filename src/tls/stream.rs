//! A TLS connection as a link drives it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use futures_rustls::server::TlsStream;

use crate::limits::{TLS_HELD, TLS_READ_BUFFER, TLS_WRITE_BUFFER};
use crate::net::transport::{Tcp, Transport};
use crate::queue::budget::{Account, Charge};

/// A TLS connection whose handshake is done. Boxed: a link weighs the same over TLS and without.
#[derive(Debug)]
pub(crate) struct Tls(Box<TlsStream<Ciphertext>>);

impl Tls {
    pub(super) fn new(stream: TlsStream<Ciphertext>) -> Self {
        Self(Box::new(stream))
    }
}

impl Transport for Tls {
    /// What rustls has decrypted and nobody has read makes no socket readable.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (ciphertext, session) = self.0.get_mut();
        if session.wants_read() { ciphertext.poll_readable(cx) } else { Poll::Ready(Ok(())) }
    }

    fn look_again(&mut self) {
        self.0.get_mut().0.drained = false;
    }

    fn has_hung_up(&self) -> bool {
        self.0.get_ref().0.tcp.has_hung_up()
    }

    fn reset(&mut self) {
        self.0.get_mut().0.tcp.reset();
    }

    /// What rustls holds for input, and records that the socket has not taken: of these the bound
    /// counts, rustls does not tell how many bytes they are.
    fn held(&self) -> usize {
        let (ciphertext, session) = self.0.get_ref();
        ciphertext.held() + if session.wants_write() { TLS_WRITE_BUFFER } else { 0 }
    }

    fn is_paid_for(&mut self) {
        let (ciphertext, _) = self.0.get_mut();
        (ciphertext.charge, ciphertext.buffered) = (None, 0);
    }

    fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.0.get_mut().0.wrote)
    }
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut *self.0).poll_read(cx, buffer);
        if read.is_ready() {
            self.0.get_mut().0.fruitless = 0;
        }
        match read {
            // The end of a WebSocket is told by its close frame; many peers send no close_notify.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Ok(0))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_close(cx)
    }
}

/// The TCP connection below: first what was read from it before TLS began, then itself.
#[derive(Debug)]
pub(crate) struct Ciphertext {
    tcp: Tcp,
    opening: Vec<u8>,
    /// The last read took all there was.
    drained: bool,
    /// The most that rustls's buffer had to hold since it was empty.
    buffered: usize,
    records: Records,
    /// Bytes read since the last that came to something.
    fruitless: usize,
    /// Pays until somebody else does.
    charge: Option<Charge>,
    /// Something was written since this was last asked.
    wrote: bool,
}

impl Ciphertext {
    /// `account` pays for what TLS holds until a link does.
    pub(super) fn new(tcp: Tcp, opening: Vec<u8>, account: &Rc<Account>) -> Self {
        let mut ciphertext = Self {
            tcp,
            opening,
            drained: false,
            buffered: 0,
            records: Records::default(),
            fruitless: 0,
            charge: Some(Charge::new(Rc::clone(account))),
            wrote: false,
        };
        ciphertext.pay();
        ciphertext
    }

    /// What rustls holds for input: its buffer doubles as it grows.
    fn held(&self) -> usize {
        TLS_HELD + (2 * self.buffered).min(TLS_READ_BUFFER)
    }

    /// Follows what goes to rustls. It gives back what its buffer has grown by with the first read
    /// after it was empty. In a handshake it keeps whole records until a message is complete.
    fn note(&mut self, bytes: &[u8]) {
        self.buffered = match self.charge {
            Some(_) => self.buffered + bytes.len(),
            None if self.records.begun == 0 => bytes.len(),
            None => self.buffered.max(self.records.begun + bytes.len()),
        };
        self.records.follow(bytes);
        self.pay();
    }

    fn pay(&mut self) {
        let held = self.held();
        if let Some(charge) = &mut self.charge {
            charge.set(held);
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.drained {
            return Poll::Ready(Ok(()));
        }
        let readable = self.tcp.poll_readable(cx);
        self.drained = readable.is_pending();
        readable
    }
}

impl AsyncRead for Ciphertext {
    /// A read of a socket that is known to be drained costs no system call.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if !this.opening.is_empty() {
            let length = this.opening.len().min(buffer.len());
            for (to, from) in buffer.iter_mut().zip(this.opening.drain(..length)) {
                *to = from;
            }
            if this.opening.is_empty() {
                this.opening = Vec::new();
            }
            this.note(&buffer[..length]);
            return Poll::Ready(Ok(length));
        }
        if this.fruitless >= FRUITLESS_BYTES {
            // The others get their turn. The socket does not count as drained.
            this.fruitless = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // An error shows itself to the read.
        if this.poll_readable(cx).is_pending() {
            this.fruitless = 0;
            return Poll::Pending;
        }
        let read = Pin::new(&mut this.tcp).poll_read(cx, buffer);
        match read {
            Poll::Pending => (this.drained, this.fruitless) = (true, 0),
            Poll::Ready(Ok(length)) => {
                this.fruitless += length;
                this.drained = length > 0 && length < buffer.len();
                this.note(&buffer[..length]);
            }
            Poll::Ready(Err(_)) => {}
        }
        read
    }
}

impl AsyncWrite for Ciphertext {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.wrote |= written.is_ready();
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        records: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, records);
        self.wrote |= written.is_ready();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_close(cx)
    }
}

/// Bytes that one turn reads at most without any of them coming to plaintext: the largest record and the
/// read that it ends in. rustls reads on as long as a peer sends records that hold none, such as
/// key updates, of which there are 750 in so many bytes.
const FRUITLESS_BYTES: usize = 20 * 1024;

/// Where the records of a peer begin and end (RFC 8446, section 5.1).
#[derive(Debug, Default)]
struct Records {
    header: [u8; 5],
    /// Bytes so far of the record in progress, its header included.
    begun: usize,
}

impl Records {
    fn follow(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if let Some(byte) = self.header.get_mut(self.begun) {
                *byte = *first;
                self.begun += 1;
                bytes = rest;
            } else {
                let taken = bytes.len().min(self.length() - self.begun);
                self.begun += taken;
                bytes = &bytes[taken..];
            }
            if self.begun >= self.header.len() && self.begun == self.length() {
                self.begun = 0;
            }
        }
    }

    /// Length of the record in progress, its header included.
    fn length(&self) -> usize {
        let [.., high, low] = self.header;
        self.header.len() + usize::from(u16::from_be_bytes([high, low]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_followed_wherever_they_are_split() {
        let record = |length: u8| [&[23, 3, 3, 0, length][..], &vec![7; length.into()]].concat();
        let bytes = [record(3), record(0), record(200)].concat();
        let ends = [8, 13, bytes.len()];
        for split in 0..bytes.len() {
            let mut records = Records::default();
            records.follow(&bytes[..split]);
            let last_end = ends.into_iter().filter(|end| *end <= split).max().unwrap_or(0);
            assert_eq!(records.begun, split - last_end, "at {split}");
            records.follow(&bytes[split..]);
            assert_eq!(records.begun, 0, "at {split}");
        }
    }
}

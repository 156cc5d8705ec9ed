//! A TLS connection as a link drives it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use futures_rustls::server::TlsStream;

use crate::limits::TLS_WRITE_BUFFER;
use crate::net::transport::{Tcp, Transport};

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

    fn reset(&mut self) {
        self.0.get_mut().0.tcp.reset();
    }

    /// A part of a record, and records that the socket has not taken: of these the bound counts,
    /// rustls does not tell how many bytes they are.
    fn held(&self) -> usize {
        let (ciphertext, session) = self.0.get_ref();
        ciphertext.undecrypted + if session.wants_write() { TLS_WRITE_BUFFER } else { 0 }
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
            self.0.get_mut().0.undecrypted = 0;
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
    /// Bytes that came since the last that were decrypted.
    undecrypted: usize,
    /// Something was written since this was last asked.
    wrote: bool,
}

impl Ciphertext {
    pub(super) fn new(tcp: Tcp, opening: Vec<u8>) -> Self {
        Self { tcp, opening, drained: false, undecrypted: 0, wrote: false }
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
            return Poll::Ready(Ok(length));
        }
        // An error shows itself to the read.
        if this.poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        let read = Pin::new(&mut this.tcp).poll_read(cx, buffer);
        match read {
            Poll::Pending => this.drained = true,
            Poll::Ready(Ok(length)) => {
                this.drained = length > 0 && length < buffer.len();
                this.undecrypted += length;
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

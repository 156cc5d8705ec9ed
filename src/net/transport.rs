//! The sockets underneath: what a link needs of one, and how TCP is set up for it.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Async;
use async_net::TcpStream;
use futures_lite::{AsyncRead, AsyncWrite};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use crate::limits::NOTSENT_LOWAT;
use crate::net::listen;
use crate::net::readiness::Readiness;

/// A socket as a link drives it.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Waits until a read is worth trying, after one that took all there was. A transport that
    /// cannot tell is always ready. Cancel safe.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes the next read ask the kernel, whatever the transport knows of its readiness; most know
    /// nothing.
    fn look_again(&mut self) {}

    /// Whether the connection is over, as the kernel knows it, whatever lies unread before its end. One whose
    /// peer has only shut down writing is not.
    fn has_hung_up(&self) -> bool;

    /// Makes the coming close a reset, so that nothing lingers in the kernel for a dead peer.
    fn reset(&mut self);

    /// The socket, for another program to go on with; `None` for what is none.
    fn socket(&self) -> Option<Arc<dyn AsFd>> {
        None
    }

    /// What this transport knows of the connection besides the socket, in MessagePack, if it knows anything.
    fn freeze(&self) -> Option<Vec<u8>> {
        None
    }

    /// From now on somebody else pays for what the transport holds.
    fn is_paid_for(&mut self) {}

    /// Bytes that the transport itself holds for the peer, at most: the link pays for them.
    fn held(&self) -> usize {
        0
    }

    /// Whether anything went out since this was last asked, of bytes that were accepted before.
    fn take_progress(&mut self) -> bool {
        false
    }
}

/// A TCP connection.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    /// Of the same socket: a read in vain would cost a system call, and a link is woken as often by
    /// its outbox as by its socket.
    readiness: Readiness<std::net::TcpStream>,
}

impl Tcp {
    /// Prepares an accepted socket: no delay for small frames, and no deep backlog in the kernel,
    /// where a pong would wait behind it and nobody would count it. What comes in is bounded here
    /// too: whoever waited in an inherited queue was received by the rules of another.
    pub(crate) fn prepare(stream: std::net::TcpStream) -> io::Result<Self> {
        let socket = SockRef::from(&stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
        listen::bound_receiving(&stream)?;
        let stream = TcpStream::try_from(stream)?;
        let readiness = Readiness::of(stream.clone().into());
        Ok(Self { stream, readiness })
    }
}

impl Transport for Tcp {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.readiness.poll(cx)
    }

    fn has_hung_up(&self) -> bool {
        let mut looked = [PollFd::new(&self.stream, PollFlags::empty())];
        let ends = PollFlags::HUP | PollFlags::ERR;
        // It does not wait; where it fails, the time will tell.
        poll(&mut looked, Some(&Timespec::default())).is_ok()
            && looked[0].revents().intersects(ends)
    }

    fn socket(&self) -> Option<Arc<dyn AsFd>> {
        let socket: Arc<Async<std::net::TcpStream>> = self.stream.clone().into();
        Some(socket)
    }

    fn reset(&mut self) {
        // Best effort: the close that follows is the same without it, only later.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

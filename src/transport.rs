//! The sockets underneath: what a link needs of one, and how TCP is set up for it.

use std::io;
use std::time::Duration;

use async_net::TcpStream;
use futures_lite::{AsyncRead, AsyncWrite};
use socket2::SockRef;

use crate::limits::NOTSENT_LOWAT;

/// A socket that can be cut off.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Makes the coming close a reset, so that nothing lingers in the kernel for a dead peer.
    fn reset(&mut self);
}

impl Transport for TcpStream {
    fn reset(&mut self) {
        // Best effort: the close that follows is the same without it, only later.
        let _ = SockRef::from(&*self).set_linger(Some(Duration::ZERO));
    }
}

/// Prepares an accepted socket: no delay for small frames, and no deep backlog in the kernel,
/// where a pong would wait behind it and nobody would count it.
pub fn prepare(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    TcpStream::try_from(stream)
}

//! A connection to a relay, plain or over TLS: the tests are the same.
//!
//! With `RELAY_TEST_TLS=1` the relays listen for TLS. What stays plain then, and why, is in [`super::plain`].

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;

use futures_lite::{AsyncRead, AsyncWrite};
use smol::Async;

use super::plain::Plain;
use super::secure::{self, Session};

/// Options for a listener on a free loopback port: one for TLS, in a run over TLS.
pub fn front() -> &'static [&'static str] {
    secure::front().unwrap_or(PLAIN)
}

/// The same, plain in any run.
pub fn plain(_why: Plain) -> &'static [&'static str] {
    PLAIN
}

/// Options for a plain listener and one for TLS, in any run.
pub fn both() -> Vec<&'static str> {
    [PLAIN, secure::options()].concat()
}

const PLAIN: &[&str] = &["--listen", "127.0.0.1:0"];

/// Where a relay listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// A connection to this alone is one that says nothing of TLS.
    pub at: SocketAddr,
    pub is_tls: bool,
}

impl From<SocketAddr> for Address {
    fn from(at: SocketAddr) -> Self {
        Self { at, is_tls: false }
    }
}

impl Address {
    /// In the line of the log that says where a program listens.
    pub fn in_line(line: &str) -> Self {
        let field = |name| line.split(' ').find_map(|field| field.strip_prefix(name));
        let at = field("address=").expect("the line tells the address");
        Self { at: at.parse().unwrap(), is_tls: field("tls=") == Some("true") }
    }
}

/// A socket whose bytes are sealed on their way, if that is what the other end expects.
///
/// A write over TLS takes nothing while a record of the one before is not all in the socket, and then has the
/// socket's own deadline: whoever does not read is noticed as without TLS, one record later at most.
pub struct Stream {
    tcp: TcpStream,
    session: Option<Box<Session>>,
}

impl Stream {
    /// With the handshake done, if there is one. If that fails, reads tell.
    pub fn meet(tcp: TcpStream, address: Address) -> Self {
        let session = address.is_tls.then(|| Box::new(Session::meet(&tcp)));
        Self { tcp, session }
    }

    /// Ends one direction or both; that of writing in order.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        if let (Some(session), Shutdown::Write) = (&mut self.session, how) {
            session.close(&self.tcp)?;
        }
        self.tcp.shutdown(how)
    }

    /// The socket of a plain connection.
    #[cfg(feature = "tls")]
    pub fn into_tcp(self) -> TcpStream {
        assert!(self.session.is_none(), "there is a session on it");
        self.tcp
    }
}

/// A connection of an executor, in either run.
pub trait Duplex: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Duplex for T {}

/// The same as [`Stream::meet`] for a socket of an executor; a handshake that fails is an error at once.
pub async fn secured(tcp: Async<TcpStream>, address: Address) -> io::Result<Pin<Box<dyn Duplex>>> {
    match address.is_tls {
        true => secure::secured(tcp).await,
        false => Ok(Box::pin(tcp)),
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { tcp, session: None }
    }
}

/// For options and deadlines.
impl Deref for Stream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.tcp
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.session {
            Some(session) => session.read(&self.tcp, buffer),
            None => self.tcp.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.session {
            Some(session) => session.write(&self.tcp, bytes),
            None => self.tcp.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.session {
            Some(session) => session.flush(&self.tcp),
            None => self.tcp.flush(),
        }
    }
}

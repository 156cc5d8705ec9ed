//! The run over TLS: one certificate for all relays of this process, and the client's sessions.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::pin::Pin;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use rustls::pki_types::ServerName;
use rustls::version::TLS12;
use rustls::{ClientConnection, ProtocolVersion};
use smol::Async;

use super::stream::Duplex;
use super::ws::is_timeout;
use crate::tls::client::{Client, NAME, pair};

/// What the relays show and the clients trust.
struct Shown {
    client: Client,
    options: Vec<&'static str>,
    /// The certificate and its key. They have no names, and are gone with this process.
    _files: [File; 2],
}

fn shown() -> &'static Shown {
    static SHOWN: OnceLock<Shown> = OnceLock::new();
    SHOWN.get_or_init(|| {
        let ((certificate, chain), key) = pair(|_| {});
        let files = [chain, key].map(|text| {
            let mut file = tempfile::tempfile().unwrap();
            file.set_permissions(Permissions::from_mode(0o600)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        });
        // As a program that this one starts finds them too.
        let paths = files.each_ref().map(|file| {
            let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            &*path.leak()
        });
        let options =
            vec!["--tls-listen", "127.0.0.1:0", "--tls-cert", paths[0], "--tls-key", paths[1]];
        let client = match asked_for().as_deref() {
            Some("1.2") => Client::speaking(&[&TLS12], &certificate),
            _ => Client::trusting(&certificate),
        };
        Shown { client, options, _files: files }
    })
}

/// Options for a listener.
pub fn options() -> &'static [&'static str] {
    &shown().options
}

/// The same, if this is a run over TLS.
pub fn front() -> Option<&'static [&'static str]> {
    asked_for().map(|_| options())
}

/// `1` for the newest version of TLS that both ends have, or a version.
fn asked_for() -> Option<String> {
    let value = std::env::var("RELAY_TEST_TLS").ok()?;
    assert!(
        ["1", "1.2"].contains(&&*value),
        "RELAY_TEST_TLS={value}: 1 or 1.2 would be a run over TLS"
    );
    Some(value)
}

/// The client's end of a TLS connection.
pub struct Session {
    tls: ClientConnection,
    /// Why there was no handshake, for the first read.
    refused: Option<io::Error>,
}

impl Session {
    /// Shakes hands within the socket's deadlines. If that fails, the first read tells.
    pub fn meet(tcp: &TcpStream) -> Self {
        let mut session = Self { tls: shown().client.session(NAME), refused: None };
        session.refused = session.shake_hands(tcp).err();
        session
    }

    /// To the last byte that belongs to it: a socket that is closed with the tickets unread would be reset.
    fn shake_hands(&mut self, mut tcp: &TcpStream) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut tcp)?;
        }
        if self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
            while self.tls.tls13_tickets_received() < TICKETS {
                self.receive(tcp)?;
            }
        }
        Ok(())
    }

    /// The end is one with a close_notify and without it.
    pub fn read(&mut self, tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(refused) =
            self.refused.take().filter(|error| error.kind() != ErrorKind::UnexpectedEof)
        {
            return Err(refused);
        }
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            match self.receive(tcp) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                received => received?,
            }
        }
    }

    /// Takes a record, or its beginning, from the socket.
    fn receive(&mut self, mut tcp: &TcpStream) -> io::Result<()> {
        self.send_until_readable(tcp)?;
        let read = self.tls.read_tls(&mut tcp)?;
        let processed = self.tls.process_new_packets();
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        if read == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Whoever waits for an answer has not said all of it if the end of a record is still here.
    fn send_until_readable(&mut self, tcp: &TcpStream) -> io::Result<()> {
        let patience = tcp.read_timeout()?.map(|time| Timespec::try_from(time).unwrap());
        while self.tls.wants_write() {
            let mut ready = [PollFd::new(tcp, PollFlags::IN | PollFlags::OUT)];
            if poll(&mut ready, patience.as_ref())? == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let ready = ready[0].revents();
            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
            match self.tls.write_tls(&mut AtOnce(tcp)) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes a record at most, and nothing before the socket has all of the last one.
    pub fn write(&mut self, mut tcp: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_handshaking() {
            // Nobody is there to seal it for. The socket has its say.
            return tcp.write(bytes);
        }
        self.flush(tcp)?;
        let taken = self.tls.writer().write(&bytes[..bytes.len().min(RECORD)])?;
        match self.flush(tcp) {
            // What is left goes first next time, whether that is a write or a read.
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => Ok(taken),
            flushed => flushed.map(|()| taken),
        }
    }

    pub fn flush(&mut self, mut tcp: &TcpStream) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut tcp)?;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub fn close(&mut self, tcp: &TcpStream) -> io::Result<()> {
        self.tls.send_close_notify();
        self.flush(tcp)
    }
}

/// Writes that do not wait, on a socket whose other writes do.
struct AtOnce<'a>(&'a TcpStream);

impl io::Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same for a socket of an executor.
pub async fn secured(tcp: Async<TcpStream>) -> io::Result<Pin<Box<dyn Duplex>>> {
    let stream =
        shown().client.connector().connect(ServerName::try_from(NAME).unwrap(), tcp).await?;
    Ok(Box::pin(stream))
}

/// Bytes of a message in the longest record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;
/// What rustls sends at the end of a handshake of TLS 1.3.
const TICKETS: u32 = 2;

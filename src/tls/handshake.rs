//! A handshake by rustls's unbuffered API, up to where keys and counters alone are needed.
//!
//! rustls is shown one record after the other, and none that comes behind the handshake.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use futures_lite::future::yield_now;
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use rustls::server::{Accepted, Acceptor, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError};
use rustls::{
    AlertDescription, Error, InvalidMessage, KeyLog, PeerIncompatible, PeerMisbehaved,
    ProtocolVersion, ServerConfig,
};

use super::keys::{HEADER, Keys, Secret};
use super::record::{Inbound, LONGEST_RECORD, Outbound};
use super::stream::Tls;
use crate::limits::{CLIENT_HELLO_BYTES, TLS_HANDSHAKE_HELD};
use crate::net::scratch::Scratch;
use crate::net::transport::Tcp;
use crate::queue::budget::{Account, Charge};

/// Hears the traffic secrets of a handshake: rustls tells them to nobody else, and without them no key could be
/// followed by another. One thread shakes hands, so whatever was told in a step is that connection's.
#[derive(Debug, Default)]
pub(super) struct Secrets(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    client: Option<Secret>,
    server: Option<Secret>,
}

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => heard.client = Secret::new(secret),
            "SERVER_TRAFFIC_SECRET_0" => heard.server = Secret::new(secret),
            _ => {}
        }
    }
}

impl Secrets {
    /// The configuration whose handshakes are heard here and give their keys away.
    pub(super) fn heard_of(self: &Arc<Self>, mut config: ServerConfig) -> ServerConfig {
        config.enable_secret_extraction = true;
        config.key_log = Arc::clone(self) as Arc<dyn KeyLog>;
        config
    }

    /// What was heard since this was last asked.
    fn take(&self) -> Heard {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A socket, and the records of its peer that nobody has looked at.
#[derive(Debug)]
pub(super) struct Opening {
    tcp: Tcp,
    received: Vec<u8>,
    /// Pays until somebody else does.
    charge: Charge,
}

impl Opening {
    /// `received` is what was read from `tcp` before; `account` pays for what a handshake holds.
    pub(super) fn new(tcp: Tcp, received: Vec<u8>, account: &Rc<Account>) -> Self {
        let mut opening = Self { tcp, received, charge: Charge::new(Rc::clone(account)) };
        opening.pay();
        opening
    }

    fn pay(&mut self) {
        self.charge.set(TLS_HANDSHAKE_HELD + self.received.capacity());
    }

    /// Reads more: what is there, as far as it is of about this length.
    async fn read(&mut self, missing: usize) -> io::Result<()> {
        const ABOUT: usize = 1024;
        let length = self.received.len();
        let more = missing.max(ABOUT);
        self.received.reserve_exact(more);
        self.received.resize(length + more, 0);
        self.pay();
        let read = self.tcp.read(&mut self.received[length..]).await;
        self.received.truncate(length + read.as_ref().map_or(0, |read| *read));
        match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads the client's first message to its end (RFC 8446, section 4.1.2). One that is too long is refused.
    pub(super) async fn read_client_hello(&mut self) -> io::Result<()> {
        loop {
            match missing(&self.received) {
                0 => return Ok(()),
                usize::MAX => {
                    self.refuse(&fatal(AlertDescription::DecodeError)).await?;
                    let why = "the ClientHello is longer than 16 KiB";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                missing => self.read(missing).await?,
            }
        }
    }

    /// What the client wants. If that is no handshake, the error is what it is to be told.
    pub(super) fn client_hello(&self) -> Result<Accepted, (Error, Vec<u8>)> {
        let mut acceptor = Acceptor::default();
        let mut unseen = &self.received[..];
        while !unseen.is_empty() && acceptor.read_tls(&mut unseen).is_ok_and(|read| read > 0) {}
        let (error, mut alert) = match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => return Err((Error::HandshakeNotComplete, Vec::new())),
            Err(refused) => refused,
        };
        let mut told = Vec::new();
        // A vector takes everything.
        let _ = alert.write_all(&mut told);
        if let Some(description) = self.better_alert(&error) {
            told = fatal(description).to_vec();
        }
        Err((error, told))
    }

    /// The alert that the RFCs ask for where rustls has another one or none.
    fn better_alert(&self, error: &Error) -> Option<AlertDescription> {
        match error {
            // It would look at the version later (RFC 5246, appendix E.1).
            Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired)
                if version(&self.received) < u16::from(ProtocolVersion::TLSv1_2) =>
            {
                Some(AlertDescription::ProtocolVersion)
            }
            Error::InappropriateHandshakeMessage { .. } => {
                Some(AlertDescription::UnexpectedMessage)
            }
            _ => None,
        }
    }

    /// Says why there is no handshake.
    pub(super) async fn refuse(&mut self, alert: &[u8]) -> io::Result<()> {
        self.tcp.write_all(alert).await
    }

    /// Goes through the handshake to its end. The client's first message has been read.
    pub(super) async fn shake(
        mut self,
        config: Arc<ServerConfig>,
        secrets: &Secrets,
        scratch: &Rc<Scratch>,
    ) -> io::Result<Tls> {
        let mut shaking = Shaking::new(config).map_err(invalid)?;
        loop {
            match shaking.go_on(&mut self.received, secrets) {
                Next::Send(bytes) => self.tcp.write_all(&bytes).await?,
                Next::Read => {
                    self.read(0).await?;
                    // However much there is of it, the others get their turn.
                    yield_now().await;
                }
                Next::Fail(error, bytes) => {
                    // Whether the peer hears it or not.
                    let _ = self.tcp.write_all(&bytes).await;
                    return Err(invalid(error));
                }
                Next::Finish => break,
            }
        }
        let (inbound, outbound) = shaking.finish().map_err(invalid)?;
        Ok(Tls::new(self.tcp, self.received, self.charge, inbound, outbound, scratch))
    }
}

/// How many bytes of the client's first message are missing at least, as far as its head and its records tell;
/// `usize::MAX` if it may not be that long. With the headers of its records it may be as long as a record: rustls takes
/// no more at once.
pub(super) fn missing(received: &[u8]) -> usize {
    let (mut at, mut message, mut head) = (0, 0, [0; 4]);
    while let Some([kind, .., high, low]) = received[at..].first_chunk::<HEADER>() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != HANDSHAKE || length == 0 || length > LONGEST_RECORD {
            // rustls says what is wrong with it.
            return 0;
        }
        let payload = &received[at + HEADER..];
        let payload = &payload[..payload.len().min(length)];
        // Several records may share the head.
        for (byte, seen) in head.iter_mut().skip(message).zip(payload) {
            *byte = *seen;
        }
        let [_, high, middle, low] = head.map(usize::from);
        let is_announced = message + payload.len() >= head.len();
        let announced = is_announced.then_some(head.len() + (high << 16 | middle << 8 | low));
        let longest = announced.unwrap_or(0).max(message + length);
        if longest > CLIENT_HELLO_BYTES || at + HEADER + length > LONGEST_RECORD {
            return usize::MAX;
        }
        if payload.len() < length {
            return length - payload.len();
        }
        message += length;
        if announced.is_some_and(|announced| message >= announced) {
            return 0;
        }
        at += HEADER + length;
    }
    received[at..].len().abs_diff(HEADER).max(1)
}

/// The version of the ClientHello at the beginning of `received`, unless its first record ends before.
fn version(received: &[u8]) -> u16 {
    let version = received.get(HEADER + 4..HEADER + 6).and_then(|bytes| bytes.try_into().ok());
    version.map_or(u16::MAX, u16::from_be_bytes)
}

/// A handshake, without a socket.
pub(super) struct Shaking {
    connection: Box<UnbufferedServerConnection>,
    heard: Heard,
    /// As much of what was received is rustls's to see.
    shown: usize,
}

/// What a handshake needs.
pub(super) enum Next {
    /// These bytes are for the peer.
    Send(Vec<u8>),
    /// More from the peer.
    Read,
    /// Nothing: it has failed, and the bytes say so.
    Fail(Error, Vec<u8>),
    /// Nothing: it is done.
    Finish,
}

impl Shaking {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let connection = Box::new(UnbufferedServerConnection::new(config)?);
        Ok(Self { connection, heard: Heard::default(), shown: 0 })
    }

    /// Goes on with what was `received`, of which it takes away what it needs no more.
    pub(super) fn go_on(&mut self, received: &mut Vec<u8>, secrets: &Secrets) -> Next {
        loop {
            drop(secrets.take());
            let mut step = step(&mut self.connection, &mut received[..self.shown]);
            let now = secrets.take();
            self.heard.client = now.client.or(self.heard.client.take());
            self.heard.server = now.server.or(self.heard.server.take());
            received.drain(..step.used);
            self.shown -= step.used;
            if let Some(error) = step.failed {
                // The alert has what rustls has to say about it.
                step.to_send.extend(step_after_failure(&mut self.connection));
                return Next::Fail(error, step.to_send);
            }
            if !step.to_send.is_empty() {
                return Next::Send(step.to_send);
            }
            if !self.connection.is_handshaking() {
                if self.shown > 0 {
                    // A message has begun in the record that ended the handshake, whose keys are over.
                    let error = PeerMisbehaved::KeyEpochWithPendingFragment.into();
                    return Next::Fail(error, Vec::new());
                }
                return Next::Finish;
            }
            match record(&received[self.shown..]) {
                // No protected record is that short (RFC 8446, section 5.2). rustls would skip it as early data that
                // was refused, without end, since it counts for nothing.
                Some(length) if received[self.shown] == DATA && length < SHORTEST_PROTECTED => {
                    return Next::Fail(InvalidMessage::MessageTooShort.into(), Vec::new());
                }
                Some(length) => self.shown += length,
                None if self.shown > CLIENT_HELLO_BYTES => {
                    return Next::Fail(InvalidMessage::HandshakePayloadTooLarge.into(), Vec::new());
                }
                None => return Next::Read,
            }
        }
    }

    /// What follows the handshake.
    pub(super) fn finish(self) -> Result<(Inbound, Outbound), Error> {
        let (secrets, kernel) = self.connection.dangerous_into_kernel_connection()?;
        let suite = kernel.negotiated_cipher_suite();
        let inbound = Keys::new(suite, secrets.rx, self.heard.client)?;
        let outbound = Keys::new(suite, secrets.tx, self.heard.server)?;
        Ok((Inbound::new(inbound), Outbound::new(outbound)))
    }
}

/// Length of the record at the beginning of `bytes`, if all of it is there. Of one that is longer than any may be,
/// all that is there: rustls says what is wrong with it.
fn record(bytes: &[u8]) -> Option<usize> {
    let [.., high, low] = *bytes.first_chunk::<HEADER>()?;
    let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_RECORD {
        return Some(bytes.len());
    }
    (bytes.len() >= length).then_some(length)
}

/// What came of showing rustls what was received.
#[derive(Default)]
struct Step {
    used: usize,
    to_send: Vec<u8>,
    failed: Option<Error>,
}

fn step(connection: &mut UnbufferedServerConnection, received: &mut [u8]) -> Step {
    let mut step = Step::default();
    loop {
        let status = connection.process_tls_records(&mut received[step.used..]);
        let used = status.discard;
        let is_settled = match status.state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut step.to_send);
                false
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                true
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => true,
            Ok(_) => {
                step.failed = Some(Error::General("data before its time".to_owned()));
                true
            }
            Err(error) => {
                step.failed = Some(error);
                true
            }
        };
        step.used += used;
        if is_settled {
            return step;
        }
    }
}

/// What is still to be said when a handshake has failed. rustls reads on behind its last word, and panics if it does
/// not find what it has left unread: it is asked for no more than it has to say.
fn step_after_failure(connection: &mut UnbufferedServerConnection) -> Vec<u8> {
    let mut to_send = Vec::new();
    while connection.wants_write() {
        let status = connection.process_tls_records(&mut []);
        let Ok(ConnectionState::EncodeTlsData(data)) = status.state else { break };
        encode(data, &mut to_send);
    }
    to_send
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, to: &mut Vec<u8>) {
    let length = to.len();
    while let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        data.encode(&mut to[length..])
    {
        to.resize(length + required_size, 0);
    }
}

/// The record of an alert before there are keys (RFC 8446, section 6).
pub(super) fn fatal(description: AlertDescription) -> [u8; HEADER + 2] {
    [ALERT, 3, 3, 0, 2, FATAL, u8::from(description)]
}

/// Length of a record with a tag and a content type, and nothing else.
const SHORTEST_PROTECTED: usize = HEADER + 17;
/// Content types and a level of RFC 8446, sections 5.1 and 6.
const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;
const FATAL: u8 = 2;

pub(super) fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

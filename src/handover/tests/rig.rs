//! A relay in this process, and its peers at the other ends of real sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use relay_test_kit::frame::{Received, TEXT, encode};
use smol::LocalExecutor;

use crate::admission::heads::Heads;
use crate::clock::{self, Timer};
use crate::config::{Config, Options};
use crate::connection;
use crate::handover::format::{self, State};
use crate::handover::taken::Taken;
use crate::net::transport::Tcp;
use crate::origin::Origin;
use crate::relay::Relay;
use crate::signals::Stop;

/// How long a peer waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Rig {
    pub(super) relay: Rc<Relay>,
    heads: Rc<Heads>,
    executor: LocalExecutor<'static>,
}

/// The other end of a connection.
pub(super) struct Peer {
    socket: TcpStream,
    received: Vec<u8>,
    pub(super) is_at_end: bool,
}

pub(super) fn config() -> Config {
    let arguments =
        ["pyrycode-relay", "--max-frame-bytes", "4KiB", "--max-slot-queue-bytes", "64KiB"];
    Config::from_options(Options::parse_arguments(arguments).unwrap()).unwrap()
}

/// Two ends of a connection.
fn pair() -> (TcpStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    accepted.set_nonblocking(true).unwrap();
    (accepted, Peer { socket, received: Vec::new(), is_at_end: false })
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::of(Relay::new(config(), Stop::new()))
    }

    fn of(relay: Rc<Relay>) -> Self {
        Self { relay, heads: Heads::new(16), executor: LocalExecutor::new() }
    }

    /// Somebody connects.
    pub(super) fn connect(&self) -> Peer {
        let (accepted, peer) = pair();
        let remote = accepted.peer_addr().unwrap().ip();
        let io = smol::block_on(async { Tcp::prepare(accepted) }).unwrap();
        let entry = self.heads.enter(Origin::of(remote), None);
        let serial = entry.serial();
        let serving = connection::serve(Rc::clone(&self.relay), io, remote, entry);
        self.heads.adopt(serial, self.executor.spawn(serving));
        peer
    }

    /// Somebody connects, and is upgraded.
    pub(super) fn join(&self, leg: &str, server: &str) -> Peer {
        let mut peer = self.connect();
        peer.send(request(leg, server).as_bytes());
        self.await_upgrade(&mut peer);
        peer
    }

    pub(super) fn await_upgrade(&self, peer: &mut Peer) {
        let mut end = None;
        self.until(peer, |peer| {
            end = peer.received.windows(4).position(|four| four == b"\r\n\r\n");
            end.is_some()
        });
        let answer = peer.received.drain(..end.unwrap() + 4).collect::<Vec<_>>();
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    }

    /// The relay works for a moment.
    pub(super) fn work(&self, time: Duration) {
        let over = Timer::after(time);
        smol::block_on(self.executor.run(over));
    }

    /// The relay works until its peer has seen what it waits for.
    fn until(&self, peer: &mut Peer, mut is_seen: impl FnMut(&mut Peer) -> bool) {
        let until = clock::now() + PATIENCE;
        loop {
            peer.read();
            if is_seen(peer) {
                return;
            }
            assert!(clock::now() < until, "in vain; received: {}", peer.received.escape_ascii());
            self.work(Duration::from_millis(1));
        }
    }

    /// The next `count` frames that the peer is sent; the relay's own pings are none.
    pub(super) fn frames(&self, peer: &mut Peer, count: usize) -> Vec<Received> {
        let mut frames = Vec::new();
        self.until(peer, |peer| {
            frames.extend(peer.take_frames());
            frames.len() >= count
        });
        assert_eq!(frames.len(), count, "{frames:?}");
        frames
    }

    /// The next `count` messages.
    pub(super) fn texts(&self, peer: &mut Peer, count: usize) -> Vec<String> {
        let frames = self.frames(peer, count).into_iter();
        frames.map(|frame| String::from_utf8(frame.payload).unwrap()).collect()
    }

    /// What the peer is closed with, whatever comes before.
    pub(super) fn close_of(&self, peer: &mut Peer) -> (u16, String) {
        let mut close = None;
        self.until(peer, |peer| {
            let frames = peer.take_frames();
            close = frames.iter().find(|frame| frame.opcode == 0x8).map(Received::close);
            close.is_some()
        });
        close.unwrap()
    }

    /// Waits until so many connections are left.
    pub(super) fn await_connections(&self, count: usize) {
        let until = clock::now() + PATIENCE;
        while self.relay.permits.taken() != count {
            assert!(clock::now() < until, "{} connections", self.relay.permits.taken());
            self.work(Duration::from_millis(1));
        }
    }

    pub(super) fn await_end(&self, peer: &mut Peer) {
        self.until(peer, |peer| peer.is_at_end);
    }

    /// What the relay is, as it is handed over, and its sockets.
    pub(super) fn freeze(&self) -> (Vec<u8>, Vec<(TcpStream, bool)>) {
        let mut bytes = Vec::new();
        let written = format::write(&self.relay, &mut bytes, clock::now()).unwrap();
        let sockets = written.connections.into_iter().map(|(socket, may_be_told)| {
            (TcpStream::from(socket.as_fd().try_clone_to_owned().unwrap()), may_be_told)
        });
        (bytes, sockets.collect())
    }

    /// A relay that goes on with a state.
    pub(super) fn thaw(state: Result<State, String>, sockets: Vec<(TcpStream, bool)>) -> Self {
        let (relay, tls, metrics) = (Vec::new(), Vec::new(), Vec::new());
        let mut taken = Taken { relay, tls, metrics, state, connections: sockets };
        let now = clock::now();
        let rig = Self::of(match taken.take_relay() {
            Some(frozen) => Relay::thaw(config(), Stop::new(), None, frozen, now),
            None => Relay::new(config(), Stop::new()),
        });
        smol::block_on(async { taken.thaw(&rig.relay, &rig.heads, &rig.executor) });
        rig
    }

    /// A relay that goes on with a state of which there are no sockets any more, and its new peers in the order of
    /// the connections.
    pub(super) fn revive(bytes: &[u8]) -> (Self, Vec<Peer>) {
        let state = format::read(bytes).unwrap();
        let pairs = state.connections.iter().map(|_| pair());
        let (sockets, peers): (Vec<_>, Vec<_>) = pairs.unzip();
        let sockets = sockets.into_iter().map(|socket| (socket, true)).collect();
        (Self::thaw(Ok(state), sockets), peers)
    }
}

impl Peer {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        // Whoever has gone meanwhile hears nothing; what the peer waits for then does not come.
        let _ = self.socket.write_all(bytes);
    }

    pub(super) fn say(&mut self, text: &str) {
        self.send(&encode(true, TEXT, text.as_bytes()));
    }

    fn read(&mut self) {
        let mut buffer = [0; 65_536];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.is_at_end = true,
                Ok(length) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.is_at_end = true,
            }
            return;
        }
    }

    /// Whole frames, pings aside.
    fn take_frames(&mut self) -> Vec<Received> {
        let (frames, rest) = Received::decode_all(&self.received);
        let rest = rest.to_vec();
        self.received = rest;
        frames.into_iter().filter(|frame| frame.opcode != 0x9).collect()
    }
}

pub(super) fn request(leg: &str, server: &str) -> String {
    format!(
        "GET /v1/{leg} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         X-Pyrycode-Server: {server}\r\nX-Pyrycode-Version: 1\r\nX-Pyrycode-Token: t\r\n\
         User-Agent: test\r\n\r\n"
    )
}

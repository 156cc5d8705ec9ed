//! Whole connections over pipes in memory: binaries and phones of one relay, from their first byte
//! to their end, as the input scripts them.
//!
//! Whatever happens: nothing panics or spins, what the peers get is well-formed and is what other
//! peers sent, and at the end nothing of it is left in the relay.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use httparse::Header;
use pyrycode_relay::admission::heads::Heads;
use pyrycode_relay::config::{Config, Options};
use pyrycode_relay::connection;
use pyrycode_relay::envelope::{Action, Envelope};
use pyrycode_relay::http::gate::{Admission, Caller, Judgement, Refusal, Role, judge};
use pyrycode_relay::http::proxy_header::{self, ProxyHeader};
use pyrycode_relay::leg::Leg;
use pyrycode_relay::limits::MAX_HEADS;
use pyrycode_relay::origin::Origin;
use pyrycode_relay::queue::budget::Account;
use pyrycode_relay::registry::Counts;
use pyrycode_relay::relay::Relay;
use pyrycode_relay::signals::Stop;
use serde_json::Value;

use super::pipe::{End, Far, pipe};
use super::reference::{self, Written};

/// Runs a script: a byte of options, then operations of an opcode and its arguments. Whatever the
/// bytes are, they are a script.
pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let Some(options) = script.byte() else { return };
    let mut world = World::new(options);
    while let Some(operation) = script.byte() {
        world.step(operation & 0x7f, &mut script);
        // Otherwise it happens together with the next one.
        if operation & 0x80 == 0 {
            world.settle();
        }
    }
    world.finish();
}

/// Largest message of a phone, in bytes. Everything is small, so that short scripts reach limits.
const LARGEST: usize = 512;
const MOST_PEERS: usize = 12;
/// Turns without an end in which no peer does anything.
const TURNS: usize = 20_000;
const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HOUR: Duration = Duration::from_secs(3600);

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// An argument; zero at the end of the script.
    fn argument(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    /// A length of one byte, and as many bytes as there are of it.
    fn bytes(&mut self) -> &'a [u8] {
        let length = self.argument().min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

struct World {
    relay: Rc<Relay>,
    heads: Rc<Heads>,
    peers: Vec<Peer>,
    /// Connection ids that a binary has been told.
    known: Vec<String>,
    /// Memory that others hold.
    outsiders: Vec<Rc<Account>>,
}

struct Peer {
    far: Far,
    sent: Vec<u8>,
    task: Option<Pin<Box<dyn Future<Output = ()>>>>,
    wakes: Arc<Wakes>,
    /// Output that has been looked at for connection ids.
    seen: usize,
}

struct Wakes(AtomicBool);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    fn new(options: u8) -> Self {
        let relay = Relay::new(config(options), Stop::new());
        let source = |number| Origin::V4([9, 9, 9, number]);
        let outsiders =
            (0..64).map(|number| Account::open(&relay.ledger, source(number))).collect();
        Self {
            heads: Heads::new(MAX_HEADS),
            peers: Vec::new(),
            known: Vec::new(),
            outsiders,
            relay,
        }
    }

    fn step(&mut self, operation: u8, script: &mut Script<'_>) {
        match operation % 15 {
            0 => self.connect(),
            1 | 2 => {
                let server = ["a", "b", "a&\"\\"][script.argument() % 3];
                self.connect();
                let last = self.peers.len().saturating_sub(1);
                if self.relay.config.proxies.send_header_from(REMOTE) {
                    self.send(last, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
                }
                self.send(last, request(operation % 15 == 1, server).as_bytes());
            }
            3 => {
                let peer = script.argument();
                self.send(peer, script.bytes());
            }
            4 => {
                let (peer, first) = (script.argument(), script.byte().unwrap_or(0));
                self.send(peer, &frame(first, script.bytes()));
            }
            5 => {
                let peer = script.argument();
                self.send(peer, &frame(0x81, script.bytes()));
            }
            6 => self.send_envelope(script),
            7 => {
                let (peer, room) = (script.argument(), script.argument());
                if let Some(peer) = self.peer(peer) {
                    peer.far.set_room(if room == 255 { usize::MAX } else { room * room });
                }
            }
            8 => {
                let (peer, how) = (script.argument(), script.argument());
                if let Some(peer) = self.peer(peer) {
                    peer.far.end(if how % 2 == 0 { End::Finished } else { End::Reset });
                }
            }
            9 => {
                let peer = script.argument();
                let cancelled = self.peer(peer).and_then(|peer| peer.task.take());
                drop(cancelled);
            }
            10 => {
                let (peer, portion) = (script.argument(), script.argument());
                if let Some(peer) = self.peer(peer) {
                    peer.far.set_portion(portion);
                }
            }
            11 => self.relay.registry.expire(Instant::now() + 2 * HOUR),
            12 => {
                let bytes = script.argument() * 400;
                for outsider in &self.outsiders {
                    outsider.sub(outsider.held());
                    outsider.add(bytes / 64);
                }
                self.relay.registry.relieve();
            }
            13 => self.answer_pings(script.argument()),
            _ => {
                let (peer, length) = (script.argument(), script.argument() * 8);
                let text = format!("\"{}\"", "7".repeat(length));
                self.send(peer, &frame(0x81, text.as_bytes()));
            }
        }
    }

    fn peer(&mut self, index: usize) -> Option<&mut Peer> {
        let count = self.peers.len().max(1);
        self.peers.get_mut(index % count)
    }

    fn connect(&mut self) {
        if self.peers.len() == MOST_PEERS {
            return;
        }
        let (near, far) = pipe();
        // As the accept loop has it: behind a proxy nobody knows yet whose connection it is.
        let is_own = !self.relay.config.proxies.trusts(REMOTE);
        let source = Origin::of(REMOTE);
        let room = is_own.then(|| self.relay.permits.room(source));
        let entry = self.heads.enter(source, room);
        let task = Box::pin(connection::serve(Rc::clone(&self.relay), near, REMOTE, entry));
        let wakes = Arc::new(Wakes(AtomicBool::new(true)));
        self.peers.push(Peer { far, sent: Vec::new(), task: Some(task), wakes, seen: 0 });
    }

    fn send(&mut self, index: usize, bytes: &[u8]) {
        if let Some(peer) = self.peer(index) {
            peer.far.send(bytes);
            peer.sent.extend_from_slice(bytes);
        }
    }

    /// A well-formed envelope for a phone that some binary knows.
    fn send_envelope(&mut self, script: &mut Script<'_>) {
        let (peer, phone, code) = (script.argument(), script.argument(), script.argument());
        let message = script.bytes();
        let Some(id) = self.known.get(phone % self.known.len().max(1)) else { return };
        let mut text = format!("{{\"conn_id\":{}", Value::from(id.as_str())).into_bytes();
        if code % 4 != 3 {
            text.extend_from_slice(b",\"frame\":");
            text.extend_from_slice(if message.is_empty() { b"null" } else { message });
        }
        if code % 4 >= 2 {
            let codes = [1000, 1001, 1005, 4401, 4421, 65_535, 0, 99_999];
            text.extend_from_slice(format!(",\"close_code\":{}", codes[code / 4 % 8]).as_bytes());
        }
        text.push(b'}');
        self.send(peer, &frame(0x81, &text));
    }

    fn answer_pings(&mut self, index: usize) {
        let Some(peer) = self.peer(index) else { return };
        let pongs: Vec<_> = written(&peer.far.output())
            .into_iter()
            .filter_map(|written| match written {
                Written::Ping(payload) => Some(frame(0x8a, &payload)),
                _ => None,
            })
            .collect();
        self.send(index, &pongs.concat());
    }

    /// Runs the tasks until nobody has anything to do.
    fn settle(&mut self) {
        for _ in 0..TURNS {
            let mut idle = true;
            for peer in &mut self.peers {
                let Some(task) = &mut peer.task else { continue };
                if !peer.wakes.0.swap(false, Ordering::Relaxed) {
                    continue;
                }
                idle = false;
                let waker = Waker::from(Arc::clone(&peer.wakes));
                if task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
                    peer.task = None;
                }
            }
            if idle {
                self.learn_ids();
                return;
            }
        }
        panic!("the relay spins");
    }

    fn learn_ids(&mut self) {
        for peer in &mut self.peers {
            let output = peer.far.output();
            if output.len() == peer.seen {
                continue;
            }
            peer.seen = output.len();
            for (id, _) in envelopes(&output) {
                if !self.known.contains(&id) {
                    self.known.push(id);
                }
            }
        }
    }

    /// Everybody reads and goes; the grace windows pass. Then nothing may be left.
    fn finish(mut self) {
        self.outsiders.iter().for_each(|outsider| outsider.sub(outsider.held()));
        for peer in &self.peers {
            peer.far.set_portion(usize::MAX);
            peer.far.set_room(usize::MAX);
        }
        self.settle();
        for peer in &self.peers {
            peer.far.end(End::Finished);
        }
        self.settle();
        self.relay.registry.expire(Instant::now() + 2 * HOUR);
        self.settle();

        for (index, peer) in self.peers.iter().enumerate() {
            assert!(peer.task.is_none(), "connection {index} goes on without a peer");
        }
        assert_eq!(self.relay.registry.counts(), Counts::default());
        assert_eq!(self.relay.ledger.total(), 0, "bytes on the ledger");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(self.relay.permits.poll_all_back(&mut cx).is_ready(), "a permit is missing");
        assert_eq!(Rc::strong_count(&self.heads), 1, "a head in progress");
        assert_eq!(Rc::strong_count(&self.relay.registry), 1, "a seat");
        assert_eq!(Rc::strong_count(&self.relay), 1, "a connection");
        self.check_traffic();
    }

    /// What a peer got is what others sent it: whole messages, in order, none twice on one
    /// connection.
    fn check_traffic(&self) {
        let (mut from_phones, mut directed) = (Vec::new(), Vec::new());
        for peer in &self.peers {
            let Some((binary, behind)) = self.upgraded(&peer.sent) else { continue };
            let largest = if binary { LARGEST + 1024 } else { LARGEST };
            let messages = reference::messages(behind, largest).into_iter().flatten();
            if binary {
                directed.push(messages.filter_map(|text| self::directed(&text)).collect());
            } else {
                from_phones.push(messages.collect::<Vec<_>>());
            }
        }
        for peer in &self.peers {
            let output = peer.far.output();
            match self.upgraded(&peer.sent) {
                Some((true, _)) => check_binary(&output, &from_phones),
                Some((false, _)) => check_phone(&output, &directed),
                None => {}
            }
        }
    }

    /// Whether a binary or a phone sent this, if its head is good, and what follows the head.
    fn upgraded<'a>(&self, mut sent: &'a [u8]) -> Option<(bool, &'a [u8])> {
        if self.relay.config.proxies.send_header_from(REMOTE) {
            let ProxyHeader::Complete { length, .. } = proxy_header::parse(sent) else {
                return None;
            };
            sent = &sent[length..];
        }
        match judge(sent, &mut Anybody) {
            Judgement::Admitted(Admission::Upgrade(upgrade), length) => {
                Some((matches!(upgrade.role, Role::Binary { .. }), &sent[length..]))
            }
            _ => None,
        }
    }
}

/// Somebody of whom the gate wants nothing.
struct Anybody;

impl Caller for Anybody {
    fn introduce(&mut self, _fields: &[Header<'_>]) {}

    fn attempt(&mut self, _endpoint: Leg) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What a binary got of one phone are messages of that phone, one behind the other.
fn check_binary(output: &[u8], from_phones: &[Vec<String>]) {
    let envelopes = envelopes(output);
    let ids: BTreeSet<_> = envelopes.iter().map(|(id, _)| id.as_str()).collect();
    let servers: BTreeSet<_> = ids.iter().map(|id| &id[..id.len() - 17]).collect();
    assert!(servers.len() <= 1, "a binary hears of the phones of its own server-id");
    for id in ids {
        let of_it = envelopes.iter().filter(|(to, _)| to == id);
        let frames: Vec<_> = of_it.clone().filter_map(|(_, frame)| frame.clone()).collect();
        let of_one =
            |messages: &Vec<String>| messages.windows(frames.len()).any(|run| run == frames);
        assert!(frames.is_empty() || from_phones.iter().any(of_one), "{frames:?}");
        let notice = of_it.clone().position(|(_, frame)| frame.is_none());
        assert!(notice.is_none_or(|at| at + 1 == of_it.count()), "a notice is the last word");
    }
}

/// What a phone got was sent to one connection id; by one binary, in order.
fn check_phone(output: &[u8], directed: &[Vec<(String, String)>]) {
    let texts: Vec<_> = written(output)
        .into_iter()
        .filter_map(|written| match written {
            Written::Text(text) => Some(text),
            _ => None,
        })
        .collect();
    let of_one = |id: &str| {
        let of_binary = |binary: &Vec<(String, String)>| {
            let frames = binary.iter().filter(|(to, _)| to == id).map(|(_, frame)| frame.clone());
            frames.collect::<Vec<_>>()
        };
        let lists: Vec<_> =
            directed.iter().map(of_binary).filter(|frames| !frames.is_empty()).collect();
        match &lists[..] {
            [frames] => frames.starts_with(&texts),
            // They took turns in an order that their scripts do not tell.
            _ => texts.iter().all(|text| lists.iter().flatten().any(|frame| frame == text)),
        }
    };
    let addressed: BTreeSet<_> = directed.iter().flatten().map(|(to, _)| to).collect();
    assert!(texts.is_empty() || addressed.iter().any(|id| of_one(id)), "{texts:?}");
}

/// The configuration for an option byte; parsing a command line takes longer than a script.
fn config(options: u8) -> Config {
    thread_local! {
        static CONFIGS: RefCell<Vec<Option<Config>>> = RefCell::new(vec![None; 64]);
    }
    let kind = usize::from(options % 64);
    CONFIGS.with_borrow_mut(|configs| configs[kind].get_or_insert_with(|| parse(kind)).clone())
}

fn parse(kind: usize) -> Config {
    let choose = |bit: usize, one: &'static str, other: &'static str| {
        if kind & bit == 0 { other } else { one }
    };
    let arguments = [
        ["--grace", "1h"],
        ["--probe-timeout", "1h"],
        ["--heartbeat-interval", "1h"],
        ["--heartbeat-timeout", "1h"],
        ["--header-timeout", "1h"],
        ["--message-timeout", "1h"],
        ["--write-timeout", "1h"],
        ["--max-frame-bytes", "512"],
        ["--max-queue-bytes", "4096"],
        ["--max-slot-queue-bytes", "4096"],
        ["--memory-budget", "72KiB"],
        ["--reclaim", choose(1, "evict", "keep")],
        ["--rate-limit", choose(2, "1/min", "off")],
        ["--rate-burst", "4"],
        ["--max-connections", choose(4, "2", "100")],
        ["--max-phones", choose(8, "1", "16")],
    ];
    let proxy: &[&str] = match kind / 16 {
        0 => &[],
        1 => &["--trusted-proxy", "127.0.0.1"],
        _ => &["--trusted-proxy", "127.0.0.1", "--proxy-protocol"],
    };
    let line = ["pyrycode-relay"].into_iter().chain(arguments.into_iter().flatten());
    let line = line.chain(proxy.iter().copied());
    let options = Options::parse_arguments(line).expect("good options");
    Config::from_options(options).expect("a good combination")
}

fn request(binary: bool, server: &str) -> String {
    let (path, own) = match binary {
        true => ("/v1/server", "X-Pyrycode-Version: 1"),
        false => ("/v1/client", "X-Pyrycode-Token: t"),
    };
    format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         User-Agent: u\r\nX-Pyrycode-Server: {server}\r\n{own}\r\n\r\n"
    )
}

/// A masked frame with the right length.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [1, 2, 3, 4];
    let mut bytes = vec![first];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => bytes.push(0x80 | length.to_be_bytes()[1]),
        Ok(length) => {
            bytes.push(0x80 | 126);
            bytes.extend(length.to_be_bytes());
        }
        Err(_) => unreachable!("scripts have no such payloads"),
    }
    bytes.extend(key);
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// The frames behind the head of a response; panics if the response is not one.
fn written(output: &[u8]) -> Vec<Written> {
    let Some(end) = output.windows(4).position(|four| four == b"\r\n\r\n") else {
        let begun = output.len().min(9);
        assert_eq!(output[..begun], b"HTTP/1.1 "[..begun]);
        return Vec::new();
    };
    let (head, rest) = output.split_at(end + 4);
    if head.starts_with(b"HTTP/1.1 101 ") {
        return reference::frames(rest);
    }
    let head = std::str::from_utf8(head).expect("ASCII");
    let known = ["200", "400", "403", "404", "405", "408", "426", "429", "431", "503"];
    assert!(known.iter().any(|code| head.starts_with(&format!("HTTP/1.1 {code} "))), "{head}");
    let (_, length) = head.split_once("Content-Length: ").expect("a length");
    let length: usize = length.split("\r\n").next().expect("a line").parse().expect("a number");
    assert!(rest.len() <= length, "more than was announced");
    assert!(head.contains("Connection: close\r\n"));
    Vec::new()
}

/// The envelopes that a binary was sent: connection id, and the frame unless it is a notice.
fn envelopes(output: &[u8]) -> Vec<(String, Option<String>)> {
    let texts = written(output).into_iter().filter_map(|written| match written {
        Written::Text(text) if text.starts_with("{\"conn_id\":\"client-") => Some(text),
        _ => None,
    });
    texts
        .map(|text| {
            let envelope = Envelope::parse(&text).expect("an envelope");
            let id = envelope.conn_id.into_owned();
            match envelope.action {
                Action::Deliver(_) => {
                    let begin = text.find(",\"frame\":").expect("a frame") + 9;
                    (id, Some(text[begin..text.len() - 1].to_owned()))
                }
                Action::Close(frame, _) => {
                    assert_eq!(frame, None, "a notice has no frame");
                    (id, None)
                }
            }
        })
        .collect()
}

/// For which phone an envelope of a binary is, and its frame.
fn directed(text: &str) -> Option<(String, String)> {
    let envelope = Envelope::parse(text).ok()?;
    let (Action::Deliver(frame) | Action::Close(Some(frame), _)) = envelope.action else {
        return None;
    };
    Some((envelope.conn_id.into_owned(), frame.to_owned()))
}

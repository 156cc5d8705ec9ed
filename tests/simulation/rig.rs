//! A relay by a simulated clock for one test, and clients that the test drives: whatever takes a minute takes
//! no time, and what must not come is waited for as long as it takes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Shutdown};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use pyrycode_relay::clock::simulated::Simulation;
use pyrycode_relay::clock::{self, Timer};
use pyrycode_relay::config::{Config, Options};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server;
use pyrycode_relay::signals::{Request, Stop};
use relay_test_kit::frame::{Received, encode, encode_with};
use relay_test_kit::inbox::Inbox;
use smol::LocalExecutor;
use smol::channel::bounded;
use smol::future::or;
use smol::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _};

use crate::actors::site::Site;
use crate::actors::wire::{CLOSE, Network as _, PING, PONG, Socket, TEXT};
use crate::events;
use crate::network::{Network, Path};
use crate::run::{EventLoop, Flag};

/// What a test has at hand.
pub struct Rig {
    pub network: Network,
    pub relay: Rc<Relay>,
    pub site: Rc<Site>,
    pub stop: Stop,
    pub reload: Request,
    /// For how long the machine is to stand still at the next occasion.
    pub stall: Cell<Duration>,
    pub simulation: Rc<Simulation>,
    lines: RefCell<Vec<String>>,
    has_ended: Cell<bool>,
    /// Who waits for a line, or for the relay's end.
    waiting: RefCell<Vec<Waker>>,
}

/// Runs `test` against a relay with these options, over paths that take no time. The relay must end when it
/// is told to stop behind that, with nothing left.
pub fn simulate(arguments: &[&str], test: impl AsyncFnOnce(&Rig)) {
    let path = Path {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bandwidth: u64::MAX,
        segment: usize::MAX,
        buffers: [64 * 1024; 2],
    };
    simulate_over(path, 1, arguments, async |rig| {
        let too_long = async {
            sleep(LONGEST).await;
            panic!("the test waits for what does not come");
        };
        or(test(rig), too_long).await;
    });
}

/// The same over paths like `path`, with random numbers from a seed.
pub fn simulate_over(path: Path, seed: u64, arguments: &[&str], test: impl AsyncFnOnce(&Rig)) {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let simulation = Rc::new(Simulation::begin(seed, wall));
    events::collect();
    let network = Network::new(seed, path);
    let mut all = vec!["pyrycode-relay"];
    for (option, value) in [("--rate-limit", "off"), ("--max-connections-per-ip", "off")] {
        if !arguments.contains(&option) {
            all.extend([option, value]);
        }
    }
    all.extend(arguments);
    let options = Options::parse_arguments(all).expect("the test's options parse");
    let config = Config::from_options(options).expect("the test's options fit together");
    let stop = Stop::new();
    let executor = Rc::new(LocalExecutor::new());
    let rig = Rig {
        network: network.clone(),
        relay: Relay::new(config, stop.clone()),
        site: Site::new(Rc::new(network.clone()), Rc::clone(&executor), secs(30)),
        stop: stop.clone(),
        reload: Request::new(),
        stall: Cell::default(),
        simulation: Rc::clone(&simulation),
        lines: RefCell::default(),
        has_ended: Cell::new(false),
        waiting: RefCell::default(),
    };
    let (over, is_over) = bounded(1);
    let mut working = Box::pin(async {
        let relays = LocalExecutor::new();
        server::work(&relays, vec![network.listener()], &rig.relay, &rig.reload).await;
        drop(relays);
        rig.has_ended.set(true);
        rig.wake();
        // Whoever stops the relay himself may see what is left of it.
        let _ = is_over.recv().await;
    });
    let others = async {
        executor.run(test(&rig)).await;
        Ok(())
    };
    let mut event_loop = EventLoop {
        simulation: &simulation,
        begun: clock::now(),
        network: &network,
        stall: &rig.stall,
        others: Box::pin(others),
        turn: Flag::new(),
        is_over: false,
    };
    let hear = |line: &str, _| {
        rig.lines.borrow_mut().push(line.to_owned());
        rig.wake();
        Ok(())
    };
    let ended = || {
        stop.raise();
        let _ = over.try_send(());
    };
    event_loop.run(working.as_mut(), hear, ended).unwrap_or_else(|wrong| panic!("{wrong}"));
    drop((event_loop, working));
    let counts = rig.relay.registry.counts();
    assert_eq!((counts.binaries, counts.phones, network.sockets()), (0, 0, 0), "at the end");
}

/// Lets time pass.
pub async fn sleep(duration: Duration) {
    Timer::after(duration).await;
}

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub const fn millis(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

impl Rig {
    /// A binary that holds `id`.
    pub async fn binary(&self, id: &str) -> Ws {
        self.upgrade(&self.site.binary_head(id), None).await.expect("a binary is let in")
    }

    /// A phone at `id`.
    pub async fn phone(&self, id: &str) -> Ws {
        self.upgrade(&self.site.phone_head(id), None).await.expect("a phone is let in")
    }

    /// A phone at `id` that has been registered, and its connection id.
    pub async fn registered_phone(&self, id: &str) -> (Ws, String) {
        let seen = self.mark();
        let phone = self.phone(id).await;
        let line = self.wait_after(seen, "phone_registered", &[("server_id", id)]).await;
        (phone, line_field(&line, "conn_id"))
    }

    /// A binary, a phone, and the phone's connection id.
    pub async fn pair(&self, id: &str) -> (Ws, Ws, String) {
        let binary = self.binary(id).await;
        let (phone, conn_id) = self.registered_phone(id).await;
        (binary, phone, conn_id)
    }

    /// Sends `head`, with whatever is behind it; the error is the head of a refusal. `window` bounds what the
    /// relay can write ahead.
    pub async fn upgrade(
        &self,
        head: impl AsRef<[u8]>,
        window: Option<usize>,
    ) -> Result<Ws, String> {
        let mut ws = self.connect(window).await;
        ws.send_raw(head.as_ref()).await;
        let head = ws.read_head().await;
        if head.starts_with("HTTP/1.1 101 ") { Ok(ws) } else { Err(head) }
    }

    /// A binary that holds `id` and takes in little while it does not read.
    pub async fn narrow_binary(&self, id: &str) -> Ws {
        self.upgrade(self.site.binary_head(id), Some(NARROW)).await.expect("a binary is let in")
    }

    /// A registered phone that takes in little while it does not read, and its connection id.
    pub async fn narrow_phone(&self, id: &str) -> (Ws, String) {
        let seen = self.mark();
        let phone = self.upgrade(self.site.phone_head(id), Some(NARROW)).await;
        let line = self.wait_after(seen, "phone_registered", &[("server_id", id)]).await;
        (phone.expect("a phone is let in"), line_field(&line, "conn_id"))
    }

    /// A connection over which nothing has been sent.
    pub async fn connect(&self, window: Option<usize>) -> Ws {
        let socket = self.network.connect(Ipv4Addr::LOCALHOST, window).await;
        Ws {
            socket: socket.expect("the relay listens"),
            inbox: Inbox::default(),
            answers_pings: true,
            unproven: false,
        }
    }

    /// Connected binaries and phones.
    pub fn health(&self) -> (usize, usize) {
        let counts = self.relay.registry.counts();
        (counts.binaries, counts.phones)
    }

    /// Waits for the relay's end, once it was told to stop.
    pub async fn join(&self) {
        self.wait_until(|| self.has_ended.get().then_some(())).await.expect("it ends");
    }

    /// The present end of the log.
    pub fn mark(&self) -> usize {
        self.lines.borrow().len()
    }

    /// How often this was logged.
    pub fn count(&self, event: &str, fields: &[(&str, &str)]) -> usize {
        self.lines.borrow().iter().filter(|line| is_event(line, event, fields)).count()
    }

    /// Waits until this is logged, from the beginning on: at the very time when it is.
    pub async fn wait(&self, event: &str, fields: &[(&str, &str)]) -> String {
        self.wait_after(0, event, fields).await
    }

    /// The same behind `mark`.
    pub async fn wait_after(&self, mark: usize, event: &str, fields: &[(&str, &str)]) -> String {
        let find = || {
            let lines = self.lines.borrow();
            lines[mark..].iter().find(|line| is_event(line, event, fields)).cloned()
        };
        let found = self.wait_until(find).await;
        found.unwrap_or_else(|| panic!("no {event} with {fields:?} was logged"))
    }

    /// The answer of `look`, which is asked again whenever there is news; none within [`PATIENCE`].
    async fn wait_until<T>(&self, look: impl Fn() -> Option<T>) -> Option<T> {
        let mut timer = Timer::after(PATIENCE);
        poll_fn(|cx| {
            if let Some(answer) = look() {
                return Poll::Ready(Some(answer));
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Pin::new(&mut timer).poll(cx).map(|_| None)
        })
        .await
    }

    fn wake(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// A field of a log line.
pub fn line_field(line: &str, name: &str) -> String {
    crate::actors::field(line, name).expect("the event has the field").to_owned()
}

fn is_event(line: &str, event: &str, fields: &[(&str, &str)]) -> bool {
    // A value may have blanks in it.
    let has = |(name, value): &(&str, &str)| {
        let (field, next) = (format!(" {name}={value}"), format!(" {name}={value} "));
        line.ends_with(&field) || line.contains(&next)
    };
    line.contains(&format!(" event={event}")) && fields.iter().all(has)
}

/// The envelope around a frame.
pub fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}

/// The close notice for a phone.
pub fn notice(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}

/// The `number`th of many messages that differ.
pub fn large_message(number: usize) -> String {
    format!("\"{number:06}{}\"", "x".repeat(60_000))
}

/// Message `number` of `length` bytes and a few, a JSON string.
pub fn numbered(number: usize, length: usize) -> String {
    format!("\"{number}:{}\"", "x".repeat(length))
}

/// A message each way, and nothing else before it.
pub async fn assert_talk(binary: &mut Ws, phone: &mut Ws, conn_id: &str) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let text = format!("\"talk {}\"", NEXT.fetch_add(1, Ordering::Relaxed));
    phone.send_text(&text).await;
    assert_eq!(binary.read_text().await, envelope(conn_id, &text));
    binary.send_text(&envelope(conn_id, &text)).await;
    assert_eq!(phone.read_text().await, text);
}

/// One connection, as a client has it; an upgraded one, mostly.
pub struct Ws {
    socket: Box<dyn Socket>,
    inbox: Inbox,
    /// Answers pings by itself while reading. On unless a test plays dead.
    pub answers_pings: bool,
    /// The last message read was a phone's, and no ping behind it has been answered.
    unproven: bool,
}

impl Ws {
    async fn fill(&mut self) -> io::Result<usize> {
        let Self { socket, inbox, .. } = self;
        poll_fn(|cx| {
            let mut buffer = [0; 16 * 1024];
            Pin::new(&mut *socket).poll_read(cx, &mut buffer).map_ok(|read| {
                inbox.push(&buffer[..read]);
                read
            })
        })
        .await
    }

    /// The head of the relay's answer.
    pub async fn read_head(&mut self) -> String {
        loop {
            if let Some(head) = self.inbox.take_head() {
                return head;
            }
            assert!(self.fill().await.expect("a response") > 0, "no response");
        }
    }

    /// Reads up to `most` bytes ahead, for a peer that reads at its own pace.
    pub async fn read_ahead(&mut self, most: usize) {
        let mut buffer = vec![0; most];
        let read = self.socket.read(&mut buffer).await.expect("something to read");
        self.inbox.push(&buffer[..read]);
    }

    /// Sends bytes as they are.
    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("the relay takes it");
    }

    /// The same, or says that the connection is broken.
    pub async fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    /// Sends a masked frame.
    pub async fn send_frame(&mut self, is_final: bool, opcode: u8, payload: &[u8]) {
        self.send_raw(&encode_with(is_final, opcode, payload, Some([1, 2, 3, 4]))).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(true, TEXT, text.as_bytes()).await;
    }

    /// Sends text messages made by number until the relay takes no more, or `most` are sent. Returns how many
    /// were begun, and what of the last one is still to be sent.
    pub async fn send_until_blocked(
        &mut self,
        most: usize,
        text: impl Fn(usize) -> String,
    ) -> (usize, Vec<u8>) {
        let mut rest = Vec::new();
        for begun in 1..=most {
            rest = encode(true, TEXT, text(begun - 1).as_bytes());
            while !rest.is_empty() {
                let writing = async { Some(self.socket.write(&rest).await) };
                let pause = async {
                    sleep(millis(1)).await;
                    None
                };
                match or(writing, pause).await {
                    Some(written) => drop(rest.drain(..written.expect("the relay takes it"))),
                    None => return (begun, rest),
                }
            }
        }
        (most, rest)
    }

    pub async fn send_ping(&mut self, payload: &[u8]) {
        self.send_frame(true, PING, payload).await;
    }

    pub async fn send_close(&mut self, code: u16) {
        self.send_frame(true, CLOSE, &code.to_be_bytes()).await;
    }

    /// The next frame of any kind, or the error of the socket; the end of the stream is `UnexpectedEof`.
    pub async fn try_read_frame(&mut self) -> io::Result<Received> {
        loop {
            if let Some(frame) = self.inbox.take_frame().expect("frames of a relay") {
                if frame.opcode == PING && self.answers_pings {
                    let pong = encode_with(true, PONG, &frame.payload, Some([1, 2, 3, 4]));
                    let _ = self.socket.write_all(&pong).await;
                    self.unproven &= !frame.is_proof_ping();
                }
                self.unproven |= frame.opcode == TEXT && is_envelope_of_a_message(&frame.payload);
                return Ok(frame);
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next frame of any kind if one comes before `time`, or the error of the socket.
    pub async fn try_read_by(&mut self, time: Instant) -> io::Result<Option<Received>> {
        let mut timer = Timer::at(time);
        let mut reading = pin!(self.try_read_frame());
        poll_fn(|cx| match reading.as_mut().poll(cx) {
            Poll::Ready(read) => Poll::Ready(read.map(Some)),
            Poll::Pending => Pin::new(&mut timer).poll(cx).map(|_| Ok(None)),
        })
        .await
    }

    /// The next frame if one comes within `time`. What a binary is asked behind a message is none.
    pub async fn read_within(&mut self, time: Duration) -> Option<Received> {
        let until = clock::now() + time;
        loop {
            match self.try_read_by(until).await {
                Ok(Some(frame)) if frame.is_proof_ping() => {}
                Ok(frame) => return frame,
                Err(error) => panic!("{error} while the connection should be there"),
            }
        }
    }

    /// The next frame of any kind.
    pub async fn read_frame(&mut self) -> Received {
        self.try_read_frame().await.expect("a frame")
    }

    /// The next frame that is no ping.
    pub async fn read(&mut self) -> Received {
        loop {
            let frame = self.read_frame().await;
            if frame.opcode != PING {
                return frame;
            }
        }
    }

    /// The next frame of any kind but a ping that asks what a binary has read.
    pub async fn read_besides_proofs(&mut self) -> Received {
        loop {
            let frame = self.read_frame().await;
            if !frame.is_proof_ping() {
                return frame;
            }
        }
    }

    /// The next message, which must be text.
    pub async fn read_text(&mut self) -> String {
        let frame = self.read().await;
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        String::from_utf8(frame.payload).expect("text is UTF-8")
    }

    /// Expects a close frame with this code and reason, and the end of the stream behind it.
    pub async fn expect_close(&mut self, code: u16, reason: &str) {
        let frame = self.read().await;
        assert_eq!(frame.opcode, CLOSE, "{frame:?}");
        assert_eq!(frame.close(), (code, reason.to_owned()));
        self.expect_end().await;
    }

    /// Expects a close frame with this code, whatever the reason says.
    pub async fn expect_close_code(&mut self, code: u16) {
        let frame = self.read().await;
        assert_eq!((frame.opcode, frame.close().0), (CLOSE, code), "{frame:?}");
        self.expect_end().await;
    }

    /// Expects an orderly end of the stream, without another frame and without a reset.
    pub async fn expect_end(&mut self) {
        match self.try_read_frame().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => panic!("{other:?} instead of the end of the stream"),
        }
    }

    /// Expects that the connection is gone, by an end or by a reset, whatever comes before.
    pub async fn expect_gone(&mut self) {
        while self.try_read_frame().await.is_ok() {}
    }

    /// A round trip over a ping: everything that was sent before it has been read by the relay.
    pub async fn sync(&mut self) {
        self.send_ping(b"sync").await;
        loop {
            let frame = self.read_frame().await;
            if frame.opcode == PONG && frame.payload == b"sync" {
                return;
            }
            assert_eq!(frame.opcode, PING, "{frame:?} while only a pong was due");
        }
    }

    /// Proves to the relay what this binary has read: answers the ping that follows it, and sees that the
    /// relay has the answer.
    pub async fn prove(&mut self) {
        assert!(self.answers_pings, "who plays dead proves nothing");
        while self.unproven {
            let frame = self.read_frame().await;
            assert_eq!(frame.opcode, PING, "{frame:?} while only a ping was due");
        }
        self.sync().await;
    }

    /// Ends what is sent, and reads on.
    pub fn shut_down_writing(&self) {
        self.socket.shut_down(Shutdown::Write);
    }

    /// Ends the connection without a close frame.
    pub fn drop_connection(self) {
        self.socket.shut_down(Shutdown::Both);
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        self.socket.reset();
    }
}

/// Whether it is an envelope around a message, and no close notice.
fn is_envelope_of_a_message(payload: &[u8]) -> bool {
    // The longest `conn_id` ends well before that.
    let key = b"\"frame\":";
    payload.windows(key.len()).take(1024).any(|bytes| bytes == key)
}

/// What a client that takes in little receives ahead.
const NARROW: usize = 4096;
/// How long a test may take, by the simulated clock: pings keep it going for ever.
const LONGEST: Duration = secs(24 * 3600);
/// How long a test waits for what must be logged, by the simulated clock.
const PATIENCE: Duration = secs(3600);

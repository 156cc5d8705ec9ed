//! A network of pipes between clients and one relay: what TCP and the paths below it do, by a simulated clock.
//!
//! A connection has two ends. What an end writes waits in its send buffer until the other end's window has
//! room, goes over the path in segments, and lies in the other end's receive buffer until it is read.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pyrycode_relay::clock;
use pyrycode_relay::net::transport::Transport;
use pyrycode_relay::server::Listening;
use smol::io::{AsyncRead, AsyncWrite};

use crate::actors::wire::{Connecting, Socket};

/// Everything that is between the clients and the relay.
#[derive(Clone)]
pub struct Network(Rc<RefCell<State>>);

/// What a path between a client and the relay is like.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// One way.
    pub delay: Duration,
    /// What a segment may take longer than that.
    pub jitter: Duration,
    /// Bytes a second, each way.
    pub bandwidth: u64,
    /// Most bytes in a segment.
    pub segment: usize,
    /// The send buffer and the receive buffer of a client.
    pub buffers: [usize; 2],
}

impl Path {
    /// Whether everything arrives at once.
    fn is_instant(&self) -> bool {
        self.delay.is_zero() && self.jitter.is_zero() && self.bandwidth == u64::MAX
    }
}

struct State {
    random: fastrand::Rng,
    path: Path,
    events: BTreeMap<(Instant, u64), (u64, Event)>,
    serial: u64,
    connections: BTreeMap<u64, Connection>,
    dialed: u64,
    listens: bool,
    backlog: VecDeque<u64>,
    acceptor: Option<Waker>,
    /// Sockets that the relay's process may have.
    descriptors: usize,
    /// What each accept comes to, for now.
    accept_error: Option<i32>,
    trace: DefaultHasher,
    /// The last that was noted.
    notes: VecDeque<(Instant, String)>,
    moved: u64,
}

/// What happens on a connection, at one end of it.
#[derive(Debug)]
enum Event {
    Opens,
    Arrives(usize, Vec<u8>),
    /// The other end has read this much.
    Acknowledged(usize, usize),
    Finished(usize),
    Reset(usize),
}

struct Connection {
    source: Ipv4Addr,
    path: Path,
    /// The client's, then the relay's.
    ends: [End; 2],
    fault: Option<Fault>,
    /// What is on its way while the path is silent.
    held: VecDeque<Event>,
    opening: Option<Waker>,
    is_open: bool,
    is_refused: bool,
}

/// What a path does with what comes from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing passes; what is sent will pass when it is over.
    Silent,
    /// A middlebox has forgotten the connection: whatever is sent is answered with a reset.
    Forgotten,
}

#[derive(Default)]
struct End {
    unsent: VecDeque<u8>,
    capacity: usize,
    /// On their way, or received and not read.
    unread: usize,
    /// How much the other end receives ahead.
    window: usize,
    wire_is_free: Option<Instant>,
    last_arrival: Option<Instant>,
    finishes: bool,
    has_finished: bool,
    received: VecDeque<u8>,
    is_finished: bool,
    is_reset: bool,
    is_closed: bool,
    resets: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn is_readable(&self) -> bool {
        !self.received.is_empty() || self.is_finished || self.is_reset
    }
}

impl Network {
    /// One on which every path is like `path` from now on.
    pub fn new(seed: u64, path: Path) -> Self {
        Self(Rc::new(RefCell::new(State {
            random: fastrand::Rng::with_seed(seed),
            path,
            events: BTreeMap::new(),
            serial: 0,
            connections: BTreeMap::new(),
            dialed: 0,
            listens: true,
            backlog: VecDeque::new(),
            acceptor: None,
            descriptors: usize::MAX,
            accept_error: None,
            trace: DefaultHasher::new(),
            notes: VecDeque::new(),
            moved: 0,
        })))
    }

    /// The relay's end of it.
    pub fn listener(&self) -> Listener {
        Listener(self.clone())
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Instant> {
        self.0.borrow().events.first_key_value().map(|((time, _), _)| *time)
    }

    /// Lets happen what is due at `now`.
    pub fn advance(&self, now: Instant) {
        self.0.borrow_mut().advance(now);
    }

    /// What happened, and what was noted, as one number.
    pub fn trace(&self) -> u64 {
        self.0.borrow().trace.finish()
    }

    /// Segments that arrived.
    pub fn moved(&self) -> u64 {
        self.0.borrow().moved
    }

    /// Has something take part in the trace.
    pub fn note(&self, what: &str) {
        let mut state = self.0.borrow_mut();
        what.hash(&mut state.trace);
        if state.notes.len() == KEPT {
            state.notes.pop_front();
        }
        state.notes.push_back((clock::now(), what.to_owned()));
    }

    /// A relay listens again.
    pub fn listen(&self) {
        self.0.borrow_mut().listens = true;
    }

    /// Sockets that the relay has.
    pub fn sockets(&self) -> usize {
        self.0.borrow().sockets()
    }

    /// How many sockets the relay may have from now on.
    pub fn set_descriptors(&self, descriptors: usize) {
        let mut state = self.0.borrow_mut();
        state.descriptors = descriptors;
        state.ring();
    }

    /// What each accept comes to from now on: this error of the operating system, or what is to be accepted.
    pub fn set_accept_error(&self, error: Option<i32>) {
        let mut state = self.0.borrow_mut();
        state.accept_error = error;
        state.ring();
    }

    /// The connection that was dialed last.
    pub fn latest(&self) -> u64 {
        self.0.borrow().dialed
    }

    /// One of the open connections.
    pub fn pick(&self) -> Option<u64> {
        let mut state = self.0.borrow_mut();
        let open: Vec<_> = state
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_open)
            .map(|(number, _)| *number)
            .collect();
        state.random.choice(open)
    }

    /// The path of a connection is at fault from now on, or no longer.
    pub fn set_fault(&self, number: u64, fault: Option<Fault>) {
        let now = clock::now();
        let mut state = self.0.borrow_mut();
        // What was held passes at once, and in order: nothing may overtake it.
        while let Some(event) = state
            .connections
            .get_mut(&number)
            .and_then(|connection| connection.held.pop_front().filter(|_| fault.is_none()))
        {
            state.apply(now, number, event);
        }
        if let Some(connection) = state.connections.get_mut(&number) {
            connection.fault = fault;
        }
    }

    /// A middlebox ends a connection towards both ends, with a reset or in an orderly way, and forgets it.
    pub fn cut(&self, number: u64, by_reset: bool) {
        let now = clock::now();
        let mut state = self.0.borrow_mut();
        for end in 0..2 {
            let event = if by_reset { Event::Reset(end) } else { Event::Finished(end) };
            state.happen(now, number, event);
        }
        if let Some(connection) = state.connections.get_mut(&number) {
            connection.fault = Some(Fault::Forgotten);
        }
    }

    /// What is known of the connections, for a report.
    pub fn report(&self) -> String {
        let state = self.0.borrow();
        let open = state.connections.iter().map(|(number, connection)| {
            let [client, relay] = &connection.ends;
            let side = |end: &End| {
                let End { unsent, unread, window, received, is_closed, is_reset, .. } = end;
                let [to_send, to_read] = [unsent, received].map(VecDeque::len);
                let gone = if *is_closed { ", gone" } else { "" };
                let reset = if *is_reset { ", reset" } else { "" };
                format!("{to_send} to send, {unread} of {window} on its way, {to_read} to read{gone}{reset}")
            };
            format!(
                "\n    connection {number} from {}: fault {:?}; client: {}; relay: {}",
                connection.source,
                connection.fault,
                side(client),
                side(relay)
            )
        });
        let now = clock::now();
        let notes = state
            .notes
            .iter()
            .map(|(at, what)| format!("\n    {:7.3} s before: {what}", (now - *at).as_secs_f64()));
        let events = state.events.iter().map(|((at, _), (number, event))| {
            let what = match event {
                Event::Arrives(end, bytes) => format!("{} bytes arrive at {end}", bytes.len()),
                other => format!("{other:?}"),
            };
            format!("\n    {:7.3} s later: connection {number}: {what}", (*at - now).as_secs_f64())
        });
        notes.chain(open).chain(events.take(KEPT)).collect()
    }
}

impl State {
    fn schedule(&mut self, at: Instant, number: u64, event: Event) {
        self.serial += 1;
        self.events.insert((at, self.serial), (number, event));
    }

    fn sockets(&self) -> usize {
        let open = self
            .connections
            .values()
            .filter(|connection| connection.is_open && !connection.ends[1].is_closed);
        open.count().saturating_sub(self.backlog.len())
    }

    fn ring(&mut self) {
        if let Some(waker) = self.acceptor.take() {
            waker.wake();
        }
    }

    fn advance(&mut self, now: Instant) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let ((at, _), (number, event)) = entry.remove_entry();
            self.happen(at, number, event);
        }
    }

    fn happen(&mut self, at: Instant, number: u64, event: Event) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        match connection.fault {
            Some(Fault::Silent) => return connection.held.push_back(event),
            Some(Fault::Forgotten) => match event {
                Event::Arrives(end, _) | Event::Finished(end) => {
                    return self.schedule(at, number, Event::Reset(1 - end));
                }
                _ => {}
            },
            None => {}
        }
        self.apply(at, number, event);
    }

    /// Lets it happen, whatever the path is like.
    fn apply(&mut self, at: Instant, number: u64, event: Event) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        self.moved += 1;
        number.hash(&mut self.trace);
        match event {
            Event::Opens => {
                connection.is_refused = !self.listens;
                connection.is_open = self.listens;
                if let Some(waker) = connection.opening.take() {
                    waker.wake();
                }
                if connection.is_refused {
                    for end in &mut connection.ends {
                        end.is_reset = true;
                    }
                    connection.ends[1].is_closed = true;
                }
                if connection.is_open {
                    self.backlog.push_back(number);
                    self.ring();
                }
            }
            Event::Arrives(end, bytes) => {
                bytes.hash(&mut self.trace);
                let receiver = &mut connection.ends[end];
                if receiver.is_closed {
                    return self.answer_with_reset(at, number, end);
                }
                if receiver.is_reset {
                    return;
                }
                receiver.received.extend(&bytes);
                if let Some(waker) = receiver.reader.take() {
                    waker.wake();
                }
            }
            Event::Acknowledged(end, bytes) => {
                connection.ends[end].unread -= bytes;
                self.pump(at, number, end);
            }
            Event::Finished(end) => {
                connection.ends[end].is_finished = true;
                connection.ends[end].wake();
            }
            Event::Reset(end) => {
                let end = &mut connection.ends[end];
                end.is_reset = true;
                end.unsent.clear();
                end.wake();
            }
        }
        self.bury(number);
    }

    fn answer_with_reset(&mut self, at: Instant, number: u64, from: usize) {
        let connection = &self.connections[&number];
        let arrives = at + connection.path.delay;
        // It is behind what is on its way.
        let arrives = arrives.max(connection.ends[from].last_arrival.unwrap_or(arrives));
        self.schedule(arrives, number, Event::Reset(1 - from));
    }

    /// Sends what the other end's window has room for.
    fn pump(&mut self, now: Instant, number: u64, from: usize) {
        let Self { connections, random, .. } = self;
        let Some(connection) = connections.get_mut(&number) else { return };
        let path = connection.path;
        let end = &mut connection.ends[from];
        let mut departures = Vec::new();
        while !end.unsent.is_empty() && end.unread < end.window {
            let room = end.unsent.len().min(end.window - end.unread);
            let size = match path.segment {
                usize::MAX => room,
                most => (1 + random.usize(..most)).min(room),
            };
            let departs = end.wire_is_free.unwrap_or(now).max(now);
            let takes = Duration::from_nanos(size as u64 * 1_000_000_000 / path.bandwidth);
            end.wire_is_free = Some(departs + takes);
            let jitter = match path.jitter {
                Duration::ZERO => Duration::ZERO,
                most => most.mul_f64(random.f64()),
            };
            let arrives =
                (departs + takes + path.delay + jitter).max(end.last_arrival.unwrap_or(now));
            end.last_arrival = Some(arrives);
            end.unread += size;
            let mut bytes = vec![0; size];
            take(&mut end.unsent, &mut bytes);
            departures.push((arrives, Event::Arrives(1 - from, bytes)));
        }
        if end.unsent.is_empty() && end.finishes && !end.has_finished {
            end.has_finished = true;
            let arrives = (now + path.delay).max(end.last_arrival.unwrap_or(now));
            departures.push((arrives, Event::Finished(1 - from)));
        }
        if end.unsent.len() < end.capacity {
            if let Some(waker) = end.writer.take() {
                waker.wake();
            }
        }
        for (arrives, event) in departures {
            match path.is_instant() {
                true => self.happen(now, number, event),
                false => self.schedule(arrives, number, event),
            }
        }
    }

    /// Forgets a connection that both ends have closed.
    fn bury(&mut self, number: u64) {
        let over = |end: &End| end.is_closed && (end.is_reset || end.has_finished);
        if self.connections.get(&number).is_some_and(|known| known.ends.iter().all(over)) {
            self.connections.remove(&number);
        }
    }

    fn end(&mut self, number: u64, side: usize) -> Option<&mut End> {
        self.connections.get_mut(&number).map(|connection| &mut connection.ends[side])
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        side: usize,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let path = self.connections[&number].path;
        let end = &mut self.connections.get_mut(&number).expect("it is open").ends[side];
        if end.received.is_empty() {
            if end.is_reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if end.is_finished {
                return Poll::Ready(Ok(0));
            }
            end.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = buffer.len().min(end.received.len());
        take(&mut end.received, &mut buffer[..length]);
        if !end.is_reset {
            let (now, event) = (clock::now(), Event::Acknowledged(1 - side, length));
            match path.is_instant() {
                true => self.happen(now, number, event),
                false => self.schedule(now + path.delay, number, event),
            }
        }
        Poll::Ready(Ok(length))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        number: u64,
        side: usize,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let end = &mut self.connections.get_mut(&number).expect("it is open").ends[side];
        if end.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if end.finishes {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = end.capacity.saturating_sub(end.unsent.len()).min(bytes.len());
        if room == 0 {
            end.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        end.unsent.extend(&bytes[..room]);
        self.pump(clock::now(), number, side);
        Poll::Ready(Ok(room))
    }

    fn finish(&mut self, number: u64, side: usize) {
        if let Some(end) = self.end(number, side) {
            end.finishes = true;
            self.pump(clock::now(), number, side);
        }
    }

    /// The process closes its socket.
    fn close(&mut self, number: u64, side: usize) {
        let Some(end) = self.end(number, side) else { return };
        end.is_closed = true;
        end.reader = None;
        end.writer = None;
        if end.is_reset {
        } else if end.resets || !end.received.is_empty() {
            end.unsent.clear();
            end.is_reset = true;
            self.answer_with_reset(clock::now(), number, side);
        } else {
            self.finish(number, side);
        }
        self.bury(number);
        if side == 1 {
            self.ring();
        }
    }
}

/// Where the relay accepts.
pub struct Listener(Network);

impl Listening for Listener {
    type Socket = u64;
    type Stream = Stream;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.borrow_mut();
        if state.backlog.is_empty() {
            state.acceptor = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn accept(&mut self) -> io::Result<(u64, IpAddr)> {
        const EMFILE: i32 = 24;
        let mut state = self.0.0.borrow_mut();
        if state.backlog.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(error) = state.accept_error {
            return Err(io::Error::from_raw_os_error(error));
        }
        if state.sockets() >= state.descriptors {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        let number = state.backlog.pop_front().expect("it is not empty");
        let Some(connection) = state.connections.get(&number) else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let source = connection.source;
        NEXT.with(|next| next.replace(Some(self.0.clone())));
        Ok((number, source.into()))
    }

    fn prepare(socket: u64) -> io::Result<Stream> {
        let network = NEXT.with(|next| next.borrow().clone()).expect("it was accepted");
        Ok(Stream { network, number: socket, side: 1 })
    }
}

/// Fills `into` from the front of `queue`, which has as much.
fn take(queue: &mut VecDeque<u8>, into: &mut [u8]) {
    queue.read_exact(into).expect("there is as much");
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.0.0.borrow_mut();
        state.listens = false;
        let now = clock::now();
        for number in std::mem::take(&mut state.backlog) {
            if let Some(end) = state.end(number, 1) {
                end.is_closed = true;
                end.is_reset = true;
                state.answer_with_reset(now, number, 1);
            }
        }
    }
}

thread_local! {
    /// Of which network sockets are that were accepted.
    static NEXT: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// An end of a connection.
pub struct Stream {
    network: Network,
    number: u64,
    side: usize,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.0.borrow_mut().close(self.number, self.side);
    }
}

impl Transport for Stream {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.network.0.borrow_mut();
        let end = state.end(self.number, self.side).expect("it is open");
        if end.is_readable() {
            return Poll::Ready(Ok(()));
        }
        end.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn has_hung_up(&self) -> bool {
        let mut state = self.network.0.borrow_mut();
        let end = state.end(self.number, self.side).expect("it is open");
        end.is_reset || (end.is_finished && end.has_finished)
    }

    fn reset(&mut self) {
        let mut state = self.network.0.borrow_mut();
        state.end(self.number, self.side).expect("it is open").resets = true;
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.network.0.borrow_mut().poll_read(cx, self.number, self.side, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.network.0.borrow_mut().poll_write(cx, self.number, self.side, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.0.borrow_mut().finish(self.number, self.side);
        Poll::Ready(Ok(()))
    }
}

impl crate::actors::wire::Network for Network {
    fn connect(&self, source: Ipv4Addr, window: Option<usize>) -> Connecting {
        let network = self.clone();
        Box::pin(async move {
            let number = network.0.borrow_mut().dial(source, window);
            let stream = Rc::new(Stream { network, number, side: 0 });
            std::future::poll_fn(|cx| {
                let mut state = stream.network.0.borrow_mut();
                let connection = state.connections.get_mut(&number).expect("it was made above");
                if connection.is_refused {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionRefused)));
                }
                if connection.is_open {
                    return Poll::Ready(Ok(()));
                }
                connection.opening = Some(cx.waker().clone());
                Poll::Pending
            })
            .await?;
            Ok(Box::new(Client(stream)) as Box<dyn Socket>)
        })
    }
}

impl State {
    fn dial(&mut self, source: Ipv4Addr, window: Option<usize>) -> u64 {
        /// As `limits.rs` has them: what the kernel sends ahead, and what it receives ahead.
        const RELAY: [usize; 2] = [64 * 1024, 128 * 1024];
        let path = self.path;
        self.dialed += 1;
        let number = self.dialed;
        let [send, receive] = path.buffers;
        let ends = [
            End { capacity: send, window: RELAY[1], ..End::default() },
            End { capacity: RELAY[0], window: window.unwrap_or(receive), ..End::default() },
        ];
        let connection = Connection {
            source,
            path,
            ends,
            fault: None,
            held: VecDeque::new(),
            opening: None,
            is_open: false,
            is_refused: false,
        };
        self.connections.insert(number, connection);
        self.schedule(clock::now() + 2 * path.delay, number, Event::Opens);
        number
    }
}

/// A client's end, which its reader and its writer share.
struct Client(Rc<Stream>);

impl Socket for Client {
    fn again(&self) -> Box<dyn Socket> {
        Box::new(Self(Rc::clone(&self.0)))
    }

    fn shut_down(&self, how: Shutdown) {
        let mut state = self.0.network.0.borrow_mut();
        state.finish(self.0.number, 0);
        if how == Shutdown::Both {
            // What arrives from now on is thrown away, as if it had been read.
            if let Some(end) = state.end(self.0.number, 0) {
                end.is_finished = true;
                end.wake();
            }
        }
    }

    fn reset(&self) {
        let mut state = self.0.network.0.borrow_mut();
        state.end(self.0.number, 0).expect("it is open").resets = true;
    }

    fn cut(&self, by_reset: bool) -> bool {
        self.0.network.cut(self.0.number, by_reset);
        true
    }
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.0.network.0.borrow_mut().poll_read(cx, self.0.number, 0, buffer)
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.network.0.borrow_mut().poll_write(cx, self.0.number, 0, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.network.0.borrow_mut().finish(self.0.number, 0);
        Poll::Ready(Ok(()))
    }
}

/// Notes, and events to come, in a report.
const KEPT: usize = 40;

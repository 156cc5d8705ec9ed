//! The clients: any number of connections on one thread over epoll, as cheap as they can be made,
//! so that the relay is what is measured.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::frames::{CLOSE, Frame, PING, PONG, TEXT, push_frame};

/// What happened on a connection.
pub enum Event<'a> {
    /// It may carry messages now.
    Open,
    /// A message arrived.
    Text(Frame<'a>),
    /// A pong arrived.
    Pong,
    /// A close frame arrived; `Gone` follows.
    Closed(u16),
    /// The connection ended, or was never made: the status of a refused upgrade, else 0.
    Gone(u16),
}

/// Many connections on one thread.
pub struct Driver {
    epoll: OwnedFd,
    timer: OwnedFd,
    events: Vec<epoll::Event>,
    connections: Vec<Option<Connection>>,
    scratch: Vec<u8>,
    began: Instant,
    /// Answers pings, as every client does.
    pub answers_pings: bool,
}

struct Connection {
    stream: TcpStream,
    /// Still waits for the `101`.
    upgrading: bool,
    partial: Vec<u8>,
    unsent: Vec<u8>,
    sent: usize,
    /// Not read: its input stays in the kernel, and then with the relay.
    stalled: bool,
}

impl Driver {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), edge)?;
        Ok(Self {
            epoll,
            timer,
            events: Vec::with_capacity(512),
            connections: Vec::new(),
            scratch: vec![0; READ_BYTES],
            began: Instant::now(),
            answers_pings: true,
        })
    }

    /// Nanoseconds on this driver's clock.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// Dials `port` and sends `hello`. With `upgrade` the connection opens with the `101`, else at
    /// once. The connection's number is returned; numbers are not used again.
    pub fn dial(&mut self, port: u16, hello: &[u8], upgrade: bool) -> io::Result<usize> {
        // One loopback address has 28,000 ports.
        let rotation = u8::try_from(self.connections.len() % SOURCES).unwrap();
        self.dial_from(Ipv4Addr::new(127, 0, 0, 2 + rotation), port, hello, upgrade)
    }

    /// The same from one address of the loopback network.
    pub fn dial_from(
        &mut self,
        source: Ipv4Addr,
        port: u16,
        hello: &[u8],
        upgrade: bool,
    ) -> io::Result<usize> {
        self.dial_with(source, port, hello, upgrade, None)
    }

    /// The same with a kernel buffer for input of about this many bytes: if this end does not read,
    /// the relay must keep the rest.
    pub fn dial_with(
        &mut self,
        source: Ipv4Addr,
        port: u16,
        hello: &[u8],
        upgrade: bool,
        input_buffer: Option<usize>,
    ) -> io::Result<usize> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(bytes) = input_buffer {
            // Before the connection: its window cannot shrink later.
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        self.adopt(socket.into(), hello, upgrade)
    }

    /// Two connections that are the ends of one, with nothing between them.
    pub fn connect_to_itself(&mut self) -> io::Result<(usize, usize)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let one = TcpStream::connect(listener.local_addr()?)?;
        let (other, _) = listener.accept()?;
        for stream in [&one, &other] {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
        }
        Ok((self.adopt(one, &[], false)?, self.adopt(other, &[], false)?))
    }

    fn adopt(&mut self, stream: TcpStream, hello: &[u8], upgrading: bool) -> io::Result<usize> {
        let number = self.connections.len();
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(number as u64), flags)?;
        self.connections.push(Some(Connection {
            stream,
            upgrading,
            partial: Vec::new(),
            unsent: hello.to_vec(),
            sent: 0,
            stalled: false,
        }));
        Ok(number)
    }

    /// Sends bytes, at once as far as the socket takes them.
    pub fn send(&mut self, number: usize, bytes: &[u8]) {
        let Some(connection) = &mut self.connections[number] else { return };
        let mut taken = 0;
        if connection.unsent.is_empty() {
            taken = connection.stream.write(bytes).unwrap_or(0);
        }
        connection.unsent.extend_from_slice(&bytes[taken..]);
    }

    /// Bytes that the socket has not taken yet.
    pub fn unsent(&self, number: usize) -> usize {
        self.connections[number]
            .as_ref()
            .map_or(0, |connection| connection.unsent.len() - connection.sent)
    }

    /// Ends a connection at once; no event tells of it.
    pub fn hang_up(&mut self, number: usize) {
        self.connections[number] = None;
    }

    /// Stops reading a connection.
    pub fn stall(&mut self, number: usize) {
        if let Some(connection) = &mut self.connections[number] {
            connection.stalled = true;
        }
    }

    /// Reads and throws away up to `limit` bytes of a stalled connection. Returns how many; `None` if
    /// it has ended.
    pub fn sip(&mut self, number: usize, limit: usize) -> Option<usize> {
        let connection = self.connections[number].as_mut()?;
        match connection.stream.read(&mut vec![0; limit]) {
            Ok(0) if limit > 0 => None,
            Ok(read) => Some(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(0),
            Err(_) => None,
        }
    }

    /// Whether the other end of a stalled connection has ended it; what arrived before stays unread.
    pub fn is_ended(&self, number: usize) -> bool {
        let Some(connection) = &self.connections[number] else { return true };
        let mut watched = [PollFd::new(&connection.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().intersects(ended)
    }

    /// Waits at most `timeout` and handles what happened.
    pub fn turn(
        &mut self,
        timeout: Duration,
        handler: &mut dyn FnMut(&mut Self, usize, Event<'_>),
    ) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !timeout.is_zero() {
            let it_value = Timespec {
                tv_sec: timeout.as_secs().try_into().unwrap(),
                tv_nsec: timeout.subsec_nanos().into(),
            };
            let once = Itimerspec { it_interval: zero, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let wait = timeout.is_zero().then_some(&zero);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            if event.data.u64() == TIMER {
                continue;
            }
            let number = usize::try_from(event.data.u64()).unwrap();
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.flush(number);
            }
            let ended = flags.intersects(
                epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR,
            );
            if ended || flags.contains(epoll::EventFlags::IN) {
                self.read(number, ended, handler);
            }
        }
        self.events = events;
        Ok(())
    }

    /// Turns until `done`; an error if that takes longer than `patience`.
    pub fn until(
        &mut self,
        what: &str,
        patience: Duration,
        handler: &mut dyn FnMut(&mut Self, usize, Event<'_>),
        done: &mut dyn FnMut(&mut Self) -> bool,
    ) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("not in time: {what}"),
                ));
            }
            self.turn(left.min(Duration::from_millis(100)), handler)?;
        }
        Ok(())
    }

    fn flush(&mut self, number: usize) {
        let Some(connection) = &mut self.connections[number] else { return };
        while connection.sent < connection.unsent.len() {
            match connection.stream.write(&connection.unsent[connection.sent..]) {
                Ok(taken) => connection.sent += taken,
                Err(_) => return,
            }
        }
        connection.unsent.clear();
        connection.sent = 0;
    }

    fn read(
        &mut self,
        number: usize,
        ended: bool,
        handler: &mut dyn FnMut(&mut Self, usize, Event<'_>),
    ) {
        // Taken out, so that the handler may have the driver while it looks at a frame.
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(connection) = &mut self.connections[number] {
            if connection.stalled {
                break;
            }
            match connection.stream.read(&mut scratch) {
                Ok(0) => self.gone(number, 0, handler),
                Ok(read) => {
                    self.take(number, &scratch[..read], handler);
                    if read < scratch.len() && !ended {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone(number, 0, handler),
            }
        }
        self.scratch = scratch;
    }

    fn take(
        &mut self,
        number: usize,
        input: &[u8],
        handler: &mut dyn FnMut(&mut Self, usize, Event<'_>),
    ) {
        let Some(connection) = &mut self.connections[number] else { return };
        let mut whole = std::mem::take(&mut connection.partial);
        let input = if whole.is_empty() {
            input
        } else {
            whole.extend_from_slice(input);
            whole.as_slice()
        };
        let mut rest = input;
        if connection.upgrading {
            let Some(end) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                connection.partial = rest.to_vec();
                return;
            };
            let status = rest.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
            let status = status.and_then(|digits| digits.parse().ok()).unwrap_or(0);
            if status != 101 {
                self.gone(number, status, handler);
                return;
            }
            connection.upgrading = false;
            rest = &rest[end + 4..];
            handler(self, number, Event::Open);
        }
        while let Some((frame, length)) = Frame::decode(rest) {
            rest = &rest[length..];
            match frame.opcode {
                TEXT => handler(self, number, Event::Text(frame)),
                PING if !self.answers_pings => {}
                PING => {
                    let mut pong = Vec::with_capacity(160);
                    push_frame(&mut pong, PONG, &[frame.plain()]);
                    self.send(number, &pong);
                }
                PONG => handler(self, number, Event::Pong),
                CLOSE => {
                    let code = frame.bytes::<2>(0).map_or(1005, u16::from_be_bytes);
                    handler(self, number, Event::Closed(code));
                    let mut reply = Vec::with_capacity(16);
                    push_frame(&mut reply, CLOSE, &[&code.to_be_bytes()]);
                    self.send(number, &reply);
                }
                _ => {}
            }
        }
        let consumed = input.len() - rest.len();
        if whole.is_empty() {
            whole = rest.to_vec();
        } else {
            whole.drain(..consumed);
        }
        if let Some(connection) = &mut self.connections[number] {
            connection.partial = whole;
        }
    }

    fn gone(
        &mut self,
        number: usize,
        status: u16,
        handler: &mut dyn FnMut(&mut Self, usize, Event<'_>),
    ) {
        if self.connections[number].take().is_some() {
            handler(self, number, Event::Gone(status));
        }
    }
}

const READ_BYTES: usize = 256 * 1024;
const TIMER: u64 = u64::MAX;
const SOURCES: usize = 16;
const EINPROGRESS: i32 = 115;

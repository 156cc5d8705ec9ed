//! A WebSocket client on the executor: frames by hand, cut into segments of every size.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Shutdown};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use pyrycode_relay::clock::{self, Timer};

pub use relay_test_kit::frame::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode};
use relay_test_kit::frame::{Received, encode_with};
use relay_test_kit::inbox::Inbox;
use smol::channel::{Receiver, Sender, unbounded};
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use smol::{LocalExecutor, Task};

/// The way to the relay.
pub trait Network {
    /// A connection from this address; `window` bounds the receive buffer, and so what the relay's socket can
    /// accept for us.
    fn connect(&self, source: Ipv4Addr, window: Option<usize>) -> Connecting;
}

pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Socket>>>>>;

/// A client's socket.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// The same socket.
    fn again(&self) -> Box<dyn Socket>;

    fn shut_down(&self, how: Shutdown);

    /// Makes the coming close a reset.
    fn reset(&self);

    /// Has a middlebox end the connection, for the relay with a reset or in an orderly way, if there is one
    /// here. Whether there is.
    fn cut(&self, _by_reset: bool) -> bool {
        false
    }
}

/// How a connection cuts what it sends, and how much it reads at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// A few bytes a segment.
    Tiny,
    /// Anything.
    Odd,
    /// All that there is.
    Huge,
}

/// What happened on a connection.
#[derive(Debug)]
#[allow(dead_code, reason = "the error is printed")]
pub enum Next {
    Frame(Received),
    /// The time came.
    Time,
    /// An orderly end.
    End,
    /// Any other end.
    Lost(io::ErrorKind),
    /// What no server may send.
    Wrong(String),
}

/// Why there is no connection.
#[derive(Debug)]
#[allow(dead_code, reason = "the error is printed")]
pub enum NoLink {
    Refused(u16),
    Lost(io::ErrorKind),
}

enum Piece {
    Bytes(Vec<u8>),
    /// The end of what is sent.
    Finish,
}

/// One upgraded connection.
pub struct Link {
    stream: Box<dyn Socket>,
    input: Inbox,
    read_size: usize,
    buffer: Vec<u8>,
    outgoing: Sender<Piece>,
    writer: Option<Task<()>>,
    random: Rc<RefCell<fastrand::Rng>>,
    cut: Cut,
}

/// How to dial.
pub struct Dial<'a> {
    pub network: &'a dyn Network,
    pub source: Ipv4Addr,
    pub head: String,
    /// Sent in the same segment as the request.
    pub behind: Vec<u8>,
    pub cut: Cut,
    /// Of the receive buffer.
    pub window: Option<usize>,
    pub executor: &'a LocalExecutor<'static>,
    pub seed: u64,
}

impl Link {
    pub async fn dial(dial: Dial<'_>) -> Result<Self, NoLink> {
        let stream = dial.network.connect(dial.source, dial.window).await.map_err(lost)?;
        let random = Rc::new(RefCell::new(fastrand::Rng::with_seed(dial.seed)));
        let (outgoing, pieces) = unbounded();
        let writing = write(stream.again(), pieces, dial.cut, Rc::clone(&random));
        let mut link = Self {
            stream,
            input: Inbox::default(),
            read_size: match dial.cut {
                Cut::Tiny => 1 + random.borrow_mut().usize(16..64),
                Cut::Odd => 1 + random.borrow_mut().usize(..4096),
                Cut::Huge => 64 * 1024,
            },
            buffer: vec![0; 64 * 1024],
            outgoing,
            writer: Some(dial.executor.spawn(writing)),
            random,
            cut: dial.cut,
        };
        link.send_raw([dial.head.into_bytes(), dial.behind].concat());
        let until = clock::now() + super::patience();
        loop {
            if let Some(head) = link.input.take_head() {
                return match head.get(9..12).and_then(|status| status.parse().ok()) {
                    Some(101) => Ok(link),
                    status => Err(NoLink::Refused(status.unwrap_or(0))),
                };
            }
            match link.fill(until).await {
                Ok(None) => return Err(NoLink::Lost(io::ErrorKind::TimedOut)),
                Ok(Some(0)) => return Err(NoLink::Lost(io::ErrorKind::UnexpectedEof)),
                Ok(Some(_)) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send_raw(&self, bytes: Vec<u8>) {
        // Nobody writes them once the connection is broken; its reader finds that out.
        let _ = self.outgoing.try_send(Piece::Bytes(bytes));
    }

    pub fn send(&self, is_final: bool, opcode: u8, payload: &[u8]) {
        let mask = self.random.borrow_mut().u32(..).to_be_bytes();
        self.send_raw(encode_with(is_final, opcode, payload, Some(mask)));
    }

    /// Sends a message: as text or binary, whole or in fragments with pings between them.
    pub fn send_text(&self, text: &str) {
        let bytes = text.as_bytes();
        let (fragments, opcode) = {
            let mut random = self.random.borrow_mut();
            let fragments = if random.u8(..6) == 0 { 2 + random.usize(..6) } else { 1 };
            (fragments, if random.u8(..10) == 0 { BINARY } else { TEXT })
        };
        let mut at = 0;
        for fragment in 1..=fragments {
            // Anywhere, also amid a character, also nothing.
            let end = match fragment == fragments {
                true => bytes.len(),
                false => at + self.random.borrow_mut().usize(..=bytes.len() - at),
            };
            let opcode = if fragment == 1 { opcode } else { CONTINUATION };
            self.send(fragment == fragments, opcode, &bytes[at..end]);
            if fragment < fragments && self.random.borrow_mut().bool() {
                self.send(true, PING, b"between");
            }
            at = end;
        }
    }

    /// Sends a close frame; 1005 stands for an empty one.
    pub fn send_close(&self, code: u16) {
        match code {
            1005 => self.send(true, CLOSE, b""),
            code => self.send(true, CLOSE, &[&code.to_be_bytes()[..], b"as tested"].concat()),
        }
    }

    /// Ends what is sent, behind all that was.
    pub fn finish(&self) {
        let _ = self.outgoing.try_send(Piece::Finish);
    }

    /// Sends nothing any more, whatever was to be sent, and keeps the connection.
    pub fn fall_silent(&mut self) {
        self.writer = None;
    }

    /// Ends the connection with a reset, or has the path end it.
    pub fn reset(self) {
        let (is_cut, by_reset) = {
            let mut random = self.random.borrow_mut();
            (random.bool(), random.bool())
        };
        if !(is_cut && self.stream.cut(by_reset)) {
            self.stream.reset();
        }
    }

    /// Ends the connection at once, in both directions.
    pub fn hang_up(self) {
        self.stream.shut_down(Shutdown::Both);
    }

    /// The next frame, answering pings, or `until`.
    pub async fn next(&mut self, until: Instant) -> Next {
        loop {
            match self.input.take_frame() {
                Err(wrong) => return Next::Wrong(wrong.to_owned()),
                Ok(Some(frame)) => {
                    if frame.opcode == PING {
                        self.send(true, PONG, &frame.payload);
                    }
                    return Next::Frame(frame);
                }
                Ok(None) => {}
            }
            match self.fill(until).await {
                Ok(None) => return Next::Time,
                Ok(Some(0)) => return Next::End,
                Ok(Some(_)) => {}
                Err(error) => return Next::Lost(error.kind()),
            }
        }
    }

    /// Reads once; `None` when the time came.
    async fn fill(&mut self, until: Instant) -> io::Result<Option<usize>> {
        let size = self.read_size.min(self.buffer.len());
        // Amid a long message nobody reads a few bytes at a time, or the test would take for ever.
        let hurries = self.input.held() > 256 || self.random.borrow_mut().u8(..4) > 0;
        let size = if hurries { size.max(16 * 1024) } else { size };
        let Self { stream, buffer, .. } = self;
        let reading = async { stream.read(&mut buffer[..size]).await.map(Some) };
        let timer = async {
            Timer::at(until).await;
            Ok(None)
        };
        let read = smol::future::or(reading, timer).await?;
        if let Some(read) = read {
            self.input.push(&self.buffer[..read]);
        }
        if self.cut == Cut::Tiny {
            smol::future::yield_now().await;
        }
        Ok(read)
    }
}

fn lost(error: io::Error) -> NoLink {
    NoLink::Lost(error.kind())
}

async fn write(
    mut stream: Box<dyn Socket>,
    pieces: Receiver<Piece>,
    cut: Cut,
    random: Rc<RefCell<fastrand::Rng>>,
) {
    while let Ok(piece) = pieces.recv().await {
        let Piece::Bytes(mut bytes) = piece else {
            stream.shut_down(Shutdown::Write);
            return;
        };
        let mut finishes = false;
        while cut == Cut::Huge && bytes.len() < 512 * 1024 {
            match pieces.try_recv() {
                Ok(Piece::Bytes(more)) => bytes.extend(more),
                Ok(Piece::Finish) => {
                    finishes = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let mut rest = bytes.as_slice();
        // Behind a long queue small segments would take longer than anybody waits.
        let mut segments = if pieces.len() > 8 { 24 } else { 0 };
        while !rest.is_empty() {
            segments += 1;
            let size = match cut {
                // The rest of something long goes out at once.
                Cut::Tiny if segments <= 24 => 1 + random.borrow_mut().usize(..8),
                Cut::Odd if segments <= 24 => 1 + random.borrow_mut().usize(..4096),
                _ => rest.len(),
            };
            let (segment, behind) = rest.split_at(size.min(rest.len()));
            if stream.write_all(segment).await.is_err() {
                return;
            }
            rest = behind;
            smol::future::yield_now().await;
        }
        if finishes {
            stream.shut_down(Shutdown::Write);
            return;
        }
    }
}

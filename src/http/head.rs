//! The request head on the wire: reads it within bytes and time, writes replies, and lingers so
//! that they arrive.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::clock::Timer;
use futures_lite::future::yield_now;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt as _};

use crate::http::gate::{Admission, Caller, Judgement, Refusal, judge};
use crate::http::proxy_header::{self, ProxyHeader};
use crate::limits::{LINGER_TIME, MAX_HEAD_BYTES};
use crate::net::scratch::Scratch;
use crate::queue::budget::{Account, Charge};

/// What was read.
#[derive(Debug)]
pub enum Head {
    /// A good head, and the bytes that arrived behind it.
    Admitted(Admission, Vec<u8>),
    /// Answer this and close.
    Refused(Refusal),
    /// The peer went away.
    Gone,
}

/// What a PROXY header leaves for the request head.
#[derive(Default, Debug)]
pub struct Opening {
    /// What arrived behind it.
    bytes: Vec<u8>,
    /// Its length: it counts against the same bound.
    spent: usize,
}

impl Opening {
    /// `bytes` that came after `spent` others.
    pub(crate) fn new(bytes: Vec<u8>, spent: usize) -> Self {
        Self { bytes, spent }
    }

    /// How much came before.
    pub(crate) fn spent(&self) -> usize {
        self.spent
    }

    /// What arrived behind the header, for another layer to begin with.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// What came of waiting for a PROXY header.
#[derive(Debug)]
pub(crate) enum Announcement {
    /// From where the proxy was connected to, if it tells.
    From(Option<IpAddr>, Opening),
    /// No PROXY header, or a broken one: not a word to whoever sends that.
    Malformed,
    /// Not complete in time.
    TimedOut,
    /// The peer went away.
    Gone,
}

/// Where a head comes from, and what has come so far. Both stay with their owner between two turns, who may hand them
/// over to another program meanwhile.
pub(crate) trait Inlet {
    /// Reads what is there and appends it.
    fn poll_fill(&self, cx: &mut Context<'_>, scratch: &Rc<Scratch>) -> Poll<io::Result<usize>>;

    /// Looks at what has come so far.
    fn with_bytes<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T;
}

/// A socket with nothing read yet, or with this.
struct Plain<'a, S> {
    io: RefCell<&'a mut S>,
    bytes: RefCell<Vec<u8>>,
}

impl<S: AsyncRead + Unpin> Inlet for Plain<'_, S> {
    fn poll_fill(&self, cx: &mut Context<'_>, scratch: &Rc<Scratch>) -> Poll<io::Result<usize>> {
        poll_fill(cx, &mut **self.io.borrow_mut(), scratch, &mut self.bytes.borrow_mut())
    }

    fn with_bytes<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        look(&mut self.bytes.borrow_mut())
    }
}

/// Why no head was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unread {
    /// It was not complete at the deadline.
    TimedOut,
    /// The peer went away.
    Gone,
}

/// Reads until `judge` has come to something about the bytes so far, or until `deadline`. What is held of them is
/// charged to `account`. Cancel safe: what was read is with the inlet.
async fn read_from<T>(
    inlet: &impl Inlet,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    account: &Rc<Account>,
    mut judge: impl FnMut(&mut Vec<u8>) -> Option<T>,
) -> Result<T, Unread> {
    let timeout = async {
        Timer::at(deadline).await;
        Err(Unread::TimedOut)
    };
    let reading = async {
        let mut charge = Charge::new(Rc::clone(account));
        let mut has_more = inlet.with_bytes(|bytes| !bytes.is_empty());
        loop {
            if !std::mem::take(&mut has_more) {
                match poll_fn(|cx| inlet.poll_fill(cx, scratch)).await {
                    Ok(0) | Err(_) => return Err(Unread::Gone),
                    Ok(_) => {}
                }
            }
            charge.set(inlet.with_bytes(|bytes| bytes.capacity()));
            if let Some(judged) = inlet.with_bytes(&mut judge) {
                return Ok(judged);
            }
        }
    };
    reading.or(timeout).or(evicted(account, Err(Unread::Gone))).await
}

/// Reads a PROXY header until `deadline`.
pub(crate) async fn read_proxy_header(
    inlet: &impl Inlet,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    account: &Rc<Account>,
) -> Announcement {
    let judge = |bytes: &mut Vec<u8>| match proxy_header::parse(bytes) {
        ProxyHeader::Incomplete => None,
        ProxyHeader::Malformed => Some(Announcement::Malformed),
        ProxyHeader::Complete { from, length } => {
            bytes.drain(..length);
            let opening = Opening { bytes: std::mem::take(bytes), spent: length };
            Some(Announcement::From(from, opening))
        }
    };
    match read_from(inlet, deadline, scratch, account, judge).await {
        Ok(announcement) => announcement,
        Err(Unread::TimedOut) => Announcement::TimedOut,
        Err(Unread::Gone) => Announcement::Gone,
    }
}

/// Reads one request head, which may have begun in `opening`, until `deadline`. `caller` is passed
/// on to the gate, which asks it of a complete head alone, hence once.
///
/// Not cancel safe: a cancelled read loses what it has read.
pub async fn read<S: AsyncRead + Unpin>(
    io: &mut S,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    account: &Rc<Account>,
    opening: Opening,
    caller: &mut impl Caller,
) -> Head {
    let Opening { bytes, spent } = opening;
    let inlet = Plain { io: RefCell::new(io), bytes: RefCell::new(bytes) };
    read_request(&inlet, spent, deadline, scratch, account, caller).await
}

/// Reads one request head from `inlet`; `spent` bytes were read before it.
pub(crate) async fn read_request(
    inlet: &impl Inlet,
    spent: usize,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    account: &Rc<Account>,
    caller: &mut impl Caller,
) -> Head {
    let judge = |bytes: &mut Vec<u8>| match judge(bytes, caller) {
        Judgement::Incomplete if spent + bytes.len() >= MAX_HEAD_BYTES => {
            Some(Head::Refused(Refusal::HeadTooLarge))
        }
        Judgement::Incomplete => None,
        Judgement::Refused(refusal) => Some(Head::Refused(refusal)),
        Judgement::Admitted(_, length) if spent + length > MAX_HEAD_BYTES => {
            Some(Head::Refused(Refusal::HeadTooLarge))
        }
        Judgement::Admitted(admission, length) => {
            bytes.drain(..length);
            bytes.shrink_to_fit();
            Some(Head::Admitted(admission, std::mem::take(bytes)))
        }
    };
    match read_from(inlet, deadline, scratch, account, judge).await {
        Ok(head) => head,
        Err(Unread::TimedOut) => Head::Refused(Refusal::HeadTimeout),
        Err(Unread::Gone) => Head::Gone,
    }
}

/// Reads until `judge` has come to something about the bytes so far, or until `deadline`; for heads
/// that are none of the gate's. What is held of them is charged to `account`.
///
/// Not cancel safe: a cancelled read loses what it has read.
pub(crate) async fn read_until<S: AsyncRead + Unpin, T>(
    io: &mut S,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    account: &Rc<Account>,
    judge: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, Unread> {
    let inlet = Plain { io: RefCell::new(io), bytes: RefCell::default() };
    read_from(&inlet, deadline, scratch, account, |bytes| judge(bytes)).await
}

/// Writes a whole reply within `timeout`.
pub(crate) async fn reply<S: AsyncWrite + Unpin>(
    io: &mut S,
    bytes: &[u8],
    timeout: Duration,
) -> io::Result<()> {
    let writing = async {
        io.write_all(bytes).await?;
        io.flush().await
    };
    let expiry = async {
        Timer::after(timeout).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    writing.or(expiry).await
}

/// Writes a whole response, ends the connection with it, and lingers so that it arrives.
pub(crate) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    response: &str,
    timeout: Duration,
    scratch: &Rc<Scratch>,
) {
    if reply(io, response.as_bytes(), timeout).await.is_ok() {
        linger(io, scratch).await;
    }
}

/// Shuts down writing, then reads and discards until the peer's end: closing with unread input
/// would send a reset that destroys the answer. Bounded by [`LINGER_TIME`].
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, scratch: &Rc<Scratch>) {
    let discarding = async {
        if io.close().await.is_err() {
            return;
        }
        loop {
            let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut scratch.lend())).await;
            if matches!(read, Ok(0) | Err(_)) {
                return;
            }
            // The others get their turn, and the time its chance to be over.
            yield_now().await;
        }
    };
    let expiry = async {
        Timer::after(LINGER_TIME).await;
    };
    expiry.or(discarding).await;
}

/// Comes to `outcome` when the memory that is held of a head is needed.
pub(crate) async fn evicted<T>(account: &Account, outcome: T) -> T {
    poll_fn(|cx| account.poll_condemned(cx)).await;
    outcome
}

/// Reads what is there and appends it.
pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    io: &mut S,
    scratch: &Rc<Scratch>,
    bytes: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    let mut buffer = scratch.lend();
    // A small first read: what follows the head is the WebSocket's, and is read by its rules.
    let buffer = &mut buffer[..READ_AT_ONCE];
    Pin::new(io).poll_read(cx, buffer).map_ok(|read| {
        bytes.extend_from_slice(&buffer[..read]);
        read
    })
}

const READ_AT_ONCE: usize = 2 * 1024;

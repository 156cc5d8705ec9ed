//! The request head on the wire: reads it within bytes and time, writes replies, and lingers so
//! that they arrive.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt as _};

use crate::budget::{Account, Charge, Ledger};
use crate::gate::{Admission, Judgement, Refusal, judge};
use crate::limits::{LINGER_BYTES, LINGER_TIME};
use crate::metrics::Endpoint;
use crate::scratch::Scratch;

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

/// Reads one request head until `deadline`. `attempt` is passed on to the gate.
///
/// Not cancel safe: a cancelled read loses what it has read.
pub async fn read<S: AsyncRead + Unpin>(
    io: &mut S,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    ledger: &Rc<Ledger>,
    attempt: impl FnOnce(Endpoint) -> Result<(), Duration>,
) -> Head {
    let mut attempt = Some(attempt);
    let judged = read_until(io, deadline, scratch, ledger, |bytes| {
        // The gate asks at most once: only of a complete head.
        let judgement =
            judge(bytes, |endpoint| attempt.take().map_or(Ok(()), |attempt| attempt(endpoint)));
        match judgement {
            Judgement::Incomplete => None,
            Judgement::Refused(refusal) => Some(Head::Refused(refusal)),
            Judgement::Admitted(admission, length) => {
                bytes.drain(..length);
                bytes.shrink_to_fit();
                Some(Head::Admitted(admission, std::mem::take(bytes)))
            }
        }
    });
    match judged.await {
        Ok(head) => head,
        Err(Unread::TimedOut) => Head::Refused(Refusal::HeadTimeout),
        Err(Unread::Gone) => Head::Gone,
    }
}

/// Why no head was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// It was not complete at the deadline.
    TimedOut,
    /// The peer went away.
    Gone,
}

/// Reads until `judge` has come to something about the bytes so far, or until `deadline`. What is
/// held of them is charged to `ledger`.
///
/// Not cancel safe: a cancelled read loses what it has read.
pub async fn read_until<S: AsyncRead + Unpin, T>(
    io: &mut S,
    deadline: Instant,
    scratch: &Rc<Scratch>,
    ledger: &Rc<Ledger>,
    mut judge: impl FnMut(&mut Vec<u8>) -> Option<T>,
) -> Result<T, Unread> {
    let timeout = async {
        Timer::at(deadline).await;
        Err(Unread::TimedOut)
    };
    let reading = async {
        let mut charge = Charge::new(Account::open(ledger));
        let mut bytes = Vec::new();
        loop {
            match fill(io, scratch, &mut bytes).await {
                Ok(0) | Err(_) => return Err(Unread::Gone),
                Ok(_) => charge.set(bytes.capacity()),
            };
            if let Some(judged) = judge(&mut bytes) {
                return Ok(judged);
            }
        }
    };
    reading.or(timeout).await
}

/// Writes a whole reply within `timeout`.
pub async fn reply<S: AsyncWrite + Unpin>(
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
pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
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
/// would send a reset that destroys the answer. Bounded by [`LINGER_TIME`] and [`LINGER_BYTES`].
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, scratch: &Rc<Scratch>) {
    let discarding = async {
        if io.close().await.is_err() {
            return;
        }
        let mut discarded = 0;
        while discarded < LINGER_BYTES {
            let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut scratch.lend())).await;
            match read {
                Ok(0) | Err(_) => return,
                Ok(read) => discarded += read,
            }
        }
    };
    let expiry = async {
        Timer::after(LINGER_TIME).await;
    };
    discarding.or(expiry).await;
}

/// Reads what is there and appends it.
async fn fill<S: AsyncRead + Unpin>(
    io: &mut S,
    scratch: &Rc<Scratch>,
    bytes: &mut Vec<u8>,
) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut buffer = scratch.lend();
        // A small first read: what follows the head is the WebSocket's, and is read by its rules.
        let buffer = &mut buffer[..READ_AT_ONCE];
        Pin::new(&mut *io).poll_read(cx, buffer).map_ok(|read| {
            bytes.extend_from_slice(&buffer[..read]);
            read
        })
    })
    .await
}

const READ_AT_ONCE: usize = 2 * 1024;

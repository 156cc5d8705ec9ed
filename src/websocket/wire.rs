//! Between the socket and the codec: a stream adapter that knows where frames end.
//!
//! It hands bytes up to the codec only to the end of the frame in progress, so that at a frame
//! boundary the codec holds nothing and serves the next connection that has something to decode:
//! between messages a connection has no codec at all. On the way it sees every byte, knows since
//! when a message is begun, and how much memory the codec holds for it. What the codec would write
//! by itself (pongs, close replies) is discarded: ours go through the outbox, in their order and
//! with their bounds.

mod follower;

use std::cell::RefCell;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::{AsyncRead, AsyncWrite, Stream as _};

use self::follower::Follower;
use crate::close::Close;
use crate::limits::{CODEC_BUFFER, CODEC_OVERHEAD, SPARE_CODECS};
use crate::net::scratch::{Lent, Scratch};

/// The reading half of one WebSocket, and the socket itself.
#[derive(Debug)]
pub(crate) struct Incoming<S> {
    io: S,
    state: Input,
    codecs: Rc<Codecs>,
    largest_message: usize,
    /// The codec has seen the end of the connection and is of no use to another.
    spent: bool,
    /// Input is thrown away instead of decoded.
    deaf: bool,
}

/// The input, with or without a codec around it.
#[derive(Debug)]
enum Input {
    Bare(Feed),
    Coded(Box<Codec>),
}

type Codec = WebSocketStream<Feed>;

/// Codecs that wait for the next connection with something to decode. At the boundary of a frame a
/// codec knows nothing of a connection, so that a few serve them all.
#[derive(Default, Debug)]
pub struct Codecs(RefCell<Vec<(usize, Box<Codec>)>>);

impl Codecs {
    /// A codec for messages of up to `largest_message` bytes.
    fn take(&self, largest_message: usize, cx: &mut Context<'_>) -> Box<Codec> {
        let mut spare = self.0.borrow_mut();
        if let Some(at) = spare.iter().position(|(largest, _)| *largest == largest_message) {
            return spare.swap_remove(at).1;
        }
        let config = Some(websocket_config(largest_message));
        let made = pin!(WebSocketStream::from_raw_socket(Feed::default(), Role::Server, config));
        match made.poll(cx) {
            Poll::Ready(codec) => Box::new(codec),
            Poll::Pending => {
                unreachable!("bug: a codec without a handshake has nothing to wait for")
            }
        }
    }

    /// Keeps a codec for the next who asks, within bounds.
    fn keep(&self, largest_message: usize, codec: Box<Codec>) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_CODECS {
            spare.push((largest_message, codec));
        }
    }
}

/// What the input came to.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// A whole message, or a control frame.
    Message(Message),
    /// The input is used up.
    NeedInput,
    /// The peer broke the protocol; nothing more can be decoded.
    Violation(Close),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    /// Takes over a socket after the handshake. `leftover` arrived behind the request head;
    /// messages may have `largest_message` bytes.
    pub(crate) fn new(io: S, leftover: Vec<u8>, largest_message: usize, codecs: &Rc<Codecs>) -> Self {
        let state = Input::Bare(Feed { kept: leftover, ..Feed::default() });
        let codecs = Rc::clone(codecs);
        Self { io, state, codecs, largest_message, spent: false, deaf: false }
    }

    /// The socket, to write to.
    pub(crate) fn io(&mut self) -> &mut S {
        &mut self.io
    }

    /// Whether there is input that has not been decoded.
    pub(crate) fn has_input(&self) -> bool {
        !self.feed().unread().is_empty()
    }

    /// Reads from the socket into the lent buffer; there must be no undecoded input. 0 is the end
    /// of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Rc<Scratch>,
    ) -> Poll<io::Result<usize>> {
        let feed = match &mut self.state {
            Input::Bare(feed) => feed,
            Input::Coded(codec) => codec.get_mut(),
        };
        debug_assert!(feed.unread().is_empty(), "input is decoded before more is read");
        feed.kept = Vec::new();
        (feed.at, feed.end) = (0, 0);
        let buffer = feed.lent.get_or_insert_with(|| scratch.lend());
        Pin::new(&mut self.io).poll_read(cx, buffer).map_ok(|read| {
            feed.end = read;
            read
        })
    }

    /// Decodes up to one message of the input; `now` is when a message that begins here begins.
    pub(crate) fn decode(&mut self, cx: &mut Context<'_>, now: Instant) -> Decoded {
        if self.deaf {
            self.feed_mut().skip_unread();
        }
        if !self.has_input() {
            return Decoded::NeedInput;
        }
        self.feed_mut().follower.now = Some(now);
        let codec = self.codec(cx);
        match Pin::new(codec).poll_next(cx) {
            Poll::Pending => Decoded::NeedInput,
            Poll::Ready(Some(Ok(message))) => {
                self.spent = message.is_close();
                Decoded::Message(message)
            }
            Poll::Ready(other) => {
                self.spent = true;
                Decoded::Violation(match other {
                    Some(Err(error)) => violation(&error),
                    _ => Close::Protocol,
                })
            }
        }
    }

    /// The code of the close frame that was just decoded, as the peer sent it. The codec does not
    /// know 1014, which was registered after RFC 6455, and takes it for a violation.
    pub(crate) fn close_code(&self, decoded: u16) -> u16 {
        const BAD_GATEWAY: u16 = 1014;
        match u16::from_be_bytes(self.feed().follower.control) {
            BAD_GATEWAY => BAD_GATEWAY,
            _ => decoded,
        }
    }

    /// From now on input is thrown away: the peer has said its last word, or nonsense.
    pub(crate) fn discard(&mut self) {
        (self.deaf, self.spent) = (true, true);
        self.feed_mut().follower = Follower::default();
        self.drop_codec();
    }

    /// Ends a turn of reading: the shared buffer goes back, what was not decoded is kept, and the
    /// codec goes back unless a message is in progress.
    pub(crate) fn end_turn(&mut self) {
        let feed = self.feed_mut();
        if feed.lent.is_some() {
            feed.kept = feed.unread().to_vec();
            (feed.lent, feed.at, feed.end) = (None, 0, 0);
        } else if feed.at > 0 {
            feed.kept.drain(..feed.at);
            feed.kept.shrink_to_fit();
            feed.at = 0;
        }
        if feed.follower.is_at_boundary() {
            self.drop_codec();
        }
    }

    /// Since when a message is begun and not complete; interleaved control frames do not count.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.feed().follower.begun
    }

    /// Memory held for input, in bytes: the codec, what it has reserved for the message in
    /// progress, and undecoded input.
    pub(crate) fn held(&self) -> usize {
        let codec = match &self.state {
            Input::Bare(_) => 0,
            Input::Coded(_) => CODEC_BUFFER + CODEC_OVERHEAD,
        };
        let feed = self.feed();
        let message = feed.follower.message + feed.follower.frame.min(self.largest_message);
        codec + message.saturating_sub(CODEC_BUFFER) + feed.kept.len()
    }

    fn feed(&self) -> &Feed {
        match &self.state {
            Input::Bare(feed) => feed,
            Input::Coded(codec) => codec.get_ref(),
        }
    }

    fn feed_mut(&mut self) -> &mut Feed {
        match &mut self.state {
            Input::Bare(feed) => feed,
            Input::Coded(codec) => codec.get_mut(),
        }
    }

    fn codec(&mut self, cx: &mut Context<'_>) -> &mut Codec {
        if let Input::Bare(feed) = &mut self.state {
            let mut codec = self.codecs.take(self.largest_message, cx);
            *codec.get_mut() = mem::take(feed);
            self.state = Input::Coded(codec);
        }
        match &mut self.state {
            Input::Coded(codec) => codec,
            Input::Bare(_) => unreachable!("bug: it was made a line ago"),
        }
    }

    /// Takes the codec from around the input. One that has grown is not kept for others.
    fn drop_codec(&mut self) {
        let feed = mem::take(self.feed_mut());
        let has_grown = feed.follower.largest_frame > CODEC_BUFFER;
        let state = mem::replace(&mut self.state, Input::Bare(feed));
        self.feed_mut().follower.largest_frame = 0;
        if let (Input::Coded(codec), false, false) = (state, has_grown, self.spent) {
            self.codecs.keep(self.largest_message, codec);
        }
    }
}

/// The one place where the codec is set up. Its defaults cost 133 KiB a connection.
fn websocket_config(largest_message: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(CODEC_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(CODEC_BUFFER)
        .max_message_size(Some(largest_message))
        .max_frame_size(Some(largest_message))
        .accept_unmasked_frames(false)
}

fn violation(error: &Error) -> Close {
    match error {
        Error::Capacity(_) => Close::TooBig,
        Error::Utf8(_) => Close::BadUtf8,
        _ => Close::Protocol,
    }
}

/// The stream that the codec sees: input that has been read already.
#[derive(Default, Debug)]
struct Feed {
    lent: Option<Lent>,
    kept: Vec<u8>,
    at: usize,
    end: usize,
    follower: Follower,
}

impl Feed {
    fn unread(&self) -> &[u8] {
        match &self.lent {
            Some(lent) => &lent[self.at..self.end],
            None => &self.kept[self.at..],
        }
    }

    fn skip_unread(&mut self) {
        self.at += self.unread().len();
    }
}

impl AsyncRead for Feed {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let feed = self.get_mut();
        // Not by `unread()`: the follower is borrowed beside it.
        let unread = match &feed.lent {
            Some(lent) => &lent[feed.at..feed.end],
            None => &feed.kept[feed.at..],
        };
        if unread.is_empty() {
            // The link reads the socket itself, and waits for it there.
            return Poll::Pending;
        }
        let offered = &unread[..unread.len().min(buffer.len())];
        let taken = feed.follower.follow(offered);
        buffer[..taken].copy_from_slice(&offered[..taken]);
        feed.at += taken;
        Poll::Ready(Ok(taken))
    }
}

impl AsyncWrite for Feed {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;

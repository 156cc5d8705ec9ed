//! Between the socket and the codec: a stream adapter that knows where frames end.
//!
//! It hands bytes up to the codec only to the end of the frame in progress, so that at a frame
//! boundary the codec holds nothing and can be taken apart: an idle connection has no codec at
//! all. On the way it sees every byte, knows since when a message is begun, and how much memory the
//! codec holds for it. What the codec would write by itself (pongs, close replies) is discarded:
//! ours go through the outbox, in their order and with their bounds.

use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Error, Message};
use futures_lite::{AsyncRead, AsyncWrite, Stream as _};

use crate::close::Close;
use crate::limits::{CODEC_BUFFER, CODEC_OVERHEAD};
use crate::scratch::{Lent, Scratch};

/// The reading half of one WebSocket, and the socket itself.
#[derive(Debug)]
pub struct Incoming<S> {
    state: State<S>,
    largest_message: usize,
    /// The codec has decoded data since the last [`Self::tidy`]; then it is kept for more.
    carries_data: bool,
    /// Input is thrown away instead of decoded.
    deaf: bool,
}

/// The socket, with or without a codec around it.
#[derive(Debug)]
enum State<S> {
    Bare(Wire<S>),
    Coded(Box<WebSocketStream<Wire<S>>>),
    /// Only while one of the above is made into the other.
    Between,
}

/// What the input came to.
#[derive(Debug)]
pub enum Decoded {
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
    pub fn new(io: S, leftover: Vec<u8>, largest_message: usize) -> Self {
        let wire =
            Wire { io, lent: None, kept: leftover, at: 0, end: 0, follower: Follower::default() };
        Self { state: State::Bare(wire), largest_message, carries_data: false, deaf: false }
    }

    /// The socket, to write to.
    pub fn io(&mut self) -> &mut S {
        &mut self.wire().io
    }

    /// Whether there is input that has not been decoded.
    pub fn has_input(&mut self) -> bool {
        !self.wire().unread().is_empty()
    }

    /// Reads from the socket into the lent buffer; there must be no undecoded input. 0 is the end
    /// of the stream.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Rc<Scratch>,
    ) -> Poll<io::Result<usize>> {
        let wire = self.wire();
        debug_assert!(wire.unread().is_empty(), "input is decoded before more is read");
        wire.kept = Vec::new();
        (wire.at, wire.end) = (0, 0);
        let buffer = wire.lent.get_or_insert_with(|| scratch.lend());
        Pin::new(&mut wire.io).poll_read(cx, buffer).map_ok(|read| {
            wire.end = read;
            read
        })
    }

    /// Decodes up to one message of the input; `now` is when a message that begins here begins.
    pub fn decode(&mut self, cx: &mut Context<'_>, now: Instant) -> Decoded {
        if self.deaf {
            self.wire().skip_unread();
        }
        if !self.has_input() {
            return Decoded::NeedInput;
        }
        self.wire().follower.now = Some(now);
        let codec = self.codec(cx);
        let polled = Pin::new(codec).poll_next(cx);
        match polled {
            Poll::Pending => Decoded::NeedInput,
            Poll::Ready(Some(Ok(message))) => {
                self.carries_data |= message.is_text() || message.is_binary();
                Decoded::Message(message)
            }
            Poll::Ready(Some(Err(error))) => Decoded::Violation(violation(&error)),
            Poll::Ready(None) => Decoded::Violation(Close::Protocol),
        }
    }

    /// The code of the close frame that was just decoded, as the peer sent it. The codec does not
    /// know 1014, which was registered after RFC 6455, and takes it for a violation.
    pub fn close_code(&self, decoded: u16) -> u16 {
        const BAD_GATEWAY: u16 = 1014;
        let follower = match &self.state {
            State::Bare(wire) => &wire.follower,
            State::Coded(codec) => &codec.get_ref().follower,
            State::Between => return decoded,
        };
        match u16::from_be_bytes(follower.control) {
            BAD_GATEWAY => BAD_GATEWAY,
            _ => decoded,
        }
    }

    /// From now on input is thrown away: the peer has said its last word, or nonsense.
    pub fn discard(&mut self) {
        self.deaf = true;
        self.wire().follower = Follower::default();
        self.drop_codec();
    }

    /// Ends a turn of reading: the shared buffer goes back, and what was not decoded is kept. A
    /// codec that has grown, or that has seen control frames alone, is taken apart.
    pub fn rest(&mut self) {
        let wire = self.wire();
        if wire.lent.is_some() {
            wire.kept = wire.unread().to_vec();
            (wire.lent, wire.at, wire.end) = (None, 0, 0);
        } else if wire.at > 0 {
            wire.kept.drain(..wire.at);
            wire.kept.shrink_to_fit();
            wire.at = 0;
        }
        if wire.follower.largest_frame > CODEC_BUFFER || !self.carries_data {
            self.drop_codec();
        }
    }

    /// Takes the codec apart if no data came since the last call.
    pub fn tidy(&mut self) {
        if !std::mem::take(&mut self.carries_data) {
            self.drop_codec();
        }
    }

    /// Since when a message is begun and not complete; interleaved control frames do not count.
    pub fn begun(&self) -> Option<Instant> {
        match &self.state {
            State::Bare(wire) => wire.follower.begun,
            State::Coded(codec) => codec.get_ref().follower.begun,
            State::Between => None,
        }
    }

    /// Gives a begun message its whole time anew: the relay itself did not read.
    pub fn restart_message(&mut self, now: Instant) {
        let follower = &mut self.wire().follower;
        follower.begun = follower.begun.map(|_| now);
    }

    /// Memory held for input, in bytes: the codec, what it has reserved for the message in
    /// progress, and undecoded input.
    pub fn held(&self) -> usize {
        let (wire, codec) = match &self.state {
            State::Bare(wire) => (wire, 0),
            State::Coded(codec) => (codec.get_ref(), CODEC_BUFFER + CODEC_OVERHEAD),
            State::Between => return 0,
        };
        let message = wire.follower.message + wire.follower.frame.min(self.largest_message);
        codec + message.saturating_sub(CODEC_BUFFER) + wire.kept.len()
    }

    fn wire(&mut self) -> &mut Wire<S> {
        match &mut self.state {
            State::Bare(wire) => wire,
            State::Coded(codec) => codec.get_mut(),
            State::Between => unreachable!("bug: the codec is only between states inside a method"),
        }
    }

    fn codec(&mut self, cx: &mut Context<'_>) -> &mut WebSocketStream<Wire<S>> {
        self.state = match std::mem::replace(&mut self.state, State::Between) {
            State::Bare(wire) => {
                let config = Some(websocket_config(self.largest_message));
                let made = pin!(WebSocketStream::from_raw_socket(wire, Role::Server, config));
                let Poll::Ready(codec) = made.poll(cx) else {
                    unreachable!("bug: a codec without a handshake has nothing to wait for")
                };
                State::Coded(Box::new(codec))
            }
            coded => coded,
        };
        match &mut self.state {
            State::Coded(codec) => codec,
            _ => unreachable!("bug: it was made a line ago"),
        }
    }

    fn drop_codec(&mut self) {
        if !self.wire().follower.is_at_boundary() {
            return;
        }
        self.wire().follower.largest_frame = 0;
        self.state = match std::mem::replace(&mut self.state, State::Between) {
            State::Coded(codec) => State::Bare(codec.into_inner()),
            bare => bare,
        };
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

/// The stream that the codec sees.
#[derive(Debug)]
struct Wire<S> {
    io: S,
    lent: Option<Lent>,
    kept: Vec<u8>,
    at: usize,
    end: usize,
    follower: Follower,
}

impl<S> Wire<S> {
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

impl<S: Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        // Not by `unread()`: the follower is borrowed beside it.
        let unread = match &wire.lent {
            Some(lent) => &lent[wire.at..wire.end],
            None => &wire.kept[wire.at..],
        };
        if unread.is_empty() {
            // The link reads the socket itself, and waits for it there.
            return Poll::Pending;
        }
        let offered = &unread[..unread.len().min(buffer.len())];
        let taken = wire.follower.follow(offered);
        buffer[..taken].copy_from_slice(&offered[..taken]);
        wire.at += taken;
        Poll::Ready(Ok(taken))
    }
}

impl<S: Unpin> AsyncWrite for Wire<S> {
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

/// Follows the frames of a peer by their headers (RFC 6455 section 5.2). It judges nothing: that
/// is the codec's part.
#[derive(Debug, Default)]
struct Follower {
    header: [u8; 14],
    header_length: usize,
    /// Payload bytes of the frame in progress that are still to come.
    remaining: u64,
    in_payload: bool,
    /// Payload length of the frame in progress.
    frame: usize,
    /// Payload bytes of the completed fragments of the message in progress.
    message: usize,
    fragmented: bool,
    largest_frame: usize,
    begun: Option<Instant>,
    now: Option<Instant>,
    /// The first two payload bytes of a control frame, unmasked.
    control: [u8; 2],
}

impl Follower {
    fn is_at_boundary(&self) -> bool {
        self.header_length == 0 && !self.in_payload && !self.fragmented
    }

    /// How many of `bytes` belong to the frame in progress, or to the one that begins with them.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while !self.in_payload {
            let Some(byte) = bytes.get(taken) else { return taken };
            if self.is_at_boundary() {
                self.begun = self.now;
            }
            self.header[self.header_length] = *byte;
            self.header_length += 1;
            taken += 1;
            if self.header_length == header_length(self.header) {
                self.remaining = payload_length(self.header);
                self.frame = usize::try_from(self.remaining).unwrap_or(usize::MAX);
                self.in_payload = true;
                self.largest_frame = self.largest_frame.max(self.frame);
            }
        }
        let left = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let payload = left.min(bytes.len() - taken);
        self.note_control(&bytes[taken..taken + payload]);
        self.remaining -= payload as u64;
        taken += payload;
        if self.remaining == 0 {
            self.finish_frame();
        }
        taken
    }

    /// Keeps the beginning of a control frame's payload: a close code, if it is a close frame.
    fn note_control(&mut self, payload: &[u8]) {
        let done = self.frame - usize::try_from(self.remaining).unwrap_or(self.frame);
        if self.header[0] & 0x08 == 0 || done >= self.control.len() {
            return;
        }
        let mask = &self.header[self.header_length.saturating_sub(4)..self.header_length];
        let noted = self.control[done..].iter_mut().zip(&mask[done..]).zip(payload);
        for ((kept, mask), byte) in noted {
            *kept = byte ^ mask;
        }
    }

    fn finish_frame(&mut self) {
        let [first, ..] = self.header;
        let (is_final, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
        if !is_control {
            self.fragmented = !is_final;
            self.message = if is_final { 0 } else { self.message.saturating_add(self.frame) };
        }
        (self.header_length, self.in_payload, self.frame) = (0, false, 0);
        if self.is_at_boundary() {
            self.begun = None;
        }
    }
}

/// Length of the header that begins with these bytes, as far as they tell: 2 to 14.
fn header_length(header: [u8; 14]) -> usize {
    let [_, second, ..] = header;
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & 0x80 == 0 { 0 } else { 4 }
}

fn payload_length(header: [u8; 14]) -> u64 {
    let [_, second, a, b, c, d, e, f, g, h, ..] = header;
    match second & 0x7f {
        126 => u64::from(u16::from_be_bytes([a, b])),
        127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        short => u64::from(short),
    }
}

#[cfg(test)]
mod tests;

//! Between the socket and the codec: messages are kept as bytes until they are whole.
//!
//! So a codec never holds anything of a connection from one turn to the next, a few of them serve all
//! connections, and what is held of a message is exactly what has arrived of it. Control frames between
//! the fragments of a message pass at once. A message that came in pieces needs no codec at all: its headers
//! were judged and its payload unmasked as they came. What the codec would write by itself (pongs, close replies)
//! is discarded: ours go through the outbox, in their order and with their bounds.

mod assembly;
mod follower;
mod frozen;
mod pieces;

use std::cell::RefCell;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Bytes, Error, Message, Utf8Bytes};
use futures_lite::{AsyncRead, AsyncWrite, Stream as _};

use self::assembly::{Assembly, Payload, Whole};
pub(crate) use self::frozen::FrozenIncoming;
use self::pieces::Pieces;
use crate::close::Close;
use crate::limits::{CODEC_BUFFER, SPARE_CODECS};
use crate::net::scratch::{Lent, Scratch};

/// The reading half of one WebSocket, and the socket itself.
#[derive(Debug)]
pub(crate) struct Incoming<S> {
    io: S,
    /// What was read and not looked at.
    input: Span,
    assembly: Assembly,
    kept: Rc<Kept>,
    /// The codec of this turn.
    codec: Option<Box<Codec>>,
    codecs: Rc<Codecs>,
    largest_message: usize,
    /// Frames that may still end in this turn.
    frames_left: usize,
    /// Input is thrown away instead of decoded.
    deaf: bool,
    /// Half a message was among it.
    lost: bool,
}

/// What is kept of a peer's input from one turn to the next. It is shared with whoever frees it when the
/// memory is needed.
#[derive(Default, Debug)]
pub(crate) struct Kept {
    /// The payload of a message as far as it has arrived, unmasked.
    message: Pieces,
    /// What was not looked at.
    input: RefCell<Vec<u8>>,
}

impl Kept {
    /// Frees all of it. Whoever sent it can only be closed: what comes next has no beginning.
    pub(crate) fn clear(&self) {
        self.message.clear();
        drop(self.input.take());
    }

    /// Memory held, in bytes.
    fn held(&self) -> usize {
        self.message.held() + self.input.borrow().capacity()
    }
}

type Codec = WebSocketStream<Span>;

/// Codecs that wait for the next connection with something to decode.
#[derive(Default, Debug)]
pub(crate) struct Codecs(RefCell<Vec<(usize, Box<Codec>)>>);

impl Codecs {
    /// A codec for messages of up to `largest_message` bytes.
    fn take(&self, largest_message: usize, cx: &mut Context<'_>) -> Box<Codec> {
        let mut spare = self.0.borrow_mut();
        if let Some(at) = spare.iter().position(|(largest, _)| *largest == largest_message) {
            return spare.swap_remove(at).1;
        }
        let config = Some(websocket_config(largest_message));
        let made = pin!(WebSocketStream::from_raw_socket(Span::default(), Role::Server, config));
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
    /// The input is used up, or the turn is over.
    NeedInput,
    /// The peer broke the protocol; nothing more can be decoded.
    Violation(Close),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    /// Takes over a socket after the handshake. `leftover` arrived behind the request head;
    /// messages may have `largest_message` bytes.
    pub(crate) fn new(
        io: S,
        leftover: Vec<u8>,
        largest_message: usize,
        codecs: &Rc<Codecs>,
    ) -> Self {
        Self {
            io,
            input: Span::own(leftover),
            assembly: Assembly::default(),
            kept: Rc::default(),
            codec: None,
            codecs: Rc::clone(codecs),
            largest_message,
            frames_left: 0,
            deaf: false,
            lost: false,
        }
    }

    /// The socket, to look at.
    pub(crate) fn socket(&self) -> &S {
        &self.io
    }

    /// The socket, to write to.
    pub(crate) fn io(&mut self) -> &mut S {
        &mut self.io
    }

    /// Whether there is input that has not been looked at.
    pub(crate) fn has_input(&self) -> bool {
        !self.input.bytes().is_empty() || !self.kept.input.borrow().is_empty()
    }

    /// Reads from the socket into the lent buffer; there must be no input that has not been looked at.
    /// 0 is the end of the stream.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Rc<Scratch>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(!self.has_input(), "input is looked at before more is read");
        let mut lent = match mem::take(&mut self.input).source {
            Source::Lent(lent) => lent,
            Source::Own(_) => scratch.lend(),
        };
        let read = Pin::new(&mut self.io).poll_read(cx, &mut lent);
        let end = match read {
            Poll::Ready(Ok(length)) => length,
            _ => 0,
        };
        self.input = Span { source: Source::Lent(lent), at: 0, end };
        read
    }

    /// Begins a turn in which up to `frames` frames of any kind are decoded; with `packed` what is kept of them
    /// is kept in small pieces.
    pub(crate) fn begin_turn(&mut self, frames: usize, packed: bool) {
        self.frames_left = frames;
        self.kept.message.pack(packed);
    }

    /// Decodes up to one message of the input; `now` is when a message that begins here begins.
    pub(crate) fn decode(&mut self, cx: &mut Context<'_>, now: Instant) -> Decoded {
        let kept = self.kept.input.take();
        if !kept.is_empty() {
            self.input = Span::own(kept);
        }
        if self.deaf {
            self.input.at = self.input.end;
        }
        let (input, payload) = (self.input.bytes(), &self.kept.message);
        let (largest, frames) = (self.largest_message, &mut self.frames_left);
        let (taken, whole) = self.assembly.take(input, payload, now, largest, frames);
        let start = self.input.at;
        self.input.at += taken;
        match whole {
            None => Decoded::NeedInput,
            Some(Err(close)) => Decoded::Violation(close),
            Some(Ok(Whole::Control(frame))) => self.decode_span(cx, Span::own(frame)).1,
            Some(Ok(Whole::Message(payload))) => message_of(payload),
            Some(Ok(Whole::Input(range))) => {
                // The codec reads where the bytes are, and gives them back.
                let Span { source, at, end } = mem::take(&mut self.input);
                let whole = Span { source, at: start + range.start, end: start + range.end };
                let (Span { source, .. }, decoded) = self.decode_span(cx, whole);
                self.input = Span { source, at, end };
                decoded
            }
        }
    }

    /// Decodes a message or a control frame that is whole.
    fn decode_span(&mut self, cx: &mut Context<'_>, whole: Span) -> (Span, Decoded) {
        let has_grown = whole.bytes().len() > CODEC_BUFFER;
        let mut codec =
            self.codec.take().unwrap_or_else(|| self.codecs.take(self.largest_message, cx));
        *codec.get_mut() = whole;
        let polled = Pin::new(&mut *codec).poll_next(cx);
        let span = mem::take(codec.get_mut());
        let decoded = match polled {
            Poll::Ready(Some(Ok(message))) => {
                if !has_grown && !message.is_close() {
                    self.codec = Some(codec);
                }
                Decoded::Message(message)
            }
            Poll::Ready(Some(Err(error))) => Decoded::Violation(violation(&error)),
            // It is whole by its headers: whatever is missing is the peer's fault.
            Poll::Ready(None) | Poll::Pending => Decoded::Violation(Close::Protocol),
        };
        (span, decoded)
    }

    /// The code of the close frame that was just decoded, as the peer sent it. The codec does not
    /// know 1014, which was registered after RFC 6455, and takes it for a violation.
    pub(crate) fn close_code(&self, decoded: u16) -> u16 {
        const BAD_GATEWAY: u16 = 1014;
        match u16::from_be_bytes(self.assembly.follower.control()) {
            BAD_GATEWAY => BAD_GATEWAY,
            _ => decoded,
        }
    }

    /// From now on input is thrown away: the peer has said its last word, or nonsense.
    pub(crate) fn discard(&mut self) {
        self.deaf = true;
        self.lost |= self.begun().is_some();
        self.input.at = self.input.end;
        self.kept.clear();
        self.assembly = Assembly::default();
    }

    /// Ends a turn of reading: the shared buffer and the codec go back, and what was not looked at is
    /// kept.
    pub(crate) fn end_turn(&mut self) {
        let rest = mem::take(&mut self.input).into_bytes();
        if !rest.is_empty() {
            self.kept.input.replace(rest);
        }
        if let Some(codec) = self.codec.take() {
            self.codecs.keep(self.largest_message, codec);
        }
    }

    /// Since when a message is begun and not complete; interleaved control frames do not count.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.assembly.follower.begun()
    }

    /// Whether some of a message has arrived that nobody will see the end of, if this is the end.
    pub(crate) fn is_amid_message(&self) -> bool {
        self.lost || self.begun().is_some()
    }

    /// What is kept between turns. Once it was cleared from outside, all further input must be discarded.
    pub(crate) fn kept(&self) -> &Rc<Kept> {
        &self.kept
    }

    /// Memory held for input between turns, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.assembly.held() + self.kept.held() + self.input.held()
    }
}

/// The message with this payload; text must be UTF-8 (RFC 6455 section 5.6).
fn message_of(Payload { is_text, bytes }: Payload) -> Decoded {
    let payload = Bytes::from(bytes);
    if !is_text {
        return Decoded::Message(Message::Binary(payload));
    }
    match Utf8Bytes::try_from(payload) {
        Ok(text) => Decoded::Message(Message::Text(text)),
        Err(_) => Decoded::Violation(Close::BadUtf8),
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

/// Bytes that wait to be read: input of a connection, or the part of it that the codec is given.
#[derive(Debug, Default)]
struct Span {
    source: Source,
    at: usize,
    end: usize,
}

#[derive(Debug)]
enum Source {
    Lent(Lent),
    Own(Vec<u8>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl Span {
    fn own(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self { source: Source::Own(bytes), at: 0, end }
    }

    fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Lent(lent) => &lent[self.at..self.end],
            Source::Own(bytes) => &bytes[self.at..self.end],
        }
    }

    /// The bytes that wait, in as much memory as they need; a lent buffer goes back.
    fn into_bytes(self) -> Vec<u8> {
        match self.source {
            Source::Own(bytes) if self.at == 0 && bytes.len() == self.end => bytes,
            _ => self.bytes().to_vec(),
        }
    }

    fn held(&self) -> usize {
        match &self.source {
            Source::Lent(_) => 0,
            Source::Own(bytes) => bytes.capacity(),
        }
    }
}

impl AsyncRead for Span {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = self.bytes();
        if bytes.is_empty() {
            return Poll::Pending;
        }
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.at += length;
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Span {
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

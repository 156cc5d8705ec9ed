//! A connection in memory: the relay has one end, the input of the fuzzer decides what the other
//! end does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};
use pyrycode_relay::net::transport::Transport;

/// The relay's end.
#[derive(Debug)]
pub struct Near(Rc<RefCell<State>>);

/// The peer's end.
#[derive(Debug)]
pub struct Far(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    input: VecDeque<u8>,
    output: Vec<u8>,
    /// Most bytes that one read or one write moves.
    portion: usize,
    /// Bytes that the peer will still take.
    room: usize,
    end: Option<End>,
    shut_down: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// How the peer ended the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// No more input, but it still reads.
    Finished,
    /// Neither.
    Reset,
}

/// A connection that moves everything at once.
pub fn pipe() -> (Near, Far) {
    let state = Rc::new(RefCell::new(State {
        input: VecDeque::new(),
        output: Vec::new(),
        portion: usize::MAX,
        room: usize::MAX,
        end: None,
        shut_down: false,
        reader: None,
        writer: None,
    }));
    (Near(Rc::clone(&state)), Far(state))
}

impl Far {
    /// Sends `bytes`, unless the connection has ended.
    pub fn send(&self, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        if state.end.is_none() {
            state.input.extend(bytes);
            state.wake();
        }
    }

    /// No more than `portion` bytes at a time.
    pub fn set_portion(&self, portion: usize) {
        self.0.borrow_mut().portion = portion.max(1);
    }

    /// Takes `room` more bytes and no more than that.
    pub fn set_room(&self, room: usize) {
        let mut state = self.0.borrow_mut();
        state.room = room;
        state.wake();
    }

    /// Ends the connection; a reset may follow a finish.
    pub fn end(&self, end: End) {
        let mut state = self.0.borrow_mut();
        if state.end != Some(End::Reset) {
            state.end = Some(end);
        }
        if end == End::Reset {
            state.input.clear();
        }
        state.wake();
    }

    /// Everything that the relay has written.
    pub fn output(&self) -> Vec<u8> {
        self.0.borrow().output.clone()
    }

    /// Input that the relay has not read.
    pub fn unread(&self) -> Vec<u8> {
        self.0.borrow().input.iter().copied().collect()
    }
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Transport for Near {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        if state.input.is_empty() && state.end.is_none() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn has_hung_up(&self) -> bool {
        false
    }

    fn reset(&mut self) {}
}

impl AsyncRead for Near {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.as_mut().get_mut().poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        let mut state = self.0.borrow_mut();
        if state.end == Some(End::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let length = buffer.len().min(state.portion).min(state.input.len());
        for (place, byte) in buffer.iter_mut().zip(state.input.drain(..length)) {
            *place = byte;
        }
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Near {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        assert!(!state.shut_down, "nothing is written behind the end");
        if state.end == Some(End::Reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(state.portion).min(state.room);
        if length == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.room -= length;
        state.output.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().shut_down = true;
        Poll::Ready(Ok(()))
    }
}

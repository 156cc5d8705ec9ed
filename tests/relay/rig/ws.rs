//! A WebSocket client that can say anything, right or wrong: frames by hand on a blocking socket.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};
use std::time::Duration;

use relay_test_kit::frame::Received;
use relay_test_kit::inbox::Inbox;

use super::stream::{Address, Stream};
pub use relay_test_kit::frame::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode};
/// One upgraded connection.
pub struct Ws {
    pub stream: Stream,
    unread: Inbox,
    /// Answers pings by itself while reading. On unless a test plays dead.
    pub answers_pings: bool,
    /// The last message read was a phone's, and no ping behind it has been answered.
    unproven: bool,
}

impl Ws {
    /// Connects, sends `head`, and expects the `101`.
    pub fn upgrade(address: impl Into<Address>, head: &str) -> Self {
        Self::upgrade_with(address, head.as_bytes())
    }

    /// The same with bytes behind the head in the same segment.
    pub fn upgrade_with(address: impl Into<Address>, bytes: &[u8]) -> Self {
        let mut stream = super::connect(address);
        stream.write_all(bytes).unwrap();
        Self::after_request(stream)
    }

    /// The same as [`Self::upgrade`], from this address.
    pub fn upgrade_from(source: Ipv4Addr, address: impl Into<Address>, head: &str) -> Self {
        let mut stream = super::connect_from(source, address);
        stream.write_all(head.as_bytes()).unwrap();
        Self::after_request(stream)
    }

    /// Expects the `101` on a connection whose request has been sent.
    pub fn after_request(stream: impl Into<Stream>) -> Self {
        let mut ws = Self {
            stream: stream.into(),
            unread: Inbox::default(),
            answers_pings: true,
            unproven: false,
        };
        let head = ws.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        ws
    }

    fn read_head(&mut self) -> String {
        loop {
            if let Some(head) = self.unread.take_head() {
                return head;
            }
            assert!(self.fill().expect("a response within the deadline") > 0, "no response");
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 64 * 1024];
        let read = loop {
            match self.stream.read(&mut buffer) {
                // A read with a deadline is not taken up again after the process was stopped.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.unread.push(&buffer[..read]);
        Ok(read)
    }

    /// Reads up to `most` bytes ahead from the socket, for a peer that reads at its own pace;
    /// returns how many.
    pub fn read_ahead(&mut self, most: usize) -> usize {
        let mut buffer = vec![0; most];
        let read = self.stream.read(&mut buffer).expect("something to read within the deadline");
        self.unread.push(&buffer[..read]);
        read
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the relay takes it within the deadline");
    }

    /// Sends a masked frame.
    pub fn send_frame(&mut self, is_final: bool, opcode: u8, payload: &[u8]) {
        self.send_raw(&encode(is_final, opcode, payload));
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(true, TEXT, text.as_bytes());
    }

    /// Sends text messages made by number until the relay has taken nothing for a while, or
    /// `most` are sent. Returns how many were begun, and what of the last one is still to be sent. Over TLS
    /// the end of the one before may be in the session still: sending the rest sends that first.
    pub fn send_until_blocked(
        &mut self,
        most: usize,
        text: impl Fn(usize) -> String,
    ) -> (usize, Vec<u8>) {
        let patience = super::scaled(Duration::from_millis(300));
        self.stream.set_write_timeout(Some(patience)).unwrap();
        let mut begun = 0;
        let mut rest = Vec::new();
        while rest.is_empty() && begun < most {
            rest = encode(true, TEXT, text(begun).as_bytes());
            begun += 1;
            while !rest.is_empty() {
                match self.stream.write(&rest) {
                    Ok(written) => drop(rest.drain(..written)),
                    Err(error) if is_timeout(&error) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        self.stream.set_write_timeout(Some(super::deadline())).unwrap();
        (begun, rest)
    }

    pub fn send_ping(&mut self, payload: &[u8]) {
        self.send_frame(true, PING, payload);
    }

    pub fn send_close(&mut self, code: u16, reason: &str) {
        self.send_frame(true, CLOSE, &[&code.to_be_bytes()[..], reason.as_bytes()].concat());
    }

    /// The next frame of any kind.
    pub fn read_frame(&mut self) -> Received {
        self.try_read_frame().expect("a frame within the deadline")
    }

    /// The next frame of any kind, or the error of the socket; the end of the stream is
    /// `UnexpectedEof`.
    pub fn try_read_frame(&mut self) -> io::Result<Received> {
        loop {
            if let Some(frame) = self.unread.take_frame().expect("frames of a relay") {
                if frame.opcode == PING && self.answers_pings {
                    let _ = self.stream.write_all(&encode(true, PONG, &frame.payload));
                    self.unproven &= !frame.is_proof_ping();
                }
                self.unproven |= frame.opcode == TEXT && is_envelope_of_a_message(&frame.payload);
                return Ok(frame);
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next frame that is no ping.
    pub fn read(&mut self) -> Received {
        loop {
            let frame = self.read_frame();
            if frame.opcode != PING {
                return frame;
            }
        }
    }

    /// The next frame of any kind but a ping that asks what a binary has read.
    pub fn read_besides_proofs(&mut self) -> Received {
        loop {
            let frame = self.read_frame();
            if !frame.is_proof_ping() {
                return frame;
            }
        }
    }

    /// The next message, which must be text.
    pub fn read_text(&mut self) -> String {
        let frame = self.read();
        assert_eq!(frame.opcode, TEXT, "{frame:?}");
        String::from_utf8(frame.payload).expect("text is UTF-8")
    }

    /// Expects a close frame with this code and reason, and the end of the stream behind it.
    pub fn expect_close(&mut self, code: u16, reason: &str) {
        let frame = self.read();
        assert_eq!(frame.opcode, CLOSE, "{frame:?}");
        assert_eq!(frame.close(), (code, reason.to_owned()));
        self.expect_end();
    }

    /// Expects a close frame with this code, whatever the reason says.
    pub fn expect_close_code(&mut self, code: u16) {
        let frame = self.read();
        assert_eq!(frame.opcode, CLOSE, "{frame:?}");
        assert_eq!(frame.close().0, code);
        self.expect_end();
    }

    /// Expects an orderly end of the stream, without another frame and without a reset.
    pub fn expect_end(&mut self) {
        match self.try_read_frame() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => panic!("{other:?} instead of the end of the stream"),
        }
    }

    /// Expects that the connection is gone, by an end or by a reset, whatever comes before.
    pub fn expect_gone(&mut self) {
        loop {
            match self.try_read_frame() {
                Ok(_) => {}
                Err(error) if is_timeout(&error) => panic!("the connection is still there"),
                Err(_) => return,
            }
        }
    }

    /// A round trip over a ping: everything that was sent before it has been read by the relay.
    pub fn sync(&mut self) {
        self.send_ping(b"sync");
        loop {
            let frame = self.read_frame();
            if frame.opcode == PONG && frame.payload == b"sync" {
                return;
            }
            assert_eq!(frame.opcode, PING, "{frame:?} while only a pong was due");
        }
    }

    /// Proves to the relay what this binary has read: answers the ping that follows it, and sees that the
    /// relay has the answer.
    pub fn prove(&mut self) {
        assert!(self.answers_pings, "who plays dead proves nothing");
        while self.unproven {
            let frame = self.read_frame();
            assert_eq!(frame.opcode, PING, "{frame:?} while only a ping was due");
        }
        self.sync();
    }

    /// Ends the connection without a close frame.
    pub fn drop_connection(mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Whether it is an envelope around a message, and no close notice.
fn is_envelope_of_a_message(payload: &[u8]) -> bool {
    // The longest `conn_id` ends well before that.
    let key = b"\"frame\":";
    payload.windows(key.len()).take(1024).any(|bytes| bytes == key)
}

/// Whether a read ran into its deadline.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

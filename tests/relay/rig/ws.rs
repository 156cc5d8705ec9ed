//! A WebSocket client that can say anything, right or wrong: frames by hand on a blocking socket.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Opcodes of RFC 6455 section 5.2.
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// A frame from the relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// One upgraded connection.
pub struct Ws {
    pub stream: TcpStream,
    unread: Vec<u8>,
    /// Answers pings by itself while reading. On unless a test plays dead.
    pub answers_pings: bool,
}

impl Ws {
    /// Connects, sends `head`, and expects the `101`.
    pub fn upgrade(address: SocketAddr, head: &str) -> Self {
        Self::upgrade_with(address, head.as_bytes())
    }

    /// The same with bytes behind the head in the same segment.
    pub fn upgrade_with(address: SocketAddr, bytes: &[u8]) -> Self {
        let mut stream = super::connect(address);
        stream.write_all(bytes).unwrap();
        Self::after_request(stream)
    }

    /// The same as [`Self::upgrade`], from this address.
    pub fn upgrade_from(source: Ipv4Addr, address: SocketAddr, head: &str) -> Self {
        let mut stream = super::connect_from(source, address);
        stream.write_all(head.as_bytes()).unwrap();
        Self::after_request(stream)
    }

    /// Expects the `101` on a connection whose request has been sent.
    pub fn after_request(stream: TcpStream) -> Self {
        let mut ws = Self { stream, unread: Vec::new(), answers_pings: true };
        let head = ws.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        ws
    }

    fn read_head(&mut self) -> String {
        loop {
            if let Some(end) = self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
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
        self.unread.extend_from_slice(&buffer[..read]);
        Ok(read)
    }

    /// Reads up to `most` bytes ahead from the socket, for a peer that reads at its own pace;
    /// returns how many.
    pub fn read_ahead(&mut self, most: usize) -> usize {
        let mut buffer = vec![0; most];
        let read = self.stream.read(&mut buffer).expect("something to read within the deadline");
        self.unread.extend_from_slice(&buffer[..read]);
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
    /// `most` are sent. Returns how many were begun, and what of the last one is still to be sent.
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
    pub fn read_frame(&mut self) -> Frame {
        self.try_read_frame().expect("a frame within the deadline")
    }

    /// The next frame of any kind, or the error of the socket; the end of the stream is
    /// `UnexpectedEof`.
    pub fn try_read_frame(&mut self) -> io::Result<Frame> {
        loop {
            if let Some((frame, length)) = decode(&self.unread) {
                self.unread.drain(..length);
                if frame.opcode == PING && self.answers_pings {
                    let _ = self.stream.write_all(&encode(true, PONG, &frame.payload));
                }
                return Ok(frame);
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next frame that is no ping.
    pub fn read(&mut self) -> Frame {
        loop {
            let frame = self.read_frame();
            if frame.opcode != PING {
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
        let payload = frame.payload;
        assert!(payload.len() >= 2, "an empty close frame instead of {code}");
        let got = (u16::from_be_bytes([payload[0], payload[1]]), &payload[2..]);
        assert_eq!((got.0, String::from_utf8_lossy(got.1).as_ref()), (code, reason));
        self.expect_end();
    }

    /// Expects a close frame with this code, whatever the reason says.
    pub fn expect_close_code(&mut self, code: u16) {
        let frame = self.read();
        assert_eq!(frame.opcode, CLOSE, "{frame:?}");
        assert!(frame.payload.len() >= 2, "an empty close frame instead of {code}");
        assert_eq!(u16::from_be_bytes([frame.payload[0], frame.payload[1]]), code);
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

    /// Ends the connection without a close frame.
    pub fn drop_connection(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// Whether a read ran into its deadline.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A masked frame.
pub fn encode(is_final: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![u8::from(is_final) << 7 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The first whole frame in `bytes` and its length; frames of the relay are final and unmasked.
fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert_eq!(first & 0x70, 0, "no reserved bit is set");
    assert_eq!(first & 0x80, 0x80, "the relay does not fragment");
    assert_eq!(second & 0x80, 0, "the relay does not mask");
    let (length, header) = match second {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
        short => (u64::from(short), 2),
    };
    let end = header + usize::try_from(length).unwrap();
    let payload = bytes.get(header..end)?.to_vec();
    Some((Frame { opcode: first & 0x0f, payload }, end))
}

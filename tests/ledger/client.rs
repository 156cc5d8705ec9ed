//! The other end of the connections: WebSocket frames by hand on a blocking socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use relay_test_kit::frame::{PING, PONG, Received, TEXT, encode};
use relay_test_kit::inbox::Inbox;
use socket2::{Domain, SockRef, Socket, Type};

/// How long a test waits for something that must happen.
pub fn deadline() -> Duration {
    scaled(Duration::from_secs(20))
}

/// A duration of a test, stretched on slow machines.
pub fn scaled(duration: Duration) -> Duration {
    let scale = std::env::var("RELAY_TEST_SCALE").ok().and_then(|text| text.parse().ok());
    duration.mul_f64(scale.unwrap_or(1.0))
}

/// What a connection is made of: a socket, or TLS on it.
pub trait Stream: Read + Write {
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

/// One upgraded connection.
pub struct Ws {
    stream: Box<dyn Stream>,
    unread: Inbox,
}

impl Ws {
    /// A binary that holds `server`.
    pub fn binary(stream: impl Stream + 'static, server: &str) -> Self {
        let head = format!("GET /v1/server HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Version: 1\r\n");
        Self::upgrade(stream, &head, server)
    }

    /// A phone at `server`.
    pub fn phone(stream: impl Stream + 'static, server: &str) -> Self {
        let head = format!("GET /v1/client HTTP/1.1\r\n{UPGRADE}X-Pyrycode-Token: t\r\n");
        Self::upgrade(stream, &head, server)
    }

    fn upgrade(stream: impl Stream + 'static, head: &str, server: &str) -> Self {
        let mut ws = Self { stream: Box::new(stream), unread: Inbox::default() };
        ws.send_raw(format!("{head}X-Pyrycode-Server: {server}\r\n\r\n").as_bytes());
        loop {
            if let Some(head) = ws.unread.take_head() {
                assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
                return ws;
            }
            ws.fill();
        }
    }

    fn fill(&mut self) {
        let mut buffer = [0; 64 * 1024];
        let read = loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.expect("something to read within the deadline"),
            }
        };
        assert!(read > 0, "the relay ended the connection");
        self.unread.push(&buffer[..read]);
    }

    /// Lets the kernel take in about `bytes` more than is read.
    pub fn widen(&self, bytes: usize) {
        SockRef::from(self.stream.tcp()).set_recv_buffer_size(bytes).unwrap();
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the relay takes it within the deadline");
        self.stream.flush().unwrap();
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_raw(&encode(true, TEXT, text.as_bytes()));
    }

    /// The next frame that is no ping; pings are answered.
    pub fn read(&mut self) -> Received {
        loop {
            match self.unread.take_frame().expect("frames of a relay") {
                Some(frame) if frame.opcode == PING => {
                    self.send_raw(&encode(true, PONG, &frame.payload));
                }
                Some(frame) => return frame,
                None => self.fill(),
            }
        }
    }

    /// Reads this many messages.
    pub fn read_messages(&mut self, count: usize) {
        for _ in 0..count {
            assert_eq!(self.read().opcode, TEXT);
        }
    }

    /// A round trip over a ping: the relay has read everything that was sent before it.
    pub fn sync(&mut self) {
        self.send_raw(&encode(true, PING, b"sync"));
        let frame = self.read();
        assert_eq!((frame.opcode, frame.payload.as_slice()), (PONG, &b"sync"[..]));
    }
}

/// Makes the phone known to its binary; returns its connection id.
pub fn introduce(phone: &mut Ws, binary: &mut Ws) -> String {
    phone.send_text("\"hello\"");
    let frame = binary.read();
    let envelope: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
    envelope["conn_id"].as_str().unwrap().to_owned()
}

/// The envelope around a frame.
pub fn envelope(conn_id: &str, frame: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{frame}}}"#)
}

/// A JSON value of this many bytes.
pub fn json(length: usize) -> String {
    match length {
        1 => "1".to_owned(),
        _ => format!("\"{}\"", "x".repeat(length - 2)),
    }
}

/// A connection whose reads and writes have a deadline.
pub fn connect(address: SocketAddr) -> TcpStream {
    with_deadlines(TcpStream::connect(address).expect("the relay listens"))
}

/// The same with a receive buffer so small that a few kilobytes fill it.
pub fn connect_narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(&address.into()).expect("the relay listens");
    with_deadlines(socket.into())
}

fn with_deadlines(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream.set_write_timeout(Some(deadline())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

const UPGRADE: &str = "Host: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       User-Agent: test\r\n";

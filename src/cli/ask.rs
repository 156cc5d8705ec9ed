//! A small HTTP client over blocking sockets, for subcommands that ask a relay for a page.
//!
//! Whoever answers may be anything: the time and the size of an answer are bounded.

use std::fmt::Display;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::clock;

/// What an exchange may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// From the first connection attempt to the last byte of the answer.
    pub(super) time: Duration,
    /// Bytes of the answer, its head included.
    pub(super) bytes: usize,
}

/// An answer.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Asks whoever listens at `address` for the page at `path`. If a name has several addresses, the
/// first that accepts a connection is asked.
///
/// Resolving a name takes as long as the system does; `bounds` hold from then on.
pub(super) fn get(
    address: impl ToSocketAddrs + Display,
    path: &str,
    bounds: Bounds,
) -> io::Result<Answer> {
    let addresses = address.to_socket_addrs()?;
    let deadline = clock::now() + bounds.time;
    let mut stream = connect(addresses, deadline)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: pyrycode-relay\r\n\
         Connection: close\r\n\r\n"
    );
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes())?;
    let answer = read(&mut stream, deadline, bounds.bytes)?;
    parse(&answer).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

fn connect(
    addresses: impl Iterator<Item = SocketAddr>,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn read(stream: &mut TcpStream, deadline: Instant, most: usize) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        // One deadline for all reads: a peer that trickles must not hold up a monitor.
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        if answer.len() > most {
            return Err(io::Error::other(format!("the answer is longer than {most} bytes")));
        }
    }
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    const BOUNDS: Bounds = Bounds { time: Duration::from_secs(20), bytes: 1000 };

    /// Serves one connection by `answer`, which gets the request; returns the request.
    fn serve(
        answer: impl FnOnce(&mut TcpStream) + Send + 'static,
    ) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            answer(&mut stream);
            String::from_utf8(request).unwrap()
        });
        (address, server)
    }

    #[test]
    fn a_page_is_asked_for_and_its_status_and_body_come_back() {
        let (address, server) = serve(|stream| {
            for part in ["HTTP/1.1 404 Not", " Found\r\nA: b\r", "\n\r\nno\r\n\r\n", "page"] {
                stream.write_all(part.as_bytes()).unwrap();
            }
        });
        let answer = get(address, "/a", BOUNDS).unwrap();
        assert_eq!(answer, Answer { status: 404, body: "no\r\n\r\npage".to_owned() });
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /a HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("\r\nHost: {address}\r\n")), "{request}");
    }

    #[test]
    fn a_peer_that_trickles_or_is_silent_is_given_up_at_the_deadline() {
        for trickle in [&b"x"[..], b""] {
            let (address, server) = serve(move |stream| {
                stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                // Ends when the other side has closed.
                while stream.write_all(trickle).is_ok() && stream.read(&mut [0]).is_err() {}
            });
            let bounds = Bounds { time: Duration::from_millis(300), ..BOUNDS };
            let begun = clock::now();
            let error = get(address, "/", bounds).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert!(clock::since(begun) >= bounds.time, "{:?}", clock::since(begun));
            server.join().unwrap();
        }
    }

    #[test]
    fn an_answer_without_end_is_given_up_at_its_bound() {
        let (address, server) = serve(|stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
        let error = get(address, "/", BOUNDS).unwrap_err();
        assert_eq!(error.to_string(), "the answer is longer than 1000 bytes");
        server.join().unwrap();
    }

    #[test]
    fn an_answer_may_be_as_long_as_its_bound() {
        let head = "HTTP/1.1 200 OK\r\n\r\n";
        let (address, server) = serve(move |stream| {
            let body = "x".repeat(BOUNDS.bytes - head.len());
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        });
        let answer = get(address, "/", BOUNDS).unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, BOUNDS.bytes - head.len()));
        server.join().unwrap();
    }

    #[test]
    fn the_next_address_of_a_name_is_tried() {
        let dead = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let alive = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = alive.local_addr().unwrap();
        let deadline = clock::now() + BOUNDS.time;
        let stream = connect([dead, address].into_iter(), deadline).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        let refused = connect([dead].into_iter(), deadline).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect(std::iter::empty(), deadline).is_err());
    }

    #[test]
    fn only_http_is_an_answer() {
        let status = |text: &[u8]| parse(text).map(|answer| answer.status);
        assert_eq!(status(b"HTTP/1.0 503\r\n\r\n"), Some(503));
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"), Some(200));
        for odd in [
            &b""[..],
            b"\xff\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1\r\n200 OK\r\n\r\n",
            b"HTTP/1.1 70000 OK\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert_eq!(status(odd), None, "{:?}", odd.escape_ascii().to_string());
        }
    }
}

//! The status page of a relay.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::target::free_port;

/// Where a relay has its status page.
#[derive(Clone, Copy, Debug)]
pub struct StatusPage {
    port: u16,
}

impl StatusPage {
    pub fn at_a_free_port() -> io::Result<Self> {
        Ok(Self { port: free_port()? })
    }

    /// What `--metrics-listen` takes.
    pub fn address(self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The longest turn of the event loop since the start; `None` of a program that has no such
    /// page. A page that does not come within `patience` counts as a turn of that length.
    pub fn longest_turn(self, patience: Duration) -> Option<Duration> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        // The first answer may be written in the longest turn, which counts only once it is over.
        let pages = [self.ask(patience), self.ask(patience)];
        let turns = pages.map(|page| page.and_then(|page| page["longest_turn_seconds"].as_f64()));
        turns.into_iter().map(|turn| turn.map_or(patience, Duration::from_secs_f64)).max()
    }

    /// What the page says, if it comes within `patience`.
    pub fn ask(self, patience: Duration) -> Option<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        serde_json::from_slice(&answer[body..]).ok()
    }
}

//! What a client has read and not looked at yet.

use crate::frame::Received;

/// Bytes from the relay: the head of its answer, then frames. They come in pieces of any size.
#[derive(Default, Debug)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// Where those begin that were not taken.
    at: usize,
}

impl Inbox {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that were not taken.
    pub fn held(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The head of a response with its empty line, once it is whole.
    pub fn take_head(&mut self) -> Option<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        self.at += end;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    /// The next frame, once it is whole; `Err` says what no relay may send.
    pub fn take_frame(&mut self) -> Result<Option<Received>, &'static str> {
        let next = Received::decode(&self.bytes[self.at..])?;
        Ok(next.map(|(frame, length)| {
            self.at += length;
            frame
        }))
    }
}

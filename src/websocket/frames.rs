//! The frames that the relay writes, as bytes: never masked, never fragmented (RFC 6455
//! sections 5.1 and 5.5).

use async_tungstenite::tungstenite::protocol::frame::FrameHeader;
use async_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::close::Close;

/// One whole frame, header and payload, in one allocation of its exact size.
#[derive(Debug)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// A text message made of `parts` one behind the other.
    pub fn text(parts: &[&[u8]]) -> Self {
        Self::build(OpCode::Data(Data::Text), parts)
    }

    /// A ping; `payload` has at most 125 bytes.
    pub fn ping(payload: &[u8]) -> Self {
        Self::build(OpCode::Control(Control::Ping), &[payload])
    }

    /// A pong; `payload` has at most 125 bytes.
    pub fn pong(payload: &[u8]) -> Self {
        Self::build(OpCode::Control(Control::Pong), &[payload])
    }

    /// A close frame with the code and the reason of `close`.
    pub fn close(close: Close) -> Self {
        let opcode = OpCode::Control(Control::Close);
        match close.code() {
            Some(code) => Self::build(opcode, &[&code.to_be_bytes(), close.reason().as_bytes()]),
            None => Self::build(opcode, &[]),
        }
    }

    /// The bytes for the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A frame that [`Self::into_bytes`] gave; `None` if there is nothing in it.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// The bytes for the wire.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Length on the wire in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least its header")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn build(opcode: OpCode, parts: &[&[u8]]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = FrameHeader { is_final: true, opcode, ..FrameHeader::default() };
        let mut bytes = Vec::with_capacity(header.len(length as u64) + length);
        header.format(length as u64, &mut bytes).expect("bug: writing to a Vec cannot fail");
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use relay_test_kit::frame::{Received, TEXT};

    use super::*;

    #[test]
    fn headers_grow_with_the_payload_and_nothing_is_allocated_in_vain() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload = vec![b'x'; length];
            let frame = Frame::text(&[&payload]);
            assert_eq!(frame.len(), header + length);
            let bytes = frame.into_bytes();
            assert_eq!(bytes.capacity(), bytes.len());
            let expected = Received::new(TEXT, payload);
            assert!(Received::decode(&bytes) == Ok(Some((expected, header + length))));
        }
    }

    #[test]
    fn a_close_frame_carries_code_and_reason_or_nothing() {
        let frame = Frame::close(Close::AlreadyClaimed);
        assert_eq!(frame.as_bytes(), b"\x88\x1b\x11\x39server-id already claimed");
        assert_eq!(Frame::close(Close::Reply(None)).as_bytes(), b"\x88\x00");
        assert_eq!(Frame::ping(b"ab").as_bytes(), b"\x89\x02ab");
        assert_eq!(Frame::pong(b"").as_bytes(), b"\x8a\x00");
    }
}

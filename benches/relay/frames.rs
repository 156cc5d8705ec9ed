//! WebSocket frames as the clients write and read them, and the stamp that each message carries.

pub use relay_test_kit::frame::{
    CLOSE, CONTINUATION, Frame, Header, PING, PONG, TEXT, encode, push_frame,
};

/// What a message says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub phone: u32,
    pub sequence: u32,
    /// Nanoseconds on the driver's clock.
    pub sent: u64,
}

impl Stamp {
    /// Writes an inner frame of `size` bytes: an object of two strings, most of it padding.
    pub fn write(&self, out: &mut Vec<u8>, size: usize) {
        use std::io::Write as _;
        out.clear();
        write!(
            out,
            "{{\"s\":\"{:08x}{:08x}{:016x}\",\"d\":\"",
            self.phone, self.sequence, self.sent
        )
        .unwrap();
        assert!(size >= out.len() + 2, "a message of {size} bytes has no room for its stamp");
        // As base64 looks, which is what the clients' encrypted frames are.
        let pad = size - 2 - out.len();
        for at in (0..pad).step_by(PADDING.len()) {
            out.extend_from_slice(&PADDING[..PADDING.len().min(pad - at)]);
        }
        out.extend(b"\"}");
    }

    /// Reads the stamp of an inner frame that begins at `start`.
    pub fn read(frame: &Frame<'_>, start: usize) -> Option<Self> {
        let digits = frame.bytes::<32>(start + 6)?;
        let number = |range: std::ops::Range<usize>| {
            u64::from_str_radix(std::str::from_utf8(&digits[range]).ok()?, 16).ok()
        };
        Some(Self {
            phone: u32::try_from(number(0..8)?).ok()?,
            sequence: u32::try_from(number(8..16)?).ok()?,
            sent: number(16..32)?,
        })
    }
}

const PADDING: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

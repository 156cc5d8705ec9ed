//! WebSocket frames as the clients write and read them, and the stamp that each message carries.

/// Opcodes of RFC 6455 section 5.2.
pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// One frame of the input. Payloads stay masked where they came masked, as on the floor.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    pub opcode: u8,
    mask: [u8; 4],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first whole frame of `bytes`, and its length.
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        let (length, mut start) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
            short => (u64::from(short), 2),
        };
        let mut mask = [0; 4];
        if second & 0x80 != 0 {
            mask = bytes.get(start..start + 4)?.try_into().unwrap();
            start += 4;
        }
        let end = start + usize::try_from(length).unwrap();
        let payload = bytes.get(start..end)?;
        Some((Self { opcode: first & 0x0f, mask, payload }, end))
    }

    /// A part of the payload, unmasked; `None` behind its end.
    pub fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = self.payload.get(at..at + N)?.try_into().unwrap();
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte ^= self.mask[(at + place) % 4];
        }
        Some(bytes)
    }

    /// The payload of a frame that came unmasked, as every frame of a relay does.
    pub fn plain(&self) -> &'a [u8] {
        debug_assert_eq!(self.mask, [0; 4], "the relay does not mask");
        self.payload
    }

    /// Where the inner frame begins in an envelope.
    pub fn inner_start(&self) -> Option<usize> {
        const KEY: &[u8] = b"\"frame\":";
        self.payload.windows(KEY.len()).position(|bytes| bytes == KEY).map(|at| at + KEY.len())
    }
}

/// Appends a masked final frame whose payload is `parts` one behind the other.
pub fn push_frame(out: &mut Vec<u8>, opcode: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length), _) if length < 126 => out.push(0x80 | length),
        (_, Ok(length)) => {
            out.push(0x80 | 126);
            out.extend(length.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    let [a, b, c, d] = MASK;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = out[start..].chunks_exact_mut(8);
    for word in &mut words {
        let masked = u64::from_ne_bytes((&*word).try_into().unwrap()) ^ twice;
        word.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
}

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

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const PADDING: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

//! WebSocket frames (RFC 6455 section 5.2), right or wrong.

/// A frame that continues a message.
pub const CONTINUATION: u8 = 0x0;
/// A message of text, or its beginning.
pub const TEXT: u8 = 0x1;
/// A binary message, or its beginning.
pub const BINARY: u8 = 0x2;
/// The last frame of a connection.
pub const CLOSE: u8 = 0x8;
/// A question that a pong answers.
pub const PING: u8 = 0x9;
/// The answer to a ping, or a pong unasked.
pub const PONG: u8 = 0xa;

/// What comes ahead of a payload. Encoded alone, it promises what never comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// FIN, the three reserved bits and the opcode.
    pub first: u8,
    /// Bytes of the payload.
    pub length: u64,
    /// What the payload is masked with. A client masks, a server does not.
    pub mask: Option<[u8; 4]>,
}

impl Header {
    /// Appends the header, with the shortest form of the length.
    #[inline]
    pub fn push(&self, out: &mut Vec<u8>) {
        let is_masked = if self.mask.is_some() { MASKED } else { 0 };
        out.push(self.first);
        match (u8::try_from(self.length), u16::try_from(self.length)) {
            (Ok(length @ 0..=125), _) => out.push(is_masked | length),
            (_, Ok(length)) => {
                out.push(is_masked | 126);
                out.extend(length.to_be_bytes());
            }
            _ => {
                out.push(is_masked | 127);
                out.extend(self.length.to_be_bytes());
            }
        }
        if let Some(mask) = self.mask {
            out.extend(mask);
        }
    }

    /// The header alone.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.push(&mut bytes);
        bytes
    }

    /// The header at the beginning of `bytes`, once it is whole, and its own length.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        let (length, mut end) = match second & !MASKED {
            126 => (u64::from(u16::from_be_bytes(array(bytes, 2)?)), 4),
            127 => (u64::from_be_bytes(array(bytes, 2)?), 10),
            short => (u64::from(short), 2),
        };
        let mut mask = None;
        if second & MASKED != 0 {
            mask = Some(array(bytes, end)?);
            end += 4;
        }
        Some((Self { first, length, mask }, end))
    }

    /// The kind of frame.
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// Why no relay sends such a frame: it neither fragments nor masks, and agrees to no extension.
    pub fn wrong(&self) -> Option<&'static str> {
        match self.first & 0xf0 {
            FIN if self.mask.is_some() => Some("a mask"),
            FIN if ![TEXT, CLOSE, PING, PONG].contains(&self.opcode()) => {
                Some("an opcode that the relay does not send")
            }
            FIN if self.length > LONGEST => Some("a frame longer than any that is sent"),
            FIN => None,
            _ => Some("a fragment or a reserved bit"),
        }
    }
}

/// A client's frame: masked. A reserved bit or an unknown kind goes with the opcode.
pub fn encode(is_final: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    encode_with(is_final, opcode, payload, Some(MASK))
}

/// A frame with this mask, or without one.
pub fn encode_with(is_final: bool, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 14);
    let fin = if is_final { FIN } else { 0 };
    push(&mut bytes, fin | opcode, &[payload], mask);
    bytes
}

/// Appends a client's final frame whose payload is `parts`, one after the other.
#[inline]
pub fn push_frame(out: &mut Vec<u8>, opcode: u8, parts: &[&[u8]]) {
    push(out, FIN | opcode, parts, Some(MASK));
}

#[inline]
fn push(out: &mut Vec<u8>, first: u8, parts: &[&[u8]], mask: Option<[u8; 4]>) {
    let length = parts.iter().map(|part| part.len() as u64).sum();
    Header { first, length, mask }.push(out);
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    let Some(mask) = mask else { return };
    // Eight bytes at a time: a debug build has no time for more, the benchmark none to lose.
    let [a, b, c, d] = mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = out[start..].chunks_exact_mut(8);
    for word in &mut words {
        let masked = u64::from_ne_bytes((&*word).try_into().unwrap()) ^ twice;
        word.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// A frame where it lies. A payload that came masked stays so until it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The kind of frame.
    pub opcode: u8,
    mask: [u8; 4],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the beginning of `bytes`, once it is whole, and its length. It may be wrong.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (header, start) = Header::decode(bytes)?;
        let end = start.checked_add(usize::try_from(header.length).ok()?)?;
        let payload = bytes.get(start..end)?;
        let mask = header.mask.unwrap_or_default();
        Some((Self { opcode: header.opcode(), mask, payload }, end))
    }

    /// A part of the payload, unmasked; `None` past its end.
    #[inline]
    pub fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = array(self.payload, at)?;
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte ^= self.mask[(at + place) % 4];
        }
        Some(bytes)
    }

    /// The payload of a frame that came unmasked, as every frame of a relay does.
    #[inline]
    pub fn plain(&self) -> &'a [u8] {
        debug_assert_eq!(self.mask, [0; 4], "the relay does not mask");
        self.payload
    }

    /// Where the inner frame begins in an envelope.
    #[inline]
    pub fn inner_start(&self) -> Option<usize> {
        const KEY: &[u8] = b"\"frame\":";
        self.payload.windows(KEY.len()).position(|bytes| bytes == KEY).map(|at| at + KEY.len())
    }
}

/// A frame that the relay sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// The kind of frame.
    pub opcode: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Received {
    /// What a frame is compared with.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { opcode, payload: payload.into() }
    }

    /// The frame at the beginning of `bytes`, once it is whole, and its length. `Err` says what no
    /// relay may send, as soon as the header shows it.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, &'static str> {
        let Some((header, _)) = Header::decode(bytes) else { return Ok(None) };
        if let Some(wrong) = header.wrong() {
            return Err(wrong);
        }
        let whole = Frame::decode(bytes);
        Ok(whole.map(|(frame, length)| (Self::new(frame.opcode, frame.plain()), length)))
    }

    /// All whole frames at the beginning of `bytes`, and what is left after them.
    ///
    /// # Panics
    ///
    /// If one of them is wrong.
    pub fn decode_all(mut bytes: &[u8]) -> (Vec<Self>, &[u8]) {
        let mut frames = Vec::new();
        while let Some((frame, length)) = Self::decode(bytes).expect("frames of a relay") {
            frames.push(frame);
            bytes = &bytes[length..];
        }
        (frames, bytes)
    }

    /// Whether it is a ping that asks what a binary has read: it carries a small counter of eight bytes. That
    /// of a heartbeat is empty, that of a probe random.
    pub fn is_proof_ping(&self) -> bool {
        self.opcode == PING && self.payload.len() == 8 && self.payload.starts_with(&[0; 4])
    }

    /// The code of a close frame, 1005 for an empty one, and its reason.
    pub fn close(&self) -> (u16, String) {
        match self.payload.as_slice() {
            [high, low, reason @ ..] => {
                (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned())
            }
            _ => (1005, String::new()),
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

const FIN: u8 = 0x80;
/// The bit of the second byte that says that there is a mask.
const MASKED: u8 = 0x80;
/// More than the limits of any test let through.
const LONGEST: u64 = 1 << 20;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

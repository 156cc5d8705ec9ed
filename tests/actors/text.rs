//! The messages: each says who sent it as which of its messages, and all its other bytes follow
//! from that, so that whoever receives it knows every byte that it must have.

use std::fmt::Write as _;
use std::sync::OnceLock;

/// Which message it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    pub way: Way,
    pub world: u32,
    pub phone: u32,
    /// The connection of the binary that it was sent on; 0 from a phone.
    pub connection: u32,
    /// The first message of its sender to its receiver is 0.
    pub number: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    ToBinary,
    ToPhone,
}

impl Text {
    /// The whole message.
    pub fn write(&self, seed: u64) -> String {
        let Self { way, world, phone, connection, number } = *self;
        let (letter, turn) = match way {
            Way::ToBinary => ('t', 0x1234_5678),
            Way::ToPhone => ('b', 0x9abc_def0),
        };
        let identity = [u64::from(world), u64::from(phone), u64::from(connection), number, turn];
        let mut random = fastrand::Rng::with_seed(identity.into_iter().fold(seed, mix));
        let mut text = String::new();
        // Whitespace around a phone's message is the message's; around a frame it is the envelope's.
        if way == Way::ToBinary && random.u8(..8) == 0 {
            text.push_str(" \n\t");
        }
        let _ = write!(text, "[\"{letter}\",{world},{phone},{connection},{number},");
        let size = match random.u16(..1000) {
            0..700 => random.usize(..300),
            700..950 => random.usize(300..2_000),
            950..995 => random.usize(2_000..20_000),
            _ => random.usize(20_000..200_000),
        };
        match random.u8(..4) {
            0 => text.push_str(
                "{ \"a\" : [ -0, 1.5e3 ,null,true ] , \"a\":\"\\u0000\\ud83d\\ude00\"},\"",
            ),
            1 => text.push_str("\"\\\"}],\\\\\\/ü€😀 "),
            _ => text.push('"'),
        }
        // Pieces of one long text: the debug build of a test has no time for more.
        let mut left = size;
        while left > 0 {
            let start = random.usize(..filling().len());
            let piece = &filling()[start..];
            let piece = &piece[..piece.len().min(left)];
            text.push_str(piece);
            left -= piece.len();
        }
        text.push_str("\"]");
        if way == Way::ToBinary && random.u8(..8) == 0 {
            text.push_str("\r\n ");
        }
        text
    }

    /// Which message this claims to be.
    pub fn read(text: &str) -> Option<Self> {
        let fields = text.trim_start().strip_prefix("[\"")?;
        let (way, fields) = match fields.split_once("\",")? {
            ("t", fields) => (Way::ToBinary, fields),
            ("b", fields) => (Way::ToPhone, fields),
            _ => return None,
        };
        let mut fields = fields.splitn(5, ',');
        Some(Self {
            way,
            world: fields.next()?.parse().ok()?,
            phone: fields.next()?.parse().ok()?,
            connection: fields.next()?.parse().ok()?,
            number: fields.next()?.parse().ok()?,
        })
    }
}

/// A long text without any pattern.
fn filling() -> &'static str {
    static FILLING: OnceLock<String> = OnceLock::new();
    FILLING.get_or_init(|| {
        let mut random = fastrand::Rng::with_seed(5);
        (0..64 * 1024).map(|_| random.alphanumeric()).collect()
    })
}

/// Mixes two numbers into one (the finish of a 64-bit hash).
pub fn mix(one: u64, other: u64) -> u64 {
    let mut mixed = one.rotate_left(23) ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

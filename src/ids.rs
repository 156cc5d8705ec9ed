//! Names of servers and connections: newtypes that cannot hold a bad value.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[cfg(feature = "simulation")]
use crate::clock;
use crate::limits::MAX_SERVER_ID_BYTES;

/// The name that a binary claims and phones ask for: 1 to 128 visible ASCII characters, compared
/// byte for byte (contract, Endpoints).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(Rc<str>);

impl ServerId {
    /// Takes a header value that has been trimmed already; `None` if it is no server-id.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let length_fits = (1..=MAX_SERVER_ID_BYTES).contains(&bytes.len());
        if !length_fits || !bytes.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        std::str::from_utf8(bytes).ok().map(|text| Self(Rc::from(text)))
    }

    /// The id as it was claimed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerId({:?})", self.as_str())
    }
}

impl Serialize for ServerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ServerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).ok_or_else(|| serde::de::Error::custom("not a server-id"))
    }
}

/// The part of a phone's connection id that is its own: 16 lower-case hexadecimal digits.
///
/// It comes from the operating system's random source and must not repeat, not even across
/// restarts: a daemon takes a known id for a re-key of the old session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PhoneKey(u64);

impl PhoneKey {
    /// A fresh key.
    pub(crate) fn random() -> Self {
        Self(random())
    }

    /// The key inside `conn_id` if that has the shape of this server's phones.
    pub(crate) fn parse(server: &ServerId, conn_id: &str) -> Option<Self> {
        let digits =
            conn_id.strip_prefix("client-")?.strip_prefix(server.as_str())?.strip_prefix('-')?;
        let lower_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 16 || !digits.as_bytes().iter().all(lower_hex) {
            return None;
        }
        u64::from_str_radix(digits, 16).ok().map(Self)
    }

    /// The whole connection id.
    pub(crate) fn conn_id(self, server: &ServerId) -> String {
        format!("client-{server}-{:016x}", self.0)
    }
}

/// A binary's connection id, `server-<server-id>-<8 hex>`; it appears in logs alone.
pub(crate) fn binary_conn_id(server: &ServerId, suffix: u32) -> String {
    format!("server-{server}-{suffix:08x}")
}

/// The part of a binary's connection id that is its own.
pub(crate) fn binary_suffix() -> u32 {
    let [a, b, c, d, ..] = random_payload();
    u32::from_be_bytes([a, b, c, d])
}

/// Eight bytes that nobody can have guessed: the payload of a probe's ping.
pub(crate) fn random_payload() -> [u8; 8] {
    random().to_be_bytes()
}

/// From the operating system's random source; in a simulation from its seed.
fn random() -> u64 {
    #[cfg(feature = "simulation")]
    if clock::simulated::is_running() {
        return fastrand::u64(..);
    }
    getrandom::u64().expect("bug: getrandom(2) on a seeded kernel cannot fail")
}

/// Identity of one admission, never used again by this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Serial(u64);

/// Hands out [`Serial`]s.
#[derive(Default, Debug)]
pub(crate) struct Serials(Cell<u64>);

impl Serials {
    /// The next serial; 2^64 of them outlast any uptime.
    pub(crate) fn next(&self) -> Serial {
        self.0.set(self.0.get() + 1);
        Serial(self.0.get())
    }

    /// Hands none out that is `used`, or was handed out before it.
    pub(crate) fn skip(&self, used: Serial) {
        self.0.set(self.0.get().max(used.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> ServerId {
        ServerId::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_server_id_is_1_to_128_visible_ascii_characters() {
        assert!(ServerId::parse(b"").is_none());
        assert!(ServerId::parse(&[b'a'; 128]).is_some());
        assert!(ServerId::parse(&[b'a'; 129]).is_none());
        for byte in 0..=u8::MAX {
            let expected = (0x21..=0x7e).contains(&byte);
            assert_eq!(ServerId::parse(&[b'a', byte]).is_some(), expected, "{byte:#x}");
        }
    }

    #[test]
    fn a_phone_key_reads_back_from_its_own_conn_id_and_from_no_other() {
        let (mine, other) = (server("a-b"), server("a"));
        let key = PhoneKey::random();
        let text = key.conn_id(&mine);
        assert_eq!(PhoneKey::parse(&mine, &text), Some(key));
        assert_eq!(PhoneKey::parse(&other, &text), None);
        for bad in ["", "client-a-b-", "client-a-b-00000000000000zz", "client-a-b-+000000000000000"]
        {
            assert_eq!(PhoneKey::parse(&mine, bad), None, "{bad}");
        }
        assert_eq!(PhoneKey::parse(&mine, &text.to_uppercase()), None);
    }

    #[test]
    fn ids_have_the_digits_that_the_contract_asks_for() {
        let mine = server("box");
        let phone = PhoneKey(0xab).conn_id(&mine);
        assert_eq!(phone, "client-box-00000000000000ab");
        assert_eq!(binary_conn_id(&mine, 0xab), "server-box-000000ab");
    }
}

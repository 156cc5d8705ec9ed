//! The keys of one direction of a TLS connection, and the protection of records with them (RFC 8446, section 5.2;
//! RFC 5246, section 6.2.3.3).
//!
//! At rest there are only keys and counters. A cipher, which weighs several times as much, is made of them for each
//! batch of records. The ciphers are ring's, and keys are derived by rustls.

mod frozen;

use std::fmt;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::crypto::cipher::make_tls12_aad;
use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{
    CipherSuite, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};
use zeroize::{Zeroize as _, Zeroizing};

pub(crate) use self::frozen::{FrozenKeys, Unusable};

/// Length of a record's header.
pub(super) const HEADER: usize = 5;
/// The largest plaintext of a record (RFC 8446, section 5.1).
pub(super) const FRAGMENT: usize = 1 << 14;
/// What a record is longer by than its plaintext, at most, without the padding of a peer: header, explicit nonce,
/// tag, and the content type that is hidden in TLS 1.3.
pub(super) const OVERHEAD: usize = HEADER + EXPLICIT_NONCE + TAG + 1;

const TAG: usize = 16;
/// Of AES-GCM in TLS 1.2 (RFC 5288, section 3).
const EXPLICIT_NONCE: usize = 8;
/// Length of the longest hash that a suite of TLS 1.3 has.
const LONGEST_SECRET: usize = 48;
/// Sequence numbers must not wrap; nobody gets as far as this.
const LAST_SEQUENCE: u64 = u64::MAX - (1 << 16);

/// What protects one direction.
pub struct Keys {
    cipher: Cipher,
    /// Boxed, as secrets are: whoever moves it leaves no copy behind.
    key: Box<Zeroizing<[u8; 32]>>,
    iv: Zeroizing<[u8; NONCE_LEN]>,
    /// Of the next record.
    sequence: u64,
    /// As many records may be protected with one key.
    limit: u64,
    suite: Suite,
}

/// The cipher suite, and so the version.
enum Suite {
    Tls12(&'static Tls12CipherSuite),
    /// With the secret that the next keys follow from.
    Tls13(&'static Tls13CipherSuite, Secret),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

/// A traffic secret (RFC 8446, section 7.2).
pub struct Secret {
    bytes: Box<Zeroizing<[u8; LONGEST_SECRET]>>,
    length: u8,
}

impl Secret {
    /// None of a length that no suite has.
    pub fn new(secret: &[u8]) -> Option<Self> {
        let mut bytes = Box::new(Zeroizing::new([0; LONGEST_SECRET]));
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        Some(Self { bytes, length: u8::try_from(secret.len()).ok()? })
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_struct("Keys").field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// A record's content type and where its plaintext is: from the beginning of what was its protected payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) kind: ContentType,
    pub(super) length: usize,
}

impl Keys {
    /// The keys that a handshake came to, with `secret` if it was one of TLS 1.3.
    pub fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
        secret: Option<Secret>,
    ) -> Result<Self, Error> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::Chacha20Poly1305, key, iv)
            }
            _ => return Err(Error::General("a cipher that is not known here".to_owned())),
        };
        let suite = match suite {
            SupportedCipherSuite::Tls13(suite) => {
                Suite::Tls13(suite, secret.ok_or(Error::HandshakeNotComplete)?)
            }
            SupportedCipherSuite::Tls12(suite) => Suite::Tls12(suite),
        };
        let mut keys = Self {
            cipher,
            key: Box::default(),
            iv: Zeroizing::default(),
            sequence,
            limit: suite.limit(),
            suite,
        };
        let key = key.as_ref();
        keys.key[..key.len()].copy_from_slice(key);
        keys.iv.copy_from_slice(iv.as_ref());
        Ok(keys)
    }

    /// Whether this is TLS 1.3, else 1.2.
    pub(super) fn is_tls13(&self) -> bool {
        matches!(self.suite, Suite::Tls13(..))
    }

    /// Which suite they are of.
    pub(super) fn suite(&self) -> CipherSuite {
        match &self.suite {
            Suite::Tls12(suite) => suite.common.suite,
            Suite::Tls13(suite, _) => suite.common.suite,
        }
    }

    /// Whether no more may be protected with these keys, but for one record that says so.
    pub(super) fn are_used_up(&self) -> bool {
        self.sequence >= self.limit
    }

    /// Goes on to the next keys (RFC 8446, section 7.2). There are none in TLS 1.2.
    pub(super) fn update(&mut self) {
        let Suite::Tls13(suite, secret) = &mut self.suite else { return };
        let hkdf = suite.hkdf_provider;
        let now = hkdf.expander_for_okm(&OkmBlock::new(secret.get()));
        let mut next = Box::new(Zeroizing::new([0; LONGEST_SECRET]));
        let length = usize::from(secret.length);
        expand(&*now, "traffic upd", &mut next[..length]);
        secret.bytes = next;
        let next = hkdf.expander_for_okm(&OkmBlock::new(secret.get()));
        expand(&*next, "key", &mut self.key[..self.cipher.key_length()]);
        expand(&*next, "iv", &mut self.iv[..]);
        self.sequence = 0;
    }

    /// The cipher of these keys, as long as they are the ones.
    pub(super) fn cipher(&self) -> LessSafeKey {
        let (algorithm, length) = match self.cipher {
            Cipher::Aes128Gcm => (&AES_128_GCM, 16),
            Cipher::Aes256Gcm => (&AES_256_GCM, 32),
            Cipher::Chacha20Poly1305 => (&CHACHA20_POLY1305, 32),
        };
        let key = UnboundKey::new(algorithm, &self.key[..length]);
        LessSafeKey::new(key.expect("bug: the key is as long as the cipher's are"))
    }

    /// Takes the protection off the record in `record`, whose header is of `kind` and `version`. The error is
    /// `DecryptError`, or says what is wrong with what was hidden.
    pub(super) fn open(
        &mut self,
        cipher: &LessSafeKey,
        record: &mut [u8],
    ) -> Result<Content, Error> {
        let [kind, major, minor, high, low, payload @ ..] = record else {
            return Err(Error::DecryptError);
        };
        let (kind, version) =
            (ContentType::from(*kind), ProtocolVersion::from(u16::from_be_bytes([*major, *minor])));
        let content = if self.is_tls13() {
            let aad = Aad::from([23, 3, 3, *high, *low]);
            let plaintext = cipher
                .open_in_place(self.nonce(), aad, payload)
                .map_err(|_| Error::DecryptError)?;
            unpad(plaintext)?
        } else {
            let explicit = self.explicit_nonce();
            let length = payload.len().checked_sub(TAG + explicit).ok_or(Error::DecryptError)?;
            let nonce = match payload.first_chunk::<EXPLICIT_NONCE>() {
                Some(sent) if explicit > 0 => {
                    let mut nonce = *self.iv;
                    nonce[NONCE_LEN - EXPLICIT_NONCE..].copy_from_slice(sent);
                    Nonce::assume_unique_for_key(nonce)
                }
                _ => self.nonce(),
            };
            let aad = Aad::from(make_tls12_aad(self.sequence, kind, version, length));
            let plaintext = cipher
                .open_within(nonce, aad, payload, explicit..)
                .map_err(|_| Error::DecryptError)?;
            Content { kind, length: plaintext.len() }
        };
        if content.length > FRAGMENT {
            return Err(Error::PeerSentOversizedRecord);
        }
        // It cannot be reached: 2^64 records take longer than anybody lives.
        self.sequence = self.sequence.checked_add(1).ok_or(Error::DecryptError)?;
        Ok(content)
    }

    /// Protects `plaintext`, which is no longer than [`FRAGMENT`], in a record at the beginning of `to`, which has
    /// [`OVERHEAD`] more than that. Returns the record's length.
    pub(super) fn seal(
        &mut self,
        cipher: &LessSafeKey,
        kind: ContentType,
        plaintext: &[u8],
        to: &mut [u8],
    ) -> usize {
        let nonce = self.nonce();
        let (header, to) = to.split_at_mut(HEADER);
        let payload = if self.is_tls13() {
            let sealed = plaintext.len() + 1;
            to[..plaintext.len()].copy_from_slice(plaintext);
            to[plaintext.len()] = u8::from(kind);
            let length = sealed + TAG;
            header.copy_from_slice(&head(ContentType::ApplicationData, length));
            let aad = Aad::from(head(ContentType::ApplicationData, length));
            seal_at(cipher, nonce, aad, to, 0..sealed)
        } else {
            let explicit = self.explicit_nonce();
            let (begin, end) = (explicit, explicit + plaintext.len());
            to[..explicit].copy_from_slice(&nonce.as_ref()[NONCE_LEN - explicit..]);
            to[begin..end].copy_from_slice(plaintext);
            header.copy_from_slice(&head(kind, end + TAG));
            let version = ProtocolVersion::TLSv1_2;
            let aad = Aad::from(make_tls12_aad(self.sequence, kind, version, plaintext.len()));
            seal_at(cipher, nonce, aad, to, begin..end)
        };
        self.sequence += 1;
        HEADER + payload
    }

    /// `iv` with the sequence number (RFC 8446, section 5.3; RFC 7905, section 2). AES-GCM in TLS 1.2 may use any
    /// that does not repeat.
    fn nonce(&self) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn explicit_nonce(&self) -> usize {
        if self.is_tls13() || self.cipher == Cipher::Chacha20Poly1305 { 0 } else { EXPLICIT_NONCE }
    }

    /// From now on a key is good for so many records.
    #[cfg(test)]
    pub(super) fn set_limit(&mut self, records: u64) {
        self.limit = records;
    }
}

impl Suite {
    /// As many records may be protected with one key.
    fn limit(&self) -> u64 {
        let common = match self {
            Self::Tls12(suite) => &suite.common,
            Self::Tls13(suite, _) => &suite.common,
        };
        common.confidentiality_limit.min(LAST_SEQUENCE)
    }
}

impl Cipher {
    fn key_length(self) -> usize {
        if self == Self::Aes128Gcm { 16 } else { 32 }
    }
}

/// A record's header (RFC 8446, section 5.1), with the version that both versions of TLS send.
fn head(kind: ContentType, length: usize) -> [u8; HEADER] {
    let length = u16::try_from(length).expect("bug: a record longer than the longest");
    let [high, low] = length.to_be_bytes();
    [u8::from(kind), 3, 3, high, low]
}

/// Seals what is at `range` of `to`, and puts the tag behind it. Returns where that ends.
fn seal_at<A: AsRef<[u8]>>(
    cipher: &LessSafeKey,
    nonce: Nonce,
    aad: Aad<A>,
    to: &mut [u8],
    range: std::ops::Range<usize>,
) -> usize {
    let end = range.end;
    let tag = cipher.seal_in_place_separate_tag(nonce, aad, &mut to[range]);
    let tag = tag.expect("bug: a record longer than the cipher takes");
    to[end..end + TAG].copy_from_slice(tag.as_ref());
    end + TAG
}

/// The content of a record of TLS 1.3, without its padding (RFC 8446, section 5.4).
fn unpad(inner: &[u8]) -> Result<Content, Error> {
    if inner.len() > FRAGMENT + 1 {
        return Err(Error::PeerSentOversizedRecord);
    }
    let Some(length) = inner.iter().rposition(|byte| *byte != 0) else {
        return Err(rustls::PeerMisbehaved::IllegalTlsInnerPlaintext.into());
    };
    Ok(Content { kind: ContentType::from(inner[length]), length })
}

/// HKDF-Expand-Label without a context (RFC 8446, section 7.1).
fn expand(from: &dyn HkdfExpander, label: &str, to: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(to.len()).expect("bug: a key of 64 KiB").to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).expect("bug: a long label");
    let info = [&length[..], &[label_length], PREFIX, label.as_bytes(), &[0]];
    if from.expand_slice(&info, to).is_err() {
        // No key is longer than 255 hashes. Nothing must be protected with half a key.
        to.zeroize();
        unreachable!("bug: a key that is longer than 255 hashes");
    }
}

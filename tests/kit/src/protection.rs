//! A peer's end of the record layer (RFC 8446, section 5.2; RFC 5246, section 6.2.3), written apart from the
//! relay's. It also seals what no peer may send.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::tls13::{Hkdf, OkmBlock};
use rustls::{CipherSuite, SupportedCipherSuite};

/// What protects one direction.
pub struct Protection {
    algorithm: &'static aead::Algorithm,
    key: Vec<u8>,
    iv: [u8; 12],
    sequence: u64,
    /// Of TLS 1.3 alone.
    next: Option<(&'static dyn Hkdf, Vec<u8>)>,
}

/// What every record of ours says.
const TLS12: [u8; 2] = [3, 3];
const DATA: u8 = 23;

impl Protection {
    /// Of a key that is longer than the cipher's, its beginning counts. TLS 1.2 has no use for the secret.
    pub fn new(
        suite: SupportedCipherSuite,
        sequence: u64,
        key: &[u8],
        iv: &[u8],
        secret: &[u8],
    ) -> Self {
        let algorithm = match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => &aead::AES_128_GCM,
            CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => &aead::AES_256_GCM,
            _ => &aead::CHACHA20_POLY1305,
        };
        let next = suite.tls13().map(|suite| (suite.hkdf_provider, secret.to_vec()));
        let key = key[..algorithm.key_len()].to_vec();
        Self { algorithm, key, iv: iv.try_into().unwrap(), sequence, next }
    }

    /// Whether this is TLS 1.3, else 1.2.
    pub fn is_tls13(&self) -> bool {
        self.next.is_some()
    }

    /// A record as a peer may send it.
    pub fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.seal_padded(kind, content, 0)
    }

    /// One with padding, which there is none of in TLS 1.2.
    pub fn seal_padded(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        if !self.is_tls13() {
            return self.seal_inner(kind, TLS12, content);
        }
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + padding, 0);
        self.seal_inner(DATA, TLS12, &inner)
    }

    /// One with whatever in it and in its header.
    pub fn seal_inner(&mut self, kind: u8, version: [u8; 2], inner: &[u8]) -> Vec<u8> {
        let tag = 16;
        let nonce = self.nonce();
        let explicit = if self.has_explicit_nonce() { nonce[4..].to_vec() } else { Vec::new() };
        let aad = self.aad(kind, version, inner.len());
        let length = u16::try_from(explicit.len() + inner.len() + tag).unwrap().to_be_bytes();
        let mut record = [&[kind], &version[..], &length, &explicit].concat();
        let mut sealed = inner.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher().seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
        record.extend(sealed);
        self.sequence += 1;
        record
    }

    /// The content type and the content of one record without padding.
    pub fn open(&mut self, record: &[u8]) -> Option<(u8, Vec<u8>)> {
        let (header, payload) = record.split_first_chunk::<5>()?;
        let explicit = if self.has_explicit_nonce() { 8 } else { 0 };
        let mut nonce = self.nonce();
        if explicit > 0 {
            nonce[4..].copy_from_slice(payload.get(..8)?);
        }
        let inner = payload.len().checked_sub(explicit + 16)?;
        let aad = self.aad(header[0], [header[1], header[2]], inner);
        let mut payload = payload[explicit..].to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher().open_in_place(nonce, Aad::from(aad), &mut payload).ok()?;
        payload.truncate(inner);
        self.sequence += 1;
        let kind = if self.is_tls13() { payload.pop()? } else { header[0] };
        Some((kind, payload))
    }

    /// Goes on to the next keys (RFC 8446, section 7.2).
    pub fn update(&mut self) {
        let Some((hkdf, secret)) = &mut self.next else { return };
        let expand = |secret: &[u8], label: &str, length: usize| {
            let mut to = vec![0; length];
            let label = format!("tls13 {label}");
            let info: [&[u8]; 4] = [
                &u16::try_from(length).unwrap().to_be_bytes(),
                &[u8::try_from(label.len()).unwrap()],
                label.as_bytes(),
                &[0],
            ];
            let expander = hkdf.expander_for_okm(&OkmBlock::new(secret));
            expander.expand_slice(&info, &mut to).ok().unwrap();
            to
        };
        *secret = expand(secret, "traffic upd", secret.len());
        self.key = expand(secret, "key", self.key.len());
        self.iv = expand(secret, "iv", 12).try_into().unwrap();
        self.sequence = 0;
    }

    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(self.algorithm, &self.key).unwrap())
    }

    fn has_explicit_nonce(&self) -> bool {
        !self.is_tls13() && self.algorithm != &aead::CHACHA20_POLY1305
    }

    fn nonce(&self) -> [u8; 12] {
        let sequence = [&[0; 4][..], &self.sequence.to_be_bytes()].concat();
        std::array::from_fn(|at| self.iv[at] ^ sequence[at])
    }

    fn aad(&self, kind: u8, version: [u8; 2], inner: usize) -> Vec<u8> {
        let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        if self.is_tls13() {
            return [&[DATA], &TLS12[..], &length(inner + 16)].concat();
        }
        [&self.sequence.to_be_bytes()[..], &[kind], &version, &length(inner)].concat()
    }
}

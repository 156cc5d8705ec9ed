//! Keys on their way to another program.

use std::fmt;

use rustls::crypto::ring::ALL_CIPHER_SUITES;
use rustls::{CipherSuite, SupportedCipherSuite};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{Cipher, Keys, LAST_SEQUENCE, Secret, Suite};

/// What [`Keys`] are. How many records they are good for follows from the suite.
///
/// Every field is required: with one that is made up, a nonce could be used twice.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenKeys {
    /// The name that IANA has registered, which says the version of TLS too.
    suite: String,
    key: Hidden,
    iv: Hidden,
    sequence: u64,
    /// The traffic secret; of TLS 1.3 alone.
    secret: Option<Hidden>,
}

/// Why what another program froze cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unusable {
    /// A cipher suite that this program does not have, or two of them in one connection.
    Suite,
    /// A key, an IV or a traffic secret that is missing, or has another length than the suite's.
    Key,
    /// A sequence number that nobody gets as far as.
    Sequence,
    /// A handshake message that cannot have begun like this.
    Message,
}

/// Bytes that nobody sees, and that are zeroed when they are dropped.
struct Hidden(Zeroizing<Vec<u8>>);

impl Keys {
    /// What another program needs in order to go on with these keys.
    pub(in crate::tls) fn freeze(&self) -> FrozenKeys {
        let secret = match &self.suite {
            Suite::Tls12(_) => None,
            Suite::Tls13(_, secret) => Some(Hidden::new(secret.get())),
        };
        let suite = self.suite();
        let known = SUITES.iter().find(|(_, known, _)| *known == suite);
        FrozenKeys {
            // Without a name they are refused.
            suite: known.map_or("", |(name, ..)| name).to_owned(),
            key: Hidden::new(&self.key[..self.cipher.key_length()]),
            iv: Hidden::new(&self.iv[..]),
            sequence: self.sequence,
            secret,
        }
    }

    /// The keys that another program froze.
    pub(in crate::tls) fn thaw(frozen: &FrozenKeys) -> Result<Self, Unusable> {
        let FrozenKeys { suite, key, iv, sequence, secret } = frozen;
        let known = SUITES.iter().find(|(name, ..)| name == suite);
        let &(_, suite, cipher) = known.ok_or(Unusable::Suite)?;
        let supported = ALL_CIPHER_SUITES.iter().find(|supported| supported.suite() == suite);
        let suite = match supported.ok_or(Unusable::Suite)? {
            SupportedCipherSuite::Tls12(suite) => Suite::Tls12(suite),
            SupportedCipherSuite::Tls13(suite) => {
                let secret = secret.as_ref().ok_or(Unusable::Key)?.get();
                if secret.len() != suite.common.hash_provider.output_len() {
                    return Err(Unusable::Key);
                }
                Suite::Tls13(suite, Secret::new(secret).ok_or(Unusable::Key)?)
            }
        };
        let (key, iv) = (key.get(), iv.get());
        if *sequence > LAST_SEQUENCE {
            return Err(Unusable::Sequence);
        }
        let mut keys = Self {
            cipher,
            key: Box::default(),
            iv: Zeroizing::default(),
            sequence: *sequence,
            limit: suite.limit(),
            suite,
        };
        if key.len() != cipher.key_length() || iv.len() != keys.iv.len() {
            return Err(Unusable::Key);
        }
        keys.key[..key.len()].copy_from_slice(key);
        keys.iv.copy_from_slice(iv);
        Ok(keys)
    }
}

impl Hidden {
    fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    fn get(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hidden").finish_non_exhaustive()
    }
}

impl Serialize for Hidden {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.get())
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(deserializer)?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Suite => "unknown TLS cipher suite",
            Self::Key => "a TLS key of the wrong length",
            Self::Sequence => "a TLS sequence number out of range",
            Self::Message => "a TLS handshake message that cannot be",
        })
    }
}

impl std::error::Error for Unusable {}

/// The suites that rustls has with ring: the name that IANA has registered, and what protects records.
const SUITES: [(&str, CipherSuite, Cipher); 9] = [
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256, Cipher::Aes128Gcm),
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384, Cipher::Aes256Gcm),
    (
        "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        Cipher::Chacha20Poly1305,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        Cipher::Aes128Gcm,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        Cipher::Aes256Gcm,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        Cipher::Chacha20Poly1305,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        Cipher::Aes128Gcm,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        Cipher::Aes256Gcm,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        Cipher::Chacha20Poly1305,
    ),
];

#[cfg(test)]
mod tests {
    use rustls::ConnectionTrafficSecrets;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn keys(suite: SupportedCipherSuite) -> Keys {
        let secret = suite.tls13().map_or(0, |suite| suite.common.hash_provider.output_len());
        let (key, iv) = (AeadKey::from([0xa1; 32]), Iv::from([0xa2; 12]));
        let known = SUITES.iter().find(|(_, known, _)| *known == suite.suite());
        let secrets = match known.expect("the suite has a name").2 {
            Cipher::Aes128Gcm => ConnectionTrafficSecrets::Aes128Gcm { key, iv },
            Cipher::Aes256Gcm => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            Cipher::Chacha20Poly1305 => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        };
        Keys::new(suite, (7, secrets), Secret::new(&vec![0xa3; secret])).unwrap()
    }

    fn carried(frozen: &FrozenKeys) -> FrozenKeys {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(frozen).unwrap()).unwrap()
    }

    /// A record of each of the next three keys.
    fn sealed(mut keys: Keys) -> Vec<Vec<u8>> {
        let mut seal = || {
            let mut record = vec![0; 100];
            let cipher = keys.cipher();
            let kind = rustls::ContentType::ApplicationData;
            let length = keys.seal(&cipher, kind, b"content", &mut record);
            keys.update();
            record[..length].to_vec()
        };
        vec![seal(), seal(), seal()]
    }

    #[test]
    fn keys_of_every_suite_seal_the_same_and_are_followed_by_the_same() {
        assert_eq!(ALL_CIPHER_SUITES.len(), SUITES.len());
        for suite in ALL_CIPHER_SUITES {
            let (keys, thawed) = (keys(*suite), keys(*suite).freeze());
            let thawed = Keys::thaw(&carried(&thawed)).unwrap();
            assert_eq!((thawed.limit, thawed.is_tls13()), (keys.limit, keys.is_tls13()));
            assert_eq!(sealed(thawed), sealed(keys), "{suite:?}");
        }
    }

    #[test]
    fn a_name_is_the_one_that_rustls_has_but_for_its_mark_of_tls13() {
        for (name, suite, _) in SUITES {
            let theirs = suite.as_str().unwrap().replace("TLS13_", "TLS_");
            assert_eq!(name, theirs);
        }
    }

    #[test]
    fn keys_that_fit_no_suite_are_refused() {
        let lengths = |right: usize| (0..64).filter(move |length| *length != right);
        for suite in ALL_CIPHER_SUITES {
            let frozen = || keys(*suite).freeze();
            let refused = |frozen: FrozenKeys| Keys::thaw(&carried(&frozen)).err();
            assert_eq!(refused(frozen()), None);
            for length in lengths(frozen().key.get().len()) {
                let frozen = FrozenKeys { key: Hidden::new(&vec![1; length]), ..frozen() };
                assert_eq!(refused(frozen), Some(Unusable::Key), "{suite:?}, {length}");
            }
            for length in lengths(12) {
                let frozen = FrozenKeys { iv: Hidden::new(&vec![1; length]), ..frozen() };
                assert_eq!(refused(frozen), Some(Unusable::Key), "{suite:?}, {length}");
            }
            if let Some(suite) = suite.tls13() {
                for length in lengths(suite.common.hash_provider.output_len()) {
                    let secret = Some(Hidden::new(&vec![1; length]));
                    let frozen = FrozenKeys { secret, ..frozen() };
                    assert_eq!(refused(frozen), Some(Unusable::Key), "{suite:?}, {length}");
                }
                let frozen = FrozenKeys { secret: None, ..frozen() };
                assert_eq!(refused(frozen), Some(Unusable::Key), "{suite:?}");
            }
            for sequence in [LAST_SEQUENCE + 1, u64::MAX] {
                let frozen = FrozenKeys { sequence, ..frozen() };
                assert_eq!(refused(frozen), Some(Unusable::Sequence));
            }
            for name in ["", "TLS_AES_128_CCM_SHA256", "TLS13_AES_128_GCM_SHA256"] {
                let frozen = FrozenKeys { suite: name.to_owned(), ..frozen() };
                assert_eq!(refused(frozen), Some(Unusable::Suite));
            }
        }
    }

    #[test]
    fn what_a_key_needs_must_be_there_and_what_is_unknown_is_passed_over() {
        #[derive(Serialize)]
        struct Later {
            suite: &'static str,
            #[serde(with = "serde_bytes")]
            key: Vec<u8>,
            #[serde(with = "serde_bytes")]
            iv: Vec<u8>,
            #[serde(skip_serializing_if = "Option::is_none")]
            sequence: Option<u64>,
            colour: [&'static str; 2],
        }
        let (name, ..) = SUITES[3];
        let later = |sequence| Later {
            suite: name,
            key: vec![1; 16],
            iv: vec![2; 12],
            sequence,
            colour: ["grey", "blue"],
        };
        let read = |later| {
            let bytes = rmp_serde::to_vec_named(&later).unwrap();
            rmp_serde::from_slice::<FrozenKeys>(&bytes)
        };
        assert!(Keys::thaw(&read(later(Some(0))).unwrap()).is_ok());
        assert!(read(later(None)).is_err());
    }

    #[test]
    fn nobody_is_shown_a_secret() {
        for suite in ALL_CIPHER_SUITES {
            let shown = format!("{:?}", keys(*suite).freeze());
            assert!(shown.contains("Hidden"), "{shown}");
            // 0xa1, 0xa2 and 0xa3.
            assert!(["161", "162", "163"].iter().all(|byte| !shown.contains(byte)), "{shown}");
        }
    }
}

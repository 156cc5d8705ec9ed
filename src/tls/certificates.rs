//! The certificate that TLS listeners show: a pair of chain and key that is checked before it is
//! used, and the place from which a new one takes over without touching a connection.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_name;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_parser::extensions::GeneralName;

use crate::telemetry::certificate::Condition;

/// A certificate chain and the key that belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a pair cannot be used. What is displayed is for the operator, and never holds key material.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadPair {
    /// The chain is no PEM, or holds no certificate.
    NoCertificate,
    /// The first certificate of the chain cannot be read.
    BrokenCertificate,
    /// The key is no PEM, or of no kind that is known.
    NoKey,
    /// The key is not the certificate's.
    Mismatch,
    /// The certificate was valid until then.
    Expired(SystemTime),
}

impl Pair {
    /// Reads a chain, the server's own certificate first, and its key, both PEM (RFC 7468). The
    /// pair is one, and not expired at `now`.
    ///
    /// A certificate that is not valid yet is taken: a board without a clock of its own starts in
    /// the past.
    pub(crate) fn from_pem(chain: &[u8], key: &[u8], now: SystemTime) -> Result<Self, BadPair> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| BadPair::NoCertificate)?;
        let first = chain.first().ok_or(BadPair::NoCertificate)?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(first).map_err(|_| BadPair::BrokenCertificate)?;
        let validity = parsed.validity();
        let not_before = from_unix(validity.not_before.timestamp());
        let not_after = from_unix(validity.not_after.timestamp());
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BadPair::NoKey)?;
        let key = any_supported_type(&key).map_err(|_| BadPair::NoKey)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(BadPair::Mismatch);
            }
            Err(_) => return Err(BadPair::BrokenCertificate),
        }
        if now >= not_after {
            return Err(BadPair::Expired(not_after));
        }
        Ok(Self { certified: Arc::new(certified), not_before, not_after })
    }

    /// Whether it is for this name (RFC 6125).
    pub(crate) fn is_for(&self, domain: &str) -> bool {
        let Ok(certificate) =
            self.certified.end_entity_cert().and_then(ParsedCertificate::try_from)
        else {
            return false;
        };
        ServerName::try_from(domain)
            .is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    }

    /// The DNS names that it is for (RFC 5280, section 4.2.1.6), as they are written in it.
    pub(crate) fn names(&self) -> Vec<String> {
        let Some(first) = self.certified.cert.first() else { return Vec::new() };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(first) else { return Vec::new() };
        let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return Vec::new() };
        let names = alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        names.collect()
    }

    /// From when it is valid.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when it is valid.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Display for BadPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("there is no PEM certificate in it"),
            Self::BrokenCertificate => f.write_str("its first certificate cannot be read"),
            Self::NoKey => f.write_str("there is no PEM private key in it that can be used"),
            Self::Mismatch => f.write_str("the key is not the certificate's"),
            Self::Expired(at) => {
                write!(f, "the certificate expired at {}", humantime::format_rfc3339_seconds(*at))
            }
        }
    }
}

/// What TLS listeners show at present, and how the next certificate is coming along. Shared with
/// rustls, hence behind a lock; nobody else takes it for long.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    state: Mutex<Showing>,
}

#[derive(Debug, Default)]
struct Showing {
    pair: Option<Pair>,
    problem: Option<String>,
    /// How often anything has changed.
    changes: u64,
    waiting: Option<Waker>,
}

impl Certificates {
    /// Shows `pair` from the next handshake on. What was wrong is over.
    pub(crate) fn install(&self, pair: Pair) {
        self.change(|state| (state.pair, state.problem) = (Some(pair), None));
    }

    /// Notes why there is no newer certificate; the present one goes on.
    pub(crate) fn failed(&self, problem: String) {
        self.change(|state| state.problem = Some(problem));
    }

    /// How it is at present.
    pub(crate) fn condition(&self) -> Condition {
        let state = self.state();
        let validity = state.pair.as_ref().map(|pair| (pair.not_before, pair.not_after));
        Condition { validity, problem: state.problem.clone() }
    }

    /// Waits until it is another than it was when this was last ready with `seen`; for one waiter.
    /// Cancel safe.
    pub(crate) fn poll_changed(&self, cx: &mut Context<'_>, seen: &mut u64) -> Poll<()> {
        let mut state = self.state();
        if state.changes != *seen {
            *seen = state.changes;
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn change(&self, change: impl FnOnce(&mut Showing)) {
        let waiting = {
            let mut state = self.state();
            change(&mut state);
            state.changes += 1;
            state.waiting.take()
        };
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, Showing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.state().pair.as_ref().map(|pair| Arc::clone(&pair.certified))
    }
}

fn from_unix(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
        Err(_) => UNIX_EPOCH,
    }
}

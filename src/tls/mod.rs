//! TLS between accept and head: a stream adapter, and where its certificates come from.

pub(crate) mod acme;
pub(crate) mod cache;
pub(crate) mod certificates;
mod events;
pub(crate) mod files;
mod handshake;
pub mod keys;
pub(crate) mod names;
pub(crate) mod options;
pub mod record;
pub(crate) mod stream;

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::clock::{self, Timer};
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{Error, ServerConfig};

use self::acme::Challenges;
use self::cache::Cache;
use self::certificates::Certificates;
use self::files::Files;
use self::handshake::{HANDSHAKE, Opening, Secrets, invalid};
use self::options::{CertificateSource, TlsSettings};
use self::stream::Tls;
use crate::limits::CERTIFICATE_CHECK;
use crate::net::scratch::Scratch;
use crate::net::transport::Tcp;
use crate::queue::budget::Account;
use crate::telemetry::certificate::Condition;
use crate::telemetry::metrics::{Metrics, Refused};

/// Makes TLS connections of accepted sockets, with the certificate of the moment.
#[derive(Debug)]
pub(crate) struct Secure {
    certificates: Arc<Certificates>,
    files: Option<RefCell<Files>>,
    domains: Vec<String>,
    /// Where certificates are ordered, if they are.
    orders: Option<acme::Settings>,
    challenges: Rc<Challenges>,
    config: Arc<ServerConfig>,
    /// The same, with a certificate for nobody.
    refusing: Arc<ServerConfig>,
    /// What both tell about the handshake in progress.
    secrets: Arc<Secrets>,
    /// What records are sealed in.
    scratch: Rc<Scratch>,
}

/// What came of a handshake.
enum Handshake {
    /// It is done.
    Done(Tls),
    /// The peer does not speak TLS; this is its socket.
    NotTls(Tcp),
    /// It was a check of an ACME directory, which has its answer.
    Challenge,
    /// It was not allowed, which is counted where that was decided.
    Forbidden,
    /// It failed: how that is counted, and why. What was to be said to the peer has been said.
    Unwanted(Refused, io::Error),
}

impl Secure {
    /// What the settings ask for: reads the certificate, or opens the cache. The error is a sentence
    /// for the operator.
    pub(crate) fn new(settings: &TlsSettings) -> Result<Self, String> {
        let domains = settings.domains.clone();
        match &settings.source {
            CertificateSource::Files { chain, key } => {
                Self::from_files(Files::new(chain.clone(), key.clone()), domains)
            }
            CertificateSource::Acme { directory, contacts, cache } => {
                let orders = acme::Settings {
                    domains: domains.clone(),
                    contacts: contacts.clone(),
                    directory: directory.clone(),
                    cache: Cache::open(cache)?,
                };
                Self::build(None, Some(orders), domains)
            }
        }
    }

    /// Shows what is in `files`, and reads them again when they change; with `domains`, to peers
    /// that ask for one of them alone.
    fn from_files(mut files: Files, domains: Vec<String>) -> Result<Self, String> {
        let pair = files.read(clock::wall()).map_err(|bad| bad.to_string())?;
        events::certificate_read(files.chain(), pair.not_after());
        let secure = Self::build(Some(files), None, domains)?;
        secure.certificates.install(pair);
        Ok(secure)
    }

    /// TLS 1.2 and 1.3, HTTP/1.1 by ALPN (RFC 7301), and session tickets (RFC 8446, section 4.6.1)
    /// that hold the whole state: a session that may be resumed costs no memory here. Early data is
    /// not taken: it could be played again.
    fn build(
        files: Option<Files>,
        orders: Option<acme::Settings>,
        domains: Vec<String>,
    ) -> Result<Self, String> {
        let certificates = Arc::<Certificates>::default();
        let secrets = Arc::<Secrets>::default();
        let scratch = Rc::<Scratch>::default();
        // It is there from the beginning, so that nobody takes it for what a connection holds.
        drop(scratch.lend());
        let configure = || -> Result<ServerConfig, Error> {
            let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config.ticketer = Ticketer::new()?;
            // With tickets that hold the whole state rustls takes none and offers none. It skips as much of
            // it, though, from clients who were offered it elsewhere (RFC 8446, section 4.2.10), and it counts
            // what it skips anew at each step of a handshake.
            config.max_early_data_size = SKIPPED_EARLY_DATA;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            Ok(secrets.heard_of(config))
        };
        let config = configure().map_err(|error| format!("cannot set up TLS: {error}"))?;
        let mut refusing = config.clone();
        refusing.cert_resolver = Arc::<Certificates>::default();
        Ok(Self {
            certificates,
            files: files.map(RefCell::new),
            domains,
            orders,
            challenges: Rc::default(),
            config: Arc::new(config),
            refusing: Arc::new(refusing),
            secrets,
            scratch,
        })
    }

    /// How the certificate is.
    pub(crate) fn condition(&self) -> Condition {
        self.certificates.condition()
    }

    /// Waits until it is another than it was when this was last ready with `seen`; for one waiter.
    /// Cancel safe.
    pub(crate) fn poll_changed(&self, cx: &mut Context<'_>, seen: &mut u64) -> Poll<()> {
        self.certificates.poll_changed(cx, seen)
    }

    /// Whether a request for this `Host` is served.
    pub(crate) fn serves_host(&self, host: Option<&[u8]>) -> bool {
        let name = host.and_then(|host| std::str::from_utf8(host).ok()).map(without_port);
        self.serves(name.unwrap_or_default())
    }

    fn serves(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.domains.is_empty() || self.domains.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Reads the files again, if the certificate comes from files. A pair that cannot be used
    /// changes nothing.
    pub(crate) fn reload(&self) {
        self.read_again(None);
    }

    /// Does so; a problem that is the known one is not news.
    fn read_again(&self, known: Option<String>) {
        let Some(files) = &self.files else { return };
        let mut files = files.borrow_mut();
        match files.read(clock::wall()) {
            Ok(pair) => {
                events::certificate_read(files.chain(), pair.not_after());
                self.certificates.install(pair);
            }
            Err(bad) if known.is_some_and(|known| known == bad.to_string()) => {}
            Err(bad) => {
                events::certificate_kept(files.chain(), &bad);
                self.certificates.failed(bad.to_string());
            }
        }
    }

    /// Keeps the certificate up to date: reads the files again whenever they change, or until they can be
    /// used, or orders another one in time. Never returns.
    pub(crate) async fn maintain(&self) {
        if let Some(orders) = self.orders.clone() {
            let certificates = Arc::clone(&self.certificates);
            let challenges = Rc::clone(&self.challenges);
            match acme::keep(certificates, challenges, orders).await {}
        }
        let Some(files) = &self.files else { return std::future::pending().await };
        loop {
            Timer::after(CERTIFICATE_CHECK).await;
            let are_worth_reading = files.borrow().are_worth_reading();
            if are_worth_reading {
                self.read_again(self.condition().problem);
            }
        }
    }

    /// Makes a TLS connection of `tcp` until `deadline`. `opening` is what was read from it before.
    ///
    /// The error is the socket of a peer that does not speak TLS, which is still to be answered.
    /// Without one it is over: a check of an ACME directory has its answer, and a failure was
    /// logged, with `remote`, and counted in `metrics`. `account` pays for what TLS holds.
    ///
    /// `may_sign` is asked once the peer has said what it wants, before anything is computed for it.
    /// If the answer is no, the peer gets the fatal alert `access_denied` (RFC 8446, section 6.2):
    /// TLS has none for a rate, and with a plain end the peer could take the relay for broken. A
    /// check of an ACME directory is not asked about: without it there would be no certificate.
    ///
    /// Not cancel safe: a cancelled handshake is a closed connection.
    #[allow(clippy::too_many_arguments, reason = "each is asked for once and by nobody else")]
    pub(crate) async fn shake(
        &self,
        tcp: Tcp,
        opening: Vec<u8>,
        deadline: Instant,
        remote: IpAddr,
        account: &Rc<Account>,
        metrics: &Metrics,
        may_sign: impl FnOnce() -> bool,
    ) -> Result<Tls, Option<Tcp>> {
        let timeout = async {
            Timer::at(deadline).await;
            Handshake::Unwanted(Refused::HeadTimeout, io::ErrorKind::TimedOut.into())
        };
        match self.try_to_shake(tcp, opening, account, may_sign).or(timeout).await {
            Handshake::Done(tls) => return Ok(tls),
            Handshake::NotTls(tcp) => return Err(Some(tcp)),
            Handshake::Challenge => events::challenge_answered(remote),
            Handshake::Forbidden => {}
            Handshake::Unwanted(refused, error) => {
                events::handshake_failed(remote, &error);
                metrics.refused.bump(refused);
            }
        }
        Err(None)
    }

    async fn try_to_shake(
        &self,
        mut tcp: Tcp,
        mut opening: Vec<u8>,
        account: &Rc<Account>,
        may_sign: impl FnOnce() -> bool,
    ) -> Handshake {
        if opening.is_empty() {
            let mut first = [0];
            if let Err(error) = tcp.read_exact(&mut first).await {
                return failed(error);
            }
            opening.extend(first);
        }
        if opening.first() != Some(&HANDSHAKE) {
            return Handshake::NotTls(tcp);
        }
        let mut opening = Opening::new(tcp, opening, account);
        if let Err(error) = opening.read_client_hello().await {
            return failed(error);
        }
        let Choice { config, is_challenge, is_allowed, is_served } =
            match self.choose(&opening, may_sign) {
                Ok(choice) => choice,
                Err((error, alert)) => {
                    let told = opening.refuse(&alert).await;
                    return failed(told.err().unwrap_or_else(|| invalid(error)));
                }
            };
        match opening.shake(config, &self.secrets, &self.scratch).await {
            Ok(mut tls) if is_challenge => {
                // The certificate was the answer.
                let _ = tls.close().await;
                Handshake::Challenge
            }
            Ok(tls) => Handshake::Done(tls),
            Err(_) if !is_allowed => Handshake::Forbidden,
            Err(error) if !is_served => Handshake::Unwanted(Refused::TlsName, error),
            Err(error) => failed(error),
        }
    }

    /// Decides by what the client wants. If it is no handshake, the error is what it is to be told.
    fn choose(
        &self,
        opening: &Opening,
        may_sign: impl FnOnce() -> bool,
    ) -> Result<Choice, (Error, Vec<u8>)> {
        let accepted = opening.client_hello()?;
        let client_hello = accepted.client_hello();
        let protocols = client_hello.alpn().into_iter().flatten();
        // While nothing is ordered it is refused like any other unknown protocol.
        let challenge = if protocols.eq([ACME_TLS_ALPN]) { self.challenges.config() } else { None };
        let is_challenge = challenge.is_some();
        let is_allowed = is_challenge || may_sign();
        let is_served = self.serves(client_hello.server_name().unwrap_or_default());
        let config = match challenge {
            Some(config) => Arc::new(self.secrets.heard_of((*config).clone())),
            None if is_allowed && is_served => Arc::clone(&self.config),
            None => Arc::clone(&self.refusing),
        };
        Ok(Choice { config, is_challenge, is_allowed, is_served })
    }
}

/// With what a handshake goes on, and why.
struct Choice {
    config: Arc<ServerConfig>,
    is_challenge: bool,
    is_allowed: bool,
    is_served: bool,
}

fn failed(error: io::Error) -> Handshake {
    Handshake::Unwanted(Refused::TlsHandshake, error)
}

/// The host of a `Host` field (RFC 9110 section 7.2).
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Bytes of early data that are skipped at most, each record counted as often as one follows it in the same flight.
const SKIPPED_EARLY_DATA: u32 = 256 * 1024;
/// What a check of an ACME directory speaks, and nothing else (RFC 8737, section 4).
const ACME_TLS_ALPN: &[u8] = b"acme-tls/1";

#[cfg(test)]
mod tests;

//! One order: from the directory's URL to a key with its chain, or to a sentence that says why not.
//!
//! `rustls-acme` speaks the protocol. Each order has a state of it to itself, which is dropped as
//! soon as there is an outcome: when to try again is decided elsewhere.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_io::Timer;
use async_trait::async_trait;
use futures_lite::{FutureExt as _, StreamExt as _};
use futures_rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use futures_rustls::rustls::crypto::ring::{default_provider, sign::any_ecdsa_type};
use futures_rustls::rustls::{ClientConfig, RootCertStore, SignatureScheme};
use rustls_acme::acme::{AcmeError, Auth, Identifier, Problem};
use rustls_acme::{AccountCache, AcmeConfig, CertCache, EventError, OrderError};
use smol::channel::{Sender, bounded};

use crate::limits::MAX_REASON_BYTES;
use crate::telemetry::events;
use crate::tls::acme::Challenges;
use crate::tls::acme::settings::Settings;
use crate::tls::cache::Cache;

/// Orders a certificate: the key and the chain, as PEM. Takes `limit` at most; meanwhile `challenges`
/// has what the directory's checks are answered with. The error is a sentence for the operator, with
/// what the directory said about it, bounded.
///
/// Cancel safety: the directory may have begun to work on it; the challenges are gone.
pub(super) async fn run(
    settings: &Settings,
    challenges: &Challenges,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    run_trusting(trust, settings, challenges, limit).await
}

/// The same with another way to check the directory's own certificate.
async fn run_trusting(
    trust: fn() -> Result<ClientConfig, String>,
    settings: &Settings,
    challenges: &Challenges,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let late = async {
        Timer::after(limit).await;
        let limit = humantime::format_duration(limit);
        Err(format!("the directory did not finish the order within {limit}"))
    };
    let placed = place(trust, settings, challenges);
    placed.or(late).await.map_err(|reason| cut(&reason).to_owned())
}

async fn place(
    trust: fn() -> Result<ClientConfig, String>,
    settings: &Settings,
    challenges: &Challenges,
) -> Result<Vec<u8>, String> {
    // Hundreds of files, or a large one.
    let trust = blocking::unblock(trust).await?;
    let (issued, outcome) = bounded(1);
    let account = settings.account_file();
    let hand_over = HandOver { cache: settings.cache.clone(), account, issued };
    let mut state = AcmeConfig::new_with_client_config(&settings.domains, Arc::new(trust))
        .directory(&settings.directory)
        .contact(&settings.contacts)
        .cache(hand_over)
        .state();
    let _shown = challenges.show(state.challenge_rustls_config());
    loop {
        match state.next().await {
            Some(Ok(_)) => {}
            // The order goes on. The next one will be of a new account.
            Some(Err(EventError::AccountCacheStore(error))) => {
                let path = settings.cache.path(&settings.account_file());
                events::certificate_cache_failed(&path, &error);
            }
            Some(Err(error)) => return Err(describe(&error)),
            None => return Err("the order ended without an outcome".to_owned()),
        }
        if let Ok(pem) = outcome.try_recv() {
            return Ok(pem);
        }
    }
}

/// How the directory's own certificate is checked: against the roots that this machine trusts.
fn trust() -> Result<ClientConfig, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(format!(
            "this machine trusts no root certificates (package ca-certificates, or SSL_CERT_FILE){why}"
        ));
    }
    trusting(roots)
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig, String> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(config)
}

/// Keeps the account's key in the cache, and hands over what was issued.
struct HandOver {
    cache: Cache,
    /// The file of the account's key.
    account: String,
    issued: Sender<Vec<u8>>,
}

#[async_trait]
impl CertCache for HandOver {
    type EC = Infallible;

    async fn load_cert(&self, _: &[String], _: &str) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(None)
    }

    async fn store_cert(&self, _: &[String], _: &str, pem: &[u8]) -> Result<(), Infallible> {
        // Full: the first one is on its way already.
        let _ = self.issued.try_send(pem.to_vec());
        Ok(())
    }
}

#[async_trait]
impl AccountCache for HandOver {
    type EA = io::Error;

    async fn load_account(&self, _: &[String], _: &str) -> Result<Option<Vec<u8>>, io::Error> {
        let told = |reason: &dyn std::fmt::Display| {
            let path = self.cache.path(&self.account);
            events::certificate_cache_unusable(&path, reason);
        };
        match self.cache.read(&self.account).await {
            Ok(Some(key)) if is_account_key(&key) => return Ok(Some(key)),
            Ok(Some(_)) => told(&"it is no key of an account; another one is made"),
            Ok(None) => {}
            Err(error) => told(&error),
        }
        Ok(None)
    }

    async fn store_account(&self, _: &[String], _: &str, key: &[u8]) -> Result<(), io::Error> {
        self.cache.write(&self.account, key.to_vec()).await
    }
}

/// Whether these bytes are PKCS #8 of a key on the curve that accounts are made with. With any
/// other the order would fail, now and ever after.
fn is_account_key(key: &[u8]) -> bool {
    any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)))
        .is_ok_and(|key| key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).is_some())
}

fn describe(error: &EventError<Infallible, io::Error>) -> String {
    match error {
        EventError::Order(OrderError::BadAuth(check)) => describe_check(check),
        EventError::Order(OrderError::BadOrder(order)) => match &order.error {
            Some(problem) => format!("the directory refused the order: {}", said(problem)),
            None => "the directory refused the order".to_owned(),
        },
        EventError::Order(OrderError::ProcessingTimeout(_)) => {
            "the directory took too long to make the certificate".to_owned()
        }
        EventError::Order(OrderError::TooManyAttemptsAuth(domain)) => {
            format!("the directory took too long to check {domain}")
        }
        EventError::Order(OrderError::Acme(AcmeError::HttpRequest(error))) => {
            describe_request(&error.to_string())
        }
        EventError::Order(OrderError::Acme(AcmeError::NoTlsAlpn01Challenge)) => {
            "the directory offers no check by TLS-ALPN-01".to_owned()
        }
        EventError::Order(OrderError::Acme(AcmeError::Json(error))) => {
            format!("the directory's answer is not what an ACME directory says: {error}")
        }
        other => other.to_string(),
    }
}

fn describe_check(check: &Auth) -> String {
    let Identifier::Dns(domain) = &check.identifier;
    let problem = check.challenges.iter().find_map(|challenge| challenge.error.as_ref());
    match problem {
        Some(problem) => format!("the directory's check of {domain} failed: {}", said(problem)),
        None => format!("the directory's check of {domain} failed"),
    }
}

/// What became of a request, from the only thing that can be had of its error: how it is displayed.
fn describe_request(displayed: &str) -> String {
    if let Some((_, answer)) = displayed.split_once(STATUS) {
        let (status, body) = answer.split_once(' ').unwrap_or((answer, ""));
        // The body is quoted as in Rust, which for what is in a problem document is as in JSON.
        let problem = serde_json::from_str::<String>(body)
            .ok()
            .and_then(|body| serde_json::from_str::<Problem>(&body).ok())
            .filter(|problem| problem.typ.is_some() || problem.detail.is_some());
        return match problem {
            Some(problem) => format!("the directory refused: {}", said(&problem)),
            None => format!("the directory answered with status {status}"),
        };
    }
    if let Some((_, why)) = displayed.split_once("InvalidCertificate(") {
        return format!("the directory's own certificate is not trusted: {}", distrust(why));
    }
    // What the system or rustls said is the innermost part.
    let quoted = displayed.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
    let innermost = match quoted {
        Some((quoted, _)) => quoted,
        None => match displayed.rsplit_once("error: ") {
            Some((_, error)) => error.trim_end_matches([' ', '}', ')']),
            None => displayed,
        },
    };
    format!("the directory cannot be reached: {innermost}")
}

/// What is wrong with a certificate, by rustls's name for it, which may be followed by details.
fn distrust(why: &str) -> &str {
    let end = why.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(why.len());
    match &why[..end] {
        "UnknownIssuer" => "it is not from anybody whom this machine trusts",
        "Expired" | "ExpiredContext" | "NotValidYet" | "NotValidYetContext" => {
            "it is not valid at this time; is the clock right?"
        }
        "NotValidForName" | "NotValidForNameContext" => "it is for other names",
        other => other,
    }
}

/// The text of a problem document (RFC 7807) and its type, without what all ACME types begin with.
fn said(problem: &Problem) -> String {
    let kind = problem.typ.as_deref().map(|kind| kind.strip_prefix(ACME_ERROR).unwrap_or(kind));
    match (kind, problem.detail.as_deref()) {
        (Some(kind), Some(detail)) => format!("{detail} ({kind})"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => "without a reason".to_owned(),
    }
}

/// The text as far as it is kept and logged.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_REASON_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or_default()]
}

/// How the display of an answer that is no success begins.
const STATUS: &str = "non 2xx http status: ";
/// RFC 8555, 6.7.
const ACME_ERROR: &str = "urn:ietf:params:acme:error:";

#[cfg(test)]
mod tests {
    use async_io::Async;
    use futures_lite::future::block_on;
    use rustls_acme::acme::{Account, AuthStatus, Challenge, ChallengeType};

    use super::*;

    #[test]
    fn a_directory_that_hangs_is_given_up() {
        let place = tempfile::tempdir().unwrap();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            domains: vec!["relay.test".to_owned()],
            contacts: Vec::new(),
            directory: format!("https://{}/dir", silent.local_addr().unwrap()),
            cache: Cache::open(&place.path().join("cache")).unwrap(),
        };
        let challenges = Challenges::default();
        let silent = Async::new(silent).unwrap();
        block_on(async {
            // It does not come to the directory's certificate.
            let trust = || trusting(RootCertStore::empty());
            let order = run_trusting(trust, &settings, &challenges, Duration::from_secs(1));
            let accepting = async {
                let _connection = silent.accept().await.unwrap();
                assert!(challenges.config().is_some(), "the order is going on");
                std::future::pending().await
            };
            let error = order.or(accepting).await.unwrap_err();
            assert_eq!(error, "the directory did not finish the order within 1s");
        });
        assert!(challenges.config().is_none());
    }

    fn problem(kind: &str, detail: &str) -> Problem {
        Problem { typ: Some(kind.to_owned()), detail: Some(detail.to_owned()) }
    }

    #[test]
    fn a_refusal_is_told_by_what_its_problem_document_says() {
        let body = "{\n  \"type\": \"urn:ietf:params:acme:error:rateLimited\",\n  \
                    \"detail\": \"too many \\\"new orders\\\"\",\n  \"status\": 429\n}";
        let displayed = format!("http request error: {STATUS}429 {body:?}");
        assert_eq!(
            describe_request(&displayed),
            "the directory refused: too many \"new orders\" (rateLimited)"
        );
    }

    #[test]
    fn an_answer_that_is_no_problem_document_is_told_by_its_status() {
        for body in ["<html>busy</html>", "", "{}", "[1]", "\u{1b}[2J\u{0}"] {
            assert_eq!(
                describe_request(&format!("{STATUS}503 {body:?}")),
                "the directory answered with status 503"
            );
        }
    }

    #[test]
    fn a_directory_out_of_reach_is_told_by_what_the_system_says() {
        for (displayed, expected) in [
            (
                "http error: ConnectError(TcpConnect(Os { code: 111, kind: ConnectionRefused, \
                 message: \"Connection refused\" }))",
                "the directory cannot be reached: Connection refused",
            ),
            (
                "http error: ConnectError(TcpConnect(Custom { kind: Uncategorized, error: \"failed \
                 to lookup address information: Name or service not known\" }))",
                "the directory cannot be reached: failed to lookup address information: Name or \
                 service not known",
            ),
            (
                "http error: ConnectError(TlsConnect(Custom { kind: InvalidData, error: \
                 InvalidCertificate(UnknownIssuer) }))",
                "the directory's own certificate is not trusted: it is not from anybody",
            ),
            (
                "http error: ConnectError(TlsConnect(Custom { kind: InvalidData, error: \
                 InvalidCertificate(NotValidYetContext { time: UnixTime(7), not_before: \
                 UnixTime(9) }) }))",
                "the directory's own certificate is not trusted: it is not valid at this time; is \
                 the clock right?",
            ),
            (
                "http error: ConnectError(TlsConnect(Custom { kind: InvalidData, error: \
                 InvalidCertificate(BadEncoding) }))",
                "the directory's own certificate is not trusted: BadEncoding",
            ),
            (
                "http error: ConnectError(TlsConnect(Custom { kind: InvalidData, error: \
                 AlertReceived(HandshakeFailure) }))",
                "the directory cannot be reached: AlertReceived(HandshakeFailure",
            ),
            ("strange", "the directory cannot be reached: strange"),
        ] {
            let told = describe_request(displayed);
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn a_check_that_failed_is_told_with_the_name_and_the_reason() {
        let challenge = |typ, error| Challenge {
            typ,
            url: "https://ca/c".to_owned(),
            token: "token".to_owned(),
            error,
        };
        let mut check = Auth {
            status: AuthStatus::Invalid,
            identifier: Identifier::Dns("relay.test".to_owned()),
            challenges: vec![
                challenge(ChallengeType::Http01, None),
                challenge(
                    ChallengeType::TlsAlpn01,
                    Some(problem("urn:ietf:params:acme:error:connection", "nobody is there")),
                ),
            ],
        };
        assert_eq!(
            describe_check(&check),
            "the directory's check of relay.test failed: nobody is there (connection)"
        );
        check.challenges.clear();
        assert_eq!(describe_check(&check), "the directory's check of relay.test failed");
    }

    #[test]
    fn what_others_say_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "\u{fc}".repeat(MAX_REASON_BYTES);
        assert_eq!(cut(&long), "\u{fc}".repeat(MAX_REASON_BYTES / 2));
        let odd = format!("x{long}");
        assert_eq!(cut(&odd).len(), MAX_REASON_BYTES - 1);
    }

    #[test]
    fn only_a_key_that_accounts_are_made_with_is_taken_from_the_cache() {
        let key = Account::generate_key_pair();
        assert!(is_account_key(&key));
        assert!(!is_account_key(&key[..key.len() - 1]));
        assert!(!is_account_key(b""));
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(!is_account_key(&other.serialize_der()));
    }
}

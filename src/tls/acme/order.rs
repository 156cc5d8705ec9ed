//! One order: from the directory's URL to a key with its chain, or to a sentence that says why not.
//!
//! `rustls-acme` speaks the protocol. Each order has its own state, dropped as soon as there is an
//! outcome; `schedule.rs` decides when to try again.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timer;
use async_trait::async_trait;
use futures_lite::{FutureExt as _, StreamExt as _};
use rustls::crypto::ring::{default_provider, sign::any_ecdsa_type};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use rustls_acme::acme::{AcmeError, Auth, Identifier, Problem};
use rustls_acme::{AccountCache, AcmeConfig, CertCache, EventError, OrderError};
use smol::channel::{Sender, bounded};

use crate::limits::MAX_REASON_BYTES;
use crate::tls::acme::Challenges;
use crate::tls::acme::settings::Settings;
use crate::tls::cache::Cache;
use crate::tls::events;

/// Orders a certificate and returns the key and the chain as PEM. Takes at most `limit`; meanwhile
/// `challenges` holds the answers to the directory's checks. The error is a sentence for the operator
/// with the directory's reason, at most [`MAX_REASON_BYTES`] long.
///
/// Cancel safety: the directory may already be working on the order; the challenges are removed.
pub(super) async fn run(
    settings: &Settings,
    challenges: &Challenges,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    run_trusting(trust, settings, challenges, limit).await
}

/// As [`run`], with `trust` to check the directory's own certificate.
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
    // Reads hundreds of files, or one large file.
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
            // The order continues. The next one will use a new account.
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

/// Checks the directory's own certificate against the roots that this machine trusts.
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

/// Keeps the account's key in the cache, and passes on the issued certificate.
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
        // Full if a first certificate is already on its way.
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

/// Whether these bytes are a PKCS #8 key on the curve that accounts use. With any other key every
/// order would fail.
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

/// What became of a request, by how its error is displayed. `rustls-acme` 0.14 keeps the error's type
/// in a private module, so its variants cannot be named, and gives the two that matter no source.
fn describe_request(displayed: &str) -> String {
    if let Some((_, answer)) = displayed.split_once(STATUS) {
        let (status, body) = answer.split_once(' ').unwrap_or((answer, ""));
        // The body is quoted as a Rust string. For the text of a problem document that is also JSON.
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
    // The innermost part is the message of the system or of rustls.
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

/// What is wrong with a certificate. `why` begins with rustls's name for it; details may follow.
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

/// The text of a problem document (RFC 7807) and its type, without the prefix of all ACME types.
fn said(problem: &Problem) -> String {
    let kind = problem.typ.as_deref().map(|kind| kind.strip_prefix(ACME_ERROR).unwrap_or(kind));
    match (kind, problem.detail.as_deref()) {
        (Some(kind), Some(detail)) => format!("{detail} ({kind})"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => "without a reason".to_owned(),
    }
}

/// The first [`MAX_REASON_BYTES`] of the text.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_REASON_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or_default()]
}

/// The beginning of the displayed error if the answer was no success.
const STATUS: &str = "non 2xx http status: ";
/// RFC 8555, 6.7.
const ACME_ERROR: &str = "urn:ietf:params:acme:error:";

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use async_io::Async;
    use futures_lite::future::block_on;
    use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
    use futures_rustls::TlsAcceptor;
    use rcgen::{Certificate, CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls_acme::acme::{Account, AuthStatus, Challenge, ChallengeType, Directory};

    use super::*;

    #[test]
    fn a_directory_that_hangs_is_given_up() {
        let place = tempfile::tempdir().unwrap();
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            domains: vec!["relay.test".to_owned()],
            contacts: Vec::new(),
            directory: format!("https://{}/dir", silent.local_addr().unwrap()),
            cache: Cache::open(&place.path().join("cache")).unwrap(),
        };
        let challenges = Challenges::default();
        let silent = Async::new(silent).unwrap();
        block_on(async {
            // The exchange never reaches the directory's certificate.
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

    /// The sentence about a directory on loopback that answers `answer` over TLS.
    fn describe_real(
        roots: RootCertStore,
        key: &KeyPair,
        chain: &Certificate,
        answer: &str,
    ) -> String {
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let url = format!("https://{}/dir", listener.get_ref().local_addr().unwrap());
        let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![chain.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            // The client ends the handshake if it does not trust the certificate.
            if let Ok(mut stream) = TlsAcceptor::from(Arc::new(server)).accept(stream).await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.unwrap();
                    request.extend(byte);
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.close().await.unwrap();
            }
            std::future::pending().await
        };
        block_on(async { discover(roots, &url).or(serve).await })
    }

    async fn discover(roots: RootCertStore, url: &str) -> String {
        let client = Arc::new(trusting(roots).unwrap());
        let asked = async { Directory::discover(&client, url).await.unwrap_err() };
        let late = async {
            Timer::after(LATE).await;
            panic!("no outcome within {LATE:?}")
        };
        describe(&EventError::Order(OrderError::Acme(asked.or(late).await)))
    }

    const LATE: Duration = Duration::from_secs(20);

    /// Fails if the client's errors are displayed in another form than [`describe_request`] expects.
    #[test]
    fn what_a_real_directory_answers_is_understood() {
        let key = KeyPair::generate().unwrap();
        let sign = |name: &str, years: std::ops::Range<i32>| {
            let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(years.start, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(years.end, 1, 1);
            parameters.self_signed(&key).unwrap()
        };
        let good = sign("127.0.0.1", 2020..4096);
        let trusted = |certificate: &Certificate| {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.der().clone()).unwrap();
            roots
        };
        let problem =
            r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too \"many\""}"#;
        for (status, body, expected) in [
            ("429 No", problem, "the directory refused: too \"many\" (rateLimited)"),
            ("503 No", "<html>busy</html>", "the directory answered with status 503"),
        ] {
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            assert_eq!(describe_real(trusted(&good), &key, &good, &answer), expected);
        }
        let (other, old) = (sign("other.test", 2020..4096), sign("127.0.0.1", 2020..2021));
        for (roots, certificate, expected) in [
            (RootCertStore::empty(), &good, "it is not from anybody whom this machine trusts"),
            (trusted(&other), &other, "it is for other names"),
            (trusted(&old), &old, "it is not valid at this time; is the clock right?"),
        ] {
            let expected = format!("the directory's own certificate is not trusted: {expected}");
            assert_eq!(describe_real(roots, &key, certificate, ""), expected);
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let told = block_on(discover(RootCertStore::empty(), &format!("https://{closed}/dir")));
        assert_eq!(told, "the directory cannot be reached: Connection refused");
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
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(!is_account_key(&other.serialize_der()));
    }
}

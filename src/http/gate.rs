//! The header gate: a request head becomes an [`Admission`] or a [`Refusal`]. Pure, no I/O.
//!
//! The order of the checks is the contract's, so that the same bad request always gets the same
//! answer.

use std::fmt;
use std::time::Duration;

use async_tungstenite::tungstenite::handshake::derive_accept_key;
use httparse::{EMPTY_HEADER, Header, Request, Status};
use serde::{Deserialize, Serialize};

use crate::ids::ServerId;
use crate::leg::Leg;
use crate::limits::{MAX_HEAD_BYTES, MAX_HEADERS, MAX_LABEL_BYTES, RETRY_AFTER_BUSY};
use crate::telemetry::metrics::{AttemptOutcome, Refused};

/// What a judged head came to.
#[derive(Debug)]
pub enum Judgement {
    /// The head is not complete; read on.
    Incomplete,
    /// The head is complete and good. It has this many bytes; what follows belongs to the
    /// WebSocket.
    Admitted(Admission, usize),
    /// Answer this and close.
    Refused(Refusal),
}

/// Who asks, with everything that is kept of the head. A phone's token is not.
#[derive(Debug)]
pub enum Admission {
    /// `GET` or `HEAD` (then without the body) of the health page.
    Health {
        /// Whether the body is left out.
        head_only: bool,
    },
    /// An upgrade at one of the two endpoints.
    Upgrade(Upgrade),
}

/// A request for an upgrade that passed the gate.
#[derive(Debug)]
pub struct Upgrade {
    /// The server-id that is claimed or asked for.
    pub server: ServerId,
    /// The answer to the key.
    pub accept: AcceptKey,
    /// Who asks.
    pub role: Role,
}

/// Who asks for an upgrade.
#[derive(Debug)]
pub enum Role {
    /// A binary.
    Binary {
        /// Its own version, cut.
        version: PeerText,
    },
    /// A phone.
    Phone {
        /// What it calls itself, cut; empty if it does not say.
        device_name: PeerText,
    },
}

/// Text from a peer for the logs: at most [`MAX_LABEL_BYTES`], bytes that are not UTF-8 replaced.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerText(Box<str>);

/// The value of `Sec-WebSocket-Accept` (RFC 6455 section 4.2.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcceptKey(String);

/// Why a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// `400`: not HTTP/1.
    MalformedHead,
    /// `431`: above [`MAX_HEAD_BYTES`] or [`MAX_HEADERS`].
    HeadTooLarge,
    /// `408`: the head was not complete in time.
    HeadTimeout,
    /// `404`: no such path.
    UnknownPath,
    /// `405`, with what the path serves.
    Method {
        /// The value of `Allow`.
        allow: &'static str,
    },
    /// `400`: a trusted proxy says from where it comes, and it is nothing that can be an address, or
    /// its two fields disagree.
    BadForwarding,
    /// `429`: too many attempts from this source; how long to wait.
    RateLimited(Duration),
    /// `400`: a required header is missing, empty, repeated or bad, or a body is announced.
    HeaderGate,
    /// `426`: no upgrade to WebSocket version 13 is asked for.
    UpgradeRequired,
    /// `400`: no key, or not 16 bytes of base64.
    BadKey,
    /// `403`: the server-id is not on the allow-list.
    NotAllowed,
    /// `503`: the connection cap is reached.
    ConnectionCap,
    /// `503`: the source address holds as many connections as one may.
    SourceCap,
    /// `503`: the relay stops. Told before the upgrade: after it the older daemon would dial again
    /// without any delay.
    Stopping,
    /// `503`: a probe of that slot is under way.
    ProbeUnderWay,
    /// `421`: the name that was asked for is not served over TLS (RFC 9110 section 15.5.20).
    Misdirected,
    /// `400`: what came to a listener for TLS is none.
    NotTls,
}

/// Whoever sent a head, as far as the gate has to do with it.
pub trait Caller {
    /// Is shown the fields of a complete head, before anything else about it is judged: they may
    /// say from where it comes.
    fn introduce(&mut self, fields: &[Header<'_>]);

    /// Makes another upgrade attempt at this endpoint, if it may.
    fn attempt(&mut self, leg: Leg) -> Result<(), Refusal>;

    /// Whether this host is served here, which comes from `Host` or from the request target.
    fn serves(&self, host: Option<&[u8]>) -> bool {
        let _ = host;
        true
    }
}

/// Judges the head at the start of `bytes`. `caller` is asked, at its place in the order, whether
/// it may make another upgrade attempt.
pub fn judge(bytes: &[u8], caller: &mut impl Caller) -> Judgement {
    let mut fields = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Judgement::Incomplete,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Judgement::Refused(Refusal::HeadTooLarge);
        }
        Err(_) => return Judgement::Refused(Refusal::MalformedHead),
    };
    caller.introduce(request.headers);
    match admit(&request, caller) {
        Ok(admission) => Judgement::Admitted(admission, length),
        Err(refusal) => Judgement::Refused(refusal),
    }
}

impl AcceptKey {
    /// The response that switches to WebSocket, byte for byte as the contract has it: no extension
    /// and no subprotocol, whatever was offered.
    pub fn response(&self) -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Connection: Upgrade\r\n\
             Upgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            self.0
        )
    }
}

impl Refusal {
    /// The response: empty body, its length, and the connection ends.
    pub fn response(self) -> String {
        let (status, fields) = match self {
            Self::MalformedHead
            | Self::BadForwarding
            | Self::HeaderGate
            | Self::BadKey
            | Self::NotTls => ("400 Bad Request", None),
            Self::Misdirected => ("421 Misdirected Request", None),
            Self::HeadTooLarge => ("431 Request Header Fields Too Large", None),
            Self::HeadTimeout => ("408 Request Timeout", None),
            Self::UnknownPath => ("404 Not Found", None),
            Self::Method { allow } => ("405 Method Not Allowed", Some(format!("Allow: {allow}"))),
            Self::RateLimited(wait) => ("429 Too Many Requests", Some(retry_after(wait))),
            Self::UpgradeRequired => (
                "426 Upgrade Required",
                Some("Upgrade: websocket\r\nSec-WebSocket-Version: 13".to_owned()),
            ),
            Self::NotAllowed => ("403 Forbidden", None),
            Self::ConnectionCap | Self::SourceCap | Self::Stopping | Self::ProbeUnderWay => {
                ("503 Service Unavailable", Some(retry_after(RETRY_AFTER_BUSY)))
            }
        };
        let fields = fields.map(|fields| fields + "\r\n").unwrap_or_default();
        format!("HTTP/1.1 {status}\r\n{fields}Content-Length: 0\r\nConnection: close\r\n\r\n")
    }
}

impl Refusal {
    /// How it is counted, and as which outcome of an upgrade attempt where it was one.
    pub(crate) fn kind(self) -> (Refused, Option<AttemptOutcome>) {
        match self {
            Self::MalformedHead => (Refused::MalformedHead, None),
            Self::HeadTooLarge => (Refused::HeadTooLarge, None),
            Self::HeadTimeout => (Refused::HeadTimeout, None),
            Self::UnknownPath => (Refused::UnknownPath, None),
            Self::Method { .. } => (Refused::Method, None),
            Self::RateLimited(_) => (Refused::RateLimit, Some(AttemptOutcome::RejectRateLimit)),
            Self::HeaderGate => (Refused::HeaderGate, Some(AttemptOutcome::RejectHeaders)),
            Self::UpgradeRequired => {
                (Refused::UpgradeRequired, Some(AttemptOutcome::RejectUpgrade))
            }
            Self::BadKey => (Refused::BadKey, Some(AttemptOutcome::RejectUpgrade)),
            Self::ConnectionCap => (Refused::ConnectionCap, Some(AttemptOutcome::RejectBusy)),
            Self::SourceCap => (Refused::SourceCap, Some(AttemptOutcome::RejectBusy)),
            Self::NotAllowed => (Refused::NotAllowed, Some(AttemptOutcome::Reject403)),
            Self::BadForwarding => (Refused::BadForwarding, Some(AttemptOutcome::RejectHeaders)),
            Self::Stopping => (Refused::Stopping, Some(AttemptOutcome::RejectBusy)),
            Self::ProbeUnderWay => (Refused::ProbeUnderWay, Some(AttemptOutcome::RejectBusy)),
            Self::Misdirected => (Refused::Misdirected, Some(AttemptOutcome::RejectHeaders)),
            Self::NotTls => (Refused::NotTls, None),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MalformedHead => "malformed head",
            Self::HeadTooLarge => "head too large",
            Self::HeadTimeout => "head not complete in time",
            Self::UnknownPath => "unknown path",
            Self::Method { .. } => "method not served",
            Self::BadForwarding => "bad forwarding field",
            Self::RateLimited(_) => "too many attempts",
            Self::HeaderGate => "header gate",
            Self::UpgradeRequired => "no WebSocket upgrade",
            Self::BadKey => "bad key",
            Self::NotAllowed => "server-id not allowed",
            Self::ConnectionCap => "connection cap",
            Self::SourceCap => "connection cap of the address",
            Self::Stopping => "shutting down",
            Self::ProbeUnderWay => "probe under way",
            Self::Misdirected => "name not served",
            Self::NotTls => "no TLS",
        })
    }
}

impl PeerText {
    /// Cuts and cleans a header value.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LABEL_BYTES)]);
        let mut end = text.len().min(MAX_LABEL_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].into())
    }

    /// The text. It is a peer's: escape it before anybody sees it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn admit(request: &Request<'_, '_>, caller: &mut impl Caller) -> Result<Admission, Refusal> {
    let method = request.method.ok_or(Refusal::MalformedHead)?;
    let target = request.path.ok_or(Refusal::MalformedHead)?;
    let endpoint = match path(target) {
        "/healthz" => None,
        "/v1/server" => Some(Leg::Binary),
        "/v1/client" => Some(Leg::Phone),
        _ => return Err(Refusal::UnknownPath),
    };
    let allow = if endpoint.is_none() { "GET, HEAD" } else { "GET" };
    if !allow.split(", ").any(|served| served == method) {
        return Err(Refusal::Method { allow });
    }
    let fields = Fields(request.headers);
    let http_1_1 = request.version == Some(1);
    let Some(endpoint) = endpoint else {
        fields.check_host(http_1_1)?;
        fields.check_authority(target, caller)?;
        return Ok(Admission::Health { head_only: method == "HEAD" });
    };

    caller.attempt(endpoint)?;

    fields.check_host(http_1_1)?;
    fields.check_authority(target, caller)?;
    fields.check_no_body()?;
    let server = fields.required("X-Pyrycode-Server")?;
    let server = ServerId::parse(server).ok_or(Refusal::HeaderGate)?;
    fields.required("User-Agent")?;
    let own = match endpoint {
        Leg::Binary => fields.required("X-Pyrycode-Version")?,
        Leg::Phone => fields.required("X-Pyrycode-Token")?,
    };

    let upgrade = http_1_1
        && fields.has_token("Connection", "upgrade")
        && fields.has_token("Upgrade", "websocket");
    if !upgrade || fields.single("Sec-WebSocket-Version") != Some(b"13") {
        return Err(Refusal::UpgradeRequired);
    }
    let key = fields.single("Sec-WebSocket-Key").ok_or(Refusal::BadKey)?;
    let accept = accept_key(key).ok_or(Refusal::BadKey)?;

    let role = match endpoint {
        Leg::Binary => Role::Binary { version: PeerText::new(own) },
        Leg::Phone => {
            let name = fields.all("X-Pyrycode-Device-Name").next().unwrap_or_default();
            Role::Phone { device_name: PeerText::new(name) }
        }
    };
    Ok(Admission::Upgrade(Upgrade { server, accept, role }))
}

/// Refuses a request that has not as many `Host` fields as it must.
pub(crate) fn check_host(request: &Request<'_, '_>) -> Result<(), Refusal> {
    Fields(request.headers).check_host(request.version == Some(1))
}

/// The path of a request target in origin or absolute form (RFC 9112 section 3.2), without its
/// query; the target itself if it is neither.
pub fn path(target: &str) -> &str {
    let origin_form = match absolute(target) {
        Some((_, rest)) if rest.starts_with('/') => rest,
        Some(_) => "/",
        None => target,
    };
    origin_form.split('?').next().unwrap_or(origin_form)
}

/// The host, with its port, that a request asks for: that of a target in absolute form, which takes
/// the place of `Host` (RFC 9112 section 3.2.2).
pub fn host<'a>(request: &'a Request<'_, '_>) -> Option<&'a [u8]> {
    let target = request.path.unwrap_or_default();
    Fields(request.headers).host(target)
}

/// Authority and rest of a request target in absolute form; an authority ends at the first of these
/// signs (RFC 3986 section 3.2).
fn absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    let is_known = ["http", "https", "ws", "wss"].iter().any(|s| scheme.eq_ignore_ascii_case(s));
    is_known.then(|| rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())))
}

/// The header fields of one head; names are compared without case, values are trimmed.
struct Fields<'a>(&'a [Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let named = move |field: &&Header<'_>| field.name.eq_ignore_ascii_case(name);
        self.0.iter().filter(named).map(|field| field.value.trim_ascii())
    }

    /// The value of a field that occurs once.
    fn single(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.all(name);
        values.next().filter(|_| values.next().is_none())
    }

    fn required(&self, name: &str) -> Result<&'a [u8], Refusal> {
        self.single(name).filter(|value| !value.is_empty()).ok_or(Refusal::HeaderGate)
    }

    /// Whether a list field, repeated or not, has this member (RFC 9110 section 5.6.1).
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|member| member.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Exactly one `Host` in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 section 3.2).
    fn check_host(&self, http_1_1: bool) -> Result<(), Refusal> {
        match self.all("Host").count() {
            1 => Ok(()),
            0 if !http_1_1 => Ok(()),
            _ => Err(Refusal::HeaderGate),
        }
    }

    fn host<'b>(&self, target: &'b str) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        match absolute(target) {
            Some((authority, _)) => Some(authority.as_bytes()),
            None => self.all("Host").next(),
        }
    }

    fn check_authority(&self, target: &str, caller: &impl Caller) -> Result<(), Refusal> {
        if caller.serves(self.host(target)) { Ok(()) } else { Err(Refusal::Misdirected) }
    }

    fn check_no_body(&self) -> Result<(), Refusal> {
        let announced = self.all("Transfer-Encoding").next().is_some()
            || self.all("Content-Length").any(|length| length != b"0");
        if announced { Err(Refusal::HeaderGate) } else { Ok(()) }
    }
}

/// A key is 16 bytes in base64, hence 22 digits and two signs of padding.
fn accept_key(key: &[u8]) -> Option<AcceptKey> {
    let digits = key.strip_suffix(b"==").filter(|digits| digits.len() == 22)?;
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    digits.iter().all(is_digit).then(|| AcceptKey(derive_accept_key(key)))
}

/// Whole seconds, rounded up, never 0: one client sends again at once on that.
fn retry_after(wait: Duration) -> String {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    format!("Retry-After: {}", seconds.max(1))
}

#[cfg(test)]
mod tests;

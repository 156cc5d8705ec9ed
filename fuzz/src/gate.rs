//! Request heads: whole against read in pieces, and both against a naive second opinion.

use std::collections::HashMap;
use std::future::Future as _;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use httparse::Header;
use pyrycode_relay::http::gate::{Admission, Caller, Judgement, Refusal, Role, judge};
use pyrycode_relay::http::head::{self, Head, Opening};
use pyrycode_relay::leg::Leg;
use pyrycode_relay::limits::{MAX_HEAD_BYTES, MAX_HEADERS, MAX_LABEL_BYTES};
use pyrycode_relay::net::scratch::Scratch;
use pyrycode_relay::origin::Origin;
use pyrycode_relay::queue::budget::{Account, Ledger};

use super::pipe::{End, pipe};

/// The first byte says how many bytes arrive at a time, and whether the source is over its limit;
/// the rest is what the peer sends.
pub fn run(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let (limited, portion) = (how & 0x80 != 0, usize::from(how & 0x7f));
    let mut caller = Source { limited, introduced: 0, attempts: 0 };
    let whole = judge(bytes, &mut caller);
    let complete = matches!(whole, Judgement::Admitted(..)) || caller.attempts > 0;
    assert!(caller.introduced == 1 || !complete, "shown the fields {} times", caller.introduced);
    check_judgement(&whole, bytes);
    check_in_pieces(&whole, bytes, portion, limited);
    if let Some(expected) = expected(bytes, limited) {
        assert_eq!(summary(&whole), expected.0);
        assert_eq!(caller.attempts, usize::from(expected.1), "upgrade attempts");
    }
}

/// Who asks, and what became of it.
struct Source {
    limited: bool,
    introduced: usize,
    attempts: usize,
}

impl Caller for Source {
    fn introduce(&mut self, _fields: &[Header<'_>]) {
        self.introduced += 1;
    }

    fn attempt(&mut self, _endpoint: Leg) -> Result<(), Refusal> {
        self.attempts += 1;
        match self.limited {
            true => Err(Refusal::RateLimited(Duration::from_millis(1))),
            false => Ok(()),
        }
    }
}

fn check_judgement(judgement: &Judgement, bytes: &[u8]) {
    match judgement {
        Judgement::Incomplete => assert!(bytes.len() < MAX_HEAD_BYTES),
        Judgement::Admitted(Admission::Upgrade(upgrade), length) => {
            assert!(*length <= bytes.len().min(MAX_HEAD_BYTES));
            let label = match &upgrade.role {
                Role::Binary { version } => version,
                Role::Phone { device_name } => device_name,
            };
            assert!(label.as_str().len() <= MAX_LABEL_BYTES);
            let response = upgrade.accept.response();
            let (_, key) = response.split_once("Sec-WebSocket-Accept: ").expect("the key");
            assert_eq!(key.len(), 28 + 4);
        }
        Judgement::Admitted(Admission::Health { .. }, length) => assert!(*length <= bytes.len()),
        Judgement::Refused(refusal) => check_refusal(*refusal),
    }
}

fn check_refusal(refusal: Refusal) {
    let response = refusal.response();
    let lines: Vec<_> = response.split("\r\n").collect();
    let (status, fields) = lines.split_first().expect("a status line");
    let status = status.strip_prefix("HTTP/1.1 ").expect("HTTP");
    let known = ["400 ", "404 ", "405 ", "408 ", "426 ", "429 ", "431 ", "503 "];
    assert!(known.iter().any(|known| status.starts_with(known)), "{status}");
    assert!(fields.ends_with(&["Content-Length: 0", "Connection: close", "", ""]), "{response}");
    let wait = fields.iter().find_map(|field| field.strip_prefix("Retry-After: "));
    assert_eq!(wait.is_some(), status.starts_with("429") || status.starts_with("503"));
    assert!(wait.is_none_or(|wait| wait.parse::<u64>().is_ok_and(|wait| wait > 0)));
}

/// However the bytes arrive, they are judged alike, and none behind the head is lost.
fn check_in_pieces(whole: &Judgement, bytes: &[u8], portion: usize, limited: bool) {
    let (mut near, far) = pipe();
    // Each piece has the head judged anew: large ones come in pieces that are larger, too.
    far.set_portion(if portion == 0 { usize::MAX } else { portion * (1 + bytes.len() / 512) });
    far.send(bytes);
    far.end(End::Finished);
    let (scratch, ledger) = (Rc::new(Scratch::default()), Ledger::new(1 << 20));
    let account = Account::open(&ledger, Origin::V4([0; 4]));
    let deadline = Instant::now() + Duration::from_secs(3600);
    let read = {
        let mut caller = Source { limited, introduced: 0, attempts: 0 };
        let opening = Opening::default();
        let reading =
            pin!(head::read(&mut near, deadline, &scratch, &account, opening, &mut caller));
        match reading.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => read,
            Poll::Pending => panic!("all the input is there"),
        }
    };
    assert_eq!(ledger.total(), 0);
    match (whole, read) {
        (Judgement::Incomplete, Head::Gone) => {}
        (Judgement::Admitted(one, length), Head::Admitted(other, mut leftover)) => {
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
            leftover.extend(far.unread());
            assert_eq!(leftover, bytes[*length..]);
        }
        (Judgement::Refused(one), Head::Refused(other)) => {
            // Beyond the limit nobody reads on to see what else is wrong.
            let beyond = bytes.len() >= MAX_HEAD_BYTES && other == Refusal::HeadTooLarge;
            assert!(*one == other || beyond, "{one:?} at once, {other:?} in pieces");
        }
        (one, other) => panic!("{one:?} at once, {other:?} in pieces"),
    }
}

/// A judgement without what only the program knows.
#[derive(PartialEq, Eq, Debug)]
enum Summary {
    Health { head_only: bool },
    Upgrade { server: String, label: Option<String>, binary: bool, length: usize },
    Refused(Refusal),
    Incomplete,
}

fn summary(judgement: &Judgement) -> Summary {
    match judgement {
        Judgement::Incomplete => Summary::Incomplete,
        Judgement::Refused(refusal) => Summary::Refused(*refusal),
        Judgement::Admitted(Admission::Health { head_only }, _) => {
            Summary::Health { head_only: *head_only }
        }
        Judgement::Admitted(Admission::Upgrade(upgrade), length) => {
            let (label, binary) = match &upgrade.role {
                Role::Binary { version } => (version, true),
                Role::Phone { device_name } => (device_name, false),
            };
            Summary::Upgrade {
                server: upgrade.server.as_str().to_owned(),
                label: short_ascii(label.as_str().as_bytes()),
                binary,
                length: *length,
            }
        }
    }
}

/// Labels that are cut or cleaned are compared by nobody.
fn short_ascii(label: &[u8]) -> Option<String> {
    // A label that was cut amid a character has up to two bytes less than the most.
    let plain = label.len() + 2 < MAX_LABEL_BYTES && label.is_ascii();
    plain.then(|| String::from_utf8_lossy(label).into_owned())
}

/// What a head of the plainest form must come to, and whether it counts as an attempt; `None` for
/// heads of any other form.
fn expected(bytes: &[u8], limited: bool) -> Option<(Summary, bool)> {
    let refused = |refusal, attempt| Some((Summary::Refused(refusal), attempt));
    let length = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    if length > MAX_HEAD_BYTES {
        return None;
    }
    // One character a byte.
    let head: String = bytes[..length - 4].iter().copied().map(char::from).collect();
    let mut lines = head.split("\r\n");
    let (method, rest) = lines.next()?.split_once(' ')?;
    let (target, version) = rest.split_once(' ')?;
    let plain_target = |sign: char| sign.is_ascii_alphanumeric() || "/?:.=&-_%~".contains(sign);
    if method.is_empty()
        || !method.bytes().all(|byte| byte.is_ascii_uppercase())
        || target.is_empty()
        || !target.chars().all(plain_target)
        || !["HTTP/1.1", "HTTP/1.0"].contains(&version)
    {
        return None;
    }
    let mut fields: HashMap<String, Vec<&str>> = HashMap::new();
    let mut count = 0;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let plain_name = |sign: char| sign.is_ascii_alphanumeric() || sign == '-';
        let plain_value = |sign: char| sign == '\t' || (sign >= ' ' && sign != '\u{7f}');
        if name.is_empty() || !name.chars().all(plain_name) || !value.chars().all(plain_value) {
            return None;
        }
        fields.entry(name.to_lowercase()).or_default().push(value.trim_matches([' ', '\t']));
        count += 1;
    }
    if count > MAX_HEADERS {
        return refused(Refusal::HeadTooLarge, false);
    }

    let lower = target.to_lowercase();
    let schemes = ["http://", "https://", "ws://", "wss://"];
    let path = match schemes.iter().find(|scheme| lower.starts_with(**scheme)) {
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            // A question mark ends the authority as well: what is behind it is no path.
            match rest.find(['/', '?']) {
                Some(at) if rest[at..].starts_with('/') => &rest[at..],
                _ => "/",
            }
        }
        None => target,
    };
    let path = path.split('?').next()?;
    if !["/healthz", "/v1/server", "/v1/client"].contains(&path) {
        return refused(Refusal::UnknownPath, false);
    }
    let none = Vec::new();
    let all = |name: &str| fields.get(name).unwrap_or(&none);
    let hosts = all("host").len();
    let host_is_good = hosts == 1 || (hosts == 0 && version == "HTTP/1.0");
    if path == "/healthz" {
        if method != "GET" && method != "HEAD" {
            return refused(Refusal::Method { allow: "GET, HEAD" }, false);
        }
        if !host_is_good {
            return refused(Refusal::HeaderGate, false);
        }
        return Some((Summary::Health { head_only: method == "HEAD" }, false));
    }
    if method != "GET" {
        return refused(Refusal::Method { allow: "GET" }, false);
    }
    if limited {
        return refused(Refusal::RateLimited(Duration::from_millis(1)), true);
    }
    let binary = path == "/v1/server";
    let own = if binary { "x-pyrycode-version" } else { "x-pyrycode-token" };
    let required = ["x-pyrycode-server", "user-agent", own];
    let is_required = |name: &&str| all(name).len() == 1 && !all(name)[0].is_empty();
    let body =
        !all("transfer-encoding").is_empty() || all("content-length").iter().any(|n| *n != "0");
    if !host_is_good || body || !required.iter().all(is_required) {
        return refused(Refusal::HeaderGate, true);
    }
    let server = all("x-pyrycode-server")[0];
    if server.len() > 128 || !server.chars().all(|sign| ('!'..='~').contains(&sign)) {
        return refused(Refusal::HeaderGate, true);
    }
    let has = |name: &str, token: &str| {
        let list = all(name).join(",").to_ascii_lowercase();
        list.split(',').any(|member| member.trim_matches([' ', '\t']) == token)
    };
    if version != "HTTP/1.1"
        || !has("connection", "upgrade")
        || !has("upgrade", "websocket")
        || *all("sec-websocket-version") != ["13"]
    {
        return refused(Refusal::UpgradeRequired, true);
    }
    let key_is_good = match all("sec-websocket-key")[..] {
        [key] => {
            let digit = |sign: char| sign.is_ascii_alphanumeric() || "+/".contains(sign);
            key.len() == 24 && key.ends_with("==") && key[..22].chars().all(digit)
        }
        _ => false,
    };
    if !key_is_good {
        return refused(Refusal::BadKey, true);
    }
    let label = match binary {
        true => all(own)[0],
        false => all("x-pyrycode-device-name").first().copied().unwrap_or_default(),
    };
    let label = label.chars().map(|sign| u8::try_from(sign).expect("one byte")).collect::<Vec<_>>();
    let label = short_ascii(&label);
    Some((Summary::Upgrade { server: server.to_owned(), label, binary, length }, true))
}

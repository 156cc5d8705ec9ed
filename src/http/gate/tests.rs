use super::*;

/// A caller that may, or that has to wait.
struct Anybody(Result<(), Duration>);

impl Caller for Anybody {
    fn introduce(&mut self, _fields: &[Header<'_>]) {}

    fn attempt(&mut self, _endpoint: Leg) -> Result<(), Refusal> {
        self.0.map_err(Refusal::RateLimited)
    }
}

/// A caller that may.
fn free() -> Anybody {
    Anybody(Ok(()))
}

const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SERVER: &str = "X-Pyrycode-Server: box\r\nX-Pyrycode-Version: 1.2\r\nUser-Agent: pyry\r\n";
const CLIENT: &str = "X-Pyrycode-Server: box\r\nX-Pyrycode-Token: secret\r\nUser-Agent: phone\r\n";

fn judged(head: &str) -> Judgement {
    judge(head.as_bytes(), &mut free())
}

fn refusal(head: &str) -> Refusal {
    match judged(head) {
        Judgement::Refused(refusal) => refusal,
        other => panic!("{head:?} came to {other:?}"),
    }
}

fn admission(head: &str) -> Admission {
    match judged(head) {
        Judgement::Admitted(admission, length) => {
            assert_eq!(length, head.len());
            admission
        }
        other => panic!("{head:?} came to {other:?}"),
    }
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: relay\r\n{fields}\r\n")
}

fn server(fields: &str) -> String {
    get("/v1/server", &format!("{UPGRADE}{fields}"))
}

fn client(fields: &str) -> String {
    get("/v1/client", &format!("{UPGRADE}{fields}"))
}

#[test]
fn a_complete_head_is_admitted_with_what_is_kept_of_it() {
    match admission(&server(SERVER)) {
        Admission::Upgrade(Upgrade { server, accept, role: Role::Binary { version } }) => {
            assert_eq!((server.as_str(), version.as_str()), ("box", "1.2"));
            assert!(accept.response().contains("Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
            assert!(accept.response().contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
        }
        other => panic!("{other:?}"),
    }
    match admission(&client(&format!("{CLIENT}X-Pyrycode-Device-Name:  Anna's phone \r\n"))) {
        Admission::Upgrade(Upgrade { server, role: Role::Phone { device_name }, .. }) => {
            assert_eq!((server.as_str(), device_name.as_str()), ("box", "Anna's phone"));
        }
        other => panic!("{other:?}"),
    }
    match admission(&client(CLIENT)) {
        Admission::Upgrade(Upgrade { role: Role::Phone { device_name }, .. }) => {
            assert_eq!(device_name.as_str(), "");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(admission(&get("/healthz", "")), Admission::Health { head_only: false }));
}

#[test]
fn bytes_behind_the_head_are_left_alone() {
    let head = server(SERVER);
    let bytes = [head.as_bytes(), b"\x81\x85rest"].concat();
    assert!(
        matches!(judge(&bytes, &mut free()), Judgement::Admitted(_, length) if length == head.len())
    );
    for cut in 0..head.len() {
        assert!(matches!(judge(&head.as_bytes()[..cut], &mut free()), Judgement::Incomplete));
    }
}

#[test]
fn each_required_header_missing_empty_blank_or_repeated_is_refused_and_any_case_will_do() {
    for (build, fields) in [(server as fn(&str) -> String, SERVER), (client, CLIENT)] {
        let lines: Vec<_> = fields.lines().collect();
        assert_eq!(lines.len(), 3);
        for (index, line) in lines.iter().enumerate() {
            let name = line.split(':').next().unwrap();
            let with = |replacement: &str| {
                let mut lines: Vec<_> = lines.iter().map(|line| format!("{line}\r\n")).collect();
                lines[index] = replacement.to_owned();
                build(&lines.concat())
            };
            assert_eq!(refusal(&with("")), Refusal::HeaderGate, "{name} missing");
            assert_eq!(
                refusal(&with(&format!("{name}:\r\n"))),
                Refusal::HeaderGate,
                "{name} empty"
            );
            let blank = with(&format!("{name}: \t \r\n"));
            assert_eq!(refusal(&blank), Refusal::HeaderGate, "{name} blank");
            let twice = with(&format!("{line}\r\n{line}\r\n"));
            assert_eq!(refusal(&twice), Refusal::HeaderGate, "{name} twice");
            admission(&with(&format!("{}\r\n", line.replacen(name, &name.to_uppercase(), 1))));
            admission(&with(&format!("{}\r\n", line.replacen(name, &name.to_lowercase(), 1))));
        }
    }
}

#[test]
fn server_ids_are_checked_byte_for_byte() {
    let with = |id: &[u8]| {
        let fields = CLIENT.replace("X-Pyrycode-Server: box\r\n", "");
        let head = client(&fields);
        let (start, rest) = head.split_at(head.find("X-Pyrycode-Token").unwrap());
        [start.as_bytes(), b"X-Pyrycode-Server: ", id, b"\r\n", rest.as_bytes()].concat()
    };
    let admitted = |id: &[u8]| matches!(judge(&with(id), &mut free()), Judgement::Admitted(..));
    assert!(admitted(b"a") && admitted(b"\"&<>\\/~!") && admitted(&[b'x'; 128]));
    for bad in [&b"a b"[..], b"a\tb", b"\xc3\xa9", b"a\x80", &[b'x'; 129]] {
        assert!(!admitted(bad), "{bad:?}");
    }
}

#[test]
fn hosts_and_bodies_are_those_of_an_upgrade() {
    let host = |count: usize| {
        let head = client(CLIENT);
        head.replacen("Host: relay\r\n", &"Host: relay\r\n".repeat(count), 1)
    };
    assert_eq!(refusal(&host(0)), Refusal::HeaderGate);
    admission(&host(1));
    assert_eq!(refusal(&host(2)), Refusal::HeaderGate);
    for body in ["Content-Length: 5\r\n", "Content-Length: x\r\n", "Transfer-Encoding: chunked\r\n"]
    {
        assert_eq!(refusal(&client(&format!("{CLIENT}{body}"))), Refusal::HeaderGate, "{body}");
    }
    admission(&client(&format!("{CLIENT}Content-Length: 0\r\n")));
}

#[test]
fn paths_match_byte_for_byte_with_queries_ignored_and_absolute_form_accepted() {
    for good in ["/healthz", "/healthz?x=/y", "http://relay/healthz", "HTTPS://relay:1/healthz?"] {
        admission(&get(good, ""));
    }
    for bad in
        ["/", "/healthz/", "/Healthz", "//healthz", "/%68ealthz", "*", "http://healthz", "/v1"]
    {
        assert_eq!(refusal(&get(bad, "")), Refusal::UnknownPath, "{bad}");
    }
}

#[test]
fn refusals_come_in_the_order_of_the_contract() {
    let limited =
        |head: &str| match judge(head.as_bytes(), &mut Anybody(Err(Duration::from_millis(1500)))) {
            Judgement::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        };
    // Every head below is also wrong in all ways that come later.
    assert_eq!(limited("PUT /nowhere HTTP/9\r\n\r\n"), Refusal::MalformedHead);
    assert_eq!(limited("PUT /nowhere HTTP/1.1\r\n\r\n"), Refusal::UnknownPath);
    assert_eq!(limited("PUT /v1/client HTTP/1.1\r\n\r\n"), Refusal::Method { allow: "GET" });
    assert_eq!(limited("HEAD /v1/server HTTP/1.1\r\n\r\n"), Refusal::Method { allow: "GET" });
    assert_eq!(limited("POST /healthz HTTP/1.1\r\n\r\n"), Refusal::Method { allow: "GET, HEAD" });
    let wait = Refusal::RateLimited(Duration::from_millis(1500));
    assert_eq!(limited("GET /v1/client HTTP/1.1\r\n\r\n"), wait);
    assert_eq!(refusal("GET /v1/client HTTP/1.1\r\n\r\n"), Refusal::HeaderGate);
    assert_eq!(refusal(&get("/v1/client", CLIENT)), Refusal::UpgradeRequired);
    let keyless = client(CLIENT).replace("dGhlIHNhbXBsZSBub25jZQ==", "no");
    assert_eq!(refusal(&keyless), Refusal::BadKey);
    let mut waits = Anybody(Err(Duration::from_secs(1)));
    let health = judge(get("/healthz", "").as_bytes(), &mut waits);
    assert!(matches!(health, Judgement::Admitted(..)));
}

#[test]
fn an_upgrade_needs_its_tokens_version_and_key() {
    let change = |from: &str, to: &str| client(CLIENT).replace(from, to);
    for (from, to) in [
        ("Connection: keep-alive, Upgrade\r\n", ""),
        ("keep-alive, Upgrade", "keep-alive"),
        ("Upgrade: WebSocket\r\n", ""),
        ("Upgrade: WebSocket", "Upgrade: h2c"),
        ("Version: 13", "Version: 8"),
        ("Version: 13", "Version: 13, 8"),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        ("HTTP/1.1", "HTTP/1.0"),
    ] {
        assert_eq!(refusal(&change(from, to)), Refusal::UpgradeRequired, "{from} -> {to}");
    }
    for key in [
        "",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZQ==A",
        "dGhlIHNhbXBsZSBub25j",
        "dGhlIHNhbXBsZSBub25j!Q==",
    ] {
        assert_eq!(refusal(&change("dGhlIHNhbXBsZSBub25jZQ==", key)), Refusal::BadKey, "{key}");
    }
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(refusal(&change(key, "")), Refusal::BadKey);
    assert_eq!(refusal(&change(key, &key.repeat(2))), Refusal::BadKey);
    admission(&change("keep-alive, Upgrade\r\n", "keep-alive\r\nConnection:upgrade\r\n"));
    admission(&change("Upgrade: WebSocket", "Upgrade: h2c, websocket"));
}

#[test]
fn heads_above_the_bounds_are_too_large_and_those_at_them_are_not() {
    let padded = |total: usize| {
        let head = client(CLIENT);
        let padding = total - head.len() - "X-Padding: \r\n".len();
        client(&format!("{CLIENT}X-Padding: {}\r\n", "x".repeat(padding)))
    };
    admission(&padded(MAX_HEAD_BYTES));
    assert_eq!(refusal(&padded(MAX_HEAD_BYTES + 1)), Refusal::HeadTooLarge);
    let endless = &padded(MAX_HEAD_BYTES + 100)[..MAX_HEAD_BYTES];
    assert_eq!(refusal(endless), Refusal::HeadTooLarge);
    let with = |count: usize| get("/healthz", &"A: b\r\n".repeat(count - 1));
    admission(&with(MAX_HEADERS));
    assert_eq!(refusal(&with(MAX_HEADERS + 1)), Refusal::HeadTooLarge);
}

#[test]
fn what_is_not_http_is_malformed_at_its_first_wrong_byte() {
    for bad in [
        "\x16\x03\x01\x02\x00",
        "GET / HTTP/2.0\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM",
        "G\0T",
        "GET  HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nBad Name: x\r\n",
        "GET / HTTP/1.1\r\nA : b\r\n",
        "GET / HTTP/1.1\r\nA: b\r\n folded\r\n",
    ] {
        assert_eq!(refusal(bad), Refusal::MalformedHead, "{bad:?}");
    }
}

#[test]
fn responses_are_complete_and_retries_never_immediate() {
    let ends = "Content-Length: 0\r\nConnection: close\r\n\r\n";
    for (refusal, status, field) in [
        (Refusal::MalformedHead, "400 ", ""),
        (Refusal::HeadTooLarge, "431 ", ""),
        (Refusal::HeadTimeout, "408 ", ""),
        (Refusal::UnknownPath, "404 ", ""),
        (Refusal::Method { allow: "GET" }, "405 ", "\r\nAllow: GET\r\n"),
        (Refusal::RateLimited(Duration::ZERO), "429 ", "\r\nRetry-After: 1\r\n"),
        (Refusal::RateLimited(Duration::from_millis(1001)), "429 ", "\r\nRetry-After: 2\r\n"),
        (Refusal::HeaderGate, "400 ", ""),
        (
            Refusal::UpgradeRequired,
            "426 ",
            "\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        ),
        (Refusal::BadKey, "400 ", ""),
        (Refusal::ConnectionCap, "503 ", "\r\nRetry-After: 5\r\n"),
        (Refusal::Misdirected, "421 ", ""),
        (Refusal::NotTls, "400 ", ""),
        (Refusal::ProbeUnderWay, "503 ", "\r\nRetry-After: 5\r\n"),
    ] {
        let response = refusal.response();
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
        assert!(response.ends_with(ends) && response.contains(field), "{response}");
    }
}

#[test]
fn labels_are_cut_at_128_bytes_whatever_they_hold() {
    assert_eq!(PeerText::new(&[b'x'; 300]).as_str().len(), 128);
    assert_eq!(PeerText::new("é".repeat(100).as_bytes()).as_str(), "é".repeat(64));
    let mangled = PeerText::new(&[0xff; 300]);
    assert!(mangled.as_str().len() <= 128 && mangled.as_str().chars().all(|c| c == '\u{fffd}'));
    let split = PeerText::new(&[&[b'x'; 127][..], "é".as_bytes()].concat());
    assert!(split.as_str().len() <= 128);
}

/// A caller who dialled a relay of one name.
struct OfOneName;

impl Caller for OfOneName {
    fn introduce(&mut self, _fields: &[Header<'_>]) {}

    fn attempt(&mut self, _endpoint: Leg) -> Result<(), Refusal> {
        Ok(())
    }

    fn serves(&self, host: Option<&[u8]>) -> bool {
        host == Some(b"relay.example")
    }
}

#[test]
fn the_authority_of_an_absolute_target_takes_the_place_of_host() {
    let is_served = |target: &str, host: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{UPGRADE}{CLIENT}\r\n");
        match judge(head.as_bytes(), &mut OfOneName) {
            Judgement::Admitted(..) => true,
            Judgement::Refused(Refusal::Misdirected) => false,
            other => panic!("{target} for {host} came to {other:?}"),
        }
    };
    let (own, other) = ("relay.example", "other.example");
    for path in ["/v1/client", "/healthz", "/healthz?x=http://other.example/"] {
        assert!(is_served(path, own) && !is_served(path, other), "{path}");
        for scheme in ["http", "HTTPS", "ws", "wss"] {
            let of = |authority: &str| format!("{scheme}://{authority}{path}");
            for host in [own, other, ""] {
                assert!(is_served(&of(own), host), "{scheme} {path} for {host}");
                assert!(!is_served(&of(other), host), "{scheme} {path} for {host}");
                assert!(!is_served(&of(""), host), "{scheme} {path} for {host}");
                assert!(!is_served(&of("relay.example@other.example"), host));
            }
        }
    }
}

#[test]
fn an_absolute_target_has_its_path_before_its_query() {
    for (target, expected) in [
        ("http://relay/v1/client", "/v1/client"),
        ("http://relay/v1/client?x=/healthz", "/v1/client"),
        ("http://relay", "/"),
        ("http://relay?x=/healthz", "/"),
        ("http://relay#/healthz", "/"),
        ("ftp://relay/healthz", "ftp://relay/healthz"),
    ] {
        assert_eq!(path(target), expected, "{target}");
    }
}

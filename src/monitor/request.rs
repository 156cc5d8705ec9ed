//! A request for one of the pages: pure, no I/O.

use httparse::{EMPTY_HEADER, Header, Request, Status};

use std::net::{IpAddr, Ipv6Addr};

use crate::http::gate::{Refusal, check_host, host, path};
use crate::limits::{MAX_HEAD_BYTES, MAX_HEADERS};

/// What a head came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judged {
    /// Answer with this page.
    Page {
        /// Which.
        page: Page,
        /// Whether the body is left out.
        head_only: bool,
    },
    /// Answer this and close.
    Refused(Refusal),
}

/// A page of the metrics listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Page {
    /// `/`, for people.
    Home,
    /// `/status.json`.
    Status,
    /// `/metrics`.
    Metrics(Form),
}

/// The text formats of the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus 0.0.4.
    Prometheus,
}

/// Judges the head at the start of `bytes`; `None` while it is not complete. Without `any_name` only
/// a host that no stranger's name stands for is served.
pub(crate) fn judge(bytes: &[u8], any_name: bool) -> Option<Judged> {
    let mut fields = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut fields);
    Some(match request.parse(bytes) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD_BYTES => {
            match page(&request, any_name) {
                Ok((page, head_only)) => Judged::Page { page, head_only },
                Err(refusal) => Judged::Refused(refusal),
            }
        }
        Ok(Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return None,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Judged::Refused(Refusal::HeadTooLarge),
        Err(_) => Judged::Refused(Refusal::MalformedHead),
    })
}

fn page(request: &Request<'_, '_>, any_name: bool) -> Result<(Page, bool), Refusal> {
    let target = request.path.ok_or(Refusal::MalformedHead)?;
    let page = match path(target) {
        "/" => Page::Home,
        "/status.json" => Page::Status,
        "/metrics" => Page::Metrics(form(request.headers)),
        _ => return Err(Refusal::UnknownPath),
    };
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Refusal::Method { allow: "GET, HEAD" }),
    };
    check_host(request)?;
    match host(request) {
        Some(host) if !any_name && !is_own(host) => Err(Refusal::Misdirected),
        _ => Ok((page, head_only)),
    }
}

/// Whether a host, with or without a port, is an IP address or `localhost`. A web page can have its
/// own name lead to this machine (DNS rebinding) and read what is answered, but these it cannot take.
fn is_own(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    if let Some(bracketed) = host.strip_prefix('[') {
        let (inside, behind) = bracketed.split_once(']').unwrap_or_default();
        return inside.parse::<Ipv6Addr>().is_ok() && (behind.is_empty() || is_port(behind));
    }
    let name = match host.find(':') {
        Some(colon) if is_port(&host[colon..]) => &host[..colon],
        Some(_) => return false,
        None => host,
    };
    name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// OpenMetrics for who asks for it and does not like the older format better (RFC 9110
/// section 12.5.1).
fn form(fields: &[Header<'_>]) -> Form {
    let accepted = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("Accept"));
    let members: Vec<_> = accepted
        .filter_map(|field| std::str::from_utf8(field.value).ok())
        .flat_map(|value| value.split(','))
        .map(weighted)
        .collect();
    let weight = |name: &str| {
        let named = members.iter().filter(|(range, _)| range.eq_ignore_ascii_case(name));
        named.map(|(_, weight)| *weight).fold(0.0, f64::max)
    };
    let open_metrics = weight("application/openmetrics-text");
    if open_metrics > 0.0 && open_metrics >= weight("text/plain") {
        Form::OpenMetrics
    } else {
        Form::Prometheus
    }
}

/// A media range and its weight, one without a proper weight having that of 1.
fn weighted(member: &str) -> (&str, f64) {
    let mut parts = member.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    let weight = parts.find_map(|parameter| parameter.strip_prefix("q="));
    (range, weight.and_then(|weight| weight.parse().ok()).unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(request: &str) -> Judged {
        judge(request.as_bytes(), false).unwrap()
    }

    fn form_for(accept: &str) -> Form {
        match judged(&format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n")) {
            Judged::Page { page: Page::Metrics(form), head_only: false } => form,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn three_pages_are_served_to_get_and_head_alone() {
        for (path, page) in [
            ("/", Page::Home),
            ("/?refresh", Page::Home),
            ("/status.json", Page::Status),
            ("/metrics?name=x", Page::Metrics(Form::Prometheus)),
            ("http://127.0.0.1:9464/metrics", Page::Metrics(Form::Prometheus)),
            ("http://127.0.0.1:9464", Page::Home),
        ] {
            for (method, head_only) in [("GET", false), ("HEAD", true)] {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: [::1]:9464\r\n\r\n");
                assert_eq!(judged(&request), Judged::Page { page, head_only });
            }
            let refused = judged(&format!("POST {path} HTTP/1.1\r\n\r\n"));
            assert_eq!(refused, Judged::Refused(Refusal::Method { allow: "GET, HEAD" }));
        }
        for path in ["/x", "/metrics/", "*", "//"] {
            let refused = judged(&format!("GET {path} HTTP/1.1\r\n\r\n"));
            assert_eq!(refused, Judged::Refused(Refusal::UnknownPath), "{path}");
        }
    }

    #[test]
    fn one_host_is_named() {
        let page = Judged::Page { page: Page::Home, head_only: false };
        assert_eq!(judged("GET / HTTP/1.0\r\n\r\n"), page);
        for request in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        ] {
            assert_eq!(judged(request), Judged::Refused(Refusal::HeaderGate), "{request}");
        }
    }

    #[test]
    fn a_name_that_a_stranger_may_have_is_not_served() {
        let page = Judged::Page { page: Page::Home, head_only: false };
        let asked = |target: &str, host: &str, any_name| {
            judge(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), any_name)
                .unwrap()
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:9464",
            "[::1]",
            "[::1]:9464",
            "192.0.2.1:80",
            "localhost",
            "LocalHost:9464",
        ] {
            assert_eq!(asked("/", host, false), page, "{host}");
            assert_eq!(asked(&format!("http://{host}/"), "evil.example", false), page, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "localhost:x",
            "[::1",
            "[::1]x",
            "[evil]",
            "::1",
            "",
            "\u{ff}",
        ] {
            let refused = Judged::Refused(Refusal::Misdirected);
            assert_eq!(asked("/", host, false), refused, "{host}");
            assert_eq!(asked("/", host, true), page, "{host}");
        }
        let absolute = asked("http://evil.example/", "localhost", false);
        assert_eq!(absolute, Judged::Refused(Refusal::Misdirected));
    }

    #[test]
    fn a_head_is_waited_for_to_its_bounds() {
        assert_eq!(judge(b"GET / HTTP/1.1\r\nHost: x\r\n", false), None);
        assert_eq!(judged("\x16\x03\x01"), Judged::Refused(Refusal::MalformedHead));
        let large = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD_BYTES));
        assert_eq!(judged(&large), Judged::Refused(Refusal::HeadTooLarge));
        let many = format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(judged(&many), Judged::Refused(Refusal::HeadTooLarge));
    }

    #[test]
    fn the_format_is_the_one_that_is_liked_better() {
        for accept in [
            "Accept: application/openmetrics-text\r\n",
            "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3,*/*;q=0.2\r\n",
            "accept: text/plain;q=0.1\r\nACCEPT: Application/OpenMetrics-Text;q=0.2\r\n",
        ] {
            assert_eq!(form_for(accept), Form::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "Accept: */*\r\n",
            "Accept: text/html, application/xhtml+xml\r\n",
            "Accept: application/openmetrics-text;q=0\r\n",
            "Accept: text/plain, application/openmetrics-text;q=0.9\r\n",
            "Accept: \u{ff}, ;;;, q=\r\n",
        ] {
            assert_eq!(form_for(accept), Form::Prometheus, "{accept}");
        }
    }
}

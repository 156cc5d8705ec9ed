//! The body of the health page.

use std::time::Duration;

use crate::clock;
use crate::registry::Counts;
use crate::telemetry::certificate::Condition;

/// The whole response to `GET /healthz`, or to `HEAD` without the body. Keys and their order are
/// the contract's; those of a certificate follow where there is to be one. Why one could not be
/// renewed is not everybody's to know.
pub(crate) fn response(
    counts: Counts,
    uptime: Duration,
    certificate: Option<&Condition>,
    head_only: bool,
) -> String {
    let certificate = certificate.map(|certificate| {
        let days = certificate.days_left(clock::wall());
        let days = days.map_or_else(|| "null".to_owned(), |days| days.to_string());
        let fails = certificate.problem.is_some();
        format!(",\"certificate_days_left\":{days},\"certificate_renewal_fails\":{fails}")
    });
    let body = format!(
        "{{\"status\":\"ok\",\"version\":\"{}\",\"connected_binaries\":{},\"connected_phones\":{},\
         \"uptime_seconds\":{}{}}}",
        env!("CARGO_PKG_VERSION"),
        counts.binaries,
        counts.phones,
        uptime.as_secs(),
        certificate.unwrap_or_default()
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\n\
         Content-Type: application/json; charset=utf-8\r\n\
         Cache-Control: no-store\r\n\
         Content-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if head_only { head } else { head + &body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_its_keys_in_order_and_head_leaves_it_out() {
        let counts = Counts { binaries: 1, phones: 2, in_grace: 3 };
        let full = response(counts, Duration::from_millis(17_999), None, false);
        let (head, body) = full.split_once("\r\n\r\n").unwrap();
        let expected = format!(
            r#"{{"status":"ok","version":"{}","connected_binaries":1,"connected_phones":2,"uptime_seconds":17}}"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(body, expected);
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(
            response(counts, Duration::from_secs(17), None, true),
            format!("{head}\r\n\r\n")
        );
    }

    #[test]
    fn a_certificate_is_told_behind_the_keys_of_the_contract() {
        let counts = Counts::default();
        let end = |certificate| {
            let page = response(counts, Duration::ZERO, Some(&certificate), false);
            page.split_once(",\"uptime_seconds\":0").unwrap().1.to_owned()
        };
        let none = Condition { validity: None, problem: Some("secret".to_owned()) };
        assert_eq!(
            end(none),
            ",\"certificate_days_left\":null,\"certificate_renewal_fails\":true}"
        );
        let now = clock::wall();
        let until = now + Duration::from_secs(36 * 60 * 60);
        let good = Condition { validity: Some((now, until)), problem: None };
        assert_eq!(end(good), ",\"certificate_days_left\":1,\"certificate_renewal_fails\":false}");
    }
}

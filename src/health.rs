//! The body of the health page.

use std::time::Duration;

use crate::registry::Counts;

/// The whole response to `GET /healthz`, or to `HEAD` without the body. Keys and their order are
/// the contract's.
pub fn response(counts: Counts, uptime: Duration, head_only: bool) -> String {
    let body = format!(
        "{{\"status\":\"ok\",\"version\":\"{}\",\"connected_binaries\":{},\"connected_phones\":{},\
         \"uptime_seconds\":{}}}",
        env!("CARGO_PKG_VERSION"),
        counts.binaries,
        counts.phones,
        uptime.as_secs()
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
        let full = response(counts, Duration::from_millis(17_999), false);
        let (head, body) = full.split_once("\r\n\r\n").unwrap();
        let expected = format!(
            r#"{{"status":"ok","version":"{}","connected_binaries":1,"connected_phones":2,"uptime_seconds":17}}"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(body, expected);
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert_eq!(response(counts, Duration::from_secs(17), true), format!("{head}\r\n\r\n"));
    }
}

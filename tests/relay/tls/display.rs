//! How people and programs see how the certificate is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::client::{Files, NAME, pair};
use crate::rig::{Plain, Relay, events, request};

fn page(relay: &Relay, path: &str) -> String {
    let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    request(relay.metrics.unwrap(), text).1
}

fn sample(relay: &Relay, name: &str) -> f64 {
    let page = page(relay, "/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap().parse().unwrap()
}

/// Files with a certificate that is good for so long from now on, as seconds are counted.
fn lasting(files: &mut Files, time: Duration) {
    let until = SystemTime::now() + time;
    let (certificate, key) = pair(|params| params.not_after = until.into());
    files.certificate = certificate.0;
    files.write(&certificate.1, &key);
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn pages_tell_how_long_the_certificate_lasts_and_when_a_new_one_failed() {
    let mut files = Files::new();
    lasting(&mut files, 40 * DAY + DAY / 2);
    let relay = files.relay(&["--metrics-listen", "127.0.0.1:0"]);
    let left = || {
        let until = sample(&relay, "pyrycode_relay_certificate_not_after_seconds");
        until - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
    };
    assert!((40.0..41.0).contains(&(left() / DAY.as_secs_f64())), "{}", left());
    assert_eq!(sample(&relay, "pyrycode_relay_certificate_renewal_fails"), 0.0);
    let status: Value = serde_json::from_str(&page(&relay, "/status.json")).unwrap();
    assert_eq!(status["certificate"]["days_left"], 40);
    assert_eq!(
        (&status["certificate"]["problem"], &status["status"]),
        (&Value::Null, &"ok".into())
    );
    assert!(page(&relay, "/").contains("<h2>Certificate</h2><b>40 days</b>"));
    let health = |key: &str| {
        let body = relay.request("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").1;
        serde_json::from_str::<Value>(&body).unwrap()[key].clone()
    };
    assert_eq!(health("certificate_days_left"), 40);
    assert_eq!(health("certificate_renewal_fails"), false);

    files.write("", "");
    let seen = events::mark();
    relay.reload();
    files.wait_for(seen, "certificate_kept");
    assert_eq!(sample(&relay, "pyrycode_relay_certificate_renewal_fails"), 1.0);
    let status: Value = serde_json::from_str(&page(&relay, "/status.json")).unwrap();
    assert_eq!(status["status"], "problem");
    let told = status["problems"][0].as_str().unwrap();
    assert!(told.starts_with("there is no new certificate: certificate /"), "{told}");
    assert_eq!(
        (health("certificate_days_left"), health("certificate_renewal_fails")),
        (40.into(), true.into())
    );

    // A good one, though it does not last.
    lasting(&mut files, 5 * DAY);
    let seen = events::mark();
    relay.reload();
    files.wait_for(seen, "certificate_read");
    assert_eq!(sample(&relay, "pyrycode_relay_certificate_renewal_fails"), 0.0);
    let status: Value = serde_json::from_str(&page(&relay, "/status.json")).unwrap();
    let told = status["problems"][0].as_str().unwrap();
    assert!(told.starts_with("the certificate expires in 4days 23h"), "{told}");
    assert!(files.client().meet(relay.tls.unwrap(), NAME).is_ok());
}

#[test]
fn without_tls_nothing_is_told_of_a_certificate() {
    let relay = Relay::plain(Plain::NoCertificate, &["--metrics-listen", "127.0.0.1:0"]);
    let body = relay.request("GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n").1;
    assert!(!body.contains("certificate"), "{body}");
    assert!(!page(&relay, "/").contains("Certificate"));
    assert_eq!(sample(&relay, "pyrycode_relay_certificate_not_after_seconds"), 0.0);
}

//! The metrics listener: every metric by the event that it names, the pages, and their manners.

mod metrics;
mod pages;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::rig::{Relay, deadline, request};

/// The samples of one page: name and labels, to the value.
pub type Samples = BTreeMap<String, f64>;

/// A relay with a metrics listener on a free port.
pub fn monitored(arguments: &[&str]) -> Relay {
    let mut all = vec!["--metrics-listen", "127.0.0.1:0"];
    all.extend(arguments);
    Relay::start(&all)
}

/// The body of a page that is there.
fn get(address: SocketAddr, path: &str) -> String {
    let (head, body) =
        request(address, format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:9464\r\n\r\n"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body
}

/// All samples of the present page.
pub fn samples(address: SocketAddr) -> Samples {
    let page = get(address, "/metrics");
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// What moves by itself: the turns of the event loop, and what the operating system counts. Tests
/// of their own look at these.
fn moves_by_itself(sample: &str) -> bool {
    sample.starts_with("pyrycode_relay_event_loop_lag_seconds")
        || sample.starts_with("process_")
        || sample == "pyrycode_relay_memory_held_bytes"
}

/// The samples that differ, and by how much.
fn moved(before: &Samples, after: &Samples) -> BTreeMap<String, f64> {
    assert!(before.keys().eq(after.keys()), "no sample comes or goes");
    let differences = before.iter().map(|(name, value)| (name.clone(), after[name] - value));
    differences.filter(|(name, by)| *by != 0.0 && !moves_by_itself(name)).collect()
}

/// Waits until exactly `expected` has moved since `before`, and sees that it stays so.
fn expect_moved(what: &str, address: SocketAddr, before: &Samples, expected: &[(&str, f64)]) {
    let whole = |(name, by): &(&str, f64)| (format!("pyrycode_relay_{name}"), *by);
    let expected: BTreeMap<_, _> = expected.iter().map(whole).collect();
    for name in expected.keys() {
        assert!(before.contains_key(name), "{what}: there is no {name}");
    }
    let until = Instant::now() + deadline();
    while moved(before, &samples(address)) != expected {
        if Instant::now() > until {
            assert_eq!(moved(before, &samples(address)), expected, "{what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Whatever else the event would move has had its turns by now.
    for _ in 0..3 {
        assert_eq!(moved(before, &samples(address)), expected, "{what}, and it stays so");
    }
}

/// Waits until `reached` holds of the samples.
fn wait_until(what: &str, address: SocketAddr, reached: impl Fn(&Samples) -> bool) -> Samples {
    let until = Instant::now() + deadline();
    loop {
        let samples = samples(address);
        if reached(&samples) {
            return samples;
        }
        assert!(Instant::now() < until, "{what}: {samples:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! The fuzz targets with their committed seeds, without a fuzzer: they run with every compiler, and
//! what a fuzzer once found stays found.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::panic, reason = "in a test a panic is the report")]

use std::panic::catch_unwind;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is the library of a crate of its own")]
mod harness;

#[test]
fn every_seed_of_the_gate_passes() {
    assert_passes("gate", 20, harness::gate::run);
}

#[test]
fn every_seed_of_the_envelope_passes() {
    assert_passes("envelope", 20, harness::envelope::run);
}

#[test]
fn every_seed_of_the_connection_passes() {
    assert_passes("connection", 20, harness::connection::run);
}

#[test]
fn every_seed_of_the_proxy_passes() {
    assert_passes("proxy", 20, harness::proxy::run);
}

#[cfg(feature = "tls")]
#[test]
fn every_seed_of_the_tls_records_passes() {
    assert_passes("tls_records", 20, harness::tls_records::run);
}

/// Runs a target with its seeds, of which there are at least so many.
fn assert_passes(target: &str, least: usize, run: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(seeds).unwrap() {
        let path = entry.unwrap().path();
        let seed = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_owned();
        if catch_unwind(|| run(&seed)).is_err() {
            panic!("{target} fails with {name:?}");
        }
        count += 1;
    }
    assert!(count >= least, "only {count} seeds of {target}");
}

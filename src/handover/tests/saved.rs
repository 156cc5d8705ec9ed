//! States that were saved by this version and those before it. They are read for ever: whoever upgrades may come from
//! any of them.
//!
//! `RELAY_GENERATE=1 cargo test --lib saved_states` writes one more, and never changes one that is there. To be done
//! once for each release that changes what a state holds.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use super::*;
use crate::telemetry::metrics::Direction;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/handover/tests/states")
}

/// All of them, oldest first.
fn all() -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> =
        fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "bin"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// The last of them.
pub(super) fn newest() -> Vec<u8> {
    all().pop().expect("a saved state").1
}

#[test]
fn saved_states_are_read_and_everybody_in_them_goes_on() {
    if std::env::var_os("RELAY_GENERATE").is_some() {
        let (bytes, _) = household().rig.freeze();
        let name = format!("{FORMAT}-{:03}.bin", all().len() + 1);
        let mut file = File::create_new(directory().join(name)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    let states = all();
    assert!(!states.is_empty(), "there is one of this format at least");
    for (path, bytes) in states {
        let (rig, mut peers) = Rig::revive(&bytes);
        let file = path.display();
        let metrics = &rig.relay.metrics;
        let forwarded = |way| metrics.frames.count(way);
        assert_eq!(forwarded(Direction::PhoneToBinary), 2, "{file}");
        assert_eq!(forwarded(Direction::BinaryToPhone), 1, "{file}");
        assert!(rig.relay.attempts.is_some(), "{file}");
        go_on(&rig, &mut peers);
    }
}

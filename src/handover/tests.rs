mod rig;
mod saved;

use std::net::TcpStream;
use std::time::Duration;

use proptest::prelude::*;
use relay_test_kit::frame::{CLOSE, TEXT, encode};
use serde::Serialize;

use self::rig::{Peer, Rig, request};
use super::format::{self, FORMAT, Header};
use crate::registry::Counts;

/// A relay with every kind of state, and its peers in the order in which their connections are told.
struct Household {
    rig: Rig,
    peers: Vec<Peer>,
}

/// Messages that a phone sends in the grace window; some more than find room.
const FLOOD: usize = 40;

/// Places of peers in [`Household::peers`].
const BINARY: usize = 0;
const PHONE: usize = 1;
const FLOODING: usize = 2;
const DISMISSED: usize = 3;
const REJECTED: usize = 4;
const RIVAL: usize = 5;
const REQUEST: usize = 6;
const COUNT: usize = 7;

fn flooding(number: usize) -> String {
    format!("\"{number} {}\"", "x".repeat(1_000))
}

const HALVED: &str = "\"half of it before, half of it after\"";

fn household() -> Household {
    let rig = Rig::new();
    let mut binary = rig.join("server", "live");
    let mut phone = rig.join("client", "live");
    phone.say("\"first\"");
    let envelope = rig.texts(&mut binary, 1).remove(0);
    let id = envelope.split('"').nth(3).unwrap().to_owned();
    binary.say(&format!(r#"{{"conn_id":"{id}","frame":"answer"}}"#));
    assert_eq!(rig.texts(&mut phone, 1), ["\"answer\""]);
    let halved = encode(true, TEXT, HALVED.as_bytes());
    phone.send(&halved[..halved.len() / 2]);

    let mut parted = rig.join("server", "in-grace");
    let mut flooder = rig.join("client", "in-grace");
    parted.send(&encode(true, CLOSE, &1000_u16.to_be_bytes()));
    rig.await_end(&mut parted);
    drop(parted);
    rig.await_connections(3);
    // At once: a saved state has what was read, and not what waits in a socket.
    let flood = (0..FLOOD).map(|number| encode(true, TEXT, flooding(number).as_bytes()));
    flooder.send(&flood.collect::<Vec<_>>().concat());

    let mut dismissed = rig.join("client", "live");
    dismissed.say("\"hello\"");
    let envelope = rig.texts(&mut binary, 1).remove(0);
    let id = envelope.split('"').nth(3).unwrap().to_owned();
    binary.say(&format!(r#"{{"conn_id":"{id}","close_code":4401}}"#));
    assert_eq!(rig.close_of(&mut dismissed).0, 4401);
    let mut rejected = rig.join("client", "nowhere");
    assert_eq!(rig.close_of(&mut rejected), (4404, "no server with that id".to_owned()));
    let rival = rig.join("server", "live");
    let mut requesting = rig.connect();
    let half = request("client", "live");
    requesting.send(&half.as_bytes()[..half.len() / 2]);
    rig.work(Duration::from_millis(30));
    rig.relay.record(crate::clock::now());
    let peers = vec![binary, phone, flooder, dismissed, rejected, rival, requesting];
    Household { rig, peers }
}

/// Everybody of a household goes on where he was, in a relay that has taken over.
fn go_on(rig: &Rig, peers: &mut [Peer]) {
    assert_eq!(peers.len(), COUNT);
    assert_eq!(rig.relay.registry.counts(), Counts { binaries: 1, phones: 2, in_grace: 1 });
    let kept = rig.relay.registry.backlog().kept;
    assert!((20..FLOOD).contains(&kept), "{kept} messages are kept");
    assert!(rig.relay.ledger.total() > 20_000, "and paid for");

    let halved = encode(true, TEXT, HALVED.as_bytes());
    peers[PHONE].send(&halved[halved.len() / 2..]);
    let envelope = rig.texts(&mut peers[BINARY], 1).remove(0);
    assert!(envelope.ends_with(&format!("\"frame\":{HALVED}}}")), "{envelope}");
    let id = envelope.split('"').nth(3).unwrap().to_owned();

    let mut reclaiming = rig.join("server", "in-grace");
    let kept = rig.texts(&mut reclaiming, FLOOD);
    for (number, message) in kept.iter().enumerate() {
        assert!(message.ends_with(&format!("\"frame\":{}}}", flooding(number))), "{number}");
    }

    for leaving in [DISMISSED, REJECTED] {
        peers[leaving].send(&encode(true, CLOSE, &1000_u16.to_be_bytes()));
        rig.await_end(&mut peers[leaving]);
    }

    let rest = request("client", "live");
    peers[REQUEST].send(&rest.as_bytes()[rest.len() / 2..]);
    rig.await_upgrade(&mut peers[REQUEST]);

    // What the holder says counts from a second after it was asked.
    rig.work(Duration::from_millis(1_100));
    peers[BINARY].say(&format!(r#"{{"conn_id":"{id}","frame":"here"}}"#));
    assert_eq!(rig.texts(&mut peers[PHONE], 1), ["\"here\""]);
    assert_eq!(rig.close_of(&mut peers[RIVAL]), (4409, "server-id already claimed".to_owned()));
    assert_eq!(rig.relay.registry.counts(), Counts { binaries: 2, phones: 3, in_grace: 0 });
}

#[test]
fn a_relay_with_every_kind_of_state_goes_on_where_it_was() {
    let Household { rig, mut peers } = household();
    let (bytes, sockets) = rig.freeze();
    let (counts, held) = (rig.relay.registry.counts(), rig.relay.ledger.total());
    drop(rig);
    let rig = Rig::thaw(format::read(&bytes[..]), sockets);
    assert_eq!(rig.relay.registry.counts(), counts);
    let now = rig.relay.ledger.total();
    assert!(now.abs_diff(held) < 4_096, "{now} bytes instead of {held}");
    go_on(&rig, &mut peers);
}

#[test]
fn of_a_state_that_cannot_be_read_everybody_who_can_be_told_is_told_and_the_relay_serves() {
    let Household { rig, mut peers } = household();
    let (_, mut sockets) = rig.freeze();
    assert_eq!(sockets.len(), COUNT);
    assert!(sockets[PHONE].1 && sockets[BINARY].1, "nothing is half written to them");
    assert!(!sockets[REQUEST].1 && !sockets[DISMISSED].1, "a frame would make no sense to them");
    sockets[FLOODING].1 = false;
    drop(rig);
    let rig = Rig::thaw(Err("it is too new".to_owned()), sockets);
    for told in [BINARY, PHONE, RIVAL] {
        assert_eq!(rig.close_of(&mut peers[told]), (1001, "shutting down".to_owned()), "{told}");
        peers[told].send(&encode(true, CLOSE, &1001_u16.to_be_bytes()));
        rig.await_end(&mut peers[told]);
    }
    for closed in [FLOODING, DISMISSED, REJECTED, REQUEST] {
        rig.await_end(&mut peers[closed]);
    }
    rig.await_connections(0);
    let mut binary = rig.join("server", "live");
    let mut phone = rig.join("client", "live");
    phone.say("1");
    assert_eq!(rig.texts(&mut binary, 1).len(), 1);
}

#[test]
fn a_state_of_a_later_format_is_refused_with_a_sentence() {
    for (format, is_known) in [(0, false), (FORMAT, true), (FORMAT + 1, false), (u32::MAX, false)] {
        let header = Header { pyrycode_relay_state: format, from: "9.9.9".to_owned() };
        let error = format::read(&rmp_serde::to_vec_named(&header).unwrap()[..]).unwrap_err();
        let refusal = format!("and the state of version 9.9.9 has format {format}");
        assert_eq!(error.ends_with(&refusal), !is_known, "{error}");
    }
}

#[test]
fn a_header_and_a_record_may_have_fields_that_are_not_known() {
    #[derive(Serialize)]
    struct Later {
        a_new_field: [u8; 3],
        pyrycode_relay_state: u32,
        from: String,
        another: Option<String>,
    }
    let (bytes, _) = Rig::new().freeze();
    let mut header = &bytes[..];
    let _: Header = rmp_serde::from_read(&mut header).unwrap();
    let later = Later {
        a_new_field: [1, 2, 3],
        pyrycode_relay_state: FORMAT,
        from: "9.9.9".to_owned(),
        another: None,
    };
    // The relay's record, with one field more.
    let records = header.to_vec();
    let mut changed = rmp_serde::to_vec_named(&later).unwrap();
    let at = records.windows(3).position(|three| three == b"\xa2up").unwrap();
    changed.extend_from_slice(&records[..at - 1]);
    changed.push(records[at - 1] + 1);
    changed.extend_from_slice(b"\xa9new_field\x93\x01\x02\xc0");
    changed.extend_from_slice(&records[at..]);
    assert_eq!(records[at - 1] & 0xf0, 0x80, "a map of few fields");
    let state = format::read(&changed[..]).unwrap();
    assert_eq!((state.from.as_str(), state.connections.len()), ("9.9.9", 0));
}

#[test]
fn a_state_that_ends_early_is_broken_wherever_it_does() {
    let (bytes, _) = household().rig.freeze();
    let all = bytes.len();
    let step = if cfg!(relay_emulated) { 41 } else { 7 };
    // The headers and the end byte by byte, the rest in steps that meet every kind of place.
    let is_looked_at = |end: usize| {
        end < 100 || end + 50 > all || end % step == 0 && end < 3_000 || end % 389 == 0
    };
    for end in (0..all).filter(|end| is_looked_at(*end)) {
        assert!(format::read(&bytes[..end]).is_err(), "after {end} of {all} bytes");
    }
    assert!(format::read(&bytes[..]).is_ok());
}

/// Reads what may be a state, and goes on with it if it is one.
fn try_out(bytes: &[u8]) {
    if format::read(bytes).is_ok() {
        let (rig, _peers) = Rig::revive(bytes);
        rig.work(Duration::from_millis(2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(relay_emulated) { 1 } else { 8 }, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_not_quite_a_state_is_no_reason_to_panic(
        changes in prop::collection::vec(
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            1..30,
        ),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        try_out(&garbage);
        let bytes = saved::newest();
        for changes in changes {
            let mut changed = bytes.clone();
            for (index, byte) in changes {
                *index.get_mut(&mut changed) = byte;
            }
            try_out(&changed);
        }
    }
}

#[test]
fn sockets_without_a_record_and_records_without_a_socket_are_no_reason_to_panic() {
    let (bytes, sockets) = household().rig.freeze();
    let copies = |count| -> Vec<(TcpStream, bool)> {
        let some = sockets.iter().take(count);
        some.map(|(socket, told)| (socket.try_clone().unwrap(), *told)).collect()
    };
    for count in [0, 1, COUNT - 1] {
        let rig = Rig::thaw(format::read(&bytes[..]), copies(count));
        rig.work(Duration::from_millis(2));
        let counts = rig.relay.registry.counts();
        assert_eq!(counts.binaries + counts.in_grace, 2, "a slot without its binary is in grace");
    }
}

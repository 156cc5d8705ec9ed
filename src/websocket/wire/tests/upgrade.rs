//! An upgrade between any two reads changes nothing of what is decoded.

use super::violations::violations;
use super::*;

impl Peer {
    /// Freezes the input, and goes on with what is thawed from that `seconds` after the start.
    pub(super) fn upgrade(&mut self, seconds: u64) {
        let now = self.second(seconds);
        let frozen = rmp_serde::to_vec_named(&self.incoming.freeze(now)).unwrap();
        let frozen: FrozenIncoming = rmp_serde::from_slice(&frozen).unwrap();
        let largest = self.incoming.largest_message;
        let io = MockSocket::read_only();
        let thawed = Incoming::thaw(io, frozen, largest, &Rc::default(), now);
        self.incoming = thawed.expect("what was frozen can be thawed");
    }
}

#[test]
fn a_stream_with_an_upgrade_anywhere_decodes_the_same() {
    split_anywhere(|peer| {
        peer.upgrade(1);
    });
}

#[test]
fn a_stream_in_single_bytes_with_upgrades_between_them_decodes_the_same() {
    let (bytes, expected) = mixture();
    let mut peer = Peer::new();
    let mut got = Vec::new();
    for byte in bytes.chunks(1) {
        got.extend(peer.turn(byte));
        peer.upgrade(1);
    }
    assert_eq!(got, expected);
}

#[test]
fn input_that_was_not_looked_at_is_looked_at_after_an_upgrade() {
    let (bytes, expected) = mixture();
    // Behind the request, before the first turn.
    let mut peer = Peer::with_leftover(&bytes);
    peer.upgrade(1);
    assert_eq!(peer.incoming.held(), bytes.len());
    assert!(peer.incoming.has_input());
    let mut got = Vec::new();
    while let Some(next) = peer.decode() {
        got.push(next);
    }
    assert_eq!(got, expected);
    // After any number of messages of a turn.
    for decoded in 0..expected.len() {
        let mut peer = Peer::new();
        peer.fill(&bytes);
        let mut got: Vec<_> = (0..decoded).filter_map(|_| peer.decode()).collect();
        peer.incoming.end_turn();
        let held = peer.incoming.held();
        peer.upgrade(1);
        assert_eq!(peer.incoming.held(), held, "behind {decoded}");
        while let Some(next) = peer.decode() {
            got.push(next);
        }
        assert_eq!(got, expected, "behind {decoded}");
    }
}

#[test]
fn a_message_is_begun_as_long_ago_after_an_upgrade() {
    let bytes = text("message");
    for split in 1..bytes.len() {
        let mut peer = Peer::new();
        peer.take_at(&bytes[..split], peer.second(1));
        peer.incoming.end_turn();
        peer.upgrade(3);
        assert_eq!(peer.incoming.begun(), Some(peer.second(1)), "split at {split}");
        assert!(peer.incoming.is_amid_message());
        peer.take_at(&bytes[split..], peer.second(4));
        peer.incoming.end_turn();
        peer.upgrade(5);
        assert_eq!(peer.incoming.begun(), None, "split at {split}");
        assert!(!peer.incoming.is_amid_message());
    }
}

#[test]
fn what_a_message_holds_is_no_more_after_an_upgrade() {
    let bytes = text(&"x".repeat(200_000));
    for step in [1_400, BATCH] {
        let (mut peer, mut got, mut arrived) = (Peer::new(), Vec::new(), 0);
        for part in bytes.chunks(step) {
            got.extend(peer.turn(part));
            arrived += part.len();
            peer.upgrade(1);
            let held = peer.incoming.held();
            // A large piece has pages of its own.
            let most = arrived + (arrived / 4).max(512);
            assert!(held <= most, "{held} of {arrived}");
            assert!(held >= arrived - 14 || arrived == bytes.len(), "{held} of {arrived}");
        }
        assert!(got == [Got::Text("x".repeat(200_000))]);
        assert_eq!(peer.incoming.held(), 0);
    }
}

#[test]
fn a_violation_is_one_after_an_upgrade_anywhere_in_it() {
    for (bytes, expected) in violations() {
        for split in 0..=bytes.len() {
            let mut peer = Peer::new();
            let mut got = Vec::new();
            for part in [&bytes[..split], &bytes[split..], &text("behind it")] {
                if !part.is_empty() {
                    got.extend(peer.turn(part));
                }
                peer.upgrade(1);
            }
            assert_eq!(got, [Got::Violation(expected)], "{bytes:02x?} at {split}");
        }
    }
}

#[test]
fn what_is_too_big_or_has_too_many_empty_fragments_is_so_with_upgrades_in_between() {
    let mut peer = Peer::new();
    for number in 0..LARGEST / 32_768 {
        let opcode = if number == 0 { TEXT } else { CONTINUATION };
        assert_eq!(peer.turn(&encode(false, opcode, &[b'x'; 32_768])), []);
        peer.upgrade(1);
    }
    assert_eq!(peer.turn(&encode(true, CONTINUATION, b"x")), [Got::Violation(Close::TooBig)]);
    let mut peer = Peer::new();
    assert_eq!(peer.turn(&encode(false, TEXT, b"")), []);
    for _ in 1..crate::limits::MAX_EMPTY_FRAGMENTS {
        assert_eq!(peer.turn(&encode(false, CONTINUATION, b"")), []);
    }
    peer.upgrade(1);
    let got = peer.turn(&encode(false, CONTINUATION, b""));
    assert_eq!(got, [Got::Violation(Close::EmptyFragments)]);
}

#[test]
fn the_code_of_a_close_frame_survives_an_upgrade_anywhere_in_it() {
    let bytes = encode(true, CLOSE, &1014_u16.to_be_bytes());
    for split in 0..bytes.len() {
        let mut peer = Peer::new();
        if split > 0 {
            assert_eq!(peer.turn(&bytes[..split]), []);
        }
        peer.upgrade(1);
        peer.fill(&bytes[split..]);
        assert!(peer.decode().is_some());
        assert_eq!(peer.incoming.close_code(1000), 1014, "split at {split}");
    }
}

#[test]
fn whoever_is_deaf_stays_deaf_and_remembers_what_was_lost() {
    for is_amid in [false, true] {
        let mut peer = Peer::new();
        let whole = text("message");
        peer.turn(if is_amid { &whole[..5] } else { &whole });
        peer.incoming.discard();
        peer.incoming.end_turn();
        peer.upgrade(1);
        assert_eq!(peer.incoming.is_amid_message(), is_amid);
        assert_eq!(peer.turn(&text("unheard")), []);
        assert_eq!(peer.incoming.held(), 0);
    }
}

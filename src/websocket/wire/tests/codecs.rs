//! Codecs go round: who has one, and what is held for input.

use super::*;

#[test]
fn an_idle_connection_holds_nothing() {
    let mut peer = Peer::new();
    assert_eq!(peer.incoming.held(), 0);
    assert!(!peer.has_codec());
    peer.incoming.end_turn();
    assert_eq!(peer.incoming.held(), 0);
}

#[test]
fn a_codec_goes_back_at_the_next_boundary_unless_it_has_grown() {
    let codecs = Rc::default();
    let mut peer = Peer::sharing(&codecs, &[]);
    for bytes in [text("small"), encode(true, PING, &[b'p'; 125]), encode(true, PONG, b"")] {
        assert_eq!(peer.turn(&bytes).len(), 1);
        assert_eq!((peer.has_codec(), peer.incoming.held(), spare(&codecs)), (false, 0, 1));
    }
    let large = text(&"x".repeat(64 * 1024 - 100));
    assert_eq!(peer.turn(&large).len(), 1);
    assert_eq!((peer.has_codec(), peer.incoming.held(), spare(&codecs)), (false, 0, 0));
    // Not while the next message is begun, but right behind it.
    let next = text("next");
    assert_eq!(peer.turn(&[&large, &next[..7]].concat()).len(), 1);
    assert!(peer.has_codec() && peer.incoming.held() >= CODEC);
    assert_eq!(peer.turn(&next[7..]), [Got::Text("next".to_owned())]);
    assert_eq!((peer.has_codec(), peer.incoming.held(), spare(&codecs)), (false, 0, 0));
}

#[test]
fn a_codec_that_has_seen_an_end_serves_nobody_else() {
    for end in [encode(true, CLOSE, &1000_u16.to_be_bytes()), encode(true, TEXT, b"\xff")] {
        let codecs = Rc::default();
        Peer::sharing(&codecs, &[]).turn(&text("before"));
        assert_eq!(spare(&codecs), 1);
        assert_eq!(Peer::sharing(&codecs, &[]).turn(&end).len(), 1);
        assert_eq!(spare(&codecs), 0);
        let mut another = Peer::sharing(&codecs, &[]);
        assert_eq!(another.turn(&text("sound")), [Got::Text("sound".to_owned())]);
    }
}

#[test]
fn no_more_codecs_are_kept_than_the_bound() {
    let codecs = Rc::default();
    let mut peers: Vec<_> = (0..SPARE_CODECS + 3).map(|_| Peer::sharing(&codecs, &[])).collect();
    let (first, rest) = (&text("in pieces")[..5], &text("in pieces")[5..]);
    for peer in &mut peers {
        assert_eq!(peer.turn(first), []);
    }
    for peer in &mut peers {
        assert_eq!(peer.turn(rest), [Got::Text("in pieces".to_owned())]);
    }
    assert_eq!(spare(&codecs), SPARE_CODECS);
}

#[test]
fn legs_with_other_limits_have_codecs_of_their_own() {
    let codecs = Rc::default();
    Peer::sharing(&codecs, &[]).turn(&text("large ones may follow"));
    let mut strict = Peer::sharing(&codecs, &[]);
    strict.incoming.largest_message = 4;
    assert_eq!(strict.turn(&text("12345")), [Got::Violation(Close::TooBig)]);
    assert_eq!(spare(&codecs), 1);
}

#[test]
fn a_codec_that_a_message_or_a_frame_is_in_is_never_taken_apart() {
    let (bytes, expected) = mixture();
    let mut peer = Peer::new();
    let mut got = Vec::new();
    for byte in bytes.chunks(1) {
        got.extend(peer.turn(byte));
    }
    assert_eq!(got, expected);
}

#[test]
fn what_a_message_announces_counts_as_held() {
    let length = 200_000;
    let bytes = text(&"x".repeat(length));
    let mut peer = Peer::new();
    assert_eq!(peer.turn(&bytes[..13]), []);
    let held = peer.incoming.held();
    assert!(held < 2 * CODEC, "{held} before its length is known");
    assert_eq!(peer.turn(&bytes[13..14]), []);
    let held = peer.incoming.held();
    assert!((length..length + 2 * CODEC).contains(&held), "{held}");
    for part in bytes[14..].chunks(BATCH) {
        assert_eq!(peer.incoming.held(), held, "it is in already");
        peer.turn(part);
    }
    assert_eq!(peer.incoming.held(), 0);
}

#[test]
fn fragments_count_as_held_until_their_message_is_whole() {
    let mut peer = Peer::new();
    let part = vec![b'x'; 30_000];
    let mut expected = 0;
    for number in 0..5 {
        assert_eq!(
            peer.turn(&encode(false, if number == 0 { TEXT } else { CONTINUATION }, &part)),
            []
        );
        peer.turn(&encode(true, PING, b"between"));
        expected += part.len();
        let held = peer.incoming.held();
        assert!((expected..expected + 2 * CODEC).contains(&held), "{held} after {number}");
    }
    assert_eq!(peer.turn(&encode(true, CONTINUATION, b"")).len(), 1);
    assert_eq!(peer.incoming.held(), 0);
}

fn spare(codecs: &Codecs) -> usize {
    codecs.0.borrow().len()
}

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
fn a_codec_goes_back_with_the_turn_unless_it_has_grown() {
    let codecs = Rc::default();
    let mut peer = Peer::sharing(&codecs, &[]);
    for bytes in [text("small"), encode(true, PING, &[b'p'; 125]), encode(true, PONG, b"")] {
        assert_eq!(peer.turn(&bytes).len(), 1);
        assert_eq!((peer.has_codec(), peer.incoming.held(), spare(&codecs)), (false, 0, 1));
    }
    let large = text(&"x".repeat(64 * 1024 - 100));
    assert_eq!(peer.turn(&large).len(), 1);
    assert_eq!((peer.has_codec(), peer.incoming.held(), spare(&codecs)), (false, 0, 0));
    // Nor is one kept for the message that has begun behind it.
    let next = text("next");
    assert_eq!(peer.turn(&[&large, &next[..7]].concat()).len(), 1);
    assert_eq!((peer.has_codec(), spare(&codecs)), (false, 0));
    // What came in pieces needs none.
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
    for peer in &mut peers {
        assert_eq!(peer.take(&text("amid a turn")).len(), 1);
        assert!(peer.has_codec());
    }
    peers.iter_mut().for_each(|peer| peer.incoming.end_turn());
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

/// What may be held of a message of which so much has arrived.
fn bound(arrived: usize) -> usize {
    arrived + (arrived / 4).max(512)
}

#[test]
fn what_a_message_announces_costs_nothing_and_what_arrives_what_it_is() {
    let bytes = text(&"x".repeat(200_000));
    for step in [1_400, BATCH] {
        let mut peer = Peer::new();
        let mut arrived = 0;
        for part in bytes.chunks(step) {
            assert!(peer.incoming.held() <= bound(arrived), "{arrived}: {}", peer.incoming.held());
            peer.turn(part);
            arrived += part.len();
            assert!(peer.incoming.held() >= arrived || arrived == bytes.len());
        }
        assert_eq!(peer.incoming.held(), 0);
    }
    let mut peer = Peer::new();
    peer.turn(&bytes[..14]);
    assert!(peer.incoming.held() <= bound(14), "{}", peer.incoming.held());
}

#[test]
fn fragments_count_as_held_until_their_message_is_whole() {
    let mut peer = Peer::new();
    let part = vec![b'x'; 30_000];
    let mut arrived = 0;
    for number in 0..5 {
        let fragment = encode(false, if number == 0 { TEXT } else { CONTINUATION }, &part);
        assert_eq!(peer.turn(&fragment), []);
        peer.turn(&encode(true, PING, b"between"));
        arrived += part.len();
        let held = peer.incoming.held();
        assert!((arrived..=bound(arrived)).contains(&held), "{held} after {number}");
    }
    assert_eq!(peer.turn(&encode(true, CONTINUATION, b"")).len(), 1);
    assert_eq!(peer.incoming.held(), 0);
}

#[test]
fn control_frames_between_fragments_pass_at_once_however_they_are_split() {
    let (ping, begun) = (encode(true, PING, b"between"), encode(false, TEXT, b"be"));
    for split in 0..=begun.len() + ping.len() {
        let bytes = [begun.clone(), ping.clone()].concat();
        let mut peer = Peer::new();
        let mut got = Vec::new();
        for part in [&bytes[..split], &bytes[split..]] {
            if !part.is_empty() {
                got.extend(peer.turn(part));
            }
        }
        assert_eq!(got, [Got::Ping(b"between".to_vec())], "split at {split}");
        assert_eq!(peer.turn(&encode(true, CONTINUATION, b"gun")), [Got::Text("begun".to_owned())]);
    }
}

#[test]
fn a_refused_header_is_refused_before_its_frame_is_whole() {
    for (header, expected) in [
        (vec![0xc1, 0xfe, 0x10, 0x00], Close::Protocol),
        (vec![0x83, 0xfe, 0x10, 0x00], Close::Protocol),
        (vec![0x80, 0xfe, 0x10, 0x00], Close::Protocol),
        (vec![0x81, 0x7e, 0x10, 0x00], Close::Protocol),
        (vec![0x89, 0xfe, 0x00, 0x7e], Close::Protocol),
        (vec![0x01, 0xff, 0, 0, 0, 0, 1, 0, 0, 0], Close::TooBig),
    ] {
        let mut peer = Peer::new();
        let bytes = [header, vec![1, 2, 3, 4]].concat();
        assert_eq!(peer.turn(&bytes), [Got::Violation(expected)], "{bytes:02x?}");
    }
}

#[test]
fn the_smallest_fragments_hold_no_more_than_their_message_and_cost_the_codec_one_frame() {
    const LENGTH: usize = 50_000;
    let mut peer = Peer::new();
    let fragment = |number| encode(false, if number == 0 { TEXT } else { CONTINUATION }, b"x");
    for number in 0..LENGTH {
        assert_eq!(peer.turn(&fragment(number)), []);
    }
    let held = peer.incoming.held();
    assert!(held <= bound(LENGTH), "{held}");
    peer.fill(&encode(true, CONTINUATION, b""));
    let mut cx = Context::from_waker(Waker::noop());
    peer.incoming.begin_turn(1, false);
    match peer.incoming.decode(&mut cx, peer.start) {
        Decoded::Message(Message::Text(text)) => assert_eq!(text.as_str(), "x".repeat(LENGTH)),
        other => panic!("{other:?}"),
    }
}

fn spare(codecs: &Codecs) -> usize {
    codecs.0.borrow().len()
}

//! What one turn decodes at most.

use super::*;
use crate::limits::MAX_EMPTY_FRAGMENTS;

fn empty_fragments(count: usize) -> Vec<u8> {
    let mut bytes = encode(false, TEXT, b"");
    (1..count).for_each(|_| bytes.extend(encode(false, CONTINUATION, b"")));
    bytes
}

/// Decodes as a turn of `frames` frames does; what came of it.
fn decode(peer: &mut Peer, frames: usize) -> Vec<Decoded> {
    let mut cx = Context::from_waker(Waker::noop());
    peer.incoming.begin_turn(frames, false);
    let mut decoded = Vec::new();
    loop {
        match peer.incoming.decode(&mut cx, peer.start) {
            Decoded::NeedInput => return decoded,
            Decoded::Violation(close) => return vec![Decoded::Violation(close)],
            message => decoded.push(message),
        }
    }
}

#[test]
fn a_turn_ends_after_its_frames_however_empty_they_are() {
    const FRAMES: usize = 100;
    let mut peer = Peer::new();
    peer.fill(&[empty_fragments(1000), encode(true, CONTINUATION, b"x")].concat());
    for turn in 1..=10 {
        assert!(decode(&mut peer, FRAMES).is_empty());
        peer.incoming.end_turn();
        let left = (1000 - turn * FRAMES) * 6 + 7;
        assert_eq!(peer.incoming.kept.input.borrow().len(), left, "turn {turn}");
    }
    assert!(matches!(&decode(&mut peer, FRAMES)[..], [Decoded::Message(Message::Text(_))]));
    assert!(!peer.incoming.has_input());
}

#[test]
fn control_frames_count_like_any_other() {
    let mut peer = Peer::new();
    let pings = encode(true, PING, b"").repeat(7);
    peer.fill(&[encode(false, TEXT, b""), pings, encode(true, CONTINUATION, b"x")].concat());
    assert_eq!(decode(&mut peer, 3).len(), 2, "the fragment and two pings");
    assert_eq!(decode(&mut peer, 3).len(), 3);
    assert_eq!(decode(&mut peer, 3).len(), 3, "two pings and the message");
}

#[test]
fn a_message_of_empty_fragments_without_an_end_is_refused() {
    let mut peer = Peer::new();
    assert_eq!(peer.turn(&empty_fragments(MAX_EMPTY_FRAGMENTS)), []);
    let got = peer.turn(&encode(false, CONTINUATION, b""));
    assert_eq!(got, [Got::Violation(Close::EmptyFragments)]);
    // As many in several messages are nobody's fault.
    let mut peer = Peer::new();
    for _ in 0..4 {
        let message = [empty_fragments(MAX_EMPTY_FRAGMENTS / 2), encode(true, CONTINUATION, b"x")];
        assert_eq!(peer.turn(&message.concat()), [Got::Text("x".to_owned())]);
    }
}

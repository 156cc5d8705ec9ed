//! Since when a message is begun.

use super::*;

#[test]
fn a_message_is_begun_from_its_first_byte_to_its_last() {
    let bytes = text("message");
    for split in 1..bytes.len() {
        let mut peer = Peer::new();
        assert_eq!(peer.incoming.begun(), None);
        let (first, rest) = bytes.split_at(split);
        peer.take_at(first, peer.second(1));
        assert_eq!(peer.incoming.begun(), Some(peer.second(1)), "split at {split}");
        peer.incoming.end_turn();
        assert_eq!(peer.take_at(rest, peer.second(2)).len(), 1);
        assert_eq!(peer.incoming.begun(), None, "split at {split}");
    }
}

#[test]
fn fragments_and_control_frames_between_them_do_not_begin_anew() {
    let mut peer = Peer::new();
    let ping = encode(true, PING, b"ping");
    peer.take_at(&encode(false, TEXT, b"a"), peer.second(1));
    assert_eq!(peer.incoming.begun(), Some(peer.second(1)));
    for (second, part) in [(2, &ping[..]), (3, &ping[..3]), (4, &ping[3..])] {
        peer.take_at(part, peer.second(second));
        assert_eq!(peer.incoming.begun(), Some(peer.second(1)), "second {second}");
    }
    peer.take_at(&encode(false, CONTINUATION, b"b"), peer.second(5));
    assert_eq!(peer.incoming.begun(), Some(peer.second(1)));
    assert_eq!(
        peer.take_at(&encode(true, CONTINUATION, b"c"), peer.second(6)),
        [Got::Text("abc".to_owned())]
    );
    assert_eq!(peer.incoming.begun(), None);
}

#[test]
fn control_frames_between_messages_begin_nothing_that_lasts() {
    let mut peer = Peer::new();
    peer.take_at(&encode(true, PING, b"ping"), peer.second(1));
    assert_eq!(peer.incoming.begun(), None);
    let next = text("next");
    let both = [encode(true, PONG, b""), text("whole"), next[..3].to_vec()].concat();
    assert_eq!(peer.take_at(&both, peer.second(2)).len(), 2);
    assert_eq!(peer.incoming.begun(), Some(peer.second(2)));
}

#[test]
fn a_message_behind_another_begins_when_it_is_decoded() {
    let mut peer = Peer::new();
    let next = text("next");
    peer.fill(&[text("first"), next[..3].to_vec()].concat());
    assert_eq!(peer.decode_at(peer.second(1)), Some(Got::Text("first".to_owned())));
    assert_eq!(peer.incoming.begun(), None, "the relay has not looked at it yet");
    assert_eq!(peer.decode_at(peer.second(9)), None);
    assert_eq!(peer.incoming.begun(), Some(peer.second(9)));
}

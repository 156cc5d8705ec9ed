//! What a peer may not send.

use relay_test_kit::frame::{Header, encode_with};

use super::*;

#[test]
fn an_absurd_length_is_a_violation_and_reserves_nothing() {
    for length in [LARGEST as u64 + 1, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        let mut peer = Peer::new();
        let header = Header { first: 0x80 | TEXT, length, mask: Some([1, 2, 3, 4]) };
        let got = peer.take(&header.encode());
        assert!(
            matches!(got[..], [Got::Violation(Close::TooBig | Close::Protocol)]),
            "{length}: {got:?}"
        );
        assert_eq!(peer.take(&[b'x'; 1000]), []);
        peer.incoming.end_turn();
        assert_eq!((peer.has_codec(), peer.incoming.held()), (false, 0));
    }
}

#[test]
fn a_message_of_the_largest_size_passes_and_fragments_above_it_do_not() {
    let whole = text(&"x".repeat(LARGEST));
    let mut peer = Peer::new();
    let got: Vec<_> = whole.chunks(BATCH).flat_map(|part| peer.turn(part)).collect();
    assert!(got == [Got::Text("x".repeat(LARGEST))]);
    let mut peer = Peer::new();
    for number in 0..LARGEST / 32_768 {
        let opcode = if number == 0 { TEXT } else { CONTINUATION };
        assert_eq!(peer.turn(&encode(false, opcode, &[b'x'; 32_768])), []);
    }
    assert_eq!(peer.turn(&encode(true, CONTINUATION, b"x")), [Got::Violation(Close::TooBig)]);
}

/// What breaks the rules, and what of it is said.
pub(super) fn violations() -> Vec<(Vec<u8>, Close)> {
    vec![
        (encode_with(true, TEXT, b"hi", None), Close::Protocol),
        (encode(true, 0x40 | TEXT, b"hi"), Close::Protocol),
        (encode(true, 0x3, b"unknown"), Close::Protocol),
        (encode(true, 0xb, b"unknown"), Close::Protocol),
        (encode(false, PING, b"fragmented"), Close::Protocol),
        (encode(true, PING, &[b'x'; 126]), Close::Protocol),
        (encode(true, CONTINUATION, b"stray"), Close::Protocol),
        ([encode(false, TEXT, b"a"), text("b")].concat(), Close::Protocol),
        (encode(true, CLOSE, b"\x03"), Close::Protocol),
        (encode(true, TEXT, b"\xff"), Close::BadUtf8),
        (
            [encode(false, TEXT, b"\xc3"), encode(true, CONTINUATION, b"\x28")].concat(),
            Close::BadUtf8,
        ),
    ]
}

#[test]
fn violations_are_told_apart() {
    for (bytes, expected) in violations() {
        let mut peer = Peer::new();
        let got = peer.turn(&[bytes.clone(), text("behind it")].concat());
        assert_eq!(got, [Got::Violation(expected)], "{bytes:02x?}");
        assert_eq!(peer.turn(&text("later")), [], "{bytes:02x?}");
    }
}

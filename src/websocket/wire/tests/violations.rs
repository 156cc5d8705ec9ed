//! What a peer may not send.

use super::*;

#[test]
fn an_absurd_length_is_a_violation_and_reserves_nothing() {
    for length in [LARGEST as u64 + 1, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        let mut peer = Peer::new();
        let mut bytes = vec![0x80 | TEXT, 0x80 | 127];
        bytes.extend(length.to_be_bytes());
        bytes.extend([1, 2, 3, 4]);
        let got = peer.take(&bytes);
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
        assert_eq!(peer.turn(&frame(false, opcode, &[b'x'; 32_768])), []);
    }
    assert_eq!(peer.turn(&frame(true, CONTINUATION, b"x")), [Got::Violation(Close::TooBig)]);
}

#[test]
fn violations_are_told_apart() {
    let unmasked = b"\x81\x02hi".to_vec();
    let mut reserved = text("hi");
    reserved[0] |= 0x40;
    for (bytes, expected) in [
        (unmasked, Close::Protocol),
        (reserved, Close::Protocol),
        (frame(true, 0x3, b"unknown"), Close::Protocol),
        (frame(true, 0xb, b"unknown"), Close::Protocol),
        (frame(false, PING, b"fragmented"), Close::Protocol),
        (frame(true, PING, &[b'x'; 126]), Close::Protocol),
        (frame(true, CONTINUATION, b"stray"), Close::Protocol),
        ([frame(false, TEXT, b"a"), text("b")].concat(), Close::Protocol),
        (frame(true, CLOSE, b"\x03"), Close::Protocol),
        (frame(true, TEXT, b"\xff"), Close::BadUtf8),
        (
            [frame(false, TEXT, b"\xc3"), frame(true, CONTINUATION, b"\x28")].concat(),
            Close::BadUtf8,
        ),
    ] {
        let mut peer = Peer::new();
        let got = peer.turn(&[bytes.clone(), text("behind it")].concat());
        assert_eq!(got, [Got::Violation(expected)], "{bytes:02x?}");
        assert_eq!(peer.turn(&text("later")), [], "{bytes:02x?}");
    }
}

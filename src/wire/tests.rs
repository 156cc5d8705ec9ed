use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits::BATCH_BYTES as BATCH;

const LARGEST: usize = 256 * 1024;
const CODEC: usize = CODEC_BUFFER + CODEC_OVERHEAD;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// A socket that gives what it was fed, a chunk a read, and waits between.
#[derive(Default, Debug)]
struct Socket {
    chunks: VecDeque<Vec<u8>>,
    at_end: bool,
    failure: Option<io::ErrorKind>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failure {
            return Poll::Ready(Err(kind.into()));
        }
        match self.chunks.pop_front() {
            Some(chunk) => {
                buffer[..chunk.len()].copy_from_slice(&chunk);
                Poll::Ready(Ok(chunk.len()))
            }
            None if self.at_end => Poll::Ready(Ok(0)),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        panic!("what the codec says by itself goes nowhere, not even {bytes:?}")
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        panic!("the codec flushes nothing")
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        panic!("the codec closes nothing")
    }
}

/// An [`Incoming`] with all that it needs to be driven by hand.
struct Peer {
    incoming: Incoming<Socket>,
    scratch: Rc<Scratch>,
    start: Instant,
}

/// A message, or why there are no more.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Got {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
    Violation(Close),
}

impl Peer {
    fn new() -> Self {
        Self::with_leftover(&[])
    }

    fn with_leftover(leftover: &[u8]) -> Self {
        Self::sharing(&Rc::default(), leftover)
    }

    /// A peer that decodes with these codecs.
    fn sharing(codecs: &Rc<Codecs>, leftover: &[u8]) -> Self {
        Self {
            incoming: Incoming::new(Socket::default(), leftover.to_vec(), LARGEST, codecs),
            scratch: Rc::default(),
            start: Instant::now(),
        }
    }

    /// A moment, seconds after the start.
    fn second(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    /// Reads one chunk of these bytes.
    fn fill(&mut self, bytes: &[u8]) {
        self.incoming.io().chunks.push_back(bytes.to_vec());
        let mut cx = Context::from_waker(Waker::noop());
        match self.incoming.poll_fill(&mut cx, &self.scratch) {
            Poll::Ready(Ok(read)) => assert_eq!(read, bytes.len()),
            other => panic!("{other:?}"),
        }
    }

    /// Decodes one thing, which begins at `now` if it begins here.
    fn decode_at(&mut self, now: Instant) -> Option<Got> {
        let mut cx = Context::from_waker(Waker::noop());
        Some(match self.incoming.decode(&mut cx, now) {
            Decoded::NeedInput => return None,
            Decoded::Violation(close) => Got::Violation(close),
            Decoded::Message(Message::Text(text)) => Got::Text(text.as_str().to_owned()),
            Decoded::Message(Message::Binary(bytes)) => Got::Binary(bytes.to_vec()),
            Decoded::Message(Message::Ping(payload)) => Got::Ping(payload.to_vec()),
            Decoded::Message(Message::Pong(payload)) => Got::Pong(payload.to_vec()),
            Decoded::Message(Message::Close(close)) => {
                Got::Close(close.map(|close| u16::from(close.code)))
            }
            Decoded::Message(Message::Frame(frame)) => panic!("a raw {frame:?}"),
        })
    }

    fn decode(&mut self) -> Option<Got> {
        self.decode_at(self.start)
    }

    /// Reads these bytes and decodes what they make whole.
    fn take_at(&mut self, bytes: &[u8], now: Instant) -> Vec<Got> {
        self.fill(bytes);
        let mut got = Vec::new();
        while let Some(next) = self.decode_at(now) {
            let ended = matches!(next, Got::Violation(_) | Got::Close(_));
            got.push(next);
            if ended {
                self.incoming.discard();
            }
        }
        got
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<Got> {
        self.take_at(bytes, self.start)
    }

    /// The same as a whole turn.
    fn turn(&mut self, bytes: &[u8]) -> Vec<Got> {
        let got = self.take(bytes);
        self.incoming.rest();
        got
    }

    fn has_codec(&self) -> bool {
        matches!(self.incoming.state, State::Coded(_))
    }
}

fn frame(is_final: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0x9c, 0xe2, 0x7f];
    let mut bytes = vec![u8::from(is_final) << 7 | opcode];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=65_535 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn text(text: &str) -> Vec<u8> {
    frame(true, TEXT, text.as_bytes())
}

/// Of all kinds of frames one, with each form of the length but the longest.
fn mixture() -> (Vec<u8>, Vec<Got>) {
    let long = "é".repeat(100);
    let bytes = [
        text("first"),
        frame(true, PING, b"ping"),
        frame(true, BINARY, b"\x00\xff"),
        frame(false, TEXT, "frag\u{e9}".as_bytes().split_at(5).0),
        frame(true, PING, b""),
        frame(false, CONTINUATION, b""),
        frame(false, CONTINUATION, "frag\u{e9}".as_bytes().split_at(5).1),
        frame(true, PONG, &[7; 125]),
        frame(true, CONTINUATION, b"ments"),
        text(""),
        text(&long),
        frame(true, CLOSE, b"\x0f\xa0bye"),
    ]
    .concat();
    let got = vec![
        Got::Text("first".to_owned()),
        Got::Ping(b"ping".to_vec()),
        Got::Binary(vec![0, 255]),
        Got::Ping(Vec::new()),
        Got::Pong(vec![7; 125]),
        Got::Text("fragéments".to_owned()),
        Got::Text(String::new()),
        Got::Text(long),
        Got::Close(Some(4000)),
    ];
    (bytes, got)
}

#[test]
fn a_stream_split_anywhere_decodes_the_same() {
    let (bytes, expected) = mixture();
    for split in 0..=bytes.len() {
        let mut peer = Peer::new();
        let mut got = Vec::new();
        for part in [&bytes[..split], &bytes[split..]] {
            if !part.is_empty() {
                got.extend(peer.turn(part));
            }
        }
        assert_eq!(got, expected, "split at {split}");
    }
}

#[test]
fn a_stream_in_single_bytes_decodes_the_same() {
    let (bytes, expected) = mixture();
    let mut peer = Peer::new();
    let got: Vec<_> = bytes.chunks(1).flat_map(|byte| peer.turn(byte)).collect();
    assert_eq!(got, expected);
}

#[test]
fn a_stream_that_came_with_the_request_decodes_the_same() {
    let (bytes, expected) = mixture();
    for split in 0..=bytes.len() {
        let (leftover, rest) = bytes.split_at(split);
        let mut peer = Peer::with_leftover(leftover);
        assert_eq!(peer.incoming.has_input(), split > 0);
        let mut got = Vec::new();
        while let Some(next) = peer.decode() {
            got.push(next);
        }
        peer.incoming.rest();
        if !rest.is_empty() {
            got.extend(peer.turn(rest));
        }
        assert_eq!(got, expected, "split at {split}");
    }
}

#[test]
fn large_messages_decode_wherever_their_headers_are_split() {
    let long = "x".repeat(70_000);
    let bytes = [text(&long), text("next")].concat();
    for split in (1..=20).chain([bytes.len() - 11, bytes.len() - 10, bytes.len() - 9]) {
        let mut peer = Peer::new();
        let mut got = peer.turn(&bytes[..split.min(BATCH)]);
        for part in bytes[split.min(BATCH)..].chunks(BATCH) {
            got.extend(peer.turn(part));
        }
        assert!(got == [Got::Text(long.clone()), Got::Text("next".to_owned())], "at {split}");
    }
}

#[test]
fn an_idle_connection_holds_nothing() {
    let mut peer = Peer::new();
    assert_eq!(peer.incoming.held(), 0);
    assert!(!peer.has_codec());
    peer.incoming.rest();
    assert_eq!(peer.incoming.held(), 0);
}

#[test]
fn a_codec_goes_back_at_the_next_boundary_unless_it_has_grown() {
    let codecs = Rc::default();
    let mut peer = Peer::sharing(&codecs, &[]);
    for bytes in [text("small"), frame(true, PING, &[b'p'; 125]), frame(true, PONG, b"")] {
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
    for end in [frame(true, CLOSE, &1000_u16.to_be_bytes()), frame(true, TEXT, b"\xff")] {
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
            peer.turn(&frame(false, if number == 0 { TEXT } else { CONTINUATION }, &part)),
            []
        );
        peer.turn(&frame(true, PING, b"between"));
        expected += part.len();
        let held = peer.incoming.held();
        assert!((expected..expected + 2 * CODEC).contains(&held), "{held} after {number}");
    }
    assert_eq!(peer.turn(&frame(true, CONTINUATION, b"")).len(), 1);
    assert_eq!(peer.incoming.held(), 0);
}

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
        peer.incoming.rest();
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

#[test]
fn a_message_is_begun_from_its_first_byte_to_its_last() {
    let bytes = text("message");
    for split in 1..bytes.len() {
        let mut peer = Peer::new();
        assert_eq!(peer.incoming.begun(), None);
        let (first, rest) = bytes.split_at(split);
        peer.take_at(first, peer.second(1));
        assert_eq!(peer.incoming.begun(), Some(peer.second(1)), "split at {split}");
        peer.incoming.rest();
        assert_eq!(peer.take_at(rest, peer.second(2)).len(), 1);
        assert_eq!(peer.incoming.begun(), None, "split at {split}");
    }
}

#[test]
fn fragments_and_control_frames_between_them_do_not_begin_anew() {
    let mut peer = Peer::new();
    let ping = frame(true, PING, b"ping");
    peer.take_at(&frame(false, TEXT, b"a"), peer.second(1));
    assert_eq!(peer.incoming.begun(), Some(peer.second(1)));
    for (second, part) in [(2, &ping[..]), (3, &ping[..3]), (4, &ping[3..])] {
        peer.take_at(part, peer.second(second));
        assert_eq!(peer.incoming.begun(), Some(peer.second(1)), "second {second}");
    }
    peer.take_at(&frame(false, CONTINUATION, b"b"), peer.second(5));
    assert_eq!(peer.incoming.begun(), Some(peer.second(1)));
    assert_eq!(
        peer.take_at(&frame(true, CONTINUATION, b"c"), peer.second(6)),
        [Got::Text("abc".to_owned())]
    );
    assert_eq!(peer.incoming.begun(), None);
}

#[test]
fn control_frames_between_messages_begin_nothing_that_lasts() {
    let mut peer = Peer::new();
    peer.take_at(&frame(true, PING, b"ping"), peer.second(1));
    assert_eq!(peer.incoming.begun(), None);
    let next = text("next");
    let both = [frame(true, PONG, b""), text("whole"), next[..3].to_vec()].concat();
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

#[test]
fn undecoded_input_is_kept_and_counted_over_a_rest() {
    let mut peer = Peer::new();
    let messages: Vec<_> = (0..50).map(|number| text(&format!("message {number}"))).collect();
    let bytes = messages.concat();
    peer.fill(&bytes);
    let mut left = bytes.len();
    for (number, message) in messages.iter().enumerate() {
        assert_eq!(peer.decode(), Some(Got::Text(format!("message {number}"))));
        for _ in 0..2 {
            peer.incoming.rest();
        }
        left -= message.len();
        assert_eq!(peer.incoming.held(), left, "behind message {number}");
        assert_eq!(peer.incoming.has_input(), left > 0);
    }
    assert_eq!(peer.decode(), None);
    assert_eq!(peer.turn(&text("more")), [Got::Text("more".to_owned())]);
}

#[test]
fn the_shared_buffer_goes_back_with_every_rest() {
    let mut peer = Peer::new();
    peer.turn(&text("whole"));
    let address = |peer: &Peer| peer.scratch.lend().as_ptr();
    let first = address(&peer);
    peer.fill(&[text("whole"), text("half")[..5].to_vec()].concat());
    assert_ne!(address(&peer), first, "it is lent while input is in it");
    while peer.decode().is_some() {}
    peer.incoming.rest();
    let again = address(&peer);
    peer.fill(&text("half")[5..]);
    assert_eq!(peer.decode(), Some(Got::Text("half".to_owned())));
    peer.incoming.rest();
    assert_eq!(address(&peer), again);
}

#[test]
fn discarded_input_is_neither_decoded_nor_kept() {
    let large = text(&"x".repeat(100_000));
    let mut peer = Peer::new();
    peer.take_at(&large[..BATCH], peer.second(1));
    assert!(peer.incoming.held() > 100_000);
    peer.incoming.discard();
    assert_eq!((peer.incoming.begun(), peer.has_codec()), (None, false));
    peer.incoming.rest();
    assert_eq!(peer.incoming.held(), 0);
    for bytes in [&large[BATCH..], &text("message"), b"\xff\xff\xff"] {
        assert_eq!(peer.turn(bytes), []);
        assert_eq!((peer.incoming.held(), peer.incoming.begun()), (0, None));
    }
    let mut peer = Peer::new();
    peer.fill(&[text("first"), text("second")].concat());
    assert_eq!(peer.decode(), Some(Got::Text("first".to_owned())));
    peer.incoming.discard();
    assert_eq!(peer.decode(), None, "what was there already is thrown away as well");
}

#[test]
fn the_end_and_the_errors_of_the_socket_are_handed_on() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut peer = Peer::new();
    assert!(peer.incoming.poll_fill(&mut cx, &peer.scratch).is_pending());
    peer.incoming.io().at_end = true;
    assert!(matches!(peer.incoming.poll_fill(&mut cx, &peer.scratch), Poll::Ready(Ok(0))));
    peer.incoming.io().failure = Some(io::ErrorKind::ConnectionReset);
    match peer.incoming.poll_fill(&mut cx, &peer.scratch) {
        Poll::Ready(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}

fn spare(codecs: &Codecs) -> usize {
    codecs.0.borrow().len()
}

/// A message with the sizes of its fragments, and whether a ping goes in front of each.
fn message() -> impl Strategy<Value = (String, Vec<usize>, bool)> {
    let length = prop_oneof![4 => 0_usize..300, 1 => 4_000_usize..5_000, 1 => 60_000_usize..70_000];
    (length, prop::collection::vec(0_usize..5_000, 0..4), any::<bool>())
        .prop_map(|(length, cuts, pings)| ("é".repeat(length / 2), cuts, pings))
}

proptest! {
    // Some of them are long.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_messages_in_any_chunks_decode_the_same(
        messages in prop::collection::vec(message(), 1..6),
        sizes in prop::collection::vec(prop_oneof![1_usize..40, 1_usize..BATCH], 1..10),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (text, cuts, pings) in &messages {
            let mut rest = text.as_bytes();
            for (number, cut) in cuts.iter().enumerate() {
                if *pings {
                    bytes.extend(frame(true, PING, &[7]));
                    expected.push(Got::Ping(vec![7]));
                }
                let (part, behind) = rest.split_at((*cut).min(rest.len()));
                bytes.extend(frame(false, if number == 0 { TEXT } else { CONTINUATION }, part));
                rest = behind;
            }
            bytes.extend(frame(true, if cuts.is_empty() { TEXT } else { CONTINUATION }, rest));
            expected.push(Got::Text(text.clone()));
        }
        // Two connections by turns with the same codecs, one of them a chunk behind.
        let codecs = Rc::default();
        let mut peers = [(); 2].map(|()| (Peer::sharing(&codecs, &[]), Vec::new()));
        let mut chunks = Vec::new();
        let mut rest = &bytes[..];
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, behind) = rest.split_at((*size).min(rest.len()));
            chunks.push(chunk);
            rest = behind;
        }
        for turn in 0..=chunks.len() {
            for (lag, (peer, got)) in peers.iter_mut().enumerate() {
                if let Some(chunk) = turn.checked_sub(lag).and_then(|turn| chunks.get(turn)) {
                    got.extend(peer.turn(chunk));
                }
            }
        }
        for (peer, got) in peers {
            prop_assert!(got == expected);
            prop_assert_eq!(peer.incoming.begun(), None);
            prop_assert_eq!(peer.incoming.held(), 0);
        }
    }
}

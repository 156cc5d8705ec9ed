//! What RFC 6455 asks of a server: what it allows passes, and each violation closes its own
//! connection, with the right code and in order, and nobody else's.

use relay_test_kit::frame::{Header, encode_with};

use crate::rig::ws::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode};
use crate::rig::{Relay, Ws, envelope, events, fresh_id, notice};

#[test]
fn an_unmasked_frame_is_a_protocol_error() {
    let mut scene = Scene::new();
    for (opcode, payload) in [(TEXT, &b"1"[..]), (TEXT, b""), (PING, b"ping"), (CLOSE, b"\x03\xe8")]
    {
        let case = format!("{opcode:#x} with {payload:?}");
        scene.violate(&case, &encode_with(true, opcode, payload, None), 1002);
    }
}

#[test]
fn each_reserved_bit_is_a_protocol_error() {
    let mut scene = Scene::new();
    for bit in [0x40, 0x20, 0x10, 0x70] {
        for (opcode, payload) in [(TEXT, &b"1"[..]), (PING, b""), (CLOSE, b"\x03\xe8")] {
            let case = format!("{bit:#x} and {opcode:#x}");
            scene.violate(&case, &encode(true, bit | opcode, payload), 1002);
        }
        let begun = encode(false, TEXT, b"1");
        let continued = encode(true, bit | CONTINUATION, b"2");
        scene.violate(&format!("{bit:#x} later"), &[begun, continued].concat(), 1002);
    }
}

#[test]
fn an_unknown_opcode_is_a_protocol_error() {
    let mut scene = Scene::new();
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        for payload in [&b""[..], b"1"] {
            scene.violate(&format!("{opcode:#x}"), &encode(true, opcode, payload), 1002);
        }
    }
}

#[test]
fn a_fragmented_control_frame_is_a_protocol_error() {
    let mut scene = Scene::new();
    for opcode in [PING, PONG, CLOSE] {
        scene.violate(&format!("{opcode:#x}"), &encode(false, opcode, b""), 1002);
    }
}

#[test]
fn a_control_frame_of_more_than_125_bytes_is_a_protocol_error() {
    let mut scene = Scene::new();
    for opcode in [PING, PONG, CLOSE] {
        for length in [126, 127, 70_000] {
            let payload = [b"\x03\xe8", &vec![b'x'; length - 2][..]].concat();
            let case = format!("{opcode:#x} of {length} bytes");
            scene.violate(&case, &encode(true, opcode, &payload), 1002);
        }
    }
}

#[test]
fn a_continuation_of_nothing_is_a_protocol_error() {
    let mut scene = Scene::new();
    scene.violate("final", &encode(true, CONTINUATION, b"1"), 1002);
    scene.violate("not final", &encode(false, CONTINUATION, b"1"), 1002);
    scene.violate("empty", &encode(true, CONTINUATION, b""), 1002);
    let behind_a_ping = [encode(true, PING, b""), encode(true, CONTINUATION, b"1")].concat();
    let mut offender = scene.relay.phone(&scene.id);
    offender.send_raw(&behind_a_ping);
    assert_eq!(offender.read_frame().opcode, PONG);
    expect_failed(&mut offender, "behind a ping", 1002);
}

#[test]
fn a_continuation_behind_the_last_fragment_is_a_protocol_error() {
    let mut scene = Scene::new();
    let (mut phone, conn_id) = scene.relay.registered_phone(&scene.id);
    phone.send_raw(&fragments(TEXT, b"12", &[1]));
    phone.send_frame(true, CONTINUATION, b"3");
    expect_failed(&mut phone, "behind a message", 1002);
    assert_eq!(scene.binary.read_text(), envelope(&conn_id, "12"));
    assert_eq!(scene.binary.read_text(), notice(&conn_id, 1002));
    scene.check_healthy("behind a message");
}

#[test]
fn a_new_data_frame_inside_a_fragmented_message_is_a_protocol_error() {
    let mut scene = Scene::new();
    for opcode in [TEXT, BINARY] {
        for is_final in [true, false] {
            let bytes = [encode(false, TEXT, b"1"), encode(is_final, opcode, b"2")].concat();
            scene.violate(&format!("{opcode:#x}, final: {is_final}"), &bytes, 1002);
        }
    }
}

#[test]
fn text_that_is_not_utf_8_is_closed_with_1007() {
    let mut scene = Scene::new();
    for bad in BAD_UTF_8 {
        let text = [b"\"", *bad, b"\""].concat();
        scene.violate(&format!("{bad:x?}"), &encode(true, TEXT, &text), 1007);
    }
    scene.violate("cut off", &encode(true, TEXT, b"\xe2\x82"), 1007);
}

#[test]
fn text_that_is_not_utf_8_across_a_fragment_boundary_is_closed_with_1007() {
    let mut scene = Scene::new();
    for bad in BAD_UTF_8 {
        let text = [b"\"", *bad, b"\""].concat();
        for cut in 0..=text.len() {
            let case = format!("{bad:x?} cut at {cut}");
            scene.violate(&case, &fragments(TEXT, &text, &[cut]), 1007);
        }
    }
    scene.violate("cut off", &fragments(TEXT, b"\"\xf0\x9f\x98", &[1]), 1007);
    scene.violate("cut off by an empty end", &fragments(TEXT, b"\"\xf0\x9f", &[3]), 1007);
}

#[test]
fn a_code_point_cut_by_fragments_anywhere_is_whole() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("code-point"));
    let text = "\"é€😀\u{10ffff}\"";
    let wrapped = envelope(&conn_id, text);
    let everywhere = |text: &str| (0..=text.len()).collect::<Vec<_>>();
    for opcode in [TEXT, BINARY] {
        for cuts in everywhere(text).chunks(1).chain([&everywhere(text)[..]]) {
            phone.send_raw(&fragments(opcode, text.as_bytes(), cuts));
            assert_eq!(binary.read_text(), wrapped, "{opcode:#x} cut at {cuts:?}");
        }
        for cuts in everywhere(&wrapped).chunks(1).chain([&everywhere(&wrapped)[..]]) {
            binary.send_raw(&fragments(opcode, wrapped.as_bytes(), cuts));
            assert_eq!(phone.read_text(), text, "{opcode:#x} cut at {cuts:?}");
        }
    }
}

#[test]
fn a_close_frame_with_a_payload_of_one_byte_is_a_protocol_error() {
    Scene::new().violate_by_close("one byte", b"\x03", 1002);
}

#[test]
fn a_close_frame_with_a_code_that_may_not_travel_is_a_protocol_error() {
    let mut scene = Scene::new();
    for code in [0_u16, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535] {
        let payload = [&code.to_be_bytes()[..], b"why"].concat();
        scene.violate_by_close(&format!("{code}"), &payload[..2], 1002);
        scene.violate_by_close(&format!("{code} and a reason"), &payload, 1002);
    }
}

#[test]
fn a_close_frame_whose_reason_is_not_utf_8_is_closed_with_1007() {
    let mut scene = Scene::new();
    for bad in BAD_UTF_8 {
        scene.violate_by_close(&format!("{bad:x?}"), &[b"\x03\xe8", *bad].concat(), 1007);
    }
}

#[test]
fn a_length_above_the_limit_is_refused_by_its_header_alone() {
    let mut scene = Scene::new();
    let above_both = (LIMIT + ALLOWANCE + 1) as u64;
    for length in [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 40, 1 << 32, above_both] {
        for first in [0x80 | TEXT, 0x80 | BINARY, TEXT] {
            let header = Header { first, length, mask: Some(*b"mask") }.encode();
            let case = format!("{first:#x} {length:#x}");
            // Less than the whole frame, so the header must be enough.
            scene.phone_violates(&case, &header, b"", 1009);
            scene.binary_violates(&case, &header, b"", 1009);
        }
    }
}

#[test]
fn a_phones_message_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let mut scene = Scene::new();
    let (mut phone, conn_id) = scene.relay.registered_phone(&scene.id);
    let largest = json_of(LIMIT);
    phone.send_text(&largest);
    assert_eq!(scene.binary.read_text(), envelope(&conn_id, &largest));
    phone.send_frame(true, BINARY, largest.as_bytes());
    assert_eq!(scene.binary.read_text(), envelope(&conn_id, &largest));
    phone.send_raw(&fragments(TEXT, largest.as_bytes(), &[1, 1, 1000, LIMIT - 1]));
    assert_eq!(scene.binary.read_text(), envelope(&conn_id, &largest));

    let too_large = json_of(LIMIT + 1);
    for bytes in [
        encode(true, TEXT, too_large.as_bytes()),
        encode(true, BINARY, too_large.as_bytes()),
        fragments(TEXT, too_large.as_bytes(), &[LIMIT]),
        fragments(BINARY, too_large.as_bytes(), &[1, LIMIT]),
        fragments(TEXT, too_large.as_bytes(), &(0..LIMIT).step_by(1000).collect::<Vec<_>>()),
    ] {
        scene.phone_violates("one byte more", &bytes, &[0; 1000], 1009);
    }
}

#[test]
fn a_binarys_message_may_be_1_kib_larger_than_a_phones_and_not_one_byte_more() {
    let mut scene = Scene::new();
    let (mut binary, mut phone, conn_id) = scene.relay.pair(&fresh_id("limit"));
    let around = envelope(&conn_id, "").len();
    let largest = json_of(LIMIT + ALLOWANCE - around);
    let wrapped = envelope(&conn_id, &largest);
    assert_eq!(wrapped.len(), LIMIT + ALLOWANCE);
    binary.send_text(&wrapped);
    assert_eq!(phone.read_text(), largest);
    binary.send_frame(true, BINARY, wrapped.as_bytes());
    assert_eq!(phone.read_text(), largest);
    binary.send_raw(&fragments(TEXT, wrapped.as_bytes(), &[1, 1, 1000, LIMIT + 1000]));
    assert_eq!(phone.read_text(), largest);

    let too_large = json_of(LIMIT + ALLOWANCE + 1);
    for bytes in [
        encode(true, TEXT, too_large.as_bytes()),
        fragments(TEXT, too_large.as_bytes(), &[LIMIT]),
        fragments(BINARY, too_large.as_bytes(), &[1, LIMIT + ALLOWANCE]),
    ] {
        scene.binary_violates("one byte more", &bytes, &[0; 1000], 1009);
    }
}

#[test]
fn the_limit_is_the_one_that_the_relay_was_given() {
    let relay = Relay::start(&["--max-frame-bytes", "1000"]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("small"));
    phone.send_text(&json_of(1000));
    assert_eq!(binary.read_text(), envelope(&conn_id, &json_of(1000)));
    phone.send_text(&json_of(1001));
    phone.expect_close_code(1009);
    assert_eq!(binary.read_text(), notice(&conn_id, 1009));
    binary.send_text(&json_of(1000 + ALLOWANCE));
    binary.sync();
    binary.send_text(&json_of(1000 + ALLOWANCE + 1));
    binary.expect_close_code(1009);
}

#[test]
fn fragments_may_be_empty_and_so_may_all_of_a_message() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("empty"));
    phone.send_raw(&fragments(TEXT, b"1", &[0; 1000]));
    assert_eq!(binary.read_text(), envelope(&conn_id, "1"));
    let wrapped = envelope(&conn_id, "2");
    binary.send_raw(&fragments(TEXT, wrapped.as_bytes(), &vec![wrapped.len(); 1000]));
    assert_eq!(phone.read_text(), "2");
    // Nothing at all is no envelope and no JSON value, and otherwise a message like another.
    binary.send_raw(&fragments(TEXT, b"", &[0, 0]));
    binary.send_text("");
    binary.sync();
    phone.send_raw(&fragments(TEXT, b"", &[0, 0]));
    phone.expect_close_code(1007);
}

#[test]
fn a_ping_between_fragments_is_answered_at_once_and_the_message_stays_whole() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("between"));
    let wrapped = envelope(&conn_id, "[1,2,3]");
    for round in 0..3 {
        phone.send_frame(false, TEXT, b"[1,");
        expect_pong(&mut phone, b"first");
        phone.send_frame(false, CONTINUATION, b"2,");
        phone.send_frame(true, PONG, b"of nothing");
        expect_pong(&mut phone, b"");
        phone.send_frame(true, CONTINUATION, b"3]");
        assert_eq!(binary.read_text(), wrapped, "round {round}");

        let (start, end) = wrapped.split_at(20);
        binary.send_frame(false, TEXT, start.as_bytes());
        expect_pong(&mut binary, b"first");
        expect_pong(&mut binary, b"second");
        binary.send_frame(true, CONTINUATION, end.as_bytes());
        assert_eq!(phone.read_text(), "[1,2,3]", "round {round}");
    }
}

#[test]
fn a_close_frame_inside_a_fragmented_message_is_answered_and_the_message_forgotten() {
    let mut scene = Scene::new();
    let mut phone = scene.relay.phone(&scene.id);
    phone.send_frame(false, TEXT, b"1");
    phone.send_close(3000, "enough");
    phone.expect_close(3000, "");
    scene.check_healthy("phone");
    let (mut binary, _phone, conn_id) = scene.relay.pair(&fresh_id("inside"));
    binary.send_frame(false, TEXT, envelope(&conn_id, "1").as_bytes());
    binary.send_close(3000, "enough");
    binary.expect_close(3000, "");
    scene.check_healthy("binary");
}

#[test]
fn a_pong_has_the_payload_of_its_ping_up_to_125_bytes_of_anything() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, _) = relay.pair(&fresh_id("ping"));
    let any: Vec<u8> = (0..125).map(|byte| byte * 2 + 1).collect();
    for length in [0, 1, 2, 124, 125] {
        expect_pong(&mut phone, &any[..length]);
        expect_pong(&mut binary, &any[..length]);
    }
}

#[test]
fn pongs_that_nobody_asked_for_are_ignored() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("pong"));
    for payload in [&b""[..], b"of nothing", &[0xff; 125]] {
        phone.send_frame(true, PONG, payload);
        binary.send_frame(true, PONG, payload);
    }
    phone.send_text("1");
    assert_eq!(binary.read_frame().payload, envelope(&conn_id, "1").as_bytes());
    binary.send_text(&envelope(&conn_id, "2"));
    assert_eq!(phone.read_frame().payload, b"2");
}

#[test]
fn binary_messages_that_are_utf_8_are_taken_and_sent_on_as_text() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("opcode"));
    let message = "{\"é\": [1, \"😀\"]}";
    phone.send_frame(true, BINARY, message.as_bytes());
    let received = binary.read_frame();
    assert_eq!(received.opcode, TEXT);
    assert_eq!(received.payload, envelope(&conn_id, message).as_bytes());
    binary.send_frame(true, BINARY, envelope(&conn_id, message).as_bytes());
    let received = phone.read_frame();
    assert_eq!((received.opcode, received.payload), (TEXT, message.as_bytes().to_vec()));
}

#[test]
fn a_phones_binary_message_that_is_not_utf_8_is_closed_with_1007() {
    let mut scene = Scene::new();
    for bad in BAD_UTF_8 {
        let message = [b"\"", *bad, b"\""].concat();
        for bytes in [encode(true, BINARY, &message), fragments(BINARY, &message, &[2])] {
            scene.phone_violates(&format!("{bad:x?}"), &bytes, &flood(), 1007);
        }
    }
}

#[test]
fn a_binarys_binary_message_that_is_not_utf_8_is_dropped_and_the_connection_lives() {
    let relay = Relay::start(&[]);
    let id = fresh_id("mangled");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let wrapped = envelope(&conn_id, "\"?\"");
    let (start, end) = wrapped.split_once('?').unwrap();
    for bad in BAD_UTF_8 {
        let message = [start.as_bytes(), bad, end.as_bytes()].concat();
        binary.send_frame(true, BINARY, &message);
        binary.send_raw(&fragments(BINARY, &message, &[start.len() + 1]));
    }
    binary.send_text(&envelope(&conn_id, "1"));
    assert_eq!(phone.read_text(), "1");
    let dropped = [("server_id", &*id), ("reason", "not UTF-8")];
    assert_eq!(events::count("envelope_dropped", &dropped), 2 * BAD_UTF_8.len());
    phone.send_text("2");
    assert_eq!(binary.read_text(), envelope(&conn_id, "2"));
}

#[test]
fn frames_in_segments_of_one_byte_are_frames() {
    let relay = Relay::start(&[]);
    let (mut binary, mut phone, conn_id) = relay.pair(&fresh_id("bytewise"));
    let message = json_of(200);
    let bytewise = |ws: &mut Ws, bytes: &[u8]| {
        for byte in bytes {
            ws.send_raw(&[*byte]);
        }
    };
    bytewise(&mut phone, &encode(true, PING, b"slow"));
    assert_eq!(phone.read_frame().payload, b"slow");
    bytewise(&mut phone, &encode(true, TEXT, message.as_bytes()));
    assert_eq!(binary.read_text(), envelope(&conn_id, &message));
    bytewise(&mut binary, &encode(true, TEXT, envelope(&conn_id, &message).as_bytes()));
    assert_eq!(phone.read_text(), message);
    bytewise(&mut phone, &encode(true, CLOSE, b"\x0f\xa0slow"));
    phone.expect_close(4000, "");
}

/// A relay on which somebody offends while others go about their business: a binary and a phone,
/// and the offender is either another phone of that binary or a binary of its own.
struct Scene {
    id: String,
    binary: Ws,
    sibling: Ws,
    sibling_id: String,
    // Dropped last, or its end would wait for the others' close frames.
    relay: Relay,
}

impl Scene {
    fn new() -> Self {
        let relay = Relay::start(&[]);
        let id = fresh_id("scene");
        let (binary, sibling, sibling_id) = relay.pair(&id);
        Self { id, binary, sibling, sibling_id, relay }
    }

    /// On either leg these bytes close their connection with `code`, whatever follows them.
    fn violate(&mut self, case: &str, bytes: &[u8], code: u16) {
        self.phone_violates(case, bytes, &flood(), code);
        self.binary_violates(case, bytes, &flood(), code);
    }

    /// The same by a close frame, which is the last that is read of a peer.
    fn violate_by_close(&mut self, case: &str, payload: &[u8], code: u16) {
        let bytes = encode(true, CLOSE, payload);
        self.phone_violates(case, &bytes, b"", code);
        self.binary_violates(case, &bytes, b"", code);
    }

    fn phone_violates(&mut self, case: &str, bytes: &[u8], flood: &[u8], code: u16) {
        let mut offender = self.relay.phone(&self.id);
        let behind = encode(true, TEXT, b"\"must not arrive\"");
        offender.send_raw(&[bytes, &behind, flood].concat());
        expect_failed(&mut offender, case, code);
        self.check_healthy(case);
    }

    fn binary_violates(&mut self, case: &str, bytes: &[u8], flood: &[u8], code: u16) {
        let id = fresh_id("offender");
        let (mut offender, mut phone, conn_id) = self.relay.pair(&id);
        let behind = encode(true, TEXT, envelope(&conn_id, "\"must not arrive\"").as_bytes());
        offender.send_raw(&[bytes, &behind, flood].concat());
        expect_failed(&mut offender, case, code);
        self.check_healthy(case);
        let mut successor = self.relay.binary(&id);
        successor.send_text(&envelope(&conn_id, "\"still attached\""));
        assert_eq!(phone.read_text(), "\"still attached\"", "{case}");
        phone.send_text("1");
        assert_eq!(successor.read_text(), envelope(&conn_id, "1"), "{case}");
    }

    /// The others' messages pass, and nothing else has reached them.
    fn check_healthy(&mut self, case: &str) {
        self.sibling.send_text("1");
        assert_eq!(self.binary.read_text(), envelope(&self.sibling_id, "1"), "{case}");
        self.binary.send_text(&envelope(&self.sibling_id, "2"));
        assert_eq!(self.sibling.read_text(), "2", "{case}");
    }
}

/// Expects the close frame with `code` as the next and last frame, and an end without a reset.
fn expect_failed(offender: &mut Ws, case: &str, code: u16) {
    let frame = offender.read();
    assert_eq!((frame.opcode, frame.close().0), (CLOSE, code), "{case}");
    let end = offender.try_read_frame().expect_err("nothing follows a close frame");
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof, "{case}");
}

/// Sends a ping and expects its pong as the next frame, but for what a binary is asked behind a message.
fn expect_pong(ws: &mut Ws, payload: &[u8]) {
    ws.send_ping(payload);
    let pong = ws.read_besides_proofs();
    assert_eq!((pong.opcode, pong.payload), (PONG, payload.to_vec()));
}

/// A message in fragments that end at `cuts`; equal cuts make empty fragments.
fn fragments(opcode: u8, payload: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut start = 0;
    for (index, end) in cuts.iter().chain([&payload.len()]).enumerate() {
        let opcode = if index == 0 { opcode } else { CONTINUATION };
        bytes.extend(encode(index == cuts.len(), opcode, &payload[start..*end]));
        start = *end;
    }
    bytes
}

/// A JSON value of this many bytes.
fn json_of(length: usize) -> String {
    format!("\"{}\"", "x".repeat(length - 2))
}

/// More input than the relay reads at once: it is unread when the violation is noticed.
fn flood() -> Vec<u8> {
    vec![0; 100 * 1024]
}

/// A lone continuation byte, impossible bytes, overlong forms, a surrogate, a value above the
/// last code point, and sequences that end too early.
const BAD_UTF_8: &[&[u8]] = &[
    b"\x80",
    b"\xff",
    b"\xc0\x80",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc3(",
    b"\xf0\x9f\x98(",
];

/// Largest message of a phone, and what a binary's may have more.
const LIMIT: usize = 256 * 1024;
const ALLOWANCE: usize = 1024;

#[test]
fn a_message_of_empty_fragments_without_an_end_is_closed_with_1008() {
    let mut scene = Scene::new();
    let fragments = [encode(false, TEXT, b""), encode(false, CONTINUATION, b"").repeat(5000)];
    scene.violate("endless", &fragments.concat(), 1008);
}

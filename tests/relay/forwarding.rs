//! Messages in both directions: verbatim, in order, to nobody else.

mod envelopes;

use crate::rig::ws::{BINARY, CONTINUATION, PONG, TEXT, encode};
use crate::rig::{Relay, Ws, binary_head, envelope, events, fresh_id, notice, phone_head};

/// Largest message of a phone, and what an envelope may add on the binary's leg.
const LARGEST: usize = 256 * 1024;
const ALLOWANCE: usize = 1024;

/// Checks that what `binary` sends next is the first that `phone` gets.
fn reaches(binary: &mut Ws, phone: &mut Ws, conn_id: &str, marker: &str) {
    let marker = format!("\"{marker}\"");
    binary.send_text(&envelope(conn_id, &marker));
    assert_eq!(phone.read_text(), marker);
}

/// Checks that what `phone` sends next is the first that `binary` gets.
fn is_heard(phone: &mut Ws, binary: &mut Ws, conn_id: &str, marker: &str) {
    let marker = format!("\"{marker}\"");
    phone.send_text(&marker);
    assert_eq!(binary.read_text(), envelope(conn_id, &marker));
}

/// A JSON string of exactly `length` bytes.
fn string_of(length: usize) -> String {
    format!("\"{}\"", "x".repeat(length - 2))
}

#[test]
fn messages_pass_both_ways_byte_for_byte() {
    let relay = Relay::start(&[]);
    let id = fresh_id("verbatim");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    for text in [
        "{\"a\":1}",
        " { \"x\" : [1, 2.50, 1e400] }\n",
        "\"\\u00e9 é 😀\"",
        "null",
        "false",
        "\"\"",
        "[]",
        "{}",
        "-0",
        "1E+400",
        "0.000000000000000000000000000000000000000000000000000000001",
        "123456789012345678901234567890123456789012345678901234567890.0e-0005",
        r#""\"\\\/\b\f\n\r\t\u0000\u001f\u007f\u2028""#,
        r#""\ud83d\ude00 \uD83D\uDE00""#,
        r#""\ud800 lone, \udfff\ud83d swapped""#,
        "{\"\\ud800\":\"\\udc00\"}",
        r#"{"a":1,"a":2,"":3,"":3}"#,
        "{ \"white\"\t:\r\n[ 1 ,\n2\t] , \"z\" : { } , \"a\" : [ ] }",
        "\"\u{7f}\u{80}\u{2028}\u{2029}\u{fffd}\u{ffff}\u{10ffff}\"",
        "\"👩\u{200d}👩\u{200d}👧\u{200d}👦 🏳\u{fe0f}\u{200d}🌈 ﷽ e\u{301}\"",
        r#"{"conn_id":"client-other-0000000000000000","frame":1,"close_code":4401}"#,
    ] {
        phone.send_text(text);
        assert_eq!(binary.read_text(), envelope(&conn_id, text));
        binary.send_text(&envelope(&conn_id, text));
        // White space around a value belongs to no value.
        assert_eq!(phone.read_text(), text.trim_matches([' ', '\n']));
    }
    assert_eq!(relay.health(), (1, 1));
}

#[test]
fn nesting_of_any_depth_passes_both_ways() {
    let relay = Relay::start(&[]);
    let id = fresh_id("deep");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let objects = format!("{}1{}", "{\"\":".repeat(25_000), "}".repeat(25_000));
    for text in [deep, objects] {
        phone.send_text(&text);
        assert!(binary.read_text() == envelope(&conn_id, &text));
        binary.send_text(&envelope(&conn_id, &text));
        assert!(phone.read_text() == text);
    }
}

#[test]
fn the_largest_message_passes_both_ways() {
    let relay = Relay::start(&[]);
    let id = fresh_id("largest");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let largest = string_of(LARGEST);
    phone.send_text(&largest);
    assert!(binary.read_text() == envelope(&conn_id, &largest));
    binary.send_text(&envelope(&conn_id, &largest));
    assert!(phone.read_text() == largest);
    let frame = string_of(LARGEST + ALLOWANCE - envelope(&conn_id, "").len());
    binary.send_text(&envelope(&conn_id, &frame));
    assert!(phone.read_text() == frame, "the allowance is for the whole envelope");
    is_heard(&mut phone, &mut binary, &conn_id, "still here");
}

#[test]
fn one_byte_above_the_largest_message_closes_with_1009_and_is_not_forwarded() {
    let relay = Relay::start(&[]);
    let id = fresh_id("too-big");
    let (mut binary, mut phone, _) = relay.pair(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    phone.send_text(&string_of(LARGEST + 1));
    phone.expect_close_code(1009);
    is_heard(&mut sibling, &mut binary, &sibling_id, "first");
    let frame = string_of(LARGEST + ALLOWANCE + 1 - envelope(&sibling_id, "").len());
    binary.send_text(&envelope(&sibling_id, &frame));
    binary.expect_close_code(1009);
    sibling.sync();
}

#[test]
fn fragments_of_one_byte_with_pings_between_are_one_message() {
    let relay = Relay::start(&[]);
    let id = fresh_id("fragments");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let text = "{ \"é😀\" : [1,\t2] }";
    send_in_fragments(&mut phone, text);
    await_last_pong(&mut phone, text.len());
    assert_eq!(binary.read_text(), envelope(&conn_id, text));
    let enveloped = envelope(&conn_id, text);
    send_in_fragments(&mut binary, &enveloped);
    await_last_pong(&mut binary, enveloped.len());
    assert_eq!(phone.read_text(), text);
}

/// Sends `text` in fragments of one byte, a ping and an empty fragment behind each.
fn send_in_fragments(ws: &mut Ws, text: &str) {
    for (at, byte) in text.bytes().enumerate() {
        ws.send_frame(false, if at == 0 { TEXT } else { CONTINUATION }, &[byte]);
        ws.send_ping(&at.to_be_bytes());
        ws.send_frame(false, CONTINUATION, b"");
    }
    ws.send_ping(&text.len().to_be_bytes());
    ws.send_frame(true, CONTINUATION, b"");
}

fn await_last_pong(ws: &mut Ws, number: usize) {
    loop {
        let frame = ws.read();
        assert_eq!(frame.opcode, PONG, "{frame:?}");
        if frame.payload == number.to_be_bytes() {
            return;
        }
    }
}

#[test]
fn messages_sent_in_one_segment_with_the_request_head_are_not_lost() {
    let relay = Relay::start(&[]);
    let id = fresh_id("leftover");
    let mut binary = relay.binary(&id);
    let mut bytes = phone_head(&id).into_bytes();
    for text in ["1", "{\"second\":2}", "[3]"] {
        bytes.extend(encode(true, TEXT, text.as_bytes()));
    }
    let phone = Ws::upgrade_with(relay.address, &bytes);
    let registered = events::wait("phone_registered", &[("server_id", &id)]);
    let conn_id = events::field(&registered, "conn_id");
    for text in ["1", "{\"second\":2}", "[3]"] {
        assert_eq!(binary.read_text(), envelope(&conn_id, text));
    }
    binary.prove();
    binary.drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    let mut bytes = binary_head(&id).into_bytes();
    bytes.extend(encode(true, TEXT, envelope(&conn_id, "\"at once\"").as_bytes()));
    let _binary = Ws::upgrade_with(relay.address, &bytes);
    let mut phone = phone;
    assert_eq!(phone.read_text(), "\"at once\"");
}

#[test]
fn data_in_binary_frames_goes_on_as_text() {
    let relay = Relay::start(&[]);
    let id = fresh_id("opcodes");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    phone.send_frame(true, BINARY, "\"é\"".as_bytes());
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"é\""));
    binary.send_frame(true, BINARY, envelope(&conn_id, "\"ü\"").as_bytes());
    assert_eq!(phone.read_text(), "\"ü\"");
}

#[test]
fn a_binary_frame_that_is_not_utf_8_closes_a_phone_and_is_dropped_from_a_binary() {
    let relay = Relay::start(&[]);
    let id = fresh_id("not-utf-8");
    let (mut binary, mut phone, _) = relay.pair(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    phone.send_frame(true, BINARY, b"\"\xff\"");
    phone.expect_close_code(1007);
    let mut bytes = envelope(&sibling_id, "\"?\"").into_bytes();
    let at = bytes.iter().position(|byte| *byte == b'?').unwrap();
    bytes[at] = 0xff;
    binary.send_frame(true, BINARY, &bytes);
    reaches(&mut binary, &mut sibling, &sibling_id, "good");
    is_heard(&mut sibling, &mut binary, &sibling_id, "good");
    events::wait("envelope_dropped", &[("server_id", &id)]);
}

#[test]
fn sixteen_phones_get_each_their_own_in_order_and_are_heard_in_order() {
    const ROUNDS: usize = 40;
    let relay = Relay::start(&[]);
    let id = fresh_id("sixteen");
    let mut binary = relay.binary(&id);
    let mut phones: Vec<_> = (0..16).map(|_| relay.registered_phone(&id)).collect();
    for round in 0..ROUNDS {
        for at in 0..phones.len() {
            // Another order each round: 7 and 16 have no common divisor.
            let number = (at * 7 + round) % phones.len();
            let text = format!("[{number},{round}]");
            binary.send_text(&envelope(&phones[number].1, &text));
            phones[number].0.send_text(&text);
        }
    }
    for (number, (phone, _)) in phones.iter_mut().enumerate() {
        for round in 0..ROUNDS {
            assert_eq!(phone.read_text(), format!("[{number},{round}]"));
        }
        phone.sync();
    }
    let mut heard = [0; 16];
    for _ in 0..16 * ROUNDS {
        let text = binary.read_text();
        let number = phones.iter().position(|(_, id)| text.contains(id.as_str())).unwrap();
        assert_eq!(text, envelope(&phones[number].1, &format!("[{number},{}]", heard[number])));
        heard[number] += 1;
    }
    binary.sync();
}

#[test]
fn a_binary_reaches_no_phone_of_another_server() {
    let relay = Relay::start(&[]);
    let mine = fresh_id("isolation");
    // Its ids begin with those of the first server, and one differs in case alone.
    let theirs = [format!("{mine}-1"), mine.to_uppercase()];
    let (mut binary, mut phone, conn_id) = relay.pair(&mine);
    let mut others: Vec<_> = theirs.iter().map(|id| relay.pair(id)).collect();
    let mut sent = 0;
    for (_, _, other_id) in &others {
        let digits = &other_id[other_id.len() - 16..];
        for bad_id in [other_id.clone(), format!("client-{mine}-1-{digits}"), digits.to_owned()] {
            binary.send_text(&envelope(&bad_id, "\"stray\""));
            binary.send_text(&notice(&bad_id, 4401));
            sent += 2;
        }
        // The right shape, but no phone of this server has these digits.
        let grafted = format!("client-{mine}-{digits}");
        binary.send_text(&notice(&grafted, 4401));
        binary.send_text(&envelope(&grafted, "\"stray\""));
        assert_eq!(binary.read_text(), notice(&grafted, 1001));
        sent += 2;
    }
    events::wait_nth(0, "envelope_dropped", &[("server_id", &mine)], sent);
    for (other, other_phone, other_id) in &mut others {
        reaches(other, other_phone, other_id, "own");
        is_heard(other_phone, other, other_id, "own");
    }
    reaches(&mut binary, &mut phone, &conn_id, "own");
    is_heard(&mut phone, &mut binary, &conn_id, "own");
    assert_eq!(relay.health(), (3, 3));
}

#[test]
fn a_phones_message_that_is_not_json_closes_it_and_nothing_of_it_reaches_the_binary() {
    let relay = Relay::start(&["--max-phones", "32"]);
    let id = fresh_id("not-json");
    let mut binary = relay.binary(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    let unclosed = "[".repeat(100_000);
    for bad in [
        "",
        " ",
        "hello",
        "nul",
        "{",
        "{}{}",
        "1 2",
        "[1,]",
        "{\"a\":1,}",
        "01",
        "+1",
        ".5",
        "5.",
        "NaN",
        "'a'",
        "\"\u{1}\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"open",
        "// comment\n1",
        "1\0",
        "1}",
        r#"1,"close_code":4401"#,
        r#"1},{"conn_id":"x","frame":1"#,
        &unclosed,
    ] {
        let (mut phone, conn_id) = relay.registered_phone(&id);
        // In one segment, so that both are there when the first is judged.
        let both = [encode(true, TEXT, bad.as_bytes()), encode(true, TEXT, b"\"late\"")];
        phone.send_raw(&both.concat());
        phone.expect_close(1007, "invalid JSON");
        let left = events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
        assert_eq!(events::field(&left, "reason"), "invalid JSON");
    }
    is_heard(&mut sibling, &mut binary, &sibling_id, "the first that is heard");
    reaches(&mut binary, &mut sibling, &sibling_id, "untouched");
}

#[test]
fn a_known_phone_that_sends_no_json_is_reported_behind_its_last_good_message() {
    let relay = Relay::start(&[]);
    let id = fresh_id("known-not-json");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    phone.send_text("\"good\"");
    phone.send_text("bad");
    phone.expect_close_code(1007);
    assert_eq!(binary.read_text(), envelope(&conn_id, "\"good\""));
    assert_eq!(binary.read_text(), notice(&conn_id, 1007));
    binary.sync();
}

#[test]
fn a_phone_gets_nothing_but_the_binarys_frames() {
    let relay = Relay::start(&[]);
    let id = fresh_id("nothing-else");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let (other, _) = relay.registered_phone(&id);
    is_heard(&mut phone, &mut binary, &conn_id, "known");
    binary.prove();
    other.drop_connection();
    binary.drop_connection();
    events::wait("server_released", &[("server_id", &id)]);
    let mut binary = relay.binary(&id);
    binary.sync();
    phone.answers_pings = false;
    phone.send_ping(b"only the answer");
    let frame = phone.read_frame();
    assert_eq!((frame.opcode, frame.payload.as_slice()), (PONG, &b"only the answer"[..]));
    reaches(&mut binary, &mut phone, &conn_id, "first");
}

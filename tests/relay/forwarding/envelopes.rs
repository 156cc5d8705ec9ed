//! What a binary's envelopes ask for, and what becomes of those that ask for nothing sensible.

use super::{is_heard, reaches, string_of};
use crate::rig::ws::BINARY;
use crate::rig::{Relay, envelope, events, fresh_id, notice};

#[test]
fn malformed_envelopes_are_dropped_and_the_connection_lives() {
    let relay = Relay::start(&[]);
    let id = fresh_id("malformed");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let good = envelope(&conn_id, "\"poison\"");
    let mut bad: Vec<String> = [
        "",
        " ",
        "null",
        "true",
        "7",
        "\"text\"",
        "[]",
        "{",
        "{}",
        r#"{"type":"push_wake"}"#,
        r#"{"type":"push_wake","token":"t","frame":"poison"}"#,
        r#"{"frame":"poison"}"#,
        r#"{"conn_id":"","frame":"poison"}"#,
        r#"{"conn_id":null,"frame":"poison"}"#,
        r#"{"conn_id":7,"frame":"poison"}"#,
        r#"{"conn_id":true,"frame":"poison"}"#,
        r#"{"conn_id":"\ud800","frame":"poison"}"#,
        r#"{"conn_id":"nobody","frame":"poison"}"#,
    ]
    .map(str::to_owned)
    .into();
    for template in [
        r#"{"conn_id":["ID"],"frame":"poison"}"#,
        r#"{"conn_id":{"conn_id":"ID"},"frame":"poison"}"#,
        r#"{"conn_id":" ID","frame":"poison"}"#,
        r#"{"conn_id":"ID ","frame":"poison"}"#,
        r#"{"conn_id":"ID\u0000","frame":"poison"}"#,
        r#"{"Conn_Id":"ID","frame":"poison"}"#,
        r#"{"conn_id":"ID"}"#,
        r#"{"conn_id":"ID","Frame":"poison"}"#,
        r#"{"conn_id":"ID","frame":}"#,
        r#"{"conn_id":"ID","frame":'poison'}"#,
        r#"{"conn_id":"ID","frame":poison}"#,
        r#"{"conn_id":"ID","frame":01}"#,
        r#"{"conn_id":"ID","frame":NaN}"#,
        r#"{"conn_id":"ID","frame":"\x41"}"#,
        r#"{"conn_id":"ID","frame":"poison",}"#,
        r#"{"conn_id":"ID","frame":"poison"/**/}"#,
        r#"{'conn_id':'ID','frame':'poison'}"#,
        r#"{conn_id:"ID",frame:"poison"}"#,
        r#"{"conn_id":"ID","frame":"poison"}}"#,
        r#"{"conn_id":"ID","frame":"poison"}{}"#,
        r#"[{"conn_id":"ID","frame":"poison"}]"#,
        "{\"conn_id\":\"ID\",\"frame\":\"poi\nson\"}",
        "\u{feff}{\"conn_id\":\"ID\",\"frame\":\"poison\"}",
        "{\"conn_id\":\"ID\",\"frame\":\"poison\"}\0",
    ] {
        bad.push(template.replace("ID", &conn_id));
    }
    bad.push(good[..good.len() - 1].to_owned());
    bad.push(envelope(&conn_id, &"[".repeat(50_000)));
    for text in &bad {
        binary.send_text(text);
    }
    binary.send_frame(true, BINARY, b"\xff\xfe");
    binary.send_frame(true, BINARY, b"");
    reaches(&mut binary, &mut phone, &conn_id, "good");
    is_heard(&mut phone, &mut binary, &conn_id, "good");
    let fields = [("server_id", id.as_str())];
    let last = events::wait_nth(0, "envelope_dropped", &fields, bad.len() + 2);
    assert_eq!(events::field(&last, "count"), (bad.len() + 2).to_string(), "each is counted");
    for event in ["phone_unregistered", "server_released"] {
        assert_eq!(events::count(event, &fields), 0);
    }
}

#[test]
fn a_dropped_envelope_leaves_no_content_in_the_log() {
    let relay = Relay::start(&[]);
    let id = fresh_id("discreet");
    let mut binary = relay.binary(&id);
    binary.send_text(&format!(r#"{{"conn_id":"client-{id}-x","frame":"content"}}"#));
    binary.send_text(r#"{"conn_id":"content","close_code":"content"}"#);
    let fields = [("server_id", id.as_str())];
    for nth in [1, 2] {
        let dropped = events::wait_nth(0, "envelope_dropped", &fields, nth);
        let text = format!("{dropped:?}");
        assert!(!text.contains("content") && !text.contains("client-"), "{text}");
    }
}

#[test]
fn a_directive_closes_the_phone_with_the_code_that_the_binary_asks_for() {
    let relay = Relay::start(&["--max-phones", "32"]);
    let id = fresh_id("directive");
    let mut binary = relay.binary(&id);
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4401, 4404,
        4412, 4421, 4426, 4999,
    ] {
        let (mut phone, conn_id) = relay.registered_phone(&id);
        binary.send_text(&notice(&conn_id, code));
        phone.expect_close_code(code);
    }
    binary.sync();
}

#[test]
fn a_code_that_may_not_travel_closes_the_phone_with_1011() {
    let relay = Relay::start(&["--max-phones", "32"]);
    let id = fresh_id("replaced");
    let mut binary = relay.binary(&id);
    for code in [1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 32_768, 65_535] {
        let (mut phone, conn_id) = relay.registered_phone(&id);
        binary.send_text(&format!(
            r#"{{"conn_id":"{conn_id}","close_code":{code},"frame":"last words"}}"#
        ));
        assert_eq!(phone.read_text(), "\"last words\"");
        phone.expect_close_code(1011);
    }
    binary.sync();
}

#[test]
fn a_close_code_that_is_null_or_zero_is_none() {
    let relay = Relay::start(&[]);
    let id = fresh_id("no-code");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    for (number, none) in ["null", "0", " 0 ", "\tnull"].iter().enumerate() {
        binary.send_text(&format!(
            r#"{{"conn_id":"{conn_id}","frame":{number},"close_code":{none}}}"#
        ));
        assert_eq!(phone.read_text(), number.to_string());
    }
    for none in ["null", "0"] {
        binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","close_code":{none}}}"#));
    }
    reaches(&mut binary, &mut phone, &conn_id, "still here");
    is_heard(&mut phone, &mut binary, &conn_id, "still here");
}

#[test]
fn a_close_code_that_is_no_integer_in_range_condemns_the_whole_envelope() {
    let relay = Relay::start(&[]);
    let id = fresh_id("bad-code");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let bad = [
        "-1",
        "-0",
        "-4401",
        "65536",
        "69937",
        "4294971697",
        "18446744073709556017",
        "99999999999999999999999999",
        "4401.0",
        "4401.5",
        "0.0",
        "4401e0",
        "4401E0",
        "44.01e2",
        "0e0",
        "\"4401\"",
        "\"\"",
        "true",
        "false",
        "[4401]",
        "[]",
        "{}",
        "04401",
        "+4401",
        "0x1131",
    ];
    for code in bad {
        binary.send_text(&format!(
            r#"{{"conn_id":"{conn_id}","frame":"poison","close_code":{code}}}"#
        ));
        binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#));
    }
    reaches(&mut binary, &mut phone, &conn_id, "good");
    is_heard(&mut phone, &mut binary, &conn_id, "good");
    events::wait_nth(0, "envelope_dropped", &[("server_id", &id)], 2 * bad.len());
}

#[test]
fn of_a_repeated_key_the_last_one_counts() {
    let relay = Relay::start(&[]);
    let id = fresh_id("repeated");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    for text in [
        r#"{"conn_id":7,"conn_id":"OTHER","conn_id":"ID","frame":"right"}"#,
        r#"{"frame":"wrong","conn_id":"ID","frame":{"frame":"wrong"},"frame":"right"}"#,
        r#"{"conn_id":"ID","frame":"right","close_code":4401,"close_code":0}"#,
        r#"{"conn_id":"ID","frame":"right","close_code":4401,"close_code":null}"#,
        r#"{"conn_id":"ID","close_code":"bad","close_code":0,"frame":"right"}"#,
        r#"{"conn_id":"","frame":"right","conn_\u0069d":"ID"}"#,
    ] {
        binary.send_text(&text.replace("ID", &conn_id).replace("OTHER", &sibling_id));
        assert_eq!(phone.read_text(), "\"right\"", "{text}");
    }
    for text in [
        r#"{"conn_id":"ID","conn_id":"","frame":"wrong"}"#,
        r#"{"conn_id":"ID","conn_id":null,"frame":"wrong"}"#,
        r#"{"conn_id":"ID","frame":"wrong","close_code":4401,"close_code":-1}"#,
    ] {
        binary.send_text(&text.replace("ID", &conn_id));
    }
    reaches(&mut binary, &mut phone, &conn_id, "still here");
    let last = r#"{"conn_id":"ID","frame":"right","frame":null,"close_code":0,"close_code":4401}"#;
    binary.send_text(&last.replace("ID", &conn_id));
    phone.expect_close_code(4401);
    reaches(&mut binary, &mut sibling, &sibling_id, "untouched");
}

#[test]
fn key_order_white_space_and_unknown_fields_are_free() {
    let relay = Relay::start(&[]);
    let id = fresh_id("free");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    for text in [
        r#"{"frame":"right","conn_id":"ID"}"#,
        " \t\r\n{ \"close_code\" : null ,\n \"frame\" :\t\"right\"\r\n, \"conn_id\" : \"ID\" } \n",
        r#"{"v":2,"token":"t","conn_id":"ID","x":{"frame":[1]},"frame":"right","close_codes":4401}"#,
        r#"{"\ud800":"\udfff","":1e999,"conn_id":"ID","frame":"right","":[]}"#,
    ] {
        binary.send_text(&text.replace("ID", &conn_id));
        assert_eq!(phone.read_text(), "\"right\"", "{text}");
    }
    is_heard(&mut phone, &mut binary, &conn_id, "still here");
}

#[test]
fn conn_ids_are_escaped_as_json_needs_it_and_compared_unescaped() {
    let relay = Relay::start(&[]);
    let unescaped = format!("{}\"&\\<>'/{{}}", fresh_id("quote"));
    let (mut binary, mut phone, conn_id) = relay.pair(&unescaped);
    assert!(conn_id.starts_with(&format!("client-{unescaped}-")), "{conn_id}");
    phone.send_text("1");
    let text = binary.read_text();
    let read: serde_json::Value = serde_json::from_str(&text).expect("the envelope is JSON");
    assert_eq!(read["conn_id"], conn_id.as_str());
    assert_eq!(read["frame"], 1);
    let everything: String = conn_id.bytes().map(|byte| format!("\\u{byte:04X}")).collect();
    let spellings = [
        serde_json::to_string(&conn_id).unwrap(),
        serde_json::to_string(&conn_id).unwrap().replace('&', "\\u0026").replace('<', "\\u003c"),
        serde_json::to_string(&conn_id).unwrap().replace("\\\"", "\\u0022").replace('/', "\\/"),
        format!("\"{everything}\""),
    ];
    for (number, spelling) in spellings.iter().enumerate() {
        binary.send_text(&format!(r#"{{"conn_id":{spelling},"frame":{number}}}"#));
        assert_eq!(phone.read_text(), number.to_string());
    }
    phone.send_close(1000, "");
    phone.expect_close_code(1000);
    let told: serde_json::Value = serde_json::from_str(&binary.read_text()).unwrap();
    assert_eq!(told, serde_json::json!({"conn_id": conn_id, "close_code": 1000}));
}

#[test]
fn a_frame_with_a_close_code_is_delivered_behind_the_queue_and_then_the_phone_is_closed() {
    let relay = Relay::start(&[]);
    let id = fresh_id("farewell");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let long = string_of(20_000);
    for _ in 0..20 {
        binary.send_text(&envelope(&conn_id, &long));
    }
    binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","close_code":4401,"frame":"bye"}}"#));
    for text in ["\"late\"", "\"later\""] {
        binary.send_text(&envelope(&conn_id, text));
    }
    for _ in 0..20 {
        assert!(phone.read_text() == long);
    }
    assert_eq!(phone.read_text(), "\"bye\"");
    phone.expect_close_code(4401);
    let left = events::wait("phone_unregistered", &[("conn_id", &conn_id)]);
    assert_eq!(events::field(&left, "reason"), "closed by binary (4401)");
}

#[test]
fn a_frame_of_null_with_a_close_code_closes_without_a_word() {
    let relay = Relay::start(&[]);
    let id = fresh_id("null-frame");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    binary.send_text(&format!(r#"{{"conn_id":"{conn_id}","frame":null,"close_code":4999}}"#));
    phone.expect_close_code(4999);
}

#[test]
fn a_directive_makes_no_notice_and_what_the_phone_still_sends_is_not_forwarded() {
    let relay = Relay::start(&[]);
    let id = fresh_id("no-notice");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    is_heard(&mut phone, &mut binary, &conn_id, "known");
    binary.send_text(&notice(&conn_id, 4401));
    binary.sync();
    phone.send_text("\"late\"");
    phone.expect_close_code(4401);
    drop(phone);
    events::wait("connection_closed", &[("conn_id", &conn_id)]);
    assert_eq!(events::count("phone_unregistered", &[("conn_id", &conn_id)]), 1);
    is_heard(&mut sibling, &mut binary, &sibling_id, "next");
    binary.send_text(&notice(&conn_id, 4401));
    is_heard(&mut sibling, &mut binary, &sibling_id, "silent to the directive's repetition");
}

#[test]
fn a_frame_for_an_unknown_phone_is_answered_once_and_nothing_else_is() {
    let relay = Relay::start(&[]);
    let id = fresh_id("unknown");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let ghost = format!("client-{id}-00000000000000ff");
    for code in [1000, 1001, 4421] {
        binary.send_text(&notice(&ghost, code));
        binary.send_text(&format!(r#"{{"conn_id":"{ghost}","frame":"bye","close_code":{code}}}"#));
        binary.send_text(&format!(r#"{{"conn_id":"{ghost}","frame":null,"close_code":{code}}}"#));
    }
    is_heard(&mut phone, &mut binary, &conn_id, "a close for it is silent");
    binary.send_text(&envelope(&ghost, "1"));
    assert_eq!(binary.read_text(), notice(&ghost, 1001));
    // An older daemon answers the notice with a frame.
    for _ in 0..3 {
        binary.send_text(&envelope(&ghost, r#"{"type":"unknown_session"}"#));
    }
    for shape in ["00000000000000FF", "0ff", "00000000000000ff0", "0000000000000+ff"] {
        binary.send_text(&envelope(&format!("client-{id}-{shape}"), "1"));
    }
    is_heard(&mut phone, &mut binary, &conn_id, "no second answer");
}

#[test]
fn a_new_connection_of_the_binary_is_answered_anew_for_an_unknown_phone() {
    let relay = Relay::start(&[]);
    let id = fresh_id("anew");
    let ghost = format!("client-{id}-0123456789abcdef");
    for _ in 0..3 {
        let mut binary = relay.binary(&id);
        for _ in 0..2 {
            binary.send_text(&envelope(&ghost, "1"));
        }
        assert_eq!(binary.read_text(), notice(&ghost, 1001));
        binary.sync();
        let seen = events::mark();
        binary.drop_connection();
        events::wait_after(seen, "server_released", &[("server_id", &id)]);
    }
}

#[test]
fn the_last_1024_unknown_phones_are_remembered() {
    let relay = Relay::start(&[]);
    let id = fresh_id("remembered");
    let mut binary = relay.binary(&id);
    let ghost = |number: usize| format!("client-{id}-{number:016x}");
    for number in 0..1100 {
        binary.send_text(&envelope(&ghost(number), "1"));
        assert_eq!(binary.read_text(), notice(&ghost(number), 1001));
    }
    for number in 1100 - 1024..1100 {
        binary.send_text(&envelope(&ghost(number), "1"));
    }
    binary.sync();
}

#[test]
fn a_frame_for_a_phone_whose_notice_was_sent_is_not_answered_again() {
    let relay = Relay::start(&[]);
    let id = fresh_id("told");
    let (mut binary, mut phone, conn_id) = relay.pair(&id);
    let (mut sibling, sibling_id) = relay.registered_phone(&id);
    is_heard(&mut phone, &mut binary, &conn_id, "known");
    phone.send_close(4000, "had enough");
    phone.expect_close_code(4000);
    assert_eq!(binary.read_text(), notice(&conn_id, 4000));
    binary.send_text(&envelope(&conn_id, "1"));
    binary.send_text(&notice(&conn_id, 1000));
    is_heard(&mut sibling, &mut binary, &sibling_id, "quiet");
}

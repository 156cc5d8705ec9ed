//! The routing envelope against `serde_json::Value` and the grammar of RFC 8259.

use pyrycode_relay::envelope::json::is_value;
use pyrycode_relay::envelope::{Action, Envelope, Malformed, Prefix, close_notice};
use pyrycode_relay::websocket::frames::Frame;
use serde_json::Value;

use super::reference;

/// Takes the input as an envelope, and as a message to be put into one.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let valid = reference::is_json(text);
    assert_eq!(is_value(text), valid);
    check_unwrap(text, valid);
    // Its beginning serves as the connection id.
    let ids = ["client-box-00000000000000ab", beginning(text), "\"\\\u{7f}&"];
    for id in ids.into_iter().filter(|id| !id.is_empty()) {
        if valid {
            check_wrap(id, text);
        }
        check_notice(id, text.len());
    }
}

fn check_unwrap(text: &str, valid: bool) {
    let parsed = Envelope::parse(text);
    assert!(valid || parsed == Err(Malformed::NotAnObject), "{parsed:?} of what is no JSON");
    if let Ok(envelope) = &parsed {
        assert!(!envelope.conn_id.is_empty());
        if let Action::Deliver(frame) | Action::Close(Some(frame), _) = &envelope.action {
            assert!(reference::is_json(frame), "a frame is JSON");
            assert!(text.contains(frame), "a frame is a part of the text, byte for byte");
            assert_eq!(frame.trim(), *frame);
        }
        if let Action::Close(_, code) = &envelope.action {
            assert!(may_travel(u64::from(*code)));
        }
    }
    match serde_json::from_str::<Value>(text) {
        Ok(value) => assert_eq!(summary(&parsed), expected(&value)),
        // It knows the limits of its own types besides the grammar.
        Err(error) if valid => {
            let error = error.to_string();
            let limit = ["number out of range", "recursion limit", "surrogate", "hex escape"];
            assert!(limit.iter().any(|limit| error.contains(limit)), "{error}");
        }
        Err(_) => {}
    }
}

/// What is left of an envelope when its frame is read as a value.
type Summary = Result<(String, Option<Value>, Option<u64>), Malformed>;

fn summary(parsed: &Result<Envelope<'_>, Malformed>) -> Summary {
    let envelope = parsed.as_ref().map_err(|malformed| *malformed)?;
    let value = |frame: &str| serde_json::from_str(frame).expect("a part of what was parsed");
    let (frame, code) = match &envelope.action {
        Action::Deliver(frame) => (Some(value(frame)), None),
        Action::Close(frame, code) => (frame.map(value), Some(u64::from(*code))),
    };
    Ok((envelope.conn_id.to_string(), frame, code))
}

fn expected(value: &Value) -> Summary {
    let fields = value.as_object().ok_or(Malformed::NotAnObject)?;
    let id = fields.get("conn_id").and_then(Value::as_str).filter(|id| !id.is_empty());
    let id = id.ok_or(Malformed::ConnId)?.to_owned();
    let code = match fields.get("close_code") {
        None | Some(Value::Null) => None,
        Some(code) => match code.as_u64().filter(|code| *code <= 65_535) {
            None => return Err(Malformed::CloseCode),
            Some(0) => None,
            Some(code) if may_travel(code) => Some(code),
            Some(_) => Some(1011),
        },
    };
    match (fields.get("frame"), code) {
        (None, None) => Err(Malformed::Empty),
        (Some(frame), None) => Ok((id, Some(frame.clone()), None)),
        (frame, code) => Ok((id, frame.filter(|frame| !frame.is_null()).cloned(), code)),
    }
}

fn may_travel(code: u64) -> bool {
    (1000..=4999).contains(&code)
        && !(1004..=1006).contains(&code)
        && !(1015..=2999).contains(&code)
}

fn check_wrap(id: &str, message: &str) {
    let wrapped = payload(Prefix::new(id).wrap(message));
    let (head, tail) = wrapped.split_at(wrapped.len() - message.len() - 1);
    assert_eq!(tail, format!("{message}}}"), "spliced in byte for byte");
    let head: Value = serde_json::from_str(&format!("{head}0}}")).expect("an object");
    assert_eq!(head, serde_json::json!({ "conn_id": id, "frame": 0 }));
    let envelope = Envelope::parse(&wrapped).expect("its own envelope");
    assert_eq!(envelope.conn_id, id);
    let bare = message.trim_matches([' ', '\t', '\r', '\n']);
    assert_eq!(envelope.action, Action::Deliver(bare));
}

fn check_notice(id: &str, seed: usize) {
    let code = u16::try_from(seed % 65_536).expect("a remainder");
    let notice: Value = serde_json::from_str(&payload(close_notice(id, code))).expect("an object");
    assert_eq!(notice, serde_json::json!({ "conn_id": id, "close_code": code }));
}

/// The text of one frame.
fn payload(frame: Frame) -> String {
    match &mut reference::frames(frame.as_bytes())[..] {
        [reference::Written::Text(text)] => std::mem::take(text),
        other => panic!("{other:?} instead of one text message"),
    }
}

fn beginning(text: &str) -> &str {
    text.char_indices().nth(40).map_or(text, |(at, _)| &text[..at])
}

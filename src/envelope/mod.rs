//! The routing envelope of the binary's leg: wrap and unwrap. The frame inside stays raw bytes.
//!
//! Nothing here builds a JSON value: input is validated in one pass without recursion and handed
//! out as slices (contract, Routing envelope).

pub mod json;

use std::borrow::Cow;
use std::fmt;

use crate::envelope::json::Fields;
use crate::telemetry::metrics::Dropped;
use crate::websocket::frames::Frame;

/// What every envelope with this phone's frames begins with, escaped once and kept.
#[derive(Debug)]
pub struct Prefix(Box<str>);

impl Prefix {
    /// The prefix for `conn_id`.
    pub fn new(conn_id: &str) -> Self {
        Self(format!("{{\"conn_id\":{},\"frame\":", json_string(conn_id)).into())
    }

    /// The envelope around `message`, which is spliced in byte for byte. The caller has checked
    /// with [`json::is_value`] that it is one JSON value.
    pub fn wrap(&self, message: &str) -> Frame {
        Frame::text(&[self.0.as_bytes(), message.as_bytes(), b"}"])
    }
}

/// The close notice that tells a binary that a phone has left.
pub fn close_notice(conn_id: &str, code: u16) -> Frame {
    let text = format!("{{\"conn_id\":{},\"close_code\":{code}}}", json_string(conn_id));
    Frame::text(&[text.as_bytes()])
}

/// What a binary asks for.
#[derive(PartialEq, Eq, Debug)]
pub struct Envelope<'a> {
    /// The phone, unescaped; never empty.
    pub conn_id: Cow<'a, str>,
    /// What to do.
    pub action: Action<'a>,
}

/// The action of an [`Envelope`]; frames are the bytes as they stood in the envelope.
#[derive(PartialEq, Eq, Debug)]
pub enum Action<'a> {
    /// Deliver this frame.
    Deliver(&'a str),
    /// Deliver the frame if there is one, then close the phone with this code: the one asked for,
    /// or `1011` where that may not travel.
    Close(Option<&'a str>, u16),
}

/// Why an envelope is dropped. It carries no content, so that none can reach a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Not one JSON object.
    NotAnObject,
    /// `conn_id` is missing, empty or no string.
    ConnId,
    /// `close_code` is no integer from 0 to 65535.
    CloseCode,
    /// Neither a frame nor a close code.
    Empty,
    /// A binary message that is not UTF-8.
    NotText,
}

impl Malformed {
    /// How it is counted.
    pub(crate) fn kind(self) -> Dropped {
        match self {
            Self::NotAnObject => Dropped::NotAnObject,
            Self::ConnId => Dropped::ConnId,
            Self::CloseCode => Dropped::CloseCode,
            Self::Empty => Dropped::Empty,
            Self::NotText => Dropped::NotText,
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnObject => "not one JSON object",
            Self::ConnId => "conn_id missing, empty or no string",
            Self::CloseCode => "close_code out of range",
            Self::Empty => "neither frame nor close_code",
            Self::NotText => "not UTF-8",
        })
    }
}

impl<'a> Envelope<'a> {
    /// Reads an envelope. Key order, white space and unknown fields are free; of a repeated key
    /// the last one counts.
    pub fn parse(text: &'a str) -> Result<Self, Malformed> {
        let (mut conn_id, mut frame, mut code) = (None, None, None);
        for field in Fields::of(text) {
            let field = field.map_err(|_| Malformed::NotAnObject)?;
            let known =
                [("conn_id", &mut conn_id), ("frame", &mut frame), ("close_code", &mut code)];
            if let Some((_, value)) = known.into_iter().find(|(name, _)| spells(field.name, name)) {
                *value = Some(field.value);
            }
        }

        let conn_id = unescape(conn_id.ok_or(Malformed::ConnId)?)?;
        let action = match (frame, close_code(code)?) {
            (Some(frame), None) => Action::Deliver(frame),
            (None, None) => return Err(Malformed::Empty),
            (frame, Some(code)) => Action::Close(frame.filter(|frame| *frame != "null"), code),
        };
        Ok(Self { conn_id, action })
    }
}

/// Whether `raw`, a string of JSON with its quotes, is `name`, which is ASCII letters and `_`: the only
/// escape that can stand for one of these is `\u00XX`. An envelope may hold tens of thousands of
/// names, so none of them is unescaped.
fn spells(raw: &str, name: &str) -> bool {
    let mut rest = raw.trim_matches('"').as_bytes();
    for byte in name.bytes() {
        rest = match rest {
            [first, rest @ ..] if *first == byte => rest,
            [b'\\', b'u', b'0', b'0', high, low, rest @ ..] => {
                let digit = |digit: u8| char::from(digit).to_digit(16);
                if digit(*high).zip(digit(*low))
                    != Some((u32::from(byte >> 4), u32::from(byte & 15)))
                {
                    return false;
                }
                rest
            }
            _ => return false,
        };
    }
    rest.is_empty()
}

fn unescape(raw: &str) -> Result<Cow<'_, str>, Malformed> {
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let text = match inner {
        Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
        Some(_) => Cow::Owned(serde_json::from_str(raw).map_err(|_| Malformed::ConnId)?),
        None => return Err(Malformed::ConnId),
    };
    if text.is_empty() { Err(Malformed::ConnId) } else { Ok(text) }
}

/// Absent, `null` and `0` mean none; a code that may not travel becomes `1011`.
fn close_code(raw: Option<&str>) -> Result<Option<u16>, Malformed> {
    match raw {
        None | Some("null") => Ok(None),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            match digits.parse::<u16>() {
                Ok(0) => Ok(None),
                Ok(code) if may_travel(code) => Ok(Some(code)),
                Ok(_) => Ok(Some(1011)),
                Err(_) => Err(Malformed::CloseCode),
            }
        }
        Some(_) => Err(Malformed::CloseCode),
    }
}

/// Whether an endpoint may put `code` into a close frame (RFC 6455 section 7.4 and the registry
/// that it founded).
fn may_travel(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("bug: a string always serialises")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use relay_test_kit::frame::Received;

    use super::*;
    use crate::envelope::json::is_value;

    fn text_of(frame: Frame) -> String {
        let frame = Received::decode(frame.as_bytes()).unwrap().expect("it is whole").0;
        String::from_utf8(frame.payload).unwrap()
    }

    fn action(text: &str) -> Result<Action<'_>, Malformed> {
        Envelope::parse(text).map(|envelope| envelope.action)
    }

    #[test]
    fn a_frame_is_spliced_in_and_taken_out_byte_for_byte() {
        for frame in [
            r#"{"a":1,"a":2}"#,
            "12345678901234567890.000e+400",
            r#""\u00e9\/\ud83d\ude00 é😀""#,
            r#"" \ud800 lone surrogate""#,
            "{ \"white\" :\t[ 1 ,\r\n2 ] }",
            "null",
            "false",
            "[]",
        ] {
            assert!(is_value(frame), "{frame}");
            let wrapped = text_of(Prefix::new("client-s-0").wrap(frame));
            assert_eq!(wrapped, format!(r#"{{"conn_id":"client-s-0","frame":{frame}}}"#));
            let envelope = Envelope::parse(&wrapped).unwrap();
            assert_eq!(envelope.conn_id, "client-s-0");
            assert_eq!(envelope.action, Action::Deliver(frame));
        }
    }

    #[test]
    fn what_is_not_exactly_one_json_value_is_refused() {
        for bad in
            ["", " ", "nul", "{", "{}{}", "[1,]", "01", "+1", "'a'", "\"\u{1}\"", "1 2", "NaN"]
        {
            assert!(!is_value(bad), "{bad:?}");
        }
    }

    #[test]
    fn nesting_of_any_depth_neither_overflows_nor_fails() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(is_value(&deep));
        let wrapped = text_of(Prefix::new("c").wrap(&deep));
        assert_eq!(action(&wrapped), Ok(Action::Deliver(&deep)));
        assert!(!is_value(&"[".repeat(200_000)));
    }

    #[test]
    fn key_order_white_space_unknown_fields_and_escaped_keys_are_free() {
        let text = " { \"\\ud800\" : [{}] , \"close_code\" : 4401 ,\n\"frame\" : {\"x\": 1 } , \
                    \"token\":null, \"conn\\u005fid\" : \"a\\u0026b\" } ";
        let envelope = Envelope::parse(text).unwrap();
        assert_eq!(envelope.conn_id, "a&b");
        assert_eq!(envelope.action, Action::Close(Some("{\"x\": 1 }"), 4401));
    }

    #[test]
    fn of_a_repeated_key_the_last_one_counts() {
        let text =
            r#"{"conn_id":7,"frame":1,"close_code":"x","conn_id":"c","frame":2,"close_code":0}"#;
        let envelope = Envelope::parse(text).unwrap();
        assert_eq!(envelope.conn_id, "c");
        assert_eq!(envelope.action, Action::Deliver("2"));
    }

    #[test]
    fn close_codes_travel_are_replaced_or_condemn_the_envelope() {
        let code = |raw: &str| match action(&format!(r#"{{"conn_id":"c","close_code":{raw}}}"#)) {
            Ok(Action::Close(None, code)) => Ok(code),
            Ok(other) => panic!("{raw}: {other:?}"),
            Err(error) => Err(error),
        };
        for travels in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4401, 4421, 4999] {
            assert_eq!(code(&travels.to_string()), Ok(travels));
        }
        for replaced in ["1", "999", "1004", "1005", "1006", "1015", "2999", "5000", "65535"] {
            assert_eq!(code(replaced), Ok(1011), "{replaced}");
        }
        for bad in
            ["-1", "-0", "65536", "1000.0", "1e3", "\"1000\"", "true", "[]", "{}", "99999999999"]
        {
            assert_eq!(code(bad), Err(Malformed::CloseCode), "{bad}");
        }
        for none in ["null", "0"] {
            assert_eq!(code(none), Err(Malformed::Empty), "{none}");
            let text = format!(r#"{{"conn_id":"c","frame":1,"close_code":{none}}}"#);
            assert_eq!(action(&text), Ok(Action::Deliver("1")));
        }
        let text = r#"{"conn_id":"c","frame":null,"close_code":4401}"#;
        assert_eq!(action(text), Ok(Action::Close(None, 4401)));
    }

    #[test]
    fn malformed_envelopes_are_told_apart() {
        for (text, expected) in [
            ("", Malformed::NotAnObject),
            ("{\"conn_id\":\"c\",\"frame\":1,\"a\u{1}\":2}", Malformed::NotAnObject),
            ("{\"conn_id\":\"c\",\"frame\":1,\"a\n\":2}", Malformed::NotAnObject),
            ("[]", Malformed::NotAnObject),
            ("\"x\"", Malformed::NotAnObject),
            (r#"{"conn_id":"c","frame":1}x"#, Malformed::NotAnObject),
            (r#"{"conn_id":"c","frame":}"#, Malformed::NotAnObject),
            (r#"{"frame":1}"#, Malformed::ConnId),
            (r#"{"conn_id":"","frame":1}"#, Malformed::ConnId),
            (r#"{"conn_id":null,"frame":1}"#, Malformed::ConnId),
            (r#"{"conn_id":5,"frame":1}"#, Malformed::ConnId),
            (r#"{"conn_id":"\ud800","frame":1}"#, Malformed::ConnId),
            (r#"{"type":"push_wake"}"#, Malformed::ConnId),
            (r#"{"conn_id":"c"}"#, Malformed::Empty),
        ] {
            assert_eq!(Envelope::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn conn_ids_are_escaped_as_json_needs_it() {
        let id = r#"client-a"b\c&d-00"#;
        let notice = text_of(close_notice(id, 1001));
        assert_eq!(notice, r#"{"conn_id":"client-a\"b\\c&d-00","close_code":1001}"#);
        let envelope = Envelope::parse(&notice).unwrap();
        assert_eq!((envelope.conn_id.as_ref(), envelope.action), (id, Action::Close(None, 1001)));
    }

    /// Any JSON value as text, with free white space and numbers that no machine type holds.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|value| value.to_string()),
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,5})?",
            any::<String>().prop_map(|text| json_string(&text)),
            "\"(\\\\u[0-9a-fA-F]{4}|\\\\[\"\\\\/bfnrt]|[ !#-\\[\\]-~]){0,20}\"",
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                (prop::collection::vec(inner.clone(), 0..8), "[ \t\r\n]{0,3}")
                    .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(","))),
                (prop::collection::vec((any::<String>(), inner), 0..8), "[ \t\r\n]{0,3}").prop_map(
                    |(items, space)| {
                        let items: Vec<_> = items
                            .iter()
                            .map(|(key, value)| format!("{}{space}:{value}", json_string(key)))
                            .collect();
                        format!("{{{}}}", items.join(&format!("{space},")))
                    }
                ),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_value_goes_through_byte_for_byte(frame in json(), id in "[!-~]{1,128}") {
            prop_assert!(is_value(&frame));
            let wrapped = text_of(Prefix::new(&id).wrap(&frame));
            let envelope = Envelope::parse(&wrapped).unwrap();
            prop_assert_eq!(envelope.conn_id.as_ref(), id.as_str());
            prop_assert_eq!(envelope.action, Action::Deliver(frame.as_str()));
        }

        #[test]
        fn mangled_bytes_never_panic(frame in json(), cut in any::<prop::sample::Index>(), junk in any::<char>()) {
            let wrapped = text_of(Prefix::new("client-x-1").wrap(&frame));
            let cuts: Vec<_> = wrapped.char_indices().map(|(at, _)| at).collect();
            let at = cuts[cut.index(cuts.len())];
            let mangled = format!("{}{junk}{}", &wrapped[..at], &wrapped[at..]);
            let _ = Envelope::parse(&mangled);
            let _ = Envelope::parse(&wrapped[..at]);
            let _ = is_value(&mangled);
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in any::<String>()) {
            let _ = Envelope::parse(&text);
        }
    }
}

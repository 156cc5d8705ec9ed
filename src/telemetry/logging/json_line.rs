//! Records as lines of JSON: one object each, numbers as numbers, everything else as strings.

use std::fmt::Write as _;
use std::time::SystemTime;

use log::Record;
use log::kv::{Error, Key, Value, VisitSource};

use super::{level_name, timestamp};

/// One object: `time`, `level`, `event`, and the fields of the record.
pub(super) fn line(record: &Record<'_>, time: Option<SystemTime>) -> String {
    let mut line = String::with_capacity(192);
    line.push('{');
    if let Some(time) = time.and_then(timestamp) {
        push_string(&mut line, "time");
        line.push(':');
        push_string(&mut line, &time);
        line.push(',');
    }
    push_string(&mut line, "level");
    line.push(':');
    push_string(&mut line, level_name(record.level()));
    push_key(&mut line, "event");
    push_string(&mut line, &record.args().to_string());
    // The visitor never fails.
    let _ = record.key_values().visit(&mut Members(&mut line));
    line.push_str("}\n");
    line
}

struct Members<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Members<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        push_key(self.0, key.as_str());
        // Writing into a string never fails.
        let _ = match (value.to_u64(), value.to_i64(), value.to_bool()) {
            (Some(number), _, _) => write!(self.0, "{number}"),
            (_, Some(number), _) => write!(self.0, "{number}"),
            (_, _, Some(truth)) => write!(self.0, "{truth}"),
            _ => {
                push_string(self.0, &value.to_string());
                Ok(())
            }
        };
        Ok(())
    }
}

fn push_key(line: &mut String, key: &str) {
    line.push(',');
    push_string(line, key);
    line.push(':');
}

/// RFC 8259 section 7. What a terminal could take for more than a sign is escaped as well.
fn push_string(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => line.extend(['\\', character]),
            '\'' => line.push(character),
            _ if character.escape_debug().len() == 1 => line.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing into a string never fails.
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use log::{Level, RecordBuilder};
    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn a_line_is_one_object_with_numbers_as_numbers() {
        let pairs: [(&str, &dyn log::kv::ToValue); 4] =
            [("server_id", &"123"), ("phones", &3_usize), ("below", &-1_i32), ("on", &true)];
        let made = line(
            &RecordBuilder::new()
                .level(Level::Warn)
                .key_values(&pairs)
                .args(format_args!("server_expired"))
                .build(),
            Some(UNIX_EPOCH),
        );
        assert_eq!(
            made,
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"level\":\"warn\",\"event\":\"server_expired\",\
             \"server_id\":\"123\",\"phones\":3,\"below\":-1,\"on\":true}\n"
        );
    }

    #[test]
    fn peer_text_forges_neither_a_line_nor_a_member() {
        for text in [
            "",
            "\",\"event\":\"forged",
            "\\\",\"event\":\"forged",
            "a\nb\r\t\0",
            "\u{1b}[2J\u{9b}\u{7f}\u{202e}\u{2028}\u{e0041}",
            "Zoë's 📱",
        ] {
            let pairs = [("device_name", text)];
            let record =
                |args| line(&RecordBuilder::new().key_values(&pairs).args(args).build(), None);
            let made = record(format_args!("x"));
            let printed = made.strip_suffix('\n').unwrap();
            assert!(!printed.chars().any(char::is_control), "{printed:?}");
            assert!(!printed.contains(['\u{202e}', '\u{2028}', '\u{e0041}']), "{printed:?}");
            let parsed: Json = serde_json::from_str(printed).unwrap();
            let members = parsed.as_object().unwrap();
            assert_eq!(members.len(), 3, "{printed}");
            assert_eq!((&members["event"], &members["device_name"]), (&"x".into(), &text.into()));
        }
    }
}

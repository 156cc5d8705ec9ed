//! Naive second opinions, written from the standards and not from the relay.

/// Whether `text` is exactly one JSON value by the grammar of RFC 8259.
pub fn is_json(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, 0);
    // What the open brackets close with.
    let mut open = Vec::new();
    loop {
        // A value begins here.
        match bytes.get(at) {
            Some(b'[') => {
                at = skip_space(bytes, at + 1);
                if bytes.get(at) != Some(&b']') {
                    open.push(b']');
                    continue;
                }
                at += 1;
            }
            Some(b'{') => {
                at = skip_space(bytes, at + 1);
                if bytes.get(at) != Some(&b'}') {
                    open.push(b'}');
                    let Some(value) = skip_key(bytes, at) else { return false };
                    at = value;
                    continue;
                }
                at += 1;
            }
            _ => match skip_scalar(bytes, at) {
                Some(end) => at = end,
                None => return false,
            },
        }
        // A value has ended: whatever it completes ends with it.
        loop {
            at = skip_space(bytes, at);
            match (open.last(), bytes.get(at)) {
                (None, next) => return next.is_none(),
                (Some(b'}'), Some(b',')) => {
                    let Some(value) = skip_key(bytes, skip_space(bytes, at + 1)) else {
                        return false;
                    };
                    at = value;
                    break;
                }
                (Some(b']'), Some(b',')) => {
                    at = skip_space(bytes, at + 1);
                    break;
                }
                (Some(close), Some(byte)) if close == byte => {
                    open.pop();
                    at += 1;
                }
                _ => return false,
            }
        }
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// From a key to its value.
fn skip_key(bytes: &[u8], at: usize) -> Option<usize> {
    let colon = skip_space(bytes, skip_string(bytes, at)?);
    (bytes.get(colon) == Some(&b':')).then(|| skip_space(bytes, colon + 1))
}

fn skip_scalar(bytes: &[u8], at: usize) -> Option<usize> {
    for word in ["null", "true", "false"] {
        if bytes[at.min(bytes.len())..].starts_with(word.as_bytes()) {
            return Some(at + word.len());
        }
    }
    if bytes.get(at) == Some(&b'"') { skip_string(bytes, at) } else { skip_number(bytes, at) }
}

fn skip_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    loop {
        at += 1;
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                at += 1;
                match *bytes.get(at)? {
                    b'u' => {
                        let digits = bytes.get(at + 1..at + 5)?;
                        if !digits.iter().all(u8::is_ascii_hexdigit) {
                            return None;
                        }
                        at += 4;
                    }
                    escape if b"\"\\/bfnrt".contains(&escape) => {}
                    _ => return None,
                }
            }
            0..0x20 => return None,
            _ => {}
        }
    }
}

fn skip_number(bytes: &[u8], mut at: usize) -> Option<usize> {
    let digits = |from: usize| {
        let end =
            from + bytes[from.min(bytes.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
        (end > from).then_some(end)
    };
    if bytes.get(at) == Some(&b'-') {
        at += 1;
    }
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        if matches!(bytes.get(at), Some(b'+' | b'-')) {
            at += 1;
        }
        at = digits(at)?;
    }
    Some(at)
}

/// A frame as the relay wrote it.
#[derive(PartialEq, Eq, Debug)]
pub enum Written {
    /// A text message.
    Text(String),
    /// A close frame.
    Close(Option<u16>),
    /// A ping with its payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
}

/// The frames that a server wrote, up to one that is cut off. Panics if anything in them breaks
/// RFC 6455: a mask, a reserved bit or opcode, a length that is not minimal, a control frame that
/// is too long or comes in fragments, text that is not UTF-8, a bad close code, anything behind a
/// close frame. The relay never fragments either.
pub fn frames(mut bytes: &[u8]) -> Vec<Written> {
    let mut frames = Vec::new();
    while let [first, second, ..] = *bytes {
        assert!(!matches!(frames.last(), Some(Written::Close(_))), "something follows a close");
        assert_eq!(first & 0xf0, 0x80, "one final frame without reserved bits");
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (length, header) = match second {
            126 => {
                let Some(field) = bytes.get(2..4) else { return frames };
                let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
                assert!(length > 125, "the shortest length is used");
                (length, 4)
            }
            127 => {
                let Some(field) = bytes.get(2..10) else { return frames };
                let length = field.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                assert!(length > 0xffff && length < 1 << 32, "the shortest length is used");
                (length, 10)
            }
            short => (usize::from(short), 2),
        };
        let control = first & 0x08 != 0;
        assert!(!control || length <= 125, "a control frame of {length} bytes");
        let Some(payload) = bytes.get(header..header + length) else { return frames };
        frames.push(match first & 0x0f {
            1 => Written::Text(String::from_utf8(payload.to_vec()).expect("UTF-8")),
            8 => {
                let code = match payload {
                    [] => None,
                    [high, low, reason @ ..] => {
                        assert!(std::str::from_utf8(reason).is_ok(), "the reason is UTF-8");
                        let code = u16::from_be_bytes([*high, *low]);
                        let known = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                        assert!(known, "{code} may not travel");
                        Some(code)
                    }
                    [_] => panic!("half a close code"),
                };
                Written::Close(code)
            }
            9 => Written::Ping(payload.to_vec()),
            10 => Written::Pong,
            opcode => panic!("opcode {opcode}"),
        });
        bytes = &bytes[header + length..];
    }
    frames
}

/// The data messages that a client sent, up to the first thing that a server must not take:
/// `None` in place of a message that is not UTF-8.
pub fn messages(mut bytes: &[u8], largest: usize) -> Vec<Option<String>> {
    let mut messages = Vec::new();
    // Opcode and payload of the message in progress.
    let mut begun: Option<(u8, Vec<u8>)> = None;
    while let [first, second, ..] = *bytes {
        let (opcode, last) = (first & 0x0f, first & 0x80 != 0);
        if first & 0x70 != 0 || second & 0x80 == 0 {
            break;
        }
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(field) = bytes.get(2..2 + extended) else { break };
        let length = match extended {
            0 => u64::from(second & 0x7f),
            _ => field.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let Ok(length) = usize::try_from(length) else { break };
        let begin = 2 + extended + 4;
        let Some(payload) = begin.checked_add(length).and_then(|end| bytes.get(begin..end)) else {
            break;
        };
        let key = &bytes[begin - 4..begin];
        let payload: Vec<u8> = payload.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b).collect();
        bytes = &bytes[begin + length..];
        match (opcode, &mut begun) {
            (9 | 10, _) if last && length <= 125 => continue,
            (1 | 2, None) => begun = Some((opcode, payload)),
            (0, Some((_, whole))) => whole.extend(payload),
            // A close frame, or a violation.
            _ => break,
        }
        if begun.as_ref().is_some_and(|(_, whole)| whole.len() > largest) {
            break;
        }
        if last {
            if let Some((opcode, whole)) = begun.take() {
                let text = String::from_utf8(whole).ok();
                if opcode == 1 && text.is_none() {
                    break;
                }
                messages.push(text);
            }
        }
    }
    messages
}

//! JSON (RFC 8259) as far as a relay needs it: whether a text is one value, and where the fields of
//! an object stand in it. Nothing is built, unescaped or copied.
//!
//! Every message passes here once, so it is ours: with the check of a well-kept crate, a quarter of
//! the time of large messages went into the search for the end of their strings, 8 bytes at a time
//! (docs/performance.md). Depth is bounded by the text alone: one bit a level, no recursion.

/// Whether `text` is exactly one JSON value.
pub fn is_value(text: &str) -> bool {
    let mut scanner = Scanner::new(text);
    scanner.value().and_then(|()| scanner.end()).is_ok()
}

/// The text is not what was asked for. It carries no content, so that none can reach a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Invalid;

/// One field of an object, as it stands in the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Field<'a> {
    /// The name, with its quotes and escapes.
    pub(crate) name: &'a str,
    /// The value, without white space around it.
    pub(crate) value: &'a str,
}

/// The fields of the one object that a text is, in order. The text has been checked as a whole
/// when the iterator ends; after an error it is exhausted.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    scanner: Scanner<'a>,
    next: Expected,
}

impl<'a> Fields<'a> {
    /// The fields of `text`.
    pub(crate) fn of(text: &'a str) -> Self {
        Self { scanner: Scanner::new(text), next: Expected::Object }
    }

    fn advance(&mut self) -> Result<Option<Field<'a>>, Invalid> {
        let scanner = &mut self.scanner;
        match self.next {
            Expected::Object => {
                scanner.expect(b'{')?;
                if scanner.accept(b'}') {
                    return scanner.end().map(|()| None);
                }
            }
            Expected::CommaOrEnd => {
                if !scanner.accept(b',') {
                    scanner.expect(b'}')?;
                    return scanner.end().map(|()| None);
                }
            }
            Expected::Nothing => return Ok(None),
        }
        self.next = Expected::CommaOrEnd;
        let name = scanner.taken(Scanner::string)?;
        scanner.expect(b':')?;
        let value = scanner.taken(Scanner::value)?;
        Ok(Some(Field { name, value }))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Invalid>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.advance().transpose();
        if !matches!(field, Some(Ok(_))) {
            self.next = Expected::Nothing;
        }
        field
    }
}

#[derive(Debug)]
enum Expected {
    Object,
    CommaOrEnd,
    Nothing,
}

/// A place in a text.
#[derive(Debug)]
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// One value, whatever is nested in it.
    fn value(&mut self) -> Result<(), Invalid> {
        let mut nesting = Nesting::default();
        loop {
            self.skip_white_space();
            match self.byte()? {
                b'"' => self.string_after_quote()?,
                b'{' if !self.accept(b'}') => {
                    nesting.enter(Inside::Object);
                    self.name()?;
                    continue;
                }
                b'[' if !self.accept(b']') => {
                    nesting.enter(Inside::Array);
                    continue;
                }
                b'{' | b'[' => {}
                b't' => self.literal(b"rue")?,
                b'f' => self.literal(b"alse")?,
                b'n' => self.literal(b"ull")?,
                b'-' => {
                    let first = self.byte()?;
                    self.number_after(first)?;
                }
                digit => self.number_after(digit)?,
            }
            loop {
                let inside = match nesting.innermost() {
                    Some(inside) => inside,
                    None => return Ok(()),
                };
                if self.accept(b',') {
                    if inside == Inside::Object {
                        self.name()?;
                    }
                    break;
                }
                self.expect(if inside == Inside::Object { b'}' } else { b']' })?;
                nesting.leave();
            }
        }
    }

    /// The name of a field and its colon.
    fn name(&mut self) -> Result<(), Invalid> {
        self.string()?;
        self.expect(b':')
    }

    fn string(&mut self) -> Result<(), Invalid> {
        self.expect(b'"')?;
        self.string_after_quote()
    }

    fn string_after_quote(&mut self) -> Result<(), Invalid> {
        loop {
            self.at += plain_prefix(self.unread());
            match self.byte()? {
                b'"' => return Ok(()),
                b'\\' => match self.byte()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        for _ in 0..4 {
                            if !self.byte()?.is_ascii_hexdigit() {
                                return Err(Invalid);
                            }
                        }
                    }
                    _ => return Err(Invalid),
                },
                _ => return Err(Invalid),
            }
        }
    }

    /// The rest of a number of which `first` is the first digit.
    fn number_after(&mut self, first: u8) -> Result<(), Invalid> {
        match first {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return Err(Invalid),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one digit.
    fn digits(&mut self) -> Result<(), Invalid> {
        if !self.byte()?.is_ascii_digit() {
            return Err(Invalid);
        }
        self.skip_digits();
        Ok(())
    }

    fn skip_digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn literal(&mut self, rest: &[u8]) -> Result<(), Invalid> {
        if !self.unread().starts_with(rest) {
            return Err(Invalid);
        }
        self.at += rest.len();
        Ok(())
    }

    /// Nothing but white space up to the end.
    fn end(&mut self) -> Result<(), Invalid> {
        self.skip_white_space();
        if self.unread().is_empty() { Ok(()) } else { Err(Invalid) }
    }

    /// The slice that `scan` passes, without the white space before it.
    fn taken(
        &mut self,
        scan: impl FnOnce(&mut Self) -> Result<(), Invalid>,
    ) -> Result<&'a str, Invalid> {
        self.skip_white_space();
        let start = self.at;
        scan(self)?;
        Ok(&self.text[start..self.at])
    }

    /// Whether `wanted` comes next behind white space; passes it then.
    fn accept(&mut self, wanted: u8) -> bool {
        self.skip_white_space();
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Invalid> {
        if self.accept(wanted) { Ok(()) } else { Err(Invalid) }
    }

    fn skip_white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn byte(&mut self) -> Result<u8, Invalid> {
        let byte = self.peek().ok_or(Invalid)?;
        self.at += 1;
        Ok(byte)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn unread(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }
}

/// What encloses a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Inside {
    Array,
    Object,
}

/// The arrays and objects around a value, one bit each; the innermost 64 without an allocation.
#[derive(Default)]
struct Nesting {
    depth: usize,
    inner: u64,
    outer: Vec<u64>,
}

impl Nesting {
    fn enter(&mut self, inside: Inside) {
        if self.depth > 0 && self.depth % WORD_BITS == 0 {
            self.outer.push(self.inner);
        }
        self.inner = self.inner << 1 | u64::from(inside == Inside::Object);
        self.depth += 1;
    }

    fn leave(&mut self) {
        self.inner >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth % WORD_BITS == 0 {
            self.inner = self.outer.pop().expect("bug: a word was kept for every 64 levels");
        }
    }

    fn innermost(&self) -> Option<Inside> {
        match (self.depth, self.inner & 1) {
            (0, _) => None,
            (_, 0) => Some(Inside::Array),
            _ => Some(Inside::Object),
        }
    }
}

/// How many bytes of `bytes` a string may hold as they are: up to a quote, a backslash, a control
/// character or the end. A block is tested as a whole, which compiles to vector instructions.
fn plain_prefix(bytes: &[u8]) -> usize {
    let mut blocks = bytes.chunks_exact(BLOCK_BYTES);
    let plain = blocks
        .by_ref()
        .take_while(|block| {
            block.iter().fold(0, |special, &byte| special | u8::from(is_special(byte))) == 0
        })
        .count()
        * BLOCK_BYTES;
    let rest = &bytes[plain..];
    plain + rest.iter().position(|&byte| is_special(byte)).unwrap_or(rest.len())
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

const WORD_BITS: usize = 64;
const BLOCK_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    /// The oracle: what a JSON library of many users takes for one value.
    fn is_value_to_serde(text: &str) -> bool {
        serde_json::from_str::<&RawValue>(text).is_ok()
    }

    #[test]
    fn values_of_every_kind_are_told_from_what_only_looks_like_one() {
        for value in [
            "0",
            "-0",
            "10",
            "-1.5",
            "1e5",
            "1E+5",
            "1.25e-300",
            "null",
            "true",
            "false",
            "\"\"",
            "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00fF\"",
            "\"\\ud800\"",
            "\"é😀\u{7f}\"",
            "[]",
            "[ ]",
            "{}",
            "{ }",
            " [1 , [2,{}],\t{\"a\" : {\"b\":[null]} , \"a\":1}\r\n] ",
        ] {
            assert!(is_value(value), "{value}");
            assert!(is_value_to_serde(value), "{value}");
        }
        for bad in [
            "",
            " ",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".5",
            "1.e5",
            "1e",
            "1e+",
            "0x1",
            "1 2",
            "nul",
            "nulll",
            "True",
            "NaN",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u123\"",
            "\"\u{1f}\"",
            "\"a\nb\"",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{",
            "}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "{\"a\":1 \"b\":2}",
            "{]",
            "[}",
            "[1}",
            "{\"a\":1]",
            "[[]",
            "[]]",
            "{}{}",
            "\u{feff}1",
            "1\u{a0}",
            "'a'",
            "[1]x",
        ] {
            assert!(!is_value(bad), "{bad:?}");
            assert!(!is_value_to_serde(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_special_byte_ends_a_string_wherever_it_stands() {
        for length in 0..200 {
            for special in ['"', '\\', '\u{0}', '\u{1f}'] {
                let text = format!("{}{special}{}", "é".repeat(length / 2), "x".repeat(70));
                assert_eq!(plain_prefix(text.as_bytes()), length / 2 * 2, "{special:?}");
            }
            assert_eq!(plain_prefix("x".repeat(length).as_bytes()), length);
        }
    }

    #[test]
    fn nesting_is_remembered_at_every_depth() {
        let is_object = |level: usize| (level * level + level / 64) % 3 == 0;
        let nested = |depth: usize, mistake: Option<usize>| {
            let opening = (0..depth).map(|level| if is_object(level) { "{\"\":" } else { "[" });
            let closing = (0..depth)
                .rev()
                .map(|level| if is_object(level) != (mistake == Some(level)) { "}" } else { "]" });
            opening.chain(["1"]).chain(closing).collect::<String>()
        };
        for depth in [1, 63, 64, 65, 127, 128, 129, 500] {
            assert!(is_value(&nested(depth, None)), "{depth}");
            for mistake in 0..depth {
                assert!(!is_value(&nested(depth, Some(mistake))), "{depth} {mistake}");
            }
        }
    }

    #[test]
    fn fields_are_slices_of_the_text_in_order() {
        let text = " { \"a\\n\" : [ 1 ] ,\"b\":{\"c\":2}\n, \"a\\n\":\"}\" } ";
        let fields: Vec<_> = Fields::of(text)
            .map(|field| field.map(|Field { name, value }| (name, value)))
            .collect::<Result<_, _>>()
            .unwrap();
        let expected = [("\"a\\n\"", "[ 1 ]"), ("\"b\"", "{\"c\":2}"), ("\"a\\n\"", "\"}\"")];
        assert_eq!(fields, expected);
        assert_eq!(Fields::of(" {} ").count(), 0);
    }

    #[test]
    fn what_is_no_object_is_an_error_once() {
        for (bad, sound) in [
            ("", 0),
            ("[]", 0),
            ("1", 0),
            ("{", 0),
            ("{,}", 0),
            ("{\"a\" 1}", 0),
            ("{\"a\":}", 0),
            ("{\"a\":1", 1),
            ("{\"a\":1,}", 1),
            ("{\"a\":1}x", 1),
            ("{\"a\":1]", 1),
            ("{}x", 0),
            ("{\"a\":1 \"b\":2}", 1),
            ("{\"a\":1,\"b\":01}", 2),
        ] {
            let mut fields = Fields::of(bad);
            for _ in 0..sound {
                assert!(matches!(fields.next(), Some(Ok(_))), "{bad:?}");
            }
            assert_eq!(fields.next(), Some(Err(Invalid)), "{bad:?}");
            assert_eq!(fields.next(), None, "{bad:?}");
        }
    }

    const TOKENS: &[&str] = &[
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"",
        "\\",
        " ",
        "\t",
        "\n",
        "0",
        "7",
        "-",
        "+",
        ".",
        "e",
        "E",
        "u",
        "null",
        "true",
        "false",
        "\"a\":",
        "\"\\u00e9\"",
        "\"\"",
        "1.5e3",
        "[]",
        "{}",
        "é",
    ];

    proptest! {
        #[test]
        fn any_text_is_judged_as_serde_json_judges_it(
            tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..24)
        ) {
            let text = tokens.concat();
            prop_assert_eq!(is_value(&text), is_value_to_serde(&text));
        }

        #[test]
        fn one_changed_character_is_judged_as_serde_json_judges_it(
            value in any::<(String, Option<f64>, Vec<bool>)>(),
            at in any::<prop::sample::Index>(),
            junk in prop::sample::select(TOKENS),
        ) {
            let mut text = serde_json::to_string(&value).unwrap();
            prop_assert!(is_value(&text));
            let place = at.index(text.len());
            if text.is_char_boundary(place) && text.is_char_boundary(place + 1) {
                text.replace_range(place..place + 1, junk);
            }
            prop_assert_eq!(is_value(&text), is_value_to_serde(&text));
        }
    }
}

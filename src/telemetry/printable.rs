//! Text from elsewhere, made safe for a terminal.
//!
//! A terminal obeys control characters (C0, DEL, C1), and format characters such as U+202E turn
//! the text after them around. Others cannot be seen. All of these are escaped.

/// Whether a terminal shows `character` and does nothing else with it. False for categories C and
/// Z of Unicode except the space, and for marks that combine with the character before them.
pub(crate) fn is_printable(character: char) -> bool {
    // Rust escapes these for its own syntax.
    matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1
}

/// `text` with every character that is not printable written as in Rust: `\n`, `\u{1b}`. Backslashes
/// stay as they are, so this is for people to read and not for programs to reverse.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_printable(character) {
            true => shown.push(character),
            false => shown.extend(character.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bidirectional controls (UAX #9) and the other format characters that hide in text.
    const FORMAT: &str = "\u{ad}\u{61c}\u{180e}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{202a}\u{202b}\
                          \u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\u{feff}\
                          \u{fff9}\u{e0001}\u{e0041}";

    #[test]
    fn controls_and_format_characters_are_escaped() {
        let controls = ('\0'..=' ').chain('\u{7f}'..='\u{9f}').filter(|sign| *sign != ' ');
        let separators = "\u{2028}\u{2029}\u{a0}".chars();
        for character in controls.chain(separators).chain(FORMAT.chars()) {
            assert!(!is_printable(character), "{character:?}");
            let shown = printable(&character.to_string());
            assert!(shown.starts_with('\\') && shown.is_ascii(), "{character:?}: {shown}");
        }
        assert_eq!(printable("a\u{202e}b\u{1b}[2J\n"), r"a\u{202e}b\u{1b}[2J\n");
    }

    #[test]
    fn letters_of_any_language_quotes_and_backslashes_stay() {
        let text = r#"Zoë's "Küche" C:\x 日本 עברית 📱"#;
        assert_eq!(printable(text), text);
    }
}

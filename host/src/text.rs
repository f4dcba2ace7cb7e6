//! Text from outside, made safe to show and to keep.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with control and bidirectional formatting characters escaped, so that what a guest,
/// a message or a file name says cannot move the cursor, colour the terminal or reorder a line.
/// Newlines and tabs are escaped too: one value stays on one line.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Like [`printable`], but newlines and tabs stay: for backtraces and logs.
#[must_use]
pub fn printable_block(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n' || c == '\t')
}

/// The text of a JSON value, still the same JSON value, with the characters that [`printable`]
/// escapes written as JSON's own `\u` escapes: for a terminal.
#[must_use]
pub fn printable_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    // Whitespace between the parts can't be escaped; what is left stands in strings.
    let mut out = String::with_capacity(text.len() + 16);
    for c in crate::json::compact(text).chars() {
        if is_hostile(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a String takes all");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|c| is_hostile(c) && !keep(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !is_hostile(c) || keep(c) {
            out.push(c);
        } else {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                _ => write!(out, "\\u{{{:x}}}", u32::from(c)).expect("a String takes all"),
            }
        }
    }
    Cow::Owned(out)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and the characters that
/// reorder or hide text (Unicode Bidi_Control, zero-width, and tag characters).
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text with each U+0000 replaced by U+FFFD: PostgreSQL's text rejects it.
#[must_use]
pub fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// The text cut to at most `max_bytes`, at a character's border, with a mark where it was cut.
#[must_use]
pub fn cut(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        let left_out = text.len() - max_bytes;
        text.truncate(text.floor_char_boundary(max_bytes));
        let _ = write!(text, " [… {left_out} bytes cut]");
    }
    text
}

/// The entry of `known` nearest to `word`, if one is near enough to be a slip of the keys.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[31mred\u{202e}b\n"), "a\\u{1b}[31mred\\u{202e}b\\n");
        assert_eq!(printable("año → 日本語 🙂"), "año → 日本語 🙂");
        assert_eq!(printable_block("a\n\tb\u{7}"), "a\n\tb\\u{7}");
    }

    #[test]
    fn json_made_printable_is_the_same_json() {
        let text = "{\"a\":\t\"x\u{202e}\u{7f}\u{e0041}ñ\",\n\"b\": 1.50}";
        let shown = printable_json(text);
        assert_eq!(shown, r#"{"a":"x\u202e\u007f\udb40\udc41ñ","b":1.50}"#);
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(value(&shown), value(text));
        assert_eq!(printable_json("[1, 2]"), "[1, 2]");
    }

    #[test]
    fn a_nul_is_replaced() {
        assert_eq!(without_nul("a\0b".into()), "a\u{fffd}b");
    }

    #[test]
    fn a_cut_stands_at_a_character_s_border_and_is_marked() {
        assert_eq!(cut("ñññ".into(), 3), "ñ [… 3 bytes cut]");
        assert_eq!(cut("abc".into(), 3), "abc");
    }

    #[test]
    fn a_slip_of_the_keys_finds_the_word_that_was_meant() {
        assert_eq!(nearest("concurency", ["concurrency", "queue"]), Some("concurrency"));
        assert_eq!(nearest("zzz", ["concurrency", "queue"]), None);
    }
}

//! JSON as text: what must be known about a value that is passed on exactly as it was sent.
//!
//! Arguments and results are never re-encoded: a 30-digit integer, a key order or an escaped
//! U+0000 would not survive it.

use std::borrow::Cow;

use serde_json::value::RawValue;

/// Deepest nesting that is taken from outside. `serde_json` reads 127 levels by default, and a
/// message's arguments lie one level below its body.
pub const MAX_DEPTH: usize = 128;

/// Why a text is not taken as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// It is nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// It is JSON of another kind.
    #[error("expected a JSON {expected}, found {found}")]
    Kind {
        /// The kind that was expected.
        expected: &'static str,
        /// The kind that was found.
        found: &'static str,
    },
}

/// Checks that `text` is one JSON value, not too deep, and returns it without outer whitespace.
///
/// # Errors
/// It is not JSON, or too deep.
pub fn check(text: &str) -> Result<&str, JsonError> {
    if depth(text) > MAX_DEPTH {
        return Err(JsonError::TooDeep);
    }
    let value: &RawValue =
        serde_json::from_str(text).map_err(|error| JsonError::Syntax(error.to_string()))?;
    Ok(value.get())
}

/// Checks that `text` is a JSON array.
///
/// # Errors
/// It is not JSON, too deep, or of another kind.
pub fn check_array(text: &str) -> Result<&str, JsonError> {
    check_kind(text, b'[', "array")
}

/// Checks that `text` is a JSON object.
///
/// # Errors
/// It is not JSON, too deep, or of another kind.
pub fn check_object(text: &str) -> Result<&str, JsonError> {
    check_kind(text, b'{', "object")
}

fn check_kind<'a>(text: &'a str, first: u8, expected: &'static str) -> Result<&'a str, JsonError> {
    let value = check(text)?;
    if value.as_bytes().first() == Some(&first) {
        Ok(value)
    } else {
        Err(JsonError::Kind { expected, found: kind(value) })
    }
}

/// The kind of a JSON value, by its first character.
#[must_use]
pub fn kind(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Nesting of arrays and objects, counted without recursion; brackets in strings do not count.
/// Meaningful for valid JSON, and safe on anything.
#[must_use]
pub fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    walk(text, |byte, in_string| {
        if !in_string {
            match byte {
                b'[' | b'{' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    });
    deepest
}

/// The text without whitespace between its parts, so that two spellings by different encoders
/// compare equal. Strings and numbers stay as they are.
#[must_use]
pub fn compact(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    walk(text, |byte, in_string| {
        if in_string || !byte.is_ascii_whitespace() {
            bytes.push(byte);
        }
    });
    // Only ASCII whitespace was left out, so what was UTF-8 still is.
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// JSON text as one line: unchanged where it is one, else without the whitespace between its
/// parts. A newline within a string is always escaped in JSON, so no value changes.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(['\n', '\r']) { Cow::Owned(compact(text)) } else { Cow::Borrowed(text) }
}

/// Calls `visit` with each byte and whether it stands in a string.
fn walk(text: &str, mut visit: impl FnMut(u8, bool)) {
    let (mut in_string, mut is_escaped) = (false, false);
    for &byte in text.as_bytes() {
        visit(byte, in_string);
        if in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if byte == b'"' {
            in_string = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_do_not_count_as_depth() {
        assert_eq!(depth(r#"["[[[\"[[", {"a": "{{"}]"#), 2);
    }

    #[test]
    fn depth_of_a_million_brackets_is_counted_without_a_stack() {
        let text = "[".repeat(1_000_000);
        assert_eq!(depth(&text), 1_000_000);
        assert_eq!(check(&text), Err(JsonError::TooDeep));
    }

    #[test]
    fn depth_128_is_taken_and_129_is_not() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(check(&nested(128)).is_ok());
        assert_eq!(check(&nested(129)), Err(JsonError::TooDeep));
    }

    #[test]
    fn compacting_keeps_strings_and_numbers_as_they_are() {
        assert_eq!(compact("{ \"a b\" : [1.50,\n \"x \\\" y\"] }"), r#"{"a b":[1.50,"x \" y"]}"#);
    }

    #[test]
    fn json_of_several_lines_becomes_one_and_keeps_its_strings_and_numbers() {
        let text = "{\r\n  \"b\": 123456789012345678901234567890,\n  \"a\": \"x \\n y\"\n}";
        assert_eq!(one_line(text), r#"{"b":123456789012345678901234567890,"a":"x \n y"}"#);
        assert_eq!(one_line(r#"{ "a": 1 }"#), r#"{ "a": 1 }"#, "one line stays as it is");
    }

    #[test]
    fn nan_is_not_json() {
        assert!(matches!(check("[NaN]"), Err(JsonError::Syntax(_))));
    }

    #[test]
    fn an_object_where_an_array_is_expected_is_named() {
        let error = check_array(r#"{"a": 1}"#).unwrap_err();
        assert_eq!(error.to_string(), "expected a JSON array, found an object");
    }
}

//! Path 1, step 4: a message's body and attributes to a [`Job`], and back. Pure.
//!
//! The format is that of the 2014 Python library, kept so that its producers and its worker go
//! on unchanged: base64 of UTF-8 JSON `{"id": …, "name": …, "args": […], "kwargs": {…}}`.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::broker::{Attributes, MAX_ATTRIBUTES, is_message_group};
use crate::clock::Timestamp;
use crate::json::{self, JsonError};

/// Longest job id, in bytes. It is a primary key; PostgreSQL's B-tree takes at most 2,704 bytes.
pub const MAX_ID_BYTES: usize = 256;
/// Longest job name, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Largest message, in bytes. Source: Amazon SQS quotas (1 MiB).
pub const MAX_MESSAGE_BYTES: usize = 1_048_576;

/// Attribute: when the job was first queued (RFC 3339). Kept when we send it again. Only we set
/// it, so it tells also that the job has a row in the database, where a worker must claim it.
const ENQUEUED_AT: &str = "sqjobs-enqueued-at";
/// Attribute of the copy that a dead-letter queue gets: a person who moves it back wants the job
/// to run again.
const DEAD: &str = "sqjobs-dead";

/// A job as a message asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What the job is known by; the key to be idempotent by.
    pub id: String,
    /// Which job is to run.
    pub name: String,
    /// Positional arguments: the text of a JSON array, as sent.
    pub args: String,
    /// Named arguments: the text of a JSON object, as sent.
    pub kwargs: String,
    /// When it was first queued, where the sender told.
    pub enqueued_at: Option<Timestamp>,
    /// Whether its sender wrote a row for it.
    pub is_tracked: bool,
    /// Whether this is the copy of a dead job, moved back from a dead-letter queue.
    pub is_revived: bool,
}

impl Job {
    /// What must be the same in two messages of one id: SHA-256 over name and arguments, without
    /// the whitespace that encoders differ in. In hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.name, &json::compact(&self.args), &json::compact(&self.kwargs)] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex(&hash.finalize())
    }
}

/// Bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        use fmt::Write;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a message is no job. It is put aside with this reason and its exact body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// More bytes than a message can have.
    #[error("the body has {0} bytes; a message has at most {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// Neither base64 nor JSON.
    #[error("the body is neither base64 nor a JSON object: {0}")]
    NotBase64(String),
    /// Base64 of something that is no text.
    #[error("the decoded body is not UTF-8: invalid from byte {0} on")]
    NotUtf8(usize),
    /// Text that is no JSON, or too deep.
    #[error("the body is {0}")]
    NotJson(JsonError),
    /// JSON that is no object.
    #[error("the body is JSON, but {0} instead of an object")]
    NotAnObject(&'static str),
    /// The key `name` is missing.
    #[error("the body has no `name`")]
    NoName,
    /// A key's value is not of the type that it must be.
    #[error("`{key}` must be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it was.
        found: &'static str,
    },
    /// A name or id that is empty, too long, or has control characters.
    #[error("`{key}` {reason}")]
    BadText {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// One of our own attributes does not hold what we put there.
    #[error("the message attribute `{name}` is not valid: {reason}")]
    Attribute {
        /// The attribute.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a message. `message_id` serves as the job's id where the body has none.
///
/// # Errors
/// The message is malformed, and how.
pub fn decode(body: &str, attributes: &Attributes, message_id: &str) -> Result<Job, Malformed> {
    if body.len() > MAX_MESSAGE_BYTES {
        return Err(Malformed::TooLarge(body.len()));
    }
    let decoded;
    let text = if body.trim_start().starts_with('{') {
        body
    } else {
        decoded = decode_base64(body)?;
        &decoded
    };
    let text = json::check(text).map_err(Malformed::NotJson)?;
    if !text.starts_with('{') {
        return Err(Malformed::NotAnObject(json::kind(text)));
    }
    let fields: Fields<'_> = serde_json::from_str(text)
        .map_err(|error| Malformed::NotJson(JsonError::Syntax(error.to_string())))?;
    let name = match fields.name {
        None => return Err(Malformed::NoName),
        Some(value) => string("name", value)?,
    };
    check_text("name", &name, MAX_NAME_BYTES)?;
    let enqueued_at = enqueued_at(attributes, fields.enqueued_at)?;
    Ok(Job {
        id: id(fields.id, message_id)?,
        name,
        args: container("args", fields.args, b'[', "[]", "an array")?,
        kwargs: container("kwargs", fields.kwargs, b'{', "{}", "an object")?,
        enqueued_at,
        is_tracked: enqueued_at.is_some(),
        is_revived: attributes.contains_key(DEAD),
    })
}

/// The body of a job's message: the same keys in the same order as the Python library sends.
#[must_use]
pub fn encode(job: &Job) -> String {
    encode_with(job, "")
}

fn encode_with(job: &Job, more: &str) -> String {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let json = format!(
        r#"{{"id": {}, "name": {}, "args": {}, "kwargs": {}{more}}}"#,
        text(&job.id),
        text(&job.name),
        job.args,
        job.kwargs
    );
    base64::engine::general_purpose::STANDARD.encode(json)
}

/// Body and attributes of a message that we send: the sender's own `attributes` and what we add
/// beside the body, where older workers do not look. Where there is no room for one more
/// attribute it stands in the body, as a key that they ignore.
#[must_use]
pub fn outgoing(job: &Job, attributes: &Attributes) -> (String, Attributes) {
    let mut attributes = attributes.clone();
    attributes.remove(DEAD);
    let Some(time) = job.enqueued_at else { return (encode(job), attributes) };
    if attributes.len() < MAX_ATTRIBUTES || attributes.contains_key(ENQUEUED_AT) {
        attributes.insert(ENQUEUED_AT.into(), time.to_string().into());
        return (encode(job), attributes);
    }
    (encode_with(job, &format!(r#", "{ENQUEUED_AT}": "{time}""#)), attributes)
}

/// The JSON text of a body that [`outgoing`] has encoded; the body itself, if it is none.
#[must_use]
pub fn without_base64(body: &str) -> String {
    decode_base64(body).unwrap_or_else(|_| body.to_owned())
}

/// The attributes of the copy that a dead-letter queue gets: those of the message, and a mark,
/// where there is room for it.
#[must_use]
pub fn dead_copy_attributes(attributes: &Attributes) -> Attributes {
    let mut attributes = attributes.clone();
    if attributes.len() < MAX_ATTRIBUTES {
        attributes.insert(DEAD.into(), "1".into());
    }
    attributes
}

/// When the job was first queued: by our attribute, or by the key that stands in for it.
fn enqueued_at(
    attributes: &Attributes,
    key: Option<&RawValue>,
) -> Result<Option<Timestamp>, Malformed> {
    let invalid = |reason: String| Malformed::Attribute { name: ENQUEUED_AT, reason };
    let told = match (attributes.get(ENQUEUED_AT), key) {
        (Some(attribute), _) => {
            attribute.text().ok_or_else(|| invalid("it is binary".into()))?.to_owned()
        }
        (None, Some(key)) => string(ENQUEUED_AT, key)?,
        (None, None) => return Ok(None),
    };
    Timestamp::parse(&told).map(Some).map_err(|error| invalid(error.to_string()))
}

/// The keys that count, each as the text that was sent. Others are ignored; of a key that comes
/// twice the last one counts, as in Python's and PHP's decoders.
#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    args: Option<&'a RawValue>,
    kwargs: Option<&'a RawValue>,
    enqueued_at: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    let field = match key.as_ref() {
                        "id" => &mut fields.id,
                        "name" => &mut fields.name,
                        "args" => &mut fields.args,
                        "kwargs" => &mut fields.kwargs,
                        ENQUEUED_AT => &mut fields.enqueued_at,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Base64 in either alphabet, padded or not, with whitespace anywhere, to text.
fn decode_base64(body: &str) -> Result<String, Malformed> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let plain: Vec<u8> = body
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            _ => byte,
        })
        .collect();
    let bytes = LENIENT.decode(plain).map_err(|error| Malformed::NotBase64(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| Malformed::NotUtf8(error.utf8_error().valid_up_to()))
}

fn string(key: &'static str, value: &RawValue) -> Result<String, Malformed> {
    let found = json::kind(value.get());
    if found != "a string" {
        return Err(Malformed::WrongType { key, expected: "a string", found });
    }
    serde_json::from_str(value.get())
        .map_err(|error| Malformed::BadText { key, reason: format!("is not text: {error}") })
}

/// The job's id: the part of the sent one before `#`; the message's where none was sent.
fn id(value: Option<&RawValue>, message_id: &str) -> Result<String, Malformed> {
    let sent = match value {
        Some(value) if value.get() != "null" => string("id", value)?,
        _ => String::new(),
    };
    let id = sent.split('#').next().unwrap_or_default();
    if id.is_empty() {
        return Ok(message_id.to_owned());
    }
    check_text("id", id, MAX_ID_BYTES)?;
    Ok(id.to_owned())
}

/// Checks a name or an id: some bytes, not too many, and no control characters.
///
/// # Errors
/// It is not so, and how.
pub fn check_text(key: &'static str, text: &str, max_bytes: usize) -> Result<(), Malformed> {
    let reason = if text.is_empty() {
        "is empty".to_owned()
    } else if text.len() > max_bytes {
        format!("has {} bytes; at most {max_bytes} are taken", text.len())
    } else if text.chars().any(char::is_control) {
        "has control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Malformed::BadText { key, reason })
}

/// Checks an id that a job is added under, as [`check_text`] does, and that a worker would know
/// the job by all of it.
///
/// # Errors
/// It is not so, and how.
pub fn check_id(id: &str) -> Result<(), Malformed> {
    check_text("id", id, MAX_ID_BYTES)?;
    if id.contains('#') {
        let reason = "contains `#`, and a worker would know the job by the part before it";
        return Err(Malformed::BadText { key: "id", reason: reason.into() });
    }
    Ok(())
}

/// Checks a message group: 1 to 128 ASCII letters, digits or punctuation.
///
/// # Errors
/// It is not so.
pub fn check_group(group: &str) -> Result<(), Malformed> {
    if is_message_group(group) {
        return Ok(());
    }
    let reason = "must be 1 to 128 ASCII letters, digits or punctuation";
    Err(Malformed::BadText { key: "group", reason: reason.into() })
}

fn container(
    key: &'static str,
    value: Option<&RawValue>,
    first: u8,
    empty: &str,
    expected: &'static str,
) -> Result<String, Malformed> {
    let Some(text) = value.map(RawValue::get) else { return Ok(empty.to_owned()) };
    // PHP encodes every empty array as `[]`.
    if text == "null" || (first == b'{' && json::compact(text) == "[]") {
        return Ok(empty.to_owned());
    }
    if text.as_bytes().first() == Some(&first) {
        return Ok(text.to_owned());
    }
    Err(Malformed::WrongType { key, expected, found: json::kind(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Job, Malformed> {
        decode(body, &Attributes::new(), "the MessageId")
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let job = Job {
            id: "7c1e".into(),
            name: "adder \"job\"".into(),
            args: r#"[1, 123456789012345678901234567890, "\u0000"]"#.into(),
            kwargs: r#"{"b": 1, "a": 2}"#.into(),
            enqueued_at: Some(Timestamp(1_795_000_000_123)),
            is_tracked: true,
            is_revived: false,
        };
        let (body, attributes) = outgoing(&job, &Attributes::new());
        assert_eq!(decode(&body, &attributes, "m"), Ok(job));
    }

    #[test]
    fn what_the_sender_put_beside_the_body_stays_there_even_when_that_leaves_no_room_for_ours() {
        let job = Job {
            id: "7c1e".into(),
            name: "a".into(),
            args: "[1]".into(),
            kwargs: "{}".into(),
            enqueued_at: Some(Timestamp(1_795_000_000_123)),
            is_tracked: true,
            is_revived: false,
        };
        for count in [0, 9, 10] {
            let theirs: Attributes =
                (0..count).map(|n| (format!("a{n}"), n.to_string().into())).collect();
            let (body, sent) = outgoing(&job, &theirs);
            assert!(sent.len() <= MAX_ATTRIBUTES);
            assert!(theirs.iter().all(|(name, value)| sent.get(name) == Some(value)));
            assert_eq!(decode(&body, &sent, "m"), Ok(job.clone()), "{count} attributes");
            // Beside the body wherever there is room, also when it is sent once more.
            assert_eq!(body == encode(&job), count < MAX_ATTRIBUTES, "{count} attributes");
            assert_eq!(outgoing(&job, &sent), (body, sent), "{count} attributes");
        }
    }

    #[test]
    fn the_copy_for_a_dead_letter_queue_is_known_when_it_comes_back() {
        let attributes = dead_copy_attributes(&Attributes::new());
        let job = decode(r#"{"name": "a"}"#, &attributes, "m").expect("well formed");
        assert!(job.is_revived && !job.is_tracked);
        assert!(outgoing(&job, &attributes).1.is_empty(), "what we send anew is no such copy");
        let full: Attributes = (0..10).map(|n| (format!("a{n}"), "1".into())).collect();
        assert_eq!(dead_copy_attributes(&full), full, "there is no room for the mark");
    }

    #[test]
    fn the_bytes_are_those_of_the_python_library() {
        let job = Job {
            id: "00000000-0000-4000-8000-000000000001".into(),
            name: "adder".into(),
            args: "[1, 2, 3, 4]".into(),
            kwargs: "{}".into(),
            enqueued_at: None,
            is_tracked: false,
            is_revived: false,
        };
        assert_eq!(
            encode(&job),
            "eyJpZCI6ICIwMDAwMDAwMC0wMDAwLTQwMDAtODAwMC0wMDAwMDAwMDAwMDEiLCAibmFtZSI6ICJhZGRlciIsICJhcmdzIjogWzEsIDIsIDMsIDRdLCAia3dhcmdzIjoge319"
        );
    }

    #[test]
    fn base64_of_either_alphabet_padded_or_not_with_whitespace_is_read() {
        let json = r#"{"id": "1", "name": "a", "args": ["??>>~~"], "kwargs": {}}"#;
        let standard = base64::engine::general_purpose::STANDARD.encode(json);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
        assert_ne!(standard, url);
        let spaced = standard.replace('=', "").chars().flat_map(|c| [c, '\r', '\n']).collect();
        assert!(url.contains('-') && url.contains('_'), "{url}");
        for body in [standard, url, spaced] {
            assert_eq!(read(&body).map(|job| job.args), Ok(r#"["??>>~~"]"#.into()), "{body}");
            assert_eq!(without_base64(&body), json);
        }
        assert_eq!(without_base64(json), json);
    }

    #[test]
    fn a_message_without_id_is_known_by_its_message_id() {
        for id in ["", r#""id": null,"#, r#""id": "","#, r##""id": "#2","##] {
            let job = read(&format!(r#"{{{id} "name": "a"}}"#)).expect("well formed");
            assert_eq!((job.id.as_str(), job.args.as_str()), ("the MessageId", "[]"));
        }
    }

    #[test]
    fn of_a_key_that_comes_twice_the_last_one_counts() {
        assert_eq!(read(r#"{"name": "a", "name": "b"}"#).map(|job| job.name), Ok("b".into()));
    }

    #[test]
    fn escaped_keys_are_the_same_keys() {
        assert_eq!(read(r#"{"n\u0061me": "b"}"#).map(|job| job.name), Ok("b".into()));
    }

    #[test]
    fn malformed_bodies_tell_what_is_wrong() {
        for (body, part) in [
            ("", "not JSON"),
            ("!!!", "neither base64"),
            ("//79", "not UTF-8"),
            ("aGVsbG8=", "not JSON"),
            ("WzFd", "an array instead of an object"),
            (r#"{"name": "a""#, "not JSON"),
            (r#"{"name": "a"} x"#, "not JSON"),
            (r#"{"args": []}"#, "no `name`"),
            (r#"{"name": 1}"#, "`name` must be a string, found a number"),
            (r#"{"name": null}"#, "`name` must be a string, found null"),
            (r#"{"name": ""}"#, "`name` is empty"),
            (r#"{"name": "a\u0000"}"#, "control characters"),
            (r#"{"name": "\ud800"}"#, "`name` is not text"),
            (r#"{"name": "a", "id": 5}"#, "`id` must be a string"),
            (r#"{"name": "a", "args": {"a": 1}}"#, "`args` must be an array"),
            (r#"{"name": "a", "kwargs": [1]}"#, "`kwargs` must be an object"),
            (r#"{"name": "a", "args": [NaN]}"#, "not JSON"),
        ] {
            let reason = read(body).expect_err(body).to_string();
            assert!(reason.contains(part), "{body}: {reason}");
        }
        let long = format!(r#"{{"name": "a", "id": "{}"}}"#, "x".repeat(10_000));
        assert!(read(&long).unwrap_err().to_string().contains("at most 256"));
        let deep = format!(r#"{{"name": "a", "args": {}{}}}"#, "[".repeat(128), "]".repeat(128));
        assert_eq!(read(&deep), Err(Malformed::NotJson(JsonError::TooDeep)));
        assert!(matches!(read(&"A".repeat(1_048_577)), Err(Malformed::TooLarge(_))));
        assert!(!matches!(read(&"A".repeat(1_048_576)), Err(Malformed::TooLarge(_))));
    }

    #[test]
    fn names_ids_and_groups_are_checked_to_the_byte_before_they_are_sent() {
        let long = |bytes| "x".repeat(bytes);
        assert_eq!((check_id(&long(256)), check_text("name", &long(256), 256)), (Ok(()), Ok(())));
        for id in [long(257), String::new(), "a#b".into(), "a\nb".into()] {
            assert!(check_id(&id).is_err(), "{id}");
        }
        assert_eq!(check_group(&long(128)), Ok(()));
        for group in [long(129), String::new(), "a b".into(), "ñ".into()] {
            assert!(check_group(&group).is_err(), "{group}");
        }
    }

    #[test]
    fn arguments_stay_as_they_were_sent_and_only_an_empty_array_is_no_object() {
        let job = read(r#"{"name": "a", "args": [ ], "kwargs": [ ]}"#).expect("well formed");
        assert_eq!((job.args.as_str(), job.kwargs.as_str()), ("[ ]", "{}"));
    }

    #[test]
    fn spellings_that_differ_in_whitespace_have_one_fingerprint() {
        let tight = read(r#"{"name":"a","args":[1,{"b":"x y"}]}"#).expect("well formed");
        let loose = read(r#"{"name": "a", "args": [1, {"b": "x y"}], "kwargs": []}"#).expect("ok");
        let other = read(r#"{"name":"a","args":[1,{"b":"xy"}]}"#).expect("well formed");
        assert_eq!(tight.fingerprint(), loose.fingerprint());
        assert_ne!(tight.fingerprint(), other.fingerprint());
    }
}

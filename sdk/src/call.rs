//! What an attempt is called with: the arguments, and which attempt of which job it is.

use std::any::type_name;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::bindings::sqjobs::job::types as wit;
use crate::{Failure, Result};

/// What an attempt is called with. Every stage gets the same.
///
/// Arguments are kept as the JSON text that was sent and read when they are asked for, so that an
/// integer of 30 digits or the order of keys survives for who asks for an [`i128`], a
/// [`RawValue`] or the text. What does not fit the type is a *permanent* failure which names what
/// was expected.
///
/// ```
/// use sqjobs_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Mail {
///     to: String,
///     #[serde(default)]
///     urgent: bool,
/// }
///
/// #[derive(Default)]
/// struct Sender;
///
/// impl Job for Sender {
///     const NAME: &str = "send_mail";
///
///     fn run(&mut self, call: &Call) -> Result<impl Serialize> {
///         let mail: Mail = call.kwargs()?; // all named arguments at once
///         let copies: Option<u32> = call.arg(0)?; // one by its place; `Option`: may be missing
///         Ok(format!("{} {} {}", mail.to, mail.urgent, copies.unwrap_or(1)))
///     }
/// }
///
/// let outcome = testing::attempt::<Sender>().kwarg("to", "a@b.c").run();
/// assert_eq!(outcome.result::<String>(), "a@b.c false 1");
///
/// let outcome = testing::attempt::<Sender>().kwarg("to", 7).run();
/// assert_eq!(
///     outcome.failure_message(),
///     "the kwargs do not fit `Mail`: invalid type: integer `7`, expected a string at line 1 column 7"
/// );
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    context: wit::Context,
    args: String,
    kwargs: String,
}

impl Call {
    /// The call as the host hands it over.
    pub(crate) fn new(context: wit::Context, args: String, kwargs: String) -> Self {
        Self { context, args, kwargs }
    }

    /// All positional arguments: as a `Vec<T>`, a tuple, or any type that JSON arrays fit.
    ///
    /// # Errors
    /// They do not fit the type; permanent.
    #[track_caller]
    pub fn args<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        parse(&self.args, || "the args do not".to_owned())
    }

    /// All named arguments: as a struct, a map, or any type that JSON objects fit.
    ///
    /// # Errors
    /// They do not fit the type; permanent.
    #[track_caller]
    pub fn kwargs<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        parse(&self.kwargs, || "the kwargs do not".to_owned())
    }

    /// One positional argument, counted from 0. A missing one is none for an `Option`, a failure
    /// for all else. Each call reads the list anew: for many, [`Call::args`].
    ///
    /// # Errors
    /// It is missing, or does not fit the type; permanent.
    #[track_caller]
    pub fn arg<'a, T: Deserialize<'a>>(&'a self, index: usize) -> Result<T> {
        let args: Vec<&RawValue> = self.args()?;
        match args.get(index) {
            Some(arg) => parse(arg.get(), || format!("arg {index} does not")),
            None => missing(|| format!("arg {index} is missing, {} were sent", args.len())),
        }
    }

    /// One named argument. A missing one is none for an `Option`, a failure for all else. Each
    /// call reads the object anew: for many, [`Call::kwargs`].
    ///
    /// # Errors
    /// It is missing, or does not fit the type; permanent.
    #[track_caller]
    pub fn kwarg<'a, T: Deserialize<'a>>(&'a self, name: &str) -> Result<T> {
        // Of a key that was sent twice the last counts, as in every JSON reader of note.
        let kwargs: BTreeMap<String, &RawValue> = self.kwargs()?;
        match kwargs.get(name) {
            Some(kwarg) => parse(kwarg.get(), || format!("kwarg `{name}` does not")),
            None => missing(|| format!("kwarg `{name}` is missing")),
        }
    }

    /// The positional arguments: the text of a JSON array, exactly as it was sent.
    #[must_use]
    pub fn args_json(&self) -> &str {
        &self.args
    }

    /// The named arguments: the text of a JSON object, exactly as it was sent.
    #[must_use]
    pub fn kwargs_json(&self) -> &str {
        &self.kwargs
    }

    /// The job's id: the same over all attempts, hence the key to make effects under.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.context.id
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.context.name
    }

    /// The queue that the message came from; none when the job runs without a queue.
    #[must_use]
    pub fn queue(&self) -> Option<&str> {
        Some(self.context.queue.as_str()).filter(|queue| !queue.is_empty())
    }

    /// Number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.context.attempt
    }

    /// Attempts in all that the job has.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.context.max_attempts
    }

    /// Whether a transient failure of this attempt would be the end.
    #[must_use]
    pub fn is_last_attempt(&self) -> bool {
        self.context.attempt >= self.context.max_attempts
    }

    /// When the job was first queued, if that is known.
    #[must_use]
    pub fn enqueued_at(&self) -> Option<SystemTime> {
        self.context.enqueued_at_ms.and_then(instant)
    }

    /// For a periodic job: the instant that its schedule meant, also when it runs later.
    #[must_use]
    pub fn fire_time(&self) -> Option<SystemTime> {
        self.context.fire_time_ms.and_then(instant)
    }

    /// For a periodic job: the name of its entry.
    #[must_use]
    pub fn schedule(&self) -> Option<&str> {
        self.context.schedule.as_deref()
    }

    /// JSON text of something that a later host adds to the call, and this SDK knows nothing of.
    #[must_use]
    pub fn extra(&self, key: &str) -> Option<&str> {
        let (_, value) = self.context.extra.iter().find(|(name, _)| name == key)?;
        Some(value)
    }
}

/// The instant at so many milliseconds since 1970 (UTC), if the clock reaches so far.
fn instant(ms: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms))
}

/// Reads JSON text as a type. `subject` is the beginning of the sentence when it does not fit.
#[track_caller]
fn parse<'a, T: Deserialize<'a>>(text: &'a str, subject: impl FnOnce() -> String) -> Result<T> {
    // Not by `map_err`, here and below: the failure tells the place of the author's call.
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => {
            let expected = short_type_name::<T>();
            Err(Failure::permanent(format!("{} fit `{expected}`: {error}", subject())))
        }
    }
}

/// The value of an argument that was not sent. `subject` is the beginning of the sentence when
/// the type can't do without.
#[track_caller]
fn missing<'a, T: Deserialize<'a>>(subject: impl FnOnce() -> String) -> Result<T> {
    match serde_json::from_str("null") {
        Ok(value) => Ok(value),
        Err(_) => {
            let expected = short_type_name::<T>();
            Err(Failure::permanent(format!("{}: expected `{expected}`", subject())))
        }
    }
}

/// The name of a type as an author writes it: `Vec<String>`, not `alloc::vec::Vec<...>`.
fn short_type_name<T>() -> String {
    type_name::<T>()
        .split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .map(|part| part.rsplit_once("::").map_or(part, |(_, last)| last))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FailureKind;

    fn call(args: &str, kwargs: &str) -> Call {
        let context = wit::Context {
            id: "id".to_owned(),
            name: "name".to_owned(),
            queue: String::new(),
            attempt: 3,
            max_attempts: 3,
            enqueued_at_ms: Some(1_500),
            fire_time_ms: None,
            schedule: None,
            extra: vec![("trace".to_owned(), "\"x\"".to_owned())],
        };
        Call::new(context, args.to_owned(), kwargs.to_owned())
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        let failure = result.unwrap_err();
        assert_eq!(failure.kind(), FailureKind::Permanent);
        // The tests are the author here: the place is theirs, below the code proper.
        let line: u32 = failure.backtrace().unwrap().split(':').nth(1).unwrap().parse().unwrap();
        assert!(line > line!(), "{line}");
        failure.message().to_owned()
    }

    #[test]
    fn long_integers_and_the_order_of_keys_survive() {
        let call = call("[123456789012345678901234567890, {\"b\":1, \"a\":2}]", "{}");
        assert_eq!(call.arg::<i128>(0).unwrap(), 123_456_789_012_345_678_901_234_567_890);
        assert_eq!(call.arg::<&RawValue>(1).unwrap().get(), "{\"b\":1, \"a\":2}");
        let (_, object) = call.args::<(i128, Box<RawValue>)>().unwrap();
        assert_eq!(object.get(), "{\"b\":1, \"a\":2}");
        assert_eq!(call.args_json(), "[123456789012345678901234567890, {\"b\":1, \"a\":2}]");
    }

    #[test]
    fn what_does_not_fit_is_a_permanent_failure_that_names_what_was_expected() {
        let call = call("[1, \"x\"]", "{\"to\": 7}");
        assert_eq!(
            message(call.args::<Vec<i64>>()),
            "the args do not fit `Vec<i64>`: invalid type: string \"x\", expected i64 at line 1 column 7"
        );
        assert_eq!(
            message(call.arg::<i64>(1)),
            "arg 1 does not fit `i64`: invalid type: string \"x\", expected i64 at line 1 column 3"
        );
        assert_eq!(
            message(call.kwarg::<String>("to")),
            "kwarg `to` does not fit `String`: invalid type: integer `7`, expected a string at line 1 column 1"
        );
    }

    #[test]
    fn a_missing_argument_is_none_or_a_failure() {
        let call = call("[1]", "{}");
        assert_eq!(call.arg::<Option<i64>>(1).unwrap(), None);
        assert_eq!(call.kwarg::<Option<String>>("x").unwrap(), None);
        assert_eq!(message(call.arg::<i64>(1)), "arg 1 is missing, 1 were sent: expected `i64`");
        assert_eq!(
            message(call.kwarg::<Vec<String>>("x")),
            "kwarg `x` is missing: expected `Vec<String>`"
        );
    }

    #[test]
    fn of_a_key_that_was_sent_twice_the_last_counts() {
        assert_eq!(call("[]", r#"{"a": 1, "a": 2}"#).kwarg::<i64>("a").unwrap(), 2);
        assert_eq!(call("[]", r#"{"\u00e9": 1}"#).kwarg::<i64>("é").unwrap(), 1);
    }

    #[test]
    fn the_context_can_be_read() {
        let call = call("[]", "{}");
        assert_eq!((call.id(), call.name(), call.queue()), ("id", "name", None));
        assert!(call.is_last_attempt());
        assert_eq!(call.enqueued_at(), Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)));
        assert_eq!((call.extra("trace"), call.extra("other")), (Some("\"x\""), None));
    }
}

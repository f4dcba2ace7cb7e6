//! Why a stage failed, and whether the job may be run again.

use std::error::Error;
use std::fmt::{self, Display, Write as _};
use std::panic::Location;
use std::time::Duration;

use crate::bindings::sqjobs::job::types as wit;

/// What every stage returns.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a stage failed, and what the host should do about it.
///
/// `?` turns every [`std::error::Error`] into a transient failure that keeps its causes and the
/// place of the `?`. Where trying again can't help, say so with [`OrFail::or_permanent`] or
/// [`Failure::permanent`].
///
/// ```
/// use std::time::Duration;
///
/// use sqjobs_sdk::prelude::*;
///
/// fn amount(text: &str) -> Result<i64> {
///     let amount = text.parse::<i64>().or_permanent("the amount is no number")?;
///     if amount > 1_000 {
///         return Err(Failure::retry_after(Duration::from_secs(60), "the till is closed"));
///     }
///     Ok(amount)
/// }
/// # assert_eq!(
/// #     amount("x").unwrap_err().message(),
/// #     "the amount is no number: invalid digit found in string"
/// # );
/// # assert_eq!(amount("5000").unwrap_err().to_string(), "the till is closed");
/// ```
///
/// It is no [`std::error::Error`] itself (so that `?` can take all of them), but it displays its
/// message. For an error type that is none either: `.map_err(Failure::transient)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: FailureKind,
    message: String,
    backtrace: Option<String>,
}

/// What the host should do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Run the job again after this long; spends no attempt.
    RetryAfter(Duration),
    /// It may work later: run again after the backoff, while attempts are left.
    Transient,
    /// It can never work.
    Permanent,
}

impl Failure {
    /// The job should run again after `wait`, rounded up to a second, without spending an attempt.
    #[track_caller]
    #[must_use]
    pub fn retry_after(wait: Duration, message: impl Display) -> Self {
        Self::new(FailureKind::RetryAfter(wait), message.to_string())
    }

    /// It may work later: the job runs again after its backoff, while attempts are left.
    #[track_caller]
    #[must_use]
    pub fn transient(message: impl Display) -> Self {
        Self::new(FailureKind::Transient, message.to_string())
    }

    /// It can never work: the job is kept as failed, and not run again.
    #[track_caller]
    #[must_use]
    pub fn permanent(message: impl Display) -> Self {
        Self::new(FailureKind::Permanent, message.to_string())
    }

    /// Replaces the text that tells where it happened (by itself: file and line of the call that
    /// made the failure).
    #[must_use]
    pub fn with_backtrace(mut self, backtrace: impl Display) -> Self {
        self.backtrace = Some(backtrace.to_string());
        self
    }

    /// What the host should do about it.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// One line for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where it happened: file and line, then the causes.
    #[must_use]
    pub fn backtrace(&self) -> Option<&str> {
        self.backtrace.as_deref()
    }

    #[track_caller]
    fn new(kind: FailureKind, message: String) -> Self {
        // A component has no stack to print; the place is what can be had, and it costs nothing.
        let backtrace = Some(format!("at {}", Location::caller()));
        Self { kind, message, backtrace }
    }

    /// A failure of this kind from an error: its causes go into the message and the backtrace.
    #[track_caller]
    fn of(kind: FailureKind, error: &dyn Error) -> Self {
        let mut failure = Self::new(kind, error.to_string());
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their source in their own text.
            if !failure.message.ends_with(&text) {
                failure.message.push_str(": ");
                failure.message.push_str(&text);
            }
            let backtrace = failure.backtrace.get_or_insert_default();
            write!(backtrace, "\ncaused by: {text}").expect("a String takes every write");
            cause = error.source();
        }
        failure
    }

    /// The same with another kind, and with `message` in front.
    fn prefixed(mut self, kind: FailureKind, message: impl Display) -> Self {
        self.kind = kind;
        self.message = format!("{message}: {}", self.message);
        self
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::of(FailureKind::Transient, &error)
    }
}

impl From<Failure> for wit::Failure {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::RetryAfter(wait) => {
                let partial_second = u64::from(wait.subsec_nanos() > 0);
                wit::FailureKind::RetryAfter(wait.as_secs().saturating_add(partial_second))
            }
            FailureKind::Transient => wit::FailureKind::Transient,
            FailureKind::Permanent => wit::FailureKind::Permanent,
        };
        let Failure { message, backtrace, .. } = failure;
        Self { kind, message, backtrace, extra: Vec::new() }
    }
}

/// Says on the way out of a stage what an error means: on `Result` and on `Option`.
pub trait OrFail<T>: Sized {
    /// An error, or nothing, means that the job can never work.
    ///
    /// # Errors
    /// There was an error, or nothing.
    #[track_caller]
    fn or_permanent(self, message: impl Display) -> Result<T> {
        self.or_fail(FailureKind::Permanent, message)
    }

    /// An error, or nothing, means that it may work later.
    ///
    /// # Errors
    /// There was an error, or nothing.
    #[track_caller]
    fn or_transient(self, message: impl Display) -> Result<T> {
        self.or_fail(FailureKind::Transient, message)
    }

    /// An error, or nothing, means that the job should run again after `wait`.
    ///
    /// # Errors
    /// There was an error, or nothing.
    #[track_caller]
    fn or_retry_after(self, wait: Duration, message: impl Display) -> Result<T> {
        self.or_fail(FailureKind::RetryAfter(wait), message)
    }

    /// An error, or nothing, is a failure of this kind; `message` stands before the error's own.
    ///
    /// # Errors
    /// There was an error, or nothing.
    #[track_caller]
    fn or_fail(self, kind: FailureKind, message: impl Display) -> Result<T>;
}

impl<T, E: Error> OrFail<T> for std::result::Result<T, E> {
    #[track_caller]
    fn or_fail(self, kind: FailureKind, message: impl Display) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            // Not by `map_err`: the place of a closure would be here.
            Err(error) => Err(Failure::of(kind, &error).prefixed(kind, message)),
        }
    }
}

impl<T> OrFail<T> for Result<T> {
    #[track_caller]
    fn or_fail(self, kind: FailureKind, message: impl Display) -> Result<T> {
        self.map_err(|failure| failure.prefixed(kind, message))
    }
}

impl<T> OrFail<T> for Option<T> {
    #[track_caller]
    fn or_fail(self, kind: FailureKind, message: impl Display) -> Result<T> {
        match self {
            Some(value) => Ok(value),
            None => Err(Failure::new(kind, message.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Refused(std::num::ParseIntError);

    impl Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the till refused")
        }
    }

    impl Error for Refused {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    fn refused() -> Result<(), Refused> {
        "x".parse::<i64>().map(drop).map_err(Refused)
    }

    #[test]
    fn the_question_mark_makes_a_transient_failure_with_the_causes_and_the_place() {
        let failure = (|| -> Result<()> { Ok(refused()?) })().unwrap_err();
        assert_eq!(failure.kind(), FailureKind::Transient);
        assert_eq!(failure.message(), "the till refused: invalid digit found in string");
        let backtrace = failure.backtrace().unwrap();
        assert!(backtrace.contains("failure.rs:"), "{backtrace}");
        assert!(backtrace.ends_with("caused by: invalid digit found in string"), "{backtrace}");
    }

    #[test]
    fn a_cause_that_its_error_repeats_is_told_once() {
        #[derive(Debug)]
        struct Wordy(std::num::ParseIntError);
        impl Display for Wordy {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "wordy: {}", self.0)
            }
        }
        impl Error for Wordy {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = "x".parse::<i64>().unwrap_err();
        assert_eq!(Failure::from(Wordy(error)).message(), "wordy: invalid digit found in string");
    }

    #[test]
    fn the_kind_can_be_said_on_the_way_out() {
        let failure = refused().or_permanent("order 7").unwrap_err();
        assert_eq!(failure.kind(), FailureKind::Permanent);
        assert_eq!(failure.message(), "order 7: the till refused: invalid digit found in string");
        assert!(failure.backtrace().unwrap().contains("sdk/src/failure.rs:") || cfg!(windows));

        let failure = None::<i64>.or_retry_after(Duration::from_secs(9), "no rate").unwrap_err();
        assert_eq!(failure.kind(), FailureKind::RetryAfter(Duration::from_secs(9)));
        assert_eq!(failure.to_string(), "no rate");

        let failure = Err::<(), _>(Failure::permanent("no")).or_transient("maybe").unwrap_err();
        assert_eq!((failure.kind(), failure.message()), (FailureKind::Transient, "maybe: no"));
    }

    #[test]
    fn an_error_type_that_is_no_error_can_be_mapped() {
        let refuse = || -> Result<(), &str> { Err("only text") };
        let failure = refuse().map_err(Failure::transient).unwrap_err();
        assert_eq!((failure.kind(), failure.message()), (FailureKind::Transient, "only text"));
    }

    #[test]
    fn a_wait_is_rounded_up_to_seconds() {
        let secs = |wait| match wit::Failure::from(Failure::retry_after(wait, "later")).kind {
            wit::FailureKind::RetryAfter(secs) => secs,
            other => panic!("{other:?}"),
        };
        assert_eq!(secs(Duration::from_millis(1)), 1);
        assert_eq!(secs(Duration::from_secs(2)), 2);
        assert_eq!(secs(Duration::MAX), u64::MAX);
    }
}

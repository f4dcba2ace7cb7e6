//! What a job says about itself beyond its name and queue.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::bindings::sqjobs::job::types as wit;

/// What a job says about itself beyond its name and queue. What it leaves unsaid is up to the
/// operator's configuration and the host's defaults; what it says, the operator may override.
///
/// ```
/// use std::time::Duration;
///
/// use sqjobs_sdk::prelude::*;
/// use sqjobs_sdk::{CatchUp, Overlap};
///
/// #[derive(Default)]
/// struct NightlyReport;
///
/// impl Job for NightlyReport {
///     const NAME: &str = "nightly_report";
///
///     fn options() -> Options {
///         Options::new()
///             .timeout(Duration::from_secs(600))
///             .max_attempts(5)
///             .backoff(Duration::from_secs(10), Duration::from_secs(3600))
///             .periodic(
///                 Periodic::crontab("1 0 * * *", "Europe/Madrid")
///                     .kwarg("format", "html")
///                     .catch_up(CatchUp::Last)
///                     .overlap(Overlap::Skip),
///             )
///     }
///
///     fn run(&mut self, call: &Call) -> Result<impl Serialize> {
///         let format: String = call.kwarg("format")?;
///         Ok(format)
///     }
/// }
/// # let outcome = testing::attempt::<NightlyReport>().kwarg("format", "csv").run();
/// # assert_eq!(outcome.result::<String>(), "csv");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    records_result: bool,
    timeout: Option<Duration>,
    max_attempts: Option<u32>,
    backoff: Option<(Duration, Duration)>,
    periodic: Option<Periodic>,
    unique: Option<(Unique, Option<Duration>)>,
}

impl Options {
    /// Says nothing: the result is recorded, all else is the operator's and the host's choice.
    pub fn new() -> Self {
        Self {
            records_result: true,
            timeout: None,
            max_attempts: None,
            backoff: None,
            periodic: None,
            unique: None,
        }
    }

    /// Whether outcomes and results are kept in the database; by itself they are. A job that
    /// records nothing is faster, is kept when it fails, and may run again after it succeeded.
    pub fn record(mut self, records_result: bool) -> Self {
        self.records_result = records_result;
        self
    }

    /// Wall-clock time that one attempt may take, all stages together.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Attempts in all, the first one included; at least 1.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = Some(max_attempts);
        self
    }

    /// The wait after an attempt that failed is drawn evenly from zero to an upper bound, which
    /// is `initial` after the first failure, doubles with each further one, and ends at `max`.
    pub fn backoff(mut self, initial: Duration, max: Duration) -> Self {
        self.backoff = Some((initial, max));
        self
    }

    /// The job is queued by the beater, too.
    pub fn periodic(mut self, periodic: Periodic) -> Self {
        self.periodic = Some(periodic);
        self
    }

    /// While one of the calls that count as the same waits or runs, no other is queued.
    pub fn unique(mut self, unique: Unique) -> Self {
        self.unique = Some((unique, None));
        self
    }

    /// As [`Options::unique`], but a call keeps the others out for `window` after it was added,
    /// even when it has finished.
    pub fn unique_for(mut self, unique: Unique, window: Duration) -> Self {
        self.unique = Some((unique, Some(window)));
        self
    }

    /// Attempts in all and the upper bound of the wait after attempt `attempt`, as far as said.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn retry(&self, attempt: u32) -> (Option<u32>, Option<Duration>) {
        let wait = self.backoff.map(|(initial, max)| {
            let doublings = attempt.saturating_sub(1);
            initial.saturating_mul(2_u32.saturating_pow(doublings)).min(max)
        });
        (self.max_attempts, wait)
    }

    /// As `describe` tells it.
    pub(crate) fn describe(self, name: &str, queue: Option<&str>) -> wit::JobDescription {
        let retry = wit::RetryPolicy {
            max_attempts: self.max_attempts,
            initial_backoff_ms: self.backoff.map(|(initial, _)| millis(initial)),
            max_backoff_ms: self.backoff.map(|(_, max)| millis(max)),
        };
        wit::JobDescription {
            name: name.to_owned(),
            queue: queue.map(str::to_owned),
            records_result: self.records_result,
            timeout_ms: self.timeout.map(millis),
            retry: (self.max_attempts.is_some() || self.backoff.is_some()).then_some(retry),
            periodic: self.periodic.map(Periodic::describe),
            unique: self.unique.map(|(unique, window)| wit::Unique {
                key: unique.describe(),
                window_ms: window.map(millis),
            }),
            extra: Vec::new(),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// When the beater queues a job, and with which arguments.
#[derive(Clone, Debug)]
#[must_use]
pub struct Periodic {
    schedule: wit::Schedule,
    arguments: Arguments,
    catch_up: Option<CatchUp>,
    max_lateness: Option<Duration>,
    overlap: Option<Overlap>,
    jitter: Option<Duration>,
    start: Option<SystemTime>,
    end: Option<SystemTime>,
}

impl Periodic {
    /// By a five-field crontab expression or a macro such as `@daily`, read in a time zone by its
    /// IANA name. The host refuses a module whose expression or zone it can't read.
    pub fn crontab(expression: &str, timezone: &str) -> Self {
        Self::new(wit::Schedule::Crontab(wit::Crontab {
            expression: expression.to_owned(),
            timezone: timezone.to_owned(),
        }))
    }

    /// Every so often, counted from 1970 (UTC); at least a second.
    pub fn every(interval: Duration) -> Self {
        Self::new(wit::Schedule::EveryMs(millis(interval)))
    }

    fn new(schedule: wit::Schedule) -> Self {
        Self {
            schedule,
            arguments: Arguments::default(),
            catch_up: None,
            max_lateness: None,
            overlap: None,
            jitter: None,
            start: None,
            end: None,
        }
    }

    /// One more positional argument of each queued job.
    ///
    /// # Panics
    /// The value is not JSON. `describe` calls this, so such a module is refused at its deploy.
    #[track_caller]
    pub fn arg(mut self, value: impl Serialize) -> Self {
        self.arguments.push(to_raw(&value));
        self
    }

    /// One more named argument of each queued job.
    ///
    /// # Panics
    /// The value is not JSON. `describe` calls this, so such a module is refused at its deploy.
    #[track_caller]
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.arguments.insert(name.into(), to_raw(&value));
        self
    }

    /// What happens with ticks that no beater was alive for.
    pub fn catch_up(mut self, catch_up: CatchUp) -> Self {
        self.catch_up = Some(catch_up);
        self
    }

    /// How late a tick may still be caught up.
    pub fn max_lateness(mut self, max_lateness: Duration) -> Self {
        self.max_lateness = Some(max_lateness);
        self
    }

    /// What happens when a tick is due while the job of the one before waits or runs.
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = Some(overlap);
        self
    }

    /// Spreads the fire times over so long; the same for each tick of an entry.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = Some(jitter);
        self
    }

    /// First instant at which the entry may fire.
    pub fn start(mut self, start: SystemTime) -> Self {
        self.start = Some(start);
        self
    }

    /// Instant from which on the entry fires no more.
    pub fn end(mut self, end: SystemTime) -> Self {
        self.end = Some(end);
        self
    }

    fn describe(self) -> wit::Periodic {
        let (args, kwargs) = self.arguments.to_json();
        wit::Periodic {
            schedule: self.schedule,
            args,
            kwargs,
            catch_up: self.catch_up.map(|catch_up| match catch_up {
                CatchUp::None => wit::CatchUp::None,
                CatchUp::Last => wit::CatchUp::Last,
                CatchUp::All => wit::CatchUp::All,
            }),
            max_lateness_ms: self.max_lateness.map(millis),
            overlap: self.overlap.map(|overlap| match overlap {
                Overlap::Allow => wit::Overlap::Allow,
                Overlap::Skip => wit::Overlap::Skip,
                Overlap::Replace => wit::Overlap::Replace,
            }),
            jitter_ms: self.jitter.map(millis),
            start_ms: self.start.map(epoch_millis),
            end_ms: self.end.map(epoch_millis),
        }
    }
}

/// What happens with ticks that no beater was alive for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// They are skipped.
    None,
    /// The latest of them is queued.
    Last,
    /// All of them are queued, oldest first, up to the host's limit.
    All,
}

/// What happens when a tick is due while the job of the one before waits or runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Both run.
    Allow,
    /// The tick is skipped.
    Skip,
    /// The one before is cancelled.
    Replace,
}

/// Which calls of a job count as the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unique {
    /// Those of the name: one call at a time.
    Name,
    /// Those of the name with the same arguments, compared as text.
    Arguments,
    /// Those of every job that names this key; 1 to 256 bytes.
    Key(String),
}

impl Unique {
    fn describe(self) -> wit::UniqueKey {
        match self {
            Self::Name => wit::UniqueKey::Name,
            Self::Arguments => wit::UniqueKey::Arguments,
            Self::Key(key) => wit::UniqueKey::Named(key),
        }
    }
}

/// Arguments of a job that is yet to be called, in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arguments {
    args: Vec<Box<RawValue>>,
    kwargs: Vec<(String, Box<RawValue>)>,
}

impl Arguments {
    pub(crate) fn push(&mut self, value: Box<RawValue>) {
        self.args.push(value);
    }

    /// A name that is given again takes the new value, in its old place.
    pub(crate) fn insert(&mut self, name: String, value: Box<RawValue>) {
        match self.kwargs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.kwargs.push((name, value)),
        }
    }

    /// The texts of a JSON array and of a JSON object.
    pub(crate) fn to_json(&self) -> (String, String) {
        let args: Vec<&str> = self.args.iter().map(|value| value.get()).collect();
        let kwargs: Vec<String> = self
            .kwargs
            .iter()
            .map(|(name, value)| {
                format!("{}:{}", serde_json::Value::from(name.as_str()), value.get())
            })
            .collect();
        (format!("[{}]", args.join(",")), format!("{{{}}}", kwargs.join(",")))
    }
}

/// The JSON text of a value that the author gives as a constant or in a test.
#[track_caller]
pub(crate) fn to_raw(value: &impl Serialize) -> Box<RawValue> {
    match serde_json::value::to_raw_value(value) {
        Ok(value) => value,
        Err(error) => panic!("the argument is not JSON: {error}"),
    }
}

/// A duration in milliseconds, rounded up: one that is not zero never becomes zero.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// An instant in milliseconds since 1970 (UTC); an earlier one is 1970.
pub(crate) fn epoch_millis(instant: SystemTime) -> u64 {
    instant.duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_says_nothing_leaves_all_to_the_operator() {
        let description = Options::new().describe("quiet", None);
        assert_eq!(description.name, "quiet");
        assert!(description.records_result);
        assert!(description.queue.is_none() && description.timeout_ms.is_none());
        assert!(description.retry.is_none() && description.periodic.is_none());
        assert!(description.unique.is_none());
    }

    #[test]
    fn everything_said_is_described() {
        let description = Options::new()
            .record(false)
            .timeout(Duration::from_micros(1))
            .max_attempts(4)
            .backoff(Duration::from_secs(1), Duration::from_secs(60))
            .unique_for(Unique::Key("key".to_owned()), Duration::from_secs(5))
            .periodic(
                Periodic::every(Duration::from_secs(90))
                    .arg(1)
                    .kwarg("b\"", 1)
                    .kwarg("a", "x")
                    .kwarg("b\"", 2)
                    .catch_up(CatchUp::All)
                    .max_lateness(Duration::from_secs(7))
                    .overlap(Overlap::Replace)
                    .jitter(Duration::from_secs(3))
                    .start(SystemTime::UNIX_EPOCH + Duration::from_secs(2))
                    .end(SystemTime::UNIX_EPOCH - Duration::from_secs(2)),
            )
            .describe("full", Some("queue"));
        assert_eq!(description.queue.as_deref(), Some("queue"));
        assert!(!description.records_result);
        assert_eq!(description.timeout_ms, Some(1), "rounded up");
        let retry = description.retry.unwrap();
        assert_eq!(
            (retry.max_attempts, retry.initial_backoff_ms, retry.max_backoff_ms),
            (Some(4), Some(1_000), Some(60_000))
        );
        let unique = description.unique.unwrap();
        assert!(matches!(unique.key, wit::UniqueKey::Named(key) if key == "key"));
        assert_eq!(unique.window_ms, Some(5_000));
        let periodic = description.periodic.unwrap();
        assert!(matches!(periodic.schedule, wit::Schedule::EveryMs(90_000)));
        assert_eq!(periodic.args, "[1]");
        assert_eq!(periodic.kwargs, r#"{"b\"":2,"a":"x"}"#);
        assert_eq!(periodic.catch_up, Some(wit::CatchUp::All));
        assert_eq!(periodic.max_lateness_ms, Some(7_000));
        assert_eq!(periodic.overlap, Some(wit::Overlap::Replace));
        assert_eq!(periodic.jitter_ms, Some(3_000));
        assert_eq!((periodic.start_ms, periodic.end_ms), (Some(2_000), Some(0)));
    }

    #[test]
    fn the_wait_doubles_up_to_its_ceiling() {
        let options = Options::new().backoff(Duration::from_secs(1), Duration::from_secs(5));
        let waits: Vec<_> = [1, 2, 3, 4, 99].iter().map(|n| options.retry(*n).1).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5].map(|secs| Some(Duration::from_secs(secs))));
    }
}

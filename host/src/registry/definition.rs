//! What a module says of a job, checked.

use std::time::Duration;

use serde_json::json;

use crate::beater::definition::Definition as Periodic;
use crate::clock::MAX_AHEAD;
use crate::payload::{MAX_NAME_BYTES, check_text};
use crate::retry::RetryPolicy;
use crate::sandbox::bindings::sqjobs::job::types as wit;
use crate::store::unique::{MAX_KEY_BYTES, UniqueBy, UniqueRule};

/// Longest timeout that a job may ask for: what a message can stay invisible (12 h).
pub const MAX_TIMEOUT: Duration =
    Duration::from_secs(crate::broker::MAX_VISIBILITY_TIMEOUT_SECS as u64);

/// What is wrong with a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each field is what its variant's message says
pub enum DefinitionError {
    #[error("it holds no job")]
    Empty,
    #[error("a job's name {0}")]
    Name(String),
    #[error("the job `{0}` comes twice")]
    Twice(String),
    #[error("the job `{job}`: {reason}")]
    Value { job: String, reason: String },
}

/// A job as its module describes it. What is `None` is left to the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The job's name.
    pub name: String,
    /// The queue on which it is put by default.
    pub queue: Option<String>,
    /// Whether its outcome and result are kept.
    pub records_result: bool,
    /// Wall-clock time of one attempt.
    pub timeout: Option<Duration>,
    /// Attempts in all.
    pub max_attempts: Option<u32>,
    /// Upper bound of the wait after the first failure.
    pub initial_backoff: Option<Duration>,
    /// Ceiling of the wait.
    pub max_backoff: Option<Duration>,
    /// The periodic entry that it brings.
    pub periodic: Option<Periodic>,
    /// Which calls count as the same.
    pub unique: Option<UniqueRule>,
}

impl Definition {
    /// Checks all jobs of a module.
    ///
    /// # Errors
    /// What is wrong with the first one that is.
    pub fn read_all(told: Vec<wit::JobDescription>) -> Result<Vec<Self>, DefinitionError> {
        let mut jobs: Vec<Self> = Vec::with_capacity(told.len());
        for job in told {
            let job = Self::read(job)?;
            if jobs.iter().any(|other| other.name == job.name) {
                return Err(DefinitionError::Twice(job.name));
            }
            jobs.push(job);
        }
        if jobs.is_empty() { Err(DefinitionError::Empty) } else { Ok(jobs) }
    }

    fn read(told: wit::JobDescription) -> Result<Self, DefinitionError> {
        if let Err(error) = check_text("name", &told.name, MAX_NAME_BYTES) {
            return Err(DefinitionError::Name(error.to_string().replace("`name` ", "")));
        }
        let wrong = |reason: String| DefinitionError::Value { job: told.name.clone(), reason };
        if let Some(queue) = &told.queue {
            check_text("queue", queue, 256).map_err(|error| wrong(error.to_string()))?;
        }
        let timeout = told.timeout_ms.map(Duration::from_millis);
        if let Some(timeout) = timeout
            && (timeout.is_zero() || timeout > MAX_TIMEOUT)
        {
            return Err(wrong("its timeout must be from 1 ms to 12 h".into()));
        }
        if told.retry.is_some_and(|retry| retry.max_attempts == Some(0)) {
            return Err(wrong("max-attempts must be at least 1".into()));
        }
        let retry = told.retry;
        let longest = retry
            .map_or(0, |retry| retry.initial_backoff_ms.max(retry.max_backoff_ms).unwrap_or(0));
        if Duration::from_millis(longest) > MAX_AHEAD {
            let days = MAX_AHEAD.as_secs() / 86_400;
            return Err(wrong(format!(
                "a backoff of {longest} ms is over the limit of {days} days"
            )));
        }
        let periodic = match &told.periodic {
            None => None,
            Some(periodic) => {
                let periodic = self::periodic(&told.name, periodic)
                    .map_err(|reason| wrong(format!("its periodic entry: {reason}")))?;
                Some(periodic)
            }
        };
        let unique = told.unique.as_ref().map(unique_rule).transpose().map_err(wrong)?;
        let ms = Duration::from_millis;
        Ok(Self {
            queue: told.queue,
            records_result: told.records_result,
            timeout,
            max_attempts: retry.and_then(|retry| retry.max_attempts),
            initial_backoff: retry.and_then(|retry| retry.initial_backoff_ms).map(ms),
            max_backoff: retry.and_then(|retry| retry.max_backoff_ms).map(ms),
            periodic,
            unique,
            name: told.name,
        })
    }

    /// The retry policy of the job: what it told, over the host's default.
    #[must_use]
    pub fn policy(&self, default: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or(default.max_attempts),
            initial_backoff: self.initial_backoff.unwrap_or(default.initial_backoff),
            max_backoff: self.max_backoff.unwrap_or(default.max_backoff),
        }
    }

    /// The description as one JSON object, for commands and rows.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let ms = |duration: Option<Duration>| duration.map(crate::clock::millis);
        json!({
            "name": self.name,
            "queue": self.queue,
            "records_result": self.records_result,
            "timeout_ms": ms(self.timeout),
            "max_attempts": self.max_attempts,
            "initial_backoff_ms": ms(self.initial_backoff),
            "max_backoff_ms": ms(self.max_backoff),
            "schedule": self.periodic.as_ref().and_then(schedule),
            "timezone": self.periodic.as_ref().and_then(|periodic| periodic.timezone.as_ref()),
            "unique": self.unique.as_ref().map(UniqueRule::to_json),
        })
    }
}

/// What a module tells of its periodic entry, checked.
fn periodic(job: &str, told: &wit::Periodic) -> Result<Periodic, String> {
    let ms = |what: &str, ms: u64| i64::try_from(ms).map_err(|_| format!("{what} is too large"));
    let some_ms = |what, value: Option<u64>| value.map(|value| ms(what, value)).transpose();
    let (schedule, timezone, every_ms) = match &told.schedule {
        wit::Schedule::Crontab(crontab) => {
            (Some(crontab.expression.clone()), Some(crontab.timezone.clone()), None)
        }
        wit::Schedule::EveryMs(every) => (None, None, Some(ms("the interval", *every)?)),
    };
    let catch_up = told.catch_up.map(|rule| match rule {
        wit::CatchUp::None => "none",
        wit::CatchUp::Last => "last",
        wit::CatchUp::All => "all",
    });
    let overlap = told.overlap.map(|rule| match rule {
        wit::Overlap::Allow => "allow",
        wit::Overlap::Skip => "skip",
        wit::Overlap::Replace => "replace",
    });
    let periodic = Periodic {
        job: Some(job.to_owned()),
        queue: None,
        schedule,
        timezone,
        every_ms,
        args: Some(told.args.clone()),
        kwargs: Some(told.kwargs.clone()),
        catch_up: catch_up.map(str::to_owned),
        max_lateness_ms: some_ms("max-lateness", told.max_lateness_ms)?,
        grace_ms: None,
        overlap: overlap.map(str::to_owned),
        jitter_ms: some_ms("jitter", told.jitter_ms)?,
        start_at: some_ms("start", told.start_ms)?,
        end_at: some_ms("end", told.end_ms)?,
    };
    periodic.check()?;
    Ok(periodic)
}

/// The crontab expression, or `every 10m`.
fn schedule(periodic: &Periodic) -> Option<String> {
    periodic.check().ok().map(|settings| settings.schedule.expression().to_owned())
}

/// Which calls count as the same, or what is wrong with what the module says of it.
fn unique_rule(told: &wit::Unique) -> Result<UniqueRule, String> {
    let window = Duration::from_millis(told.window_ms.unwrap_or(0));
    if window > MAX_AHEAD {
        let days = MAX_AHEAD.as_secs() / 86_400;
        return Err(format!("its unique window is over the limit of {days} days"));
    }
    let by = match &told.key {
        wit::UniqueKey::Name => UniqueBy::Name,
        wit::UniqueKey::Arguments => UniqueBy::Arguments,
        wit::UniqueKey::Named(key) => {
            check_text("unique key", key, MAX_KEY_BYTES).map_err(|error| error.to_string())?;
            UniqueBy::Key(key.clone())
        }
    };
    Ok(UniqueRule { by, window })
}

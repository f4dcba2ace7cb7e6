//! What defines a periodic entry: told by a module, a configuration file or a command, laid one
//! over the other, and checked. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::schedule::Schedule;
use crate::broker::check_queue;
use crate::clock::{Timestamp, millis};
use crate::json;
use crate::payload::{self, MAX_NAME_BYTES, check_text};

/// How late a tick may be claimed without being missed, unless the entry says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(60);
/// Longest grace, lateness and jitter: ten years.
const MAX_SPAN_MS: i64 = 3650 * 24 * 3_600_000;

/// What becomes of ticks that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// They are skipped.
    None,
    /// The latest of them is queued.
    Last,
    /// All of them are queued, oldest first, at most 1,000.
    All,
}

/// What becomes of a tick while the job of the one before waits or runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Both run.
    Allow,
    /// The tick is skipped.
    Skip,
    /// The job before is cancelled.
    Replace,
}

/// What one source says of an entry, as it is kept. What is `None` is left to the weaker source,
/// and to the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // each is the column of that name of the table `periodic`
pub struct Definition {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kwargs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lateness_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_at: Option<i64>,
}

/// An entry's settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The job that is queued.
    pub job: String,
    /// The queue, where it is not the one that the deployed job describes.
    pub queue: Option<String>,
    /// When.
    pub schedule: Schedule,
    /// JSON text of an array.
    pub args: String,
    /// JSON text of an object.
    pub kwargs: String,
    /// What becomes of missed ticks.
    pub catch_up: CatchUp,
    /// How late a missed tick may still be queued.
    pub max_lateness: Option<Duration>,
    /// How late a tick may be claimed without being missed.
    pub grace: Duration,
    /// What becomes of a tick while the job before waits or runs.
    pub overlap: Overlap,
    /// Spread of the entries over time.
    pub jitter: Duration,
    /// First instant at which the entry may fire.
    pub start: Option<Timestamp>,
    /// Instant from which on it fires no more.
    pub end: Option<Timestamp>,
}

impl Definition {
    /// What stands when `stronger` is laid over this.
    #[must_use]
    pub fn under(self, stronger: Self) -> Self {
        // A schedule and an interval exclude each other: naming one drops the other.
        let (mut schedule, mut timezone, mut every_ms) =
            (self.schedule, self.timezone, self.every_ms);
        if stronger.every_ms.is_some() {
            (schedule, timezone) = (None, None);
        }
        if stronger.schedule.is_some() || stronger.timezone.is_some() {
            every_ms = None;
        }
        Self {
            job: stronger.job.or(self.job),
            queue: stronger.queue.or(self.queue),
            schedule: stronger.schedule.or(schedule),
            timezone: stronger.timezone.or(timezone),
            every_ms: stronger.every_ms.or(every_ms),
            args: stronger.args.or(self.args),
            kwargs: stronger.kwargs.or(self.kwargs),
            catch_up: stronger.catch_up.or(self.catch_up),
            max_lateness_ms: stronger.max_lateness_ms.or(self.max_lateness_ms),
            grace_ms: stronger.grace_ms.or(self.grace_ms),
            overlap: stronger.overlap.or(self.overlap),
            jitter_ms: stronger.jitter_ms.or(self.jitter_ms),
            start_at: stronger.start_at.or(self.start_at),
            end_at: stronger.end_at.or(self.end_at),
        }
    }

    /// Checks everything.
    ///
    /// # Errors
    /// The first thing that is wrong, with what is allowed.
    pub fn check(&self) -> Result<Settings, String> {
        let job = self.job.clone().ok_or("it names no job")?;
        check_text("job", &job, MAX_NAME_BYTES).map_err(|error| error.to_string())?;
        if let Some(queue) = &self.queue {
            check_queue(queue).map_err(|error| error.to_string())?;
        }
        let args = self.args.clone().unwrap_or_else(|| "[]".into());
        let kwargs = self.kwargs.clone().unwrap_or_else(|| "{}".into());
        json::check_array(&args).map_err(|error| format!("its args are no JSON array: {error}"))?;
        json::check_object(&kwargs)
            .map_err(|error| format!("its kwargs are no JSON object: {error}"))?;
        let catch_up = match self.catch_up.as_deref().unwrap_or("last") {
            "none" => CatchUp::None,
            "last" => CatchUp::Last,
            "all" => CatchUp::All,
            word => return Err(format!("catch-up: expected none, last or all, found `{word}`")),
        };
        let overlap = match self.overlap.as_deref().unwrap_or("allow") {
            "allow" => Overlap::Allow,
            "skip" => Overlap::Skip,
            "replace" => Overlap::Replace,
            word => {
                return Err(format!("overlap: expected allow, skip or replace, found `{word}`"));
            }
        };
        let (start, end) = (self.start_at.map(Timestamp), self.end_at.map(Timestamp));
        if let (Some(start), Some(end)) = (start, end)
            && end <= start
        {
            return Err(format!("its end {end} is not later than its start {start}"));
        }
        Ok(Settings {
            job,
            queue: self.queue.clone(),
            schedule: self.schedule()?,
            args,
            kwargs,
            catch_up,
            max_lateness: span("max-lateness", self.max_lateness_ms)?,
            grace: span("grace", self.grace_ms)?.unwrap_or(DEFAULT_GRACE),
            overlap,
            jitter: span("jitter", self.jitter_ms)?.unwrap_or_default(),
            start,
            end,
        })
    }

    /// When it fires: an expression with its zone, or an interval.
    fn schedule(&self) -> Result<Schedule, String> {
        match (&self.schedule, &self.timezone, self.every_ms) {
            (Some(expression), Some(timezone), None) => {
                Schedule::crontab(expression, timezone).map_err(|error| error.to_string())
            }
            (None, None, Some(ms)) => {
                let ms = u64::try_from(ms).map_err(|_| "its interval is negative".to_owned())?;
                Schedule::every(Duration::from_millis(ms)).map_err(|error| error.to_string())
            }
            (Some(_), None, None) => {
                Err("its crontab expression needs a time zone beside it".to_owned())
            }
            (None, Some(_), None) => Err("its time zone needs a crontab expression".to_owned()),
            _ => Err("expected a crontab expression with its time zone, or an interval".to_owned()),
        }
    }

    /// What is kept of it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}

impl Settings {
    /// How long after each fire time the entry of this name is claimed: below the jitter, and
    /// the same each time.
    #[must_use]
    pub fn offset(&self, name: &str) -> Duration {
        let spread = u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX);
        let hash = Sha256::digest(name.as_bytes());
        let number = hash.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        Duration::from_millis(number.checked_rem(spread).unwrap_or(0))
    }

    /// The first tick of an entry that begins, or goes on, at `now`: never in the past, nor one
    /// that was dealt with. `None` when it fires no more.
    #[must_use]
    pub fn first_after(&self, now: Timestamp, last: Option<Timestamp>) -> Option<Timestamp> {
        let start = self.start.map_or(i64::MIN, |start| start.0.saturating_sub(1));
        let after = now.0.max(start).max(last.map_or(i64::MIN, |last| last.0));
        self.schedule.next_after(Timestamp(after)).filter(|tick| self.may_fire_at(*tick))
    }

    pub(super) fn may_fire_at(&self, tick: Timestamp) -> bool {
        self.end.is_none_or(|end| tick < end)
    }
}

fn span(what: &str, ms: Option<i64>) -> Result<Option<Duration>, String> {
    match ms {
        None => Ok(None),
        Some(ms) if (0..=MAX_SPAN_MS).contains(&ms) => {
            Ok(Some(Duration::from_millis(ms.unsigned_abs())))
        }
        Some(ms) => Err(format!("{what}: expected 0 to 3650 days, found {ms} ms")),
    }
}

/// The id of the job of one tick: the same whoever queues it.
#[must_use]
pub fn job_id(entry: &str, fire_time: Timestamp) -> String {
    const NAMESPACE: uuid::Uuid = uuid::Uuid::from_u128(0x5d6e_0a51_9f0b_4b57_9d3f_6b8a_2f1c_7e43);
    uuid::Uuid::new_v5(&NAMESPACE, format!("{entry}\n{}", fire_time.0).as_bytes()).to_string()
}

/// The digest by which a definition that has no module is known.
#[must_use]
pub fn digest(definition: &Definition, revision: i64) -> String {
    payload::hex(&Sha256::digest(format!("{revision}\n{}", definition.to_json())))
}

/// Checks an entry's name: 1 to 256 bytes without control characters.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    check_text("name", name, MAX_NAME_BYTES).map_err(|error| error.to_string())
}

/// Whole milliseconds for a definition.
#[must_use]
pub fn span_ms(span: Duration) -> i64 {
    millis(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nightly() -> Definition {
        Definition {
            job: Some("report".into()),
            schedule: Some("30 2 * * *".into()),
            timezone: Some("Europe/Madrid".into()),
            ..Definition::default()
        }
    }

    #[test]
    fn what_the_stronger_source_leaves_out_stays() {
        let edited = Definition { queue: Some("slow".into()), ..Definition::default() };
        let both = nightly().under(edited);
        assert_eq!(both, Definition { queue: Some("slow".into()), ..nightly() });
    }

    #[test]
    fn an_interval_over_an_expression_replaces_it_and_the_other_way_round() {
        let every = Definition { every_ms: Some(60_000), ..Definition::default() };
        let both = nightly().under(every.clone());
        assert_eq!((both.schedule, both.timezone, both.every_ms), (None, None, Some(60_000)));
        let back = every.under(nightly());
        assert_eq!(back, nightly());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |change: &dyn Fn(&mut Definition)| {
            let mut definition = nightly();
            change(&mut definition);
            definition.check().unwrap_err()
        };
        assert!(wrong(&|d| d.schedule = Some("61 * * * *".into())).contains("minute"));
        assert!(wrong(&|d| d.timezone = Some("Europe/Madird".into())).contains("Europe/Madrid"));
        assert!(wrong(&|d| d.timezone = None).contains("time zone"));
        assert!(wrong(&|d| d.every_ms = Some(1)).contains("or an interval"));
        assert!(wrong(&|d| d.job = None).contains("job"));
        assert!(wrong(&|d| d.queue = Some("no queue".into())).contains("queue"));
        assert!(wrong(&|d| d.args = Some("{}".into())).contains("array"));
        assert!(wrong(&|d| d.kwargs = Some("{".into())).contains("object"));
        assert!(wrong(&|d| d.jitter_ms = Some(-1)).contains("jitter"));
        assert!(wrong(&|d| d.catch_up = Some("some".into())).contains("none, last or all"));
        assert!(wrong(&|d| (d.start_at, d.end_at) = (Some(5), Some(5))).contains("end"));
    }

    #[test]
    fn the_jitter_of_an_entry_is_stable_and_spreads_entries_out() {
        let mut definition = nightly();
        definition.jitter_ms = Some(600_000);
        let settings = definition.check().unwrap();
        let offsets: Vec<Duration> = (0..1000).map(|n| settings.offset(&format!("e{n}"))).collect();
        assert_eq!(offsets[7], settings.offset("e7"));
        assert!(offsets.iter().all(|offset| *offset < settings.jitter));
        let first_tenth = offsets.iter().filter(|offset| offset.as_secs() < 60).count();
        assert!((50..200).contains(&first_tenth), "{first_tenth} of 1000 in the first tenth");
        assert_eq!(nightly().check().unwrap().offset("e7"), Duration::ZERO);
    }

    #[test]
    fn an_entry_begins_in_the_future_and_within_its_dates() {
        let mut definition = nightly();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let now = at("2027-06-10T12:00:00Z");
        let first = definition.check().unwrap().first_after(now, None);
        assert_eq!(first, Some(at("2027-06-11T00:30:00Z")));
        // A clock that went back does not bring a tick again.
        assert_eq!(
            definition.check().unwrap().first_after(now, first),
            Some(at("2027-06-12T00:30:00Z"))
        );
        definition.start_at = Some(at("2027-07-01T00:30:00Z").0);
        assert_eq!(
            definition.check().unwrap().first_after(now, None),
            Some(at("2027-07-01T00:30:00Z"))
        );
        definition.end_at = Some(at("2027-07-01T00:30:01Z").0);
        let settings = definition.check().unwrap();
        assert_eq!(settings.first_after(at("2027-07-01T00:30:00Z"), None), None);
    }

    #[test]
    fn the_job_of_a_tick_has_the_same_id_whoever_queues_it() {
        let id = job_id("nightly", Timestamp(1_000));
        assert_eq!(id, job_id("nightly", Timestamp(1_000)));
        assert_ne!(id, job_id("nightly", Timestamp(2_000)));
        assert_ne!(id, job_id("nightl", Timestamp(1_000)));
    }
}

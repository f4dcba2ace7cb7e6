//! `periodic next`: the coming ticks of a schedule.

use std::io::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;

use super::super::{Usage, is_json};
use crate::beater::schedule::{Schedule, ScheduleError};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;

#[derive(Args)]
pub(in crate::cli) struct NextArguments {
    /// Crontab expression, `minute hour day-of-month month day-of-week`, or a macro such as @daily
    #[arg(
        value_name = "EXPR",
        required_unless_present = "every",
        requires = "timezone",
        allow_hyphen_values = true
    )]
    expression: Option<String>,
    /// IANA time zone of the expression, such as Europe/Madrid
    #[arg(long, value_name = "ZONE", conflicts_with = "every")]
    timezone: Option<String>,
    /// An interval instead of an expression, such as 10m
    #[arg(long, value_name = "TIME", conflicts_with = "expression")]
    every: Option<String>,
    /// Only ticks later than this RFC 3339 instant [default: now]
    #[arg(long, value_name = "RFC3339", allow_hyphen_values = true)]
    after: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
}

pub(super) fn next(config: &Config, arguments: &NextArguments) -> anyhow::Result<()> {
    let schedule = schedule(
        arguments.expression.as_deref(),
        arguments.timezone.as_deref(),
        arguments.every.as_deref(),
    )
    .map_err(|error| Usage(format!("the schedule is rejected: {error}")))?;
    let after = match &arguments.after {
        None => Clock::system().now(),
        Some(text) => instant(text).map_err(|fault| Usage(format!("--after: {fault}")))?,
    };
    let is_json = is_json(config);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let count = usize::try_from(arguments.count).unwrap_or(usize::MAX);
    for tick in schedule.ticks_after(after).take(count) {
        let tick = tick.short();
        if is_json { writeln!(out, "\"{tick}\"") } else { writeln!(out, "{tick}") }?;
    }
    Ok(out.flush()?)
}

/// Reads a schedule as commands and files give it: an expression with its zone, or an interval.
pub(super) fn schedule(
    expression: Option<&str>,
    timezone: Option<&str>,
    every: Option<&str>,
) -> Result<Schedule, String> {
    let rejected = |error: ScheduleError| error.to_string();
    match (expression, timezone, every) {
        (Some(expression), Some(timezone), None) => {
            Schedule::crontab(expression, timezone).map_err(rejected)
        }
        (None, None, Some(every)) => {
            let interval: Duration = humantime::parse_duration(every)
                .map_err(|_| format!("expected an interval such as `10m`, found `{every}`"))?;
            Schedule::every(interval).map_err(rejected)
        }
        (Some(_), None, None) => Err("a crontab expression needs a time zone beside it".to_owned()),
        _ => Err("expected a crontab expression with its time zone, or an interval".to_owned()),
    }
}

/// Reads an RFC 3339 instant, to the millisecond.
pub(super) fn instant(text: &str) -> Result<Timestamp, String> {
    let time = DateTime::parse_from_rfc3339(text).map_err(|error| {
        format!(
            "expected an RFC 3339 instant such as 2027-03-28T00:30:00Z, found `{text}`: {error}"
        )
    })?;
    let time = time.with_timezone(&Utc);
    // A leap second is told as the last one of its minute, so that the next minute is later.
    let is_leap = time.timestamp_subsec_millis() > 999;
    Ok(Timestamp(if is_leap { time.timestamp() * 1000 + 999 } else { time.timestamp_millis() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_may_have_an_offset_a_fraction_or_be_a_leap_second() {
        for (text, ms) in [
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T00:00:00.0019Z", 1),
            ("1969-12-31T23:59:59.9999Z", -1),
            ("1970-12-31T23:59:60Z", 31_535_999_999),
        ] {
            assert_eq!(instant(text), Ok(Timestamp(ms)), "{text}");
        }
        for text in ["", "now", "2027-03-28", "2027-03-28T00:30:00", "2027-02-30T00:00:00Z"] {
            assert!(instant(text).is_err(), "{text}");
        }
    }
}

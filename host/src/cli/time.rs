//! Times as command lines tell them: how long from now, and when.

use std::time::Duration;

use super::Usage;
use crate::clock::{Clock, MAX_AHEAD, Timestamp};

/// Days of [`MAX_AHEAD`], for messages.
const MAX_DAYS: u64 = MAX_AHEAD.as_secs() / 86_400;

/// Reads how long from now something is to happen: `90d`, `1h 30m`.
pub(super) fn ahead(what: &str, text: &str) -> Result<Duration, Usage> {
    let time = humantime::parse_duration(text).ok().filter(|time| *time <= MAX_AHEAD);
    time.ok_or_else(|| {
        Usage(format!(
            "{what}: expected a time from now such as `90d` or `1h 30m`, at most {MAX_DAYS} days, found `{text}`"
        ))
    })
}

/// Reads an instant that is not too far ahead; one that has passed is fine.
pub(super) fn instant_ahead(what: &str, text: &str) -> Result<Timestamp, Usage> {
    let instant = Timestamp::parse(text).ok();
    let instant = instant.filter(|instant| instant.since(Clock::system().now()) <= MAX_AHEAD);
    instant.ok_or_else(|| {
        Usage(format!(
            "{what}: expected an instant such as `2030-01-31T08:00:00Z`, at most {MAX_DAYS} days ahead, found `{text}`"
        ))
    })
}

/// An instant that has passed, as a command line tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// This one.
    At(Timestamp),
    /// So long ago.
    Ago(Duration),
}

impl Past {
    /// Reads an instant, or an age such as `2h`.
    pub(super) fn read(what: &str, text: &str) -> Result<Self, Usage> {
        if let Ok(instant) = Timestamp::parse(text) {
            return Ok(Self::At(instant));
        }
        humantime::parse_duration(text).map(Self::Ago).map_err(|_| {
            Usage(format!(
                "{what}: expected an instant such as `2030-01-31T08:00:00Z`, or an age such as `2h` or `3d`, found `{text}`"
            ))
        })
    }

    /// The instant, told at `now`.
    pub(super) fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(instant) => instant,
            Self::Ago(age) => Timestamp(now.0.saturating_sub(crate::clock::millis(age))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_ahead_that_is_negative_huge_or_no_time_is_refused_with_the_limit() {
        for text in ["-5m", "3661d", "99999999999999999999y", "5", "", "soon"] {
            let error = ahead("--delay", text).expect_err(text).to_string();
            assert!(error.contains("3660 days") && error.contains("--delay"), "{error}");
        }
        assert_eq!(ahead("--delay", "90d").ok(), Some(Duration::from_secs(90 * 86_400)));
    }

    #[test]
    fn an_instant_may_have_passed_but_not_be_beyond_the_limit() {
        let past = Timestamp::parse("2001-01-01T00:00:00Z").expect("an instant");
        assert_eq!(instant_ahead("--at", "2001-01-01T00:00:00Z").ok(), Some(past));
        let error = instant_ahead("--at", "9001-01-01T00:00:00Z").expect_err("far").to_string();
        assert!(error.contains("3660 days"), "{error}");
        assert!(instant_ahead("--at", "tomorrow").is_err());
    }

    #[test]
    fn an_age_is_counted_back_from_now() {
        let now = Timestamp(10_000);
        let instant = |text| Past::read("--since", text).map(|past| past.instant(now)).ok();
        assert_eq!(instant("3s"), Some(Timestamp(7_000)));
        assert_eq!(instant("1970-01-01T00:00:01Z"), Some(Timestamp(1_000)));
        assert_eq!(instant("soon"), None);
    }
}

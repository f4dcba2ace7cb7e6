//! The one source of "now", and the form in which instants are kept, sent and printed.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// Longest time ahead for which anything can be planned: a delay, a backoff, a retry. Ten years
/// and some; what asks for more is a mistake, and sums with it would not be dates any more.
pub const MAX_AHEAD: Duration = Duration::from_secs(3660 * 86_400);

/// An instant: milliseconds since 1970-01-01T00:00:00Z. Printed as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The instant `duration` later; the last one that can be told when that would overflow.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// Time from `earlier` until this instant; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads an RFC 3339 instant.
    ///
    /// # Errors
    /// The text is no RFC 3339 instant; the error says at which part.
    pub fn parse(text: &str) -> Result<Self, chrono::ParseError> {
        Ok(Self(DateTime::parse_from_rfc3339(text)?.timestamp_millis()))
    }

    /// The instant as RFC 3339 in UTC, with a fraction only where it has one.
    #[must_use]
    pub fn short(self) -> String {
        match DateTime::<Utc>::from_timestamp_millis(self.0) {
            Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_millis(self.0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => write!(f, "{} ms since 1970", self.0),
        }
    }
}

/// Whole milliseconds of a duration; the largest number when it does not fit.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What tests add to the machine's clock, in milliseconds, to see what a wrong one does.
static OFFSET: LazyLock<i64> = LazyLock::new(|| {
    let told = std::env::var("SQJOBS_TEST_CLOCK_OFFSET_MS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(0)
});

/// Tells the time. A held clock stands still until it is moved, so that tests need not sleep.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    held: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `now`.
    #[must_use]
    pub fn held_at(now: Timestamp) -> Self {
        Self { held: Some(Arc::new(AtomicI64::new(now.0))) }
    }

    /// The present instant.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.held {
            Some(held) => Timestamp(held.load(Ordering::SeqCst)),
            None => Timestamp(Utc::now().timestamp_millis().saturating_add(*OFFSET)),
        }
    }

    /// Moves a held clock forward; a system clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Some(held) = &self.held {
            held.fetch_add(millis(by), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_printed_as_rfc_3339_in_utc_and_read_back() {
        let instant = Timestamp(1_795_000_000_123);
        assert_eq!(instant.to_string(), "2026-11-18T11:06:40.123Z");
        assert_eq!(Timestamp::parse("2026-11-18T12:06:40.123+01:00"), Ok(instant));
    }

    #[test]
    fn a_held_clock_moves_only_when_it_is_moved() {
        let clock = Clock::held_at(Timestamp(5));
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), Timestamp(1005));
    }

    #[test]
    fn arithmetic_at_the_ends_does_not_overflow() {
        assert_eq!(Timestamp(i64::MAX).after(Duration::MAX), Timestamp(i64::MAX));
        assert_eq!(Timestamp(0).since(Timestamp(5)), Duration::ZERO);
    }
}

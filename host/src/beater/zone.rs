//! Path 3, step b: the time zone of a schedule, as stretches of time with one offset each.
//!
//! The rules are those of the IANA database that this host was built with ([`VERSION`]), on
//! every machine, whatever its own `zoneinfo` says: two beaters must mean the same instants.

use std::str::FromStr as _;

use chrono::{DateTime, Datelike as _, Offset as _, TimeZone as _};
use chrono_tz::Tz;

use crate::text::nearest;

/// The version of the IANA time zone database in use, such as `2025b`.
pub const VERSION: &str = chrono_tz::IANA_TZDB_VERSION;

/// The first year beyond the tables of the bundled database; the rules go on.
const HORIZON: i32 = 2100;
/// The same instant, in minutes.
const HORIZON_MINUTE: i64 = 68_374_080;
/// Two changes of one zone's offset are a week apart or more, so none hides between two looks.
const LOOK_EVERY: i64 = 6 * 60;

/// A name that is no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a time zone of the IANA database ({VERSION}); expected a name such as Europe/Madrid or UTC{hint}"
)]
pub struct UnknownZone {
    /// The name.
    pub name: String,
    hint: String,
}

/// A time zone of the IANA database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone(Tz);

/// A stretch of time with one offset. Times are minutes since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Its first minute.
    pub(super) begin: i64,
    /// The first minute behind it.
    pub(super) end: i64,
    /// What is added to its minutes to get the wall clock's.
    pub(super) offset: i64,
}

impl Zone {
    /// UTC.
    pub const UTC: Self = Self(Tz::UTC);

    /// Looks a zone up by its IANA name.
    ///
    /// # Errors
    /// There is none of this name; the error tells the nearest ones.
    pub fn named(name: &str) -> Result<Self, UnknownZone> {
        Tz::from_str(name)
            .map(Self)
            .map_err(|_| UnknownZone { name: name.to_owned(), hint: hint(name) })
    }

    /// Its IANA name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// What the wall clock adds to UTC, in whole minutes. Old local mean times with seconds in
    /// them are rounded down: the wall clock shows the minute that has begun.
    #[must_use]
    pub fn offset(self, minute: i64) -> i64 {
        let minute = if minute < HORIZON_MINUTE { minute } else { self.within_tables(minute) };
        self.looked_up(minute)
    }

    /// An instant as this zone's clock shows it, such as `2027-03-28 03:00 CEST`.
    #[must_use]
    pub fn shown(self, instant: crate::clock::Timestamp) -> String {
        match DateTime::from_timestamp_millis(instant.0) {
            Some(time) => {
                let local = time.with_timezone(&self.0);
                let format = if instant.0 % 60_000 == 0 { "%F %R %Z" } else { "%F %T %Z" };
                local.format(format).to_string()
            }
            None => instant.to_string(),
        }
    }

    fn looked_up(self, minute: i64) -> i64 {
        let Some(time) = DateTime::from_timestamp(minute.saturating_mul(60), 0) else { return 0 };
        let offset = self.0.offset_from_utc_datetime(&time.naive_utc()).fix();
        i64::from(offset.local_minus_utc()).div_euclid(60)
    }

    /// An instant with the same rules within the tables: the same minute of a year that has the
    /// same weekdays. A zone that has stopped to change its clock by then goes on so.
    fn within_tables(self, minute: i64) -> i64 {
        let last = HORIZON_MINUTE - 1;
        let changes = (0..24)
            .any(|month| self.looked_up(last - month * 30 * 24 * 60) != self.looked_up(last));
        let time = DateTime::from_timestamp(minute.saturating_mul(60), 0);
        let (true, Some(time)) = (changes, time) else { return last };
        let shape = |year: i32| {
            chrono::NaiveDate::from_ymd_opt(year, 1, 1)
                .map(|first| (first, first.leap_year(), first.weekday()))
        };
        let Some((first, is_leap, weekday)) = shape(time.year()) else { return last };
        // 28 years hold every combination.
        let alike = (HORIZON - 28..HORIZON)
            .filter_map(shape)
            .find(|(_, leap, day)| (*leap, *day) == (is_leap, weekday));
        alike
            .map_or(last, |(alike, ..)| minute - (first - alike).num_days().saturating_mul(24 * 60))
    }

    /// The stretches that cover the minutes from `begin` to before `end`, in their order.
    pub(super) fn stretches(self, begin: i64, end: i64) -> Vec<Stretch> {
        let mut stretch = Stretch { begin, end, offset: self.offset(begin) };
        let mut stretches = Vec::with_capacity(2);
        let mut looked = begin;
        while looked < end - 1 {
            let look = (looked + LOOK_EVERY).min(end - 1);
            let offset = self.offset(look);
            if offset != stretch.offset {
                let change = self.first_with(offset, looked, look);
                stretches.push(Stretch { end: change, ..stretch });
                stretch = Stretch { begin: change, end, offset };
            }
            looked = look;
        }
        stretches.push(stretch);
        stretches
    }

    /// The first minute with this offset, given that it comes after `before` and not after `at`.
    fn first_with(self, offset: i64, mut before: i64, mut at: i64) -> i64 {
        while at - before > 1 {
            let middle = before + (at - before) / 2;
            if self.offset(middle) == offset {
                at = middle;
            } else {
                before = middle;
            }
        }
        at
    }
}

/// The version of the machine's own database, where it has one and it is newer than ours.
#[must_use]
pub fn newer_on_this_machine() -> Option<String> {
    let text = std::fs::read_to_string("/usr/share/zoneinfo/tzdata.zi").ok()?;
    let version = text.lines().next()?.strip_prefix("# version ")?.trim().to_owned();
    // `2025b` is later than `2025a` and earlier than `2026a`.
    (version.as_str() > VERSION && version.len() < 12).then_some(version)
}

/// The names that may have been meant.
fn hint(name: &str) -> String {
    let zones = || chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
    let city = |name: &str| name.rsplit('/').next().unwrap_or_default().to_lowercase();
    let wanted = city(name).replace(' ', "_");
    let mut alike: Vec<&str> = zones().filter(|zone| city(zone) == wanted).collect();
    alike.extend(nearest(name, zones()));
    alike.dedup();
    alike.truncate(3);
    match alike.as_slice() {
        [] => String::new(),
        alike => format!("; did you mean {}?", alike.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp() / 60
    }

    #[test]
    fn a_stretch_ends_on_the_very_minute_of_the_change() {
        let paris = Zone::named("Europe/Paris").unwrap();
        let (begin, end) = (minute("2027-03-27T00:00:00Z"), minute("2027-03-30T00:00:00Z"));
        let change = minute("2027-03-28T01:00:00Z");
        assert_eq!(
            paris.stretches(begin, end),
            [
                Stretch { begin, end: change, offset: 60 },
                Stretch { begin: change, end, offset: 120 }
            ]
        );
    }

    #[test]
    fn the_rules_go_on_beyond_the_tables() {
        assert_eq!(HORIZON_MINUTE, minute("2100-01-01T00:00:00Z"));
        for (zone, instant, offset) in [
            ("Europe/Paris", "2150-07-01T00:00:00Z", 120),
            ("Europe/Paris", "2150-12-01T00:00:00Z", 60),
            // The last Sunday of March 2150 is the 29th.
            ("Europe/Paris", "2150-03-29T00:59:00Z", 60),
            ("Europe/Paris", "2150-03-29T01:00:00Z", 120),
            ("Australia/Sydney", "2128-02-29T00:00:00Z", 660),
            ("Africa/Casablanca", "2180-05-01T00:00:00Z", 60),
            ("Asia/Tokyo", "9999-12-31T23:59:00Z", 540),
        ] {
            assert_eq!(
                Zone::named(zone).unwrap().offset(minute(instant)),
                offset,
                "{zone} {instant}"
            );
        }
    }

    #[test]
    fn an_unknown_zone_is_told_the_nearest_names() {
        let error = |name| Zone::named(name).unwrap_err().to_string();
        assert!(error("Europe/Madird").contains("did you mean Europe/Madrid?"));
        assert!(error("europe/madrid").contains("Europe/Madrid"));
        assert!(error("madrid").contains("Europe/Madrid"));
        for name in
            ["", "CEST", "+02:00", "UTC+2", "Local", "Factory", "posix/UTC", "Europe/Madrid "]
        {
            assert!(Zone::named(name).is_err(), "{name}");
        }
    }
}

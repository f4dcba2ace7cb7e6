//! Path 3, step b: a schedule to its fire times. Pure.
//!
//! The ticks of a schedule are a fixed set of instants: they follow from the schedule and its
//! zone alone, never from when somebody started or what ran before. For crontab they all stand
//! on whole minutes, and a walk over local days finds them:
//!
//! - a *wildcard* job (minute or hour begins with `*`) fires at every minute whose wall clock
//!   matches: skipped wall times give none, repeated ones two;
//! - any other, a *fixed-time* job, fires once for each wall time that matches: at its first
//!   pass, and when the clock skips it, at the first instant behind the gap.
//!
//! Times within are minutes since 1970; a *wall* minute is what the zone's clock shows, counted
//! in the same way.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use chrono::{Datelike as _, NaiveDate};

use super::crontab::{Crontab, CrontabError};
use super::zone::{Stretch, UnknownZone, Zone};
use crate::clock::{Timestamp, millis};

/// Shortest interval of a schedule.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Longest interval of a schedule: ten years.
pub const MAX_INTERVAL: Duration = Duration::from_secs(3650 * 24 * 3600);

const DAY: i64 = 24 * 60;
/// Where the walk begins at the earliest, and where it ends: years 0 to 9999, which RFC 3339 can
/// tell.
const FIRST_MINUTE: i64 = -719_528 * DAY;
const END_MINUTE: i64 = 2_932_897 * DAY;
/// The first piece of a walk is short, since most ticks are near; then pieces grow to a day.
const FIRST_PIECE: i64 = 60;

/// Why a schedule is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The expression.
    #[error(transparent)]
    Crontab(#[from] CrontabError),
    /// The time zone.
    #[error(transparent)]
    Zone(#[from] UnknownZone),
    /// The interval.
    #[error("an interval must be from 1s to 3650d, in whole milliseconds, and this one is {0:?}")]
    Interval(Duration),
}

/// When a periodic entry fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    kind: Kind,
    expression: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crontab(Crontab, Zone),
    /// Milliseconds, counted from 1970.
    Every(i64),
}

impl Schedule {
    /// A crontab expression in a time zone.
    ///
    /// # Errors
    /// The expression or the zone is rejected, with the field and what is allowed.
    pub fn crontab(expression: &str, timezone: &str) -> Result<Self, ScheduleError> {
        let crontab = Crontab::parse(expression)?;
        let kind = Kind::Crontab(crontab, Zone::named(timezone)?);
        Ok(Self { kind, expression: expression.trim_matches([' ', '\t']).to_owned() })
    }

    /// A fixed interval, counted from 1970 and not from when somebody started.
    ///
    /// # Errors
    /// It is shorter than 1 s, longer than 3,650 days, or has a part of a millisecond.
    pub fn every(interval: Duration) -> Result<Self, ScheduleError> {
        let is_whole = interval.subsec_nanos().is_multiple_of(1_000_000);
        if !is_whole || interval < MIN_INTERVAL || interval > MAX_INTERVAL {
            return Err(ScheduleError::Interval(interval));
        }
        let expression = format!("every {}", humantime::format_duration(interval));
        Ok(Self { kind: Kind::Every(millis(interval)), expression })
    }

    /// The expression as it was given, or `every 10m`.
    #[must_use]
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The zone in which it is read; UTC for an interval.
    #[must_use]
    pub fn zone(&self) -> Zone {
        match self.kind {
            Kind::Crontab(_, zone) => zone,
            Kind::Every(_) => Zone::UTC,
        }
    }

    /// The interval of a schedule that is one.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        match self.kind {
            Kind::Crontab(..) => None,
            Kind::Every(ms) => Some(Duration::from_millis(ms.unsigned_abs())),
        }
    }

    /// The earliest tick strictly after `after`; `None` when there is none before the year 10000.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.ticks_after(after).next()
    }

    /// The ticks strictly after `after`, in their order.
    #[must_use]
    pub fn ticks_after(&self, after: Timestamp) -> Ticks {
        let first = after.0.div_euclid(60_000) + 1;
        Ticks {
            kind: self.kind,
            after: after.0.max(FIRST_MINUTE * 60_000),
            begin: first.max(FIRST_MINUTE),
            piece: FIRST_PIECE,
            found: Vec::new().into_iter(),
        }
    }

    /// The ticks strictly after `after` and before `before`, counted day by day and not walked;
    /// `None` when there is none.
    #[must_use]
    pub fn run(&self, after: Timestamp, before: Timestamp) -> Option<Run> {
        let first = self.next_after(after).filter(|tick| *tick < before)?;
        match self.kind {
            Kind::Every(ms) => {
                let last = (before.0 - 1).min(END_MINUTE * 60_000 - 1).div_euclid(ms) * ms;
                Some(Run { first, last: Timestamp(last), count: (last - first.0) / ms + 1 })
            }
            Kind::Crontab(crontab, zone) => {
                let begin = first.0.div_euclid(60_000);
                let end = (before.0 - 1).div_euclid(60_000).min(END_MINUTE - 1) + 1;
                let Tally { last, count } = Tally::of(&crontab, zone, begin, end);
                Some(Run { first, last: Timestamp(last * 60_000), count })
            }
        }
    }

    /// What becomes of the schedule at each change of its zone's clock from `from` until `until`,
    /// in a sentence each. Only what may surprise: a job of every hour goes on every hour.
    #[must_use]
    pub fn surprises(&self, from: Timestamp, until: Timestamp) -> Vec<String> {
        let Kind::Crontab(crontab, zone) = self.kind else { return Vec::new() };
        if crontab.is_wildcard && crontab.hours.count_ones() == 24 {
            return Vec::new();
        }
        let stretches = zone.stretches(from.0.div_euclid(60_000), until.0.div_euclid(60_000));
        let changes = stretches.windows(2).filter_map(|pair| match pair {
            [before, after] => surprise(&crontab, *before, *after),
            _ => None,
        });
        changes.collect()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Crontab(_, zone) => write!(f, "{} {}", self.expression, zone.name()),
            Kind::Every(_) => f.write_str(&self.expression),
        }
    }
}

/// Ticks one after the other, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: Timestamp,
    /// The last; the same when it is one.
    pub last: Timestamp,
    /// How many.
    pub count: i64,
}

/// The ticks of a schedule, one after the other.
#[derive(Debug)]
pub struct Ticks {
    kind: Kind,
    /// The last tick, or where the walk began: milliseconds.
    after: i64,
    /// The first minute that has not been looked at.
    begin: i64,
    /// How many minutes are looked at next.
    piece: i64,
    found: std::vec::IntoIter<i64>,
}

impl Iterator for Ticks {
    type Item = Timestamp;

    fn next(&mut self) -> Option<Timestamp> {
        let (crontab, zone) = match self.kind {
            Kind::Crontab(crontab, zone) => (crontab, zone),
            Kind::Every(ms) => {
                self.after = (self.after.div_euclid(ms) + 1).checked_mul(ms)?;
                return (self.after < END_MINUTE * 60_000).then_some(Timestamp(self.after));
            }
        };
        loop {
            if let Some(minute) = self.found.next() {
                return Some(Timestamp(minute * 60_000));
            }
            if self.begin >= END_MINUTE {
                return None;
            }
            let end = (self.begin + self.piece).min(END_MINUTE);
            self.found = ticks_within(&crontab, zone, self.begin, end).into_iter();
            self.begin = end;
            self.piece = (self.piece * 4).min(DAY);
        }
    }
}

/// Ticks that are counted: the last one, and how many there were.
struct Tally {
    last: i64,
    count: i64,
}

impl Tally {
    /// The ticks from `begin`, which is one, to before `end`. A walk goes along the ends of each
    /// stretch; the local days between are not near a change of the clock, and each of them that
    /// matches has equally many ticks.
    fn of(crontab: &Crontab, zone: Zone, begin: i64, end: i64) -> Self {
        let mut tally = Self { last: begin, count: 0 };
        let of_a_day = i64::from(crontab.minutes.count_ones() * crontab.hours.count_ones());
        let highest = |set: u64| i64::from(set.checked_ilog2().unwrap_or(0));
        let last_of_a_day = highest(crontab.hours) * 60 + highest(crontab.minutes);
        for stretch in zone.stretches(begin, end) {
            let day = |minute: i64| (minute + stretch.offset).div_euclid(DAY);
            // No gap and no repeated time is longer than a day.
            let days = day(stretch.begin) + 2..day(stretch.end) - 1;
            if days.is_empty() {
                tally.walk(crontab, zone, stretch.begin, stretch.end);
                continue;
            }
            let at = |day: i64| day * DAY - stretch.offset;
            tally.walk(crontab, zone, stretch.begin, at(days.start));
            for day in days.clone().filter(|day| matches_day(crontab, *day)) {
                tally.last = at(day) + last_of_a_day;
                tally.count += of_a_day;
            }
            tally.walk(crontab, zone, at(days.end), stretch.end);
        }
        tally
    }

    fn walk(&mut self, crontab: &Crontab, zone: Zone, mut begin: i64, end: i64) {
        while begin < end {
            let ticks = ticks_within(crontab, zone, begin, (begin + DAY).min(end));
            self.last = ticks.last().copied().unwrap_or(self.last);
            self.count += ticks.len() as i64;
            begin += DAY;
        }
    }
}

/// All ticks from `begin` to before `end`, at most a day later.
fn ticks_within(crontab: &Crontab, zone: Zone, begin: i64, end: i64) -> Vec<i64> {
    // No clock is further from UTC than a day, and no gap is longer than one.
    let days = begin.div_euclid(DAY) - 2..=(end - 1).div_euclid(DAY) + 2;
    if !days.clone().any(|day| matches_day(crontab, day)) {
        return Vec::new();
    }
    if crontab.is_wildcard {
        let stretches = zone.stretches(begin, end);
        return stretches.iter().flat_map(|stretch| wildcard_ticks(crontab, *stretch)).collect();
    }
    let around = zone.stretches((days.start() - 2) * DAY, (days.end() + 3) * DAY);
    let walls = match around.as_slice() {
        [all] => begin + all.offset..end + all.offset,
        _ => days.start() * DAY..(days.end() + 1) * DAY,
    };
    let mut ticks: Vec<i64> = wall_minutes(crontab, walls)
        .filter_map(|wall| fixed_tick(wall, &around))
        .filter(|tick| (begin..end).contains(tick))
        .collect();
    // Several wall times of one gap, or one on its end, are one tick.
    ticks.sort_unstable();
    ticks.dedup();
    ticks
}

/// The minutes of a stretch whose wall clock matches.
fn wildcard_ticks(crontab: &Crontab, stretch: Stretch) -> Vec<i64> {
    let walls = stretch.begin + stretch.offset..stretch.end + stretch.offset;
    wall_minutes(crontab, walls).map(|wall| wall - stretch.offset).collect()
}

/// When a wall time fires once: at its first pass, or behind the gap that skips it.
fn fixed_tick(wall: i64, stretches: &[Stretch]) -> Option<i64> {
    let begin = |stretch: &Stretch| stretch.begin + stretch.offset;
    let has = |stretch: &&Stretch| (begin(stretch)..stretch.end + stretch.offset).contains(&wall);
    match stretches.iter().find(has) {
        Some(stretch) => Some(wall - stretch.offset),
        None => stretches.iter().find(|stretch| begin(stretch) > wall).map(|after| after.begin),
    }
}

/// The wall minutes that match, in their order.
fn wall_minutes(crontab: &Crontab, walls: Range<i64>) -> impl Iterator<Item = i64> {
    let minutes = crontab.minutes;
    let days = walls.start.div_euclid(DAY)..=(walls.end - 1).div_euclid(DAY);
    let days = days.filter(|day| matches_day(crontab, *day));
    let hours = days.flat_map(|day| bits(crontab.hours).map(move |hour| day * DAY + hour * 60));
    let (first, last) = (walls.start - 59, walls.end);
    hours
        .filter(move |hour| (first..last).contains(hour))
        .flat_map(move |hour| bits(minutes).map(move |minute| hour + minute))
        .filter(move |wall| walls.contains(wall))
}

/// Whether a day, counted from 1970-01-01, matches.
fn matches_day(crontab: &Crontab, day: i64) -> bool {
    let date = i32::try_from(day).ok().and_then(NaiveDate::from_epoch_days);
    date.is_some_and(|date| {
        crontab.matches_day(date.month(), date.day(), date.weekday().num_days_from_sunday())
    })
}

/// The numbers of the bits that are set, from the lowest.
fn bits(mut set: u64) -> impl Iterator<Item = i64> {
    std::iter::from_fn(move || {
        let lowest = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (lowest < 64).then_some(i64::from(lowest))
    })
}

/// What becomes of a schedule where one stretch follows another.
fn surprise(crontab: &Crontab, before: Stretch, after: Stretch) -> Option<String> {
    let (from, to) = (before.end + before.offset, after.begin + after.offset);
    let (first, last) = (from.min(to), from.max(to));
    let walls: Vec<i64> = wall_minutes(crontab, first..last).collect();
    let (Some(one), others) = (walls.first(), walls.len().saturating_sub(1)) else { return None };
    let more = if others == 0 { String::new() } else { format!(" (and {others} more)") };
    let what = match (to > from, crontab.is_wildcard) {
        (true, true) => "is skipped by the clock: no tick".to_owned(),
        (true, false) => {
            format!("is skipped by the clock: one tick behind the gap, at {}", utc(after.begin))
        }
        (false, true) => "comes twice: a tick at each pass".to_owned(),
        (false, false) => {
            format!("comes twice: one tick, at {}", utc(one - before.offset))
        }
    };
    Some(format!("{}{more} {what}", wall(*one)))
}

/// A minute as text, in UTC.
fn utc(minute: i64) -> String {
    time(minute).format("%Y-%m-%dT%H:%MZ").to_string()
}

/// A wall minute as text.
fn wall(minute: i64) -> String {
    time(minute).format("%Y-%m-%d %H:%M").to_string()
}

fn time(minute: i64) -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp(minute.saturating_mul(60), 0).unwrap_or_default()
}

//! What [`Schedule`] tells, held against other ways to find it: a clock that is looked at minute
//! by minute, a second implementation, and instants that were computed elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

use super::crontab::Crontab;
use super::schedule::Schedule;
use super::zone::{Stretch, Zone};
use crate::clock::Timestamp;

const DAY: i64 = 24 * 60;
const VECTORS: &str = include_str!("../../../tests/fixtures/cron_vectors.json");

/// Expressions that meet a change of the clock in different ways.
const AT_CHANGES: [&str; 12] = [
    "30 2 * * *",
    "0,30 0-3 * * *",
    "0 0 * * *",
    "59 23 * * *",
    "15 2 * 3,10,11 0",
    "0 0-23 * * *",
    "5,35 1,2,3,22 */2 * *",
    "*/20 * * * *",
    "*/30 2 * * *",
    "30 */2 * * *",
    "10 0,1,2,3,23 1-15 * 0,6",
    "7 * * * 1-5",
];

fn minute(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).unwrap().timestamp().div_euclid(60)
}

fn minutes(schedule: &Schedule, begin: i64, end: i64) -> Vec<i64> {
    let ticks = schedule.ticks_after(Timestamp(begin * 60_000 - 1));
    ticks.map(|tick| tick.0 / 60_000).take_while(|minute| *minute < end).collect()
}

/// What a zone's clock shows from a day before `begin` until `end`, minute by minute.
fn clock(zone: Zone, begin: i64, end: i64) -> Vec<(i64, i64)> {
    (begin - DAY..end).map(|minute| (minute, minute + zone.offset(minute))).collect()
}

/// Looks at a clock every minute; the first day is only remembered.
fn looked_at_each_minute(crontab: &Crontab, clock: &[(i64, i64)]) -> Vec<i64> {
    use chrono::{Datelike as _, Timelike as _};
    let matches = |wall: i64| {
        let time = DateTime::from_timestamp(wall * 60, 0).unwrap();
        crontab.minutes >> time.minute() & 1 == 1
            && crontab.hours >> time.hour() & 1 == 1
            && crontab.matches_day(time.month(), time.day(), time.weekday().num_days_from_sunday())
    };
    let begin = clock[0].0 + DAY;
    let mut ticks = Vec::new();
    let mut shown = HashSet::new();
    let mut last_wall = clock[0].1 - 1;
    for &(minute, wall) in clock {
        if minute >= begin {
            let is_new = !shown.contains(&wall);
            let skipped =
                || (last_wall + 1..wall).any(|wall| !shown.contains(&wall) && matches(wall));
            let fires = if crontab.is_wildcard {
                matches(wall)
            } else {
                is_new && matches(wall) || skipped()
            };
            if fires {
                ticks.push(minute);
            }
        }
        // What was skipped has had its turn.
        shown.extend(last_wall.min(wall)..=wall);
        last_wall = wall;
    }
    ticks
}

fn zone(tz: Tz) -> Zone {
    Zone::named(tz.name()).unwrap()
}

/// The zones whose clocks differ within a span, with the stretches of each.
fn distinct_zones(begin: i64, end: i64) -> Vec<(Zone, Vec<Stretch>)> {
    let mut zones = BTreeMap::new();
    for tz in TZ_VARIANTS {
        let stretches = zone(tz).stretches(begin, end);
        let clock: Vec<_> = stretches.iter().map(|s| (s.begin, s.offset)).collect();
        zones.entry(clock).or_insert((zone(tz), stretches));
    }
    zones.into_values().collect()
}

#[test]
fn every_vector_is_met() {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap().to_owned();
    for case in vectors["cases"].as_array().unwrap() {
        let schedule = Schedule::crontab(&text(case, "expr"), &text(case, "tz")).unwrap();
        let after = Timestamp::parse(&text(case, "after")).unwrap();
        let next: Vec<i64> = case["next"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tick| Timestamp::parse(tick.as_str().unwrap()).unwrap().0)
            .collect();
        let told: Vec<i64> = schedule.ticks_after(after).take(next.len()).map(|t| t.0).collect();
        assert_eq!(told, next, "{case}");
    }
    for case in vectors["invalid"].as_array().unwrap() {
        assert!(Schedule::crontab(&text(case, "expr"), "UTC").is_err(), "{case}");
    }
}

#[test]
fn around_each_change_of_every_clock_the_walk_finds_what_a_look_each_minute_does() {
    let (begin, end) = (minute("1985-01-01T00:00:00Z"), minute("2037-01-01T00:00:00Z"));
    let mut seen = BTreeSet::new();
    let mut looked = 0;
    for (zone, stretches) in distinct_zones(begin, end) {
        for pair in stretches.windows(2) {
            // Each kind of change once: from which offset to which, at what local time.
            let at = pair[1].begin;
            if !seen.insert((pair[0].offset, pair[1].offset, (at + pair[0].offset).rem_euclid(DAY)))
            {
                continue;
            }
            looked += 1;
            let (from, to) = (at - 8 * 60 - 7, at + 8 * 60 + 7);
            let clock = clock(zone, from, to);
            for expression in AT_CHANGES {
                let crontab = Crontab::parse(expression).unwrap();
                let schedule = Schedule::crontab(expression, zone.name()).unwrap();
                assert_eq!(
                    minutes(&schedule, from, to),
                    looked_at_each_minute(&crontab, &clock),
                    "{expression} in {} around minute {at}",
                    zone.name()
                );
            }
        }
    }
    assert!(looked > 100, "{looked} changes were looked at");
}

#[test]
fn a_daily_job_has_one_tick_for_each_day_of_a_decade_in_every_zone() {
    let (begin, end) = (minute("2021-01-01T00:00:00Z"), minute("2031-01-01T00:00:00Z"));
    for (zone, stretches) in distinct_zones(begin, end) {
        let (first, last) = (stretches[0], stretches[stretches.len() - 1]);
        // From local midnight to local midnight.
        let (from, to) = (begin - first.offset, end - last.offset);
        for expression in ["30 2 * * *", "0 0 * * *"] {
            let schedule = Schedule::crontab(expression, zone.name()).unwrap();
            let ticks = minutes(&schedule, from, to);
            assert_eq!(ticks.len(), 3652, "{expression} in {}", zone.name());
            assert!(ticks.is_sorted_by(|a, b| a < b), "{expression} in {}", zone.name());
        }
    }
}

/// A field of random items, of those that the syntax has.
fn random_field(random: &mut fastrand::Rng, first: u8, last: u8, may_star: bool) -> String {
    let mut item = |may_star: bool| {
        let (a, b) = (random.u8(first..=last), random.u8(first..=last));
        match random.u8(0..6) {
            0 | 1 if may_star => "*".to_owned(),
            2 if may_star => format!("*/{}", random.u8(1..=last + 3)),
            0 | 3 => format!("{}-{}", a.min(b), a.max(b)),
            4 => format!("{}-{}/{}", a.min(b), a.max(b), random.u8(1..=last + 3)),
            _ => a.to_string(),
        }
    };
    let first = item(may_star);
    if first.starts_with('*') { first } else { format!("{first},{}", item(false)) }
}

fn random_expression(random: &mut fastrand::Rng) -> String {
    let fields = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    fields.map(|(first, last)| random_field(random, first, last, true)).join(" ")
}

#[test]
fn next_is_later_on_a_whole_minute_and_the_same_from_wherever_one_asks() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut checked = 0;
    while checked < 600 {
        let expression = random_expression(&mut random);
        let tz = TZ_VARIANTS[random.usize(..TZ_VARIANTS.len())];
        let Ok(schedule) = Schedule::crontab(&expression, tz.name()) else { continue };
        let after = Timestamp(random.i64(0..4_102_444_800_000));
        let ticks: Vec<Timestamp> = schedule.ticks_after(after).take(4).collect();
        checked += 1;
        assert_eq!(ticks.len(), 4, "{schedule}");
        assert!(ticks[0] > after, "{schedule} after {after}");
        for pair in ticks.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].0 % 60_000 == 0, "{schedule} after {after}");
            // A host that starts in between finds the same next tick.
            let between = Timestamp(random.i64(pair[0].0..pair[1].0));
            assert_eq!(schedule.next_after(between), Some(pair[1]), "{schedule} after {between}");
        }
        // Nothing lies between `after` and the first tick.
        let earlier = Timestamp(random.i64(after.0..ticks[0].0));
        assert_eq!(schedule.next_after(earlier), Some(ticks[0]), "{schedule} after {earlier}");
    }
}

#[test]
fn random_schedules_fire_when_a_look_each_minute_says_so() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut checked = 0;
    while checked < 60 {
        let expression = random_expression(&mut random);
        let tz = TZ_VARIANTS[random.usize(..TZ_VARIANTS.len())];
        let Ok(crontab) = Crontab::parse(&expression) else { continue };
        let schedule = Schedule::crontab(&expression, tz.name()).unwrap();
        let begin = random.i64(minute("1975-01-01T00:00:00Z")..minute("2090-01-01T00:00:00Z"));
        let end = begin + 4 * DAY;
        checked += 1;
        assert_eq!(
            minutes(&schedule, begin, end),
            looked_at_each_minute(&crontab, &clock(zone(tz), begin, end)),
            "{schedule} from minute {begin}"
        );
    }
}

/// Where the two agree: without a step after the star of a day, which croner takes as a
/// restriction, and away from changes of the clock.
#[test]
fn a_second_implementation_finds_the_same_ticks() {
    let mut random = fastrand::Rng::with_seed(13);
    let mut checked = 0;
    while checked < 200 {
        let days = ["*".to_owned(), random_field(&mut random, 1, 31, false)];
        let weekdays = ["*".to_owned(), random_field(&mut random, 0, 6, false)];
        let expression = format!(
            "{} {} {} {} {}",
            random_field(&mut random, 0, 59, true),
            random_field(&mut random, 0, 23, true),
            days[random.usize(..2)],
            random_field(&mut random, 1, 12, true),
            weekdays[random.usize(..2)],
        );
        let Ok(schedule) = Schedule::crontab(&expression, "Asia/Kathmandu") else { continue };
        let other: croner::Cron = expression.parse().unwrap();
        let after = random.i64(978_307_200..2_524_608_000);
        let begin: DateTime<Tz> =
            DateTime::<Utc>::from_timestamp(after, 0).unwrap().with_timezone(&Tz::Asia__Kathmandu);
        let told: Vec<i64> =
            schedule.ticks_after(Timestamp(after * 1000)).take(5).map(|t| t.0 / 1000).collect();
        let others: Vec<i64> =
            other.iter_after(begin).take(5).map(|time| time.timestamp()).collect();
        checked += 1;
        assert_eq!(told, others, "{schedule} after {begin}");
    }
}

#[test]
fn ticks_are_counted_as_they_are_walked() {
    let mut random = fastrand::Rng::with_seed(17);
    let (begin, end) = (minute("2010-06-01T00:00:00Z"), minute("2012-12-01T00:00:00Z"));
    // Samoa has left a day out; Troll moves by two hours, Lord Howe by half of one.
    for zone in
        ["Europe/Madrid", "Pacific/Apia", "Antarctica/Troll", "Australia/Lord_Howe", "Asia/Gaza"]
    {
        for expression in AT_CHANGES.into_iter().chain(["0 0 13 * 5", "* * * * *", "0 0 29 2 *"]) {
            let schedule = Schedule::crontab(expression, zone).unwrap();
            let all = minutes(&schedule, begin, end);
            for _ in 0..20 {
                let mut at = || random.i64(begin * 60_000..end * 60_000);
                let (one, other) = (at(), at());
                let (after, before) = (one.min(other), one.max(other));
                let within = all.iter().map(|minute| minute * 60_000);
                let ticks: Vec<i64> = within.filter(|t| (after + 1..before).contains(t)).collect();
                let run = schedule.run(Timestamp(after), Timestamp(before));
                let told = run.map(|run| (run.first.0, run.last.0, run.count));
                let walked =
                    ticks.first().map(|first| (*first, ticks[ticks.len() - 1], ticks.len() as i64));
                assert_eq!(told, walked, "{expression} in {zone} from {after} to {before}");
            }
        }
    }
    let every = Schedule::every(std::time::Duration::from_secs(7)).unwrap();
    let run = |after, before| every.run(Timestamp(after), Timestamp(before)).map(|run| run.count);
    assert_eq!((run(0, 7_000), run(0, 7_001), run(-1, 14_000)), (None, Some(1), Some(2)));
    assert_eq!(run(5, i64::MIN), None);
}

#[test]
fn an_interval_is_counted_from_1970() {
    let schedule = Schedule::every(std::time::Duration::from_secs(600)).unwrap();
    let ticks: Vec<i64> = schedule.ticks_after(Timestamp(1_199_999)).take(3).map(|t| t.0).collect();
    assert_eq!(ticks, [1_200_000, 1_800_000, 2_400_000]);
    assert_eq!(schedule.next_after(Timestamp(1_200_000)), Some(Timestamp(1_800_000)));
    assert_eq!(schedule.next_after(Timestamp(-1)), Some(Timestamp(0)));
    assert_eq!(schedule.to_string(), "every 10m");
    for refused in [0, 999, u64::MAX] {
        assert!(Schedule::every(std::time::Duration::from_millis(refused)).is_err());
    }
}

#[test]
fn a_schedule_ends_where_rfc_3339_does() {
    let schedule = Schedule::crontab("0 0 1 1 *", "UTC").unwrap();
    let ticks: Vec<String> = schedule
        .ticks_after(Timestamp::parse("9997-06-01T00:00:00Z").unwrap())
        .map(|tick| tick.to_string())
        .collect();
    assert_eq!(ticks, ["9998-01-01T00:00:00.000Z", "9999-01-01T00:00:00.000Z"]);
    assert_eq!(schedule.next_after(Timestamp(i64::MAX)), None);
    let first = schedule.next_after(Timestamp(i64::MIN)).map(|tick| tick.to_string());
    assert_eq!(first.as_deref(), Some("0000-01-01T00:00:00.000Z"));
}

#[test]
fn a_rare_day_is_found_across_a_century_without_its_leap_year() {
    let schedule = Schedule::crontab("0 0 29 2 */7", "Australia/Sydney").unwrap();
    let ticks: Vec<String> = schedule
        .ticks_after(Timestamp::parse("2060-03-01T00:00:00Z").unwrap())
        .take(2)
        .map(|tick| tick.to_string())
        .collect();
    assert_eq!(ticks, ["2088-02-28T13:00:00.000Z", "2128-02-28T13:00:00.000Z"]);
}

#[test]
fn what_may_surprise_in_a_special_night_is_said() {
    let (from, until) = (Timestamp(1_798_761_600_000), Timestamp(1_830_297_600_000));
    let said = |expression: &str| {
        Schedule::crontab(expression, "Europe/Madrid").unwrap().surprises(from, until)
    };
    assert_eq!(
        said("30 2 * * *"),
        [
            "2027-03-28 02:30 is skipped by the clock: one tick behind the gap, at 2027-03-28T01:00Z",
            "2027-10-31 02:30 comes twice: one tick, at 2027-10-31T00:30Z",
        ]
    );
    assert_eq!(
        said("*/30 2 * * *"),
        [
            "2027-03-28 02:00 (and 1 more) is skipped by the clock: no tick",
            "2027-10-31 02:00 (and 1 more) comes twice: a tick at each pass",
        ]
    );
    assert!(said("0 * * * *").is_empty() && said("0 12 * * *").is_empty());
}

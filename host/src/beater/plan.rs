//! Path 3, step c, the decision: an entry that is due to what becomes of each of its ticks. Pure.
//!
//! A tick is *missed* when it is claimed later than the entry's grace (60 s) after it was due:
//! all beaters were away. Missed ticks are the catch-up rule's; all others are queued. Then the
//! overlap rule has its say.

use std::time::Duration;

use super::definition::{CatchUp, Overlap, Settings};
use super::schedule::Run;
use crate::clock::{Timestamp, millis};

/// Most ticks of one entry that are queued at once.
pub const MAX_AT_ONCE: usize = 1000;
/// Longest lateness at which the last missed tick is queued, unless the entry says otherwise; it
/// is one period where that is shorter.
const MAX_LATENESS: Duration = Duration::from_secs(24 * 3600);

const ONLY_LAST: &str = "missed: only the last one is caught up";
const NO_CATCH_UP: &str = "missed: the entry catches nothing up";
const TOO_LATE: &str = "missed: later than its max-lateness";
const TOO_MANY: &str = "more than 1000 ticks at once";
const OVERLAP: &str = "overlap: the job of the tick before waits or runs";
const REPLACED: &str = "overlap: replaced by a later tick that was due as well";

/// What becomes of a tick, or of a run of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// The instant that the schedule meant; of a run, the first.
    pub fire_time: Timestamp,
    /// The last of a run; else the same.
    pub last_time: Timestamp,
    /// How many ticks these are.
    pub count: i64,
    /// Why it is skipped; `None` when it is queued.
    pub skipped: Option<&'static str>,
}

/// What becomes of an entry that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its ticks that are due, oldest first.
    pub ticks: Vec<Tick>,
    /// The next one; `None` when it fires no more.
    pub next: Option<Timestamp>,
    /// Whether the job of the tick before is to be cancelled.
    pub replaces: bool,
}

/// Decides about an entry whose next fire time is `fire`, at `now` by the database's clock.
/// `offset` is the entry's jitter, and `is_open` tells whether the job of the tick before waits or
/// runs.
#[must_use]
pub fn plan(
    settings: &Settings,
    fire: Timestamp,
    offset: Duration,
    now: Timestamp,
    is_open: bool,
) -> Plan {
    // The entry as if it had no jitter.
    let now = Timestamp(now.0.saturating_sub(millis(offset)).max(fire.0));
    let last = Timestamp(settings.end.map_or(now.0, |end| now.0.min(end.0.saturating_sub(1))));
    let missed_before = now.0.saturating_sub(millis(settings.grace)).min(last.0.saturating_add(1));
    let mut ticks = Vec::new();
    if fire.0 < missed_before {
        catch_up(settings, fire, Timestamp(missed_before), now, &mut ticks);
    }
    let from = fire.0.max(missed_before);
    let in_time = count(settings, fire, from, last.0 + 1);
    let spare = in_time.count.saturating_sub(MAX_AT_ONCE as i64);
    for (index, tick) in ticks_from(settings, fire, from).take_while(|t| *t <= last).enumerate() {
        let skipped = ((index as i64) < spare).then_some(TOO_MANY);
        push(&mut ticks, Tick { fire_time: tick, last_time: tick, count: 1, skipped });
    }
    let replaces = overlap(settings.overlap, is_open, &mut ticks);
    let next = settings.schedule.next_after(now).filter(|tick| settings.may_fire_at(*tick));
    Plan { ticks, next, replaces }
}

/// Deals with the missed ticks, from `fire` to before `before`.
fn catch_up(
    settings: &Settings,
    fire: Timestamp,
    before: Timestamp,
    now: Timestamp,
    ticks: &mut Vec<Tick>,
) {
    let skip = |run: Run, why| Tick {
        fire_time: run.first,
        last_time: run.last,
        count: run.count,
        skipped: Some(why),
    };
    let all = count(settings, fire, fire.0, before.0);
    match settings.catch_up {
        CatchUp::None => push(ticks, skip(all, NO_CATCH_UP)),
        CatchUp::Last => {
            let period = settings.schedule.next_after(all.last).map(|next| next.since(all.last));
            let most = settings
                .max_lateness
                .unwrap_or_else(|| period.unwrap_or(MAX_LATENESS).min(MAX_LATENESS));
            if now.since(all.last) > most {
                return push(ticks, skip(all, TOO_LATE));
            }
            if all.count > 1 {
                let others = count(settings, fire, fire.0, all.last.0);
                push(ticks, skip(others, ONLY_LAST));
            }
            push(ticks, queued(all.last));
        }
        CatchUp::All => {
            let oldest = settings.max_lateness.map_or(i64::MIN, |most| now.0 - millis(most));
            if fire.0 < oldest {
                let late = count(settings, fire, fire.0, oldest.min(before.0));
                push(ticks, skip(late, TOO_LATE));
            }
            let from = fire.0.max(oldest);
            let missed = ticks_from(settings, fire, from).take_while(|tick| *tick < before);
            let mut last = None;
            for tick in missed.take(MAX_AT_ONCE) {
                last = Some(tick);
                push(ticks, queued(tick));
            }
            if let Some(last) = last.filter(|last| *last < all.last) {
                push(ticks, skip(count(settings, fire, last.0 + 1, before.0), TOO_MANY));
            }
        }
    }
}

/// Applies the overlap rule to what would be queued; tells whether the job before is cancelled.
fn overlap(rule: Overlap, mut is_open: bool, ticks: &mut Vec<Tick>) -> bool {
    let last = ticks.iter().rposition(|tick| tick.skipped.is_none());
    let Some(last) = last else { return false };
    let replaces = rule == Overlap::Replace && is_open;
    let decided = std::mem::take(ticks);
    for (index, mut tick) in decided.into_iter().enumerate() {
        if tick.skipped.is_none() {
            match rule {
                Overlap::Allow => {}
                Overlap::Skip if is_open => tick.skipped = Some(OVERLAP),
                Overlap::Skip => is_open = true,
                Overlap::Replace if index < last => tick.skipped = Some(REPLACED),
                Overlap::Replace => {}
            }
        }
        push(ticks, tick);
    }
    replaces
}

fn queued(tick: Timestamp) -> Tick {
    Tick { fire_time: tick, last_time: tick, count: 1, skipped: None }
}

/// Adds a tick; ticks that are skipped for one reason, one after the other, are one run.
fn push(ticks: &mut Vec<Tick>, tick: Tick) {
    match ticks.last_mut() {
        Some(run) if run.skipped.is_some() && run.skipped == tick.skipped => {
            run.last_time = tick.last_time;
            run.count += tick.count;
        }
        _ if tick.count == 0 => {}
        _ => ticks.push(tick),
    }
}

/// The ticks from `from` on, the entry's own next fire time among them whatever its schedule says
/// of it: zone rules may have changed since it was set.
fn ticks_from(
    settings: &Settings,
    fire: Timestamp,
    from: i64,
) -> impl Iterator<Item = Timestamp> + use<> {
    let first = (from <= fire.0).then_some(fire);
    first.into_iter().chain(settings.schedule.ticks_after(Timestamp(fire.0.max(from - 1))))
}

/// The ticks from `from` to before `before`, counted, not walked: there may be millions.
fn count(settings: &Settings, fire: Timestamp, from: i64, before: i64) -> Run {
    let after = Timestamp(fire.0.max(from.saturating_sub(1)));
    let others = settings.schedule.run(after, Timestamp(before));
    if fire.0 < from || fire.0 >= before {
        let none = Run { first: Timestamp(from), last: Timestamp(from), count: 0 };
        return others.unwrap_or(none);
    }
    match others {
        Some(others) => Run { first: fire, count: others.count + 1, ..others },
        None => Run { first: fire, last: fire, count: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::Definition;
    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;

    fn minutely() -> Definition {
        Definition {
            job: Some("j".into()),
            schedule: Some("* * * * *".into()),
            timezone: Some("UTC".into()),
            ..Definition::default()
        }
    }

    /// `Q` with a fire time, or `S` with first, last and count; in minutes.
    fn shown(plan: &Plan) -> Vec<String> {
        let minutes = |time: Timestamp| time.0 / MINUTE;
        let ticks = plan.ticks.iter().map(|tick| match tick.skipped {
            None => format!("Q{}", minutes(tick.fire_time)),
            Some(_) => {
                format!("S{}-{}x{}", minutes(tick.fire_time), minutes(tick.last_time), tick.count)
            }
        });
        ticks.collect()
    }

    fn planned(definition: &Definition, fire: i64, now: i64, is_open: bool) -> Plan {
        let settings = definition.check().unwrap();
        plan(&settings, Timestamp(fire), Duration::ZERO, Timestamp(now), is_open)
    }

    #[test]
    fn a_tick_in_time_is_queued_and_the_next_one_follows_from_the_schedule() {
        let plan = planned(&minutely(), 5 * MINUTE, 5 * MINUTE + 900, false);
        assert_eq!(shown(&plan), ["Q5"]);
        assert_eq!(plan.next, Some(Timestamp(6 * MINUTE)));
    }

    #[test]
    fn ticks_within_the_grace_are_all_queued() {
        let plan = planned(&minutely(), 5 * MINUTE, 6 * MINUTE, false);
        assert_eq!(shown(&plan), ["Q5", "Q6"]);
    }

    #[test]
    fn after_an_hour_away_each_rule_does_what_it_says() {
        let outage = |rule: &str| {
            let definition = Definition { catch_up: Some(rule.into()), ..minutely() };
            // 60 to 119 were missed, 119:30 has come.
            planned(&definition, 60 * MINUTE, 119 * MINUTE + 30_000, false)
        };
        assert_eq!(shown(&outage("none")), ["S60-118x59", "Q119"]);
        // The last missed tick is later than one period.
        assert_eq!(shown(&outage("last")), ["S60-118x59", "Q119"]);
        let all = outage("all");
        assert_eq!(all.ticks.len(), 60);
        assert!(all.ticks.iter().all(|tick| tick.skipped.is_none()));
        assert!(all.ticks.is_sorted_by_key(|tick| tick.fire_time));
        assert_eq!(all.next, Some(Timestamp(120 * MINUTE)));
    }

    #[test]
    fn the_last_missed_tick_is_queued_within_its_period_and_a_day_at_most() {
        let mut hourly = minutely();
        hourly.schedule = Some("0 * * * *".into());
        let plan = planned(&hourly, HOUR, 5 * HOUR + 20 * MINUTE, false);
        assert_eq!(shown(&plan), ["S60-240x4", "Q300"]);
        let mut weekly = minutely();
        weekly.schedule = Some("0 0 * * 0".into());
        let sunday = 3 * 24 * HOUR;
        assert_eq!(planned(&weekly, sunday, sunday + 24 * HOUR, false).ticks[0].skipped, None);
        let plan = planned(&weekly, sunday, sunday + 24 * HOUR + 1, false);
        assert_eq!(plan.ticks[0].skipped, Some(TOO_LATE));
        weekly.max_lateness_ms = Some(48 * HOUR);
        assert_eq!(planned(&weekly, sunday, sunday + 25 * HOUR, false).ticks[0].skipped, None);
    }

    #[test]
    fn at_most_a_thousand_ticks_are_caught_up_oldest_first_and_the_others_have_one_row() {
        let definition = Definition { catch_up: Some("all".into()), ..minutely() };
        let plan = planned(&definition, MINUTE, 3000 * MINUTE + 5, false);
        let shown = shown(&plan);
        assert_eq!((&*shown[0], &*shown[999], &*shown[1000]), ("Q1", "Q1000", "S1001-2999x1999"));
        assert_eq!(shown[1001..], ["Q3000"]);
    }

    #[test]
    fn a_year_of_seconds_is_one_row() {
        let definition = Definition {
            job: Some("j".into()),
            every_ms: Some(1000),
            catch_up: Some("none".into()),
            ..Definition::default()
        };
        let plan = planned(&definition, 1000, 365 * 24 * HOUR, false);
        assert_eq!(plan.ticks[0].count, 365 * 24 * 3600 - 61);
        assert_eq!(plan.ticks.len(), 62);
    }

    #[test]
    fn overlap_skips_while_the_job_before_is_open_and_replaces_by_the_latest() {
        let mut definition = Definition { catch_up: Some("all".into()), ..minutely() };
        definition.overlap = Some("skip".into());
        let (fire, now) = (5 * MINUTE, 8 * MINUTE + 1);
        assert_eq!(shown(&planned(&definition, fire, now, true)), ["S5-8x4"]);
        assert_eq!(shown(&planned(&definition, fire, now, false)), ["Q5", "S6-8x3"]);
        definition.overlap = Some("replace".into());
        let plan = planned(&definition, fire, now, true);
        assert_eq!(shown(&plan), ["S5-7x3", "Q8"]);
        assert!(plan.replaces && !planned(&definition, fire, now, false).replaces);
    }

    #[test]
    fn nothing_fires_from_the_end_on() {
        let definition = Definition { end_at: Some(7 * MINUTE), ..minutely() };
        let plan = planned(&definition, 6 * MINUTE, 7 * MINUTE, false);
        assert_eq!((shown(&plan), plan.next), (vec!["Q6".to_owned()], None));
    }

    #[test]
    fn jitter_delays_the_claim_and_makes_nothing_late() {
        let settings = minutely().check().unwrap();
        let offset = Duration::from_secs(50);
        let now = Timestamp(6 * MINUTE + 51_000);
        let plan = plan(&settings, Timestamp(6 * MINUTE), offset, now, false);
        assert_eq!((shown(&plan), plan.next), (vec!["Q6".to_owned()], Some(Timestamp(7 * MINUTE))));
    }

    #[test]
    fn a_fire_time_that_newer_zone_rules_do_not_know_is_dealt_with_once() {
        let plan = planned(&minutely(), 5 * MINUTE + 7, 5 * MINUTE + 900, false);
        assert_eq!(plan.ticks.len(), 1);
        assert_eq!(plan.ticks[0].fire_time, Timestamp(5 * MINUTE + 7));
        assert_eq!(plan.next, Some(Timestamp(6 * MINUTE)));
    }
}

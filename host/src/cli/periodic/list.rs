//! `periodic list` and `periodic show`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::super::{is_json, open_store_to_read, print};
use crate::beater::definition::Settings;
use crate::beater::zone::{self, Zone};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::store::Store;
use crate::store::periodic::{Entry, TickRow};
use crate::text::printable;

/// How far ahead an entry is looked at for special nights.
pub(super) const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
/// Ticks of the history, and ticks to come, that `show` prints.
const SHOWN: usize = 5;

#[derive(Args)]
pub(in crate::cli) struct ShowArguments {
    /// The entry's name
    name: String,
    /// So many ticks of its history, newest first
    #[arg(long, default_value_t = 20, value_name = "N")]
    history: u32,
}

/// An entry as JSON shows it.
#[derive(Serialize)]
struct EntryJson<'a> {
    name: &'a str,
    job: Option<&'a str>,
    queue: Option<&'a str>,
    source: &'a str,
    schedule: Option<&'a str>,
    timezone: Option<&'a str>,
    every_ms: Option<i64>,
    args: Option<Box<RawValue>>,
    kwargs: Option<Box<RawValue>>,
    catch_up: Option<&'a str>,
    max_lateness_ms: Option<i64>,
    grace_ms: Option<i64>,
    overlap: Option<&'a str>,
    jitter_ms: Option<i64>,
    start_at: Option<String>,
    end_at: Option<String>,
    enabled: bool,
    orphaned: bool,
    aside: Option<&'a str>,
    next_fire_at: Option<String>,
    due_at: Option<String>,
    next: Vec<String>,
    next_local: Vec<String>,
    last_fire_at: Option<String>,
    last_job_id: Option<&'a str>,
    last_status: Option<&'a str>,
    last_late_ms: Option<i64>,
    overdue_ms: Option<u64>,
    zones: &'static str,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<TickJson<'a>>>,
}

#[derive(Serialize)]
struct TickJson<'a> {
    fire_time: String,
    last_time: String,
    ticks: i64,
    outcome: &'a str,
    reason: Option<&'a str>,
    job_id: Option<&'a str>,
    status: Option<&'a str>,
    claimed_at: String,
    late_ms: i64,
    beater: &'a str,
}

/// An entry with what is worked out of it.
struct Looked<'a> {
    entry: &'a Entry,
    zone: Zone,
    next: Vec<Timestamp>,
    /// How long a tick waits that no beater has claimed.
    overdue: Option<Duration>,
    warnings: Vec<String>,
}

impl<'a> Looked<'a> {
    fn at(entry: &'a Entry, now: Timestamp) -> Self {
        let settings = entry.settings();
        let zone = settings.as_ref().map_or(Zone::UTC, |settings| settings.schedule.zone());
        let next = settings.as_ref().map(|settings| next(entry, settings)).unwrap_or_default();
        let overdue = entry
            .due_at
            .filter(|due| *due < now && entry.is_enabled && entry.aside.is_none())
            .map(|due| now.since(due));
        Self { entry, zone, next, overdue, warnings: warnings(entry, settings, now) }
    }

    fn json(&self, history: Option<&'a [TickRow]>) -> EntryJson<'_> {
        let (entry, said) = (self.entry, &self.entry.definition);
        let time = |time: Option<Timestamp>| time.map(Timestamp::short);
        EntryJson {
            name: &entry.name,
            job: said.job.as_deref(),
            queue: entry.queue.as_deref(),
            source: &entry.source,
            schedule: said.schedule.as_deref(),
            timezone: said.timezone.as_deref(),
            every_ms: said.every_ms,
            args: print::raw(said.args.as_deref()),
            kwargs: print::raw(said.kwargs.as_deref()),
            catch_up: said.catch_up.as_deref(),
            max_lateness_ms: said.max_lateness_ms,
            grace_ms: said.grace_ms,
            overlap: said.overlap.as_deref(),
            jitter_ms: said.jitter_ms,
            start_at: time(said.start_at.map(Timestamp)),
            end_at: time(said.end_at.map(Timestamp)),
            enabled: entry.is_enabled,
            orphaned: !entry.is_held,
            aside: entry.aside.as_deref(),
            next_fire_at: time(entry.next_fire_at),
            due_at: time(entry.due_at),
            next: self.next.iter().map(|tick| tick.short()).collect(),
            next_local: self.next.iter().map(|tick| self.zone.shown(*tick)).collect(),
            last_fire_at: time(entry.last_fire_at),
            last_job_id: entry.last_job_id.as_deref(),
            last_status: entry.last_status.as_deref(),
            last_late_ms: entry.last_late_ms,
            overdue_ms: self
                .overdue
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            zones: zone::VERSION,
            warnings: self.warnings.clone(),
            history: history.map(|ticks| ticks.iter().map(tick_json).collect()),
        }
    }

    fn state(&self) -> &'static str {
        match (self.entry, self.overdue) {
            (entry, _) if entry.aside.is_some() => "aside",
            (entry, _) if !entry.is_enabled => "disabled",
            (entry, _) if entry.next_fire_at.is_none() => "ended",
            (_, Some(late)) if late > Duration::from_secs(5) => "overdue",
            (entry, _) if !entry.is_held => "orphaned",
            _ => "on",
        }
    }
}

fn tick_json(tick: &TickRow) -> TickJson<'_> {
    TickJson {
        fire_time: tick.fire_time.short(),
        last_time: tick.last_time.short(),
        ticks: tick.ticks,
        outcome: &tick.outcome,
        reason: tick.reason.as_deref(),
        job_id: tick.job_id.as_deref(),
        status: tick.status.as_deref(),
        claimed_at: tick.claimed_at.to_string(),
        late_ms: tick.late_ms,
        beater: &tick.beater,
    }
}

/// The next ticks: the one that the row guards, and those behind it.
fn next(entry: &Entry, settings: &Settings) -> Vec<Timestamp> {
    let Some(first) = entry.next_fire_at.filter(|_| entry.is_enabled && entry.aside.is_none())
    else {
        return Vec::new();
    };
    let more = settings.schedule.ticks_after(first);
    let more = more.take_while(|tick| settings.end.is_none_or(|end| *tick < end));
    std::iter::once(first).chain(more).take(SHOWN).collect()
}

/// What is wrong with an entry, or may surprise within a year.
fn warnings(entry: &Entry, settings: Result<Settings, String>, now: Timestamp) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(reason) = &entry.aside {
        warnings.push(format!("set aside: {reason}"));
    }
    let settings = match settings {
        Ok(settings) => settings,
        Err(reason) => {
            if entry.aside.is_none() {
                warnings.push(format!("can't fire: {reason}"));
            }
            return warnings;
        }
    };
    if !entry.is_held {
        let job = &settings.job;
        warnings.push(format!(
            "orphaned: no live worker's module holds the job `{job}`; it goes on until it is disabled"
        ));
    }
    if entry.queue.is_none() {
        warnings.push("no queue is known, so its ticks are skipped; name one with --queue".into());
    }
    if entry.is_enabled {
        warnings.extend(settings.schedule.surprises(now, now.after(YEAR)));
    }
    warnings
}

/// Says which time zone rules count, and whether anybody queues.
async fn tell_beaters(store: &Store) -> anyhow::Result<()> {
    let beaters = store.live_beaters().await?;
    eprintln!("time zone rules {}; {} beater(s) running", zone::VERSION, beaters.len());
    if let Some(newer) = zone::newer_on_this_machine() {
        eprintln!(
            "note: this machine has the newer rules {newer}; beaters go by those they were built with, {}",
            zone::VERSION
        );
    }
    for beater in beaters.iter().filter(|beater| beater.zones != zone::VERSION) {
        eprintln!(
            "warning: the beater {} on {} goes by the time zone rules {}; replace the older ones",
            beater.pid,
            printable(&beater.host),
            printable(&beater.zones)
        );
    }
    if beaters.is_empty() {
        eprintln!("warning: no beater runs, so nothing is queued; start `sqjobs-host beater`");
    }
    Ok(())
}

pub(super) async fn list(config: &Config) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let entries = store.periodic_entries(None).await?;
    let now = store.now().await?;
    let looked: Vec<Looked<'_>> = entries.iter().map(|entry| Looked::at(entry, now)).collect();
    if is_json(config) {
        for looked in &looked {
            print::line(&serde_json::to_string(&looked.json(None))?)?;
        }
        return Ok(());
    }
    let mut grid = print::Grid::new(&[
        "name",
        "job",
        "queue",
        "schedule",
        "state",
        "last tick",
        "status",
        "late",
        "next tick",
        "local",
    ]);
    for looked in &looked {
        let entry = looked.entry;
        let schedule = entry.settings().map(|settings| settings.schedule.to_string());
        let time = |time: Option<Timestamp>| time.map(Timestamp::short).unwrap_or_default();
        let next = looked.next.first().copied();
        grid.row(&[
            &entry.name,
            entry.definition.job.as_deref().unwrap_or(""),
            entry.queue.as_deref().unwrap_or(""),
            &schedule.unwrap_or_default(),
            looked.state(),
            &time(entry.last_fire_at),
            entry.last_status.as_deref().unwrap_or(""),
            &entry.last_late_ms.map(|ms| format!("{ms} ms")).unwrap_or_default(),
            &time(next),
            &next.map(|next| looked.zone.shown(next)).unwrap_or_default(),
        ]);
    }
    if looked.is_empty() {
        eprintln!("there is no periodic entry; see `periodic add`");
    } else {
        grid.print()?;
    }
    for looked in &looked {
        for warning in &looked.warnings {
            eprintln!("warning: {}: {}", printable(&looked.entry.name), printable(warning));
        }
    }
    tell_beaters(&store).await
}

pub(super) async fn show(config: &Config, arguments: &ShowArguments) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let entry = super::entry(&store, &arguments.name).await?;
    let history = store.periodic_ticks(&entry.name, arguments.history).await?;
    let looked = Looked::at(&entry, store.now().await?);
    if is_json(config) {
        return print::line(&serde_json::to_string(&looked.json(Some(&history)))?);
    }
    show_entry(&looked)?;
    if !looked.next.is_empty() {
        print::line("\nnext ticks:")?;
        for tick in &looked.next {
            print::line(&format!("  {}  {}", tick.short(), looked.zone.shown(*tick)))?;
        }
    }
    if !history.is_empty() {
        print::line("\nhistory, newest first:")?;
        show_history(&history)?;
    }
    for warning in &looked.warnings {
        eprintln!("warning: {}", printable(warning));
    }
    Ok(())
}

fn show_entry(looked: &Looked<'_>) -> anyhow::Result<()> {
    let (entry, said) = (looked.entry, &looked.entry.definition);
    let ms = |ms: Option<i64>| {
        ms.map(|ms| {
            humantime::format_duration(Duration::from_millis(ms.unsigned_abs())).to_string()
        })
    };
    let time = |time: Option<i64>| time.map(|time| Timestamp(time).short());
    let mut grid = print::Grid::new(&[]);
    for (name, value) in [
        ("name", Some(entry.name.clone())),
        ("job", said.job.clone()),
        ("queue", entry.queue.clone()),
        ("defined by", Some(entry.source.clone())),
        ("state", Some(looked.state().to_owned())),
        ("set aside", entry.aside.clone()),
        ("schedule", said.schedule.clone()),
        ("timezone", said.timezone.clone()),
        ("every", ms(said.every_ms)),
        ("args", said.args.clone()),
        ("kwargs", said.kwargs.clone()),
        ("catch-up", said.catch_up.clone()),
        ("max-lateness", ms(said.max_lateness_ms)),
        ("grace", ms(said.grace_ms)),
        ("overlap", said.overlap.clone()),
        ("jitter", ms(said.jitter_ms)),
        ("start", time(said.start_at)),
        ("end", time(said.end_at)),
        ("last tick", entry.last_fire_at.map(Timestamp::short)),
        ("last job", entry.last_job_id.clone()),
        ("its status", entry.last_status.clone()),
        ("claimed late by", entry.last_late_ms.map(|ms| format!("{ms} ms"))),
        ("overdue by", looked.overdue.map(|late| format!("{} ms", late.as_millis()))),
        ("created", Some(entry.created_at.to_string())),
        ("changed", Some(entry.updated_at.to_string())),
        ("zone rules", Some(zone::VERSION.to_owned())),
    ] {
        if let Some(value) = value {
            grid.row(&[name, &value]);
        }
    }
    grid.print()
}

fn show_history(history: &[TickRow]) -> anyhow::Result<()> {
    let mut grid = print::Grid::new(&["tick", "outcome", "late", "job", "status", "reason"]);
    for tick in history {
        let ticks = if tick.ticks == 1 {
            tick.fire_time.short()
        } else {
            format!("{} to {} ({})", tick.fire_time.short(), tick.last_time.short(), tick.ticks)
        };
        grid.row(&[
            &ticks,
            &tick.outcome,
            &format!("{} ms", tick.late_ms),
            tick.job_id.as_deref().unwrap_or(""),
            tick.status.as_deref().unwrap_or(""),
            tick.reason.as_deref().unwrap_or(""),
        ]);
    }
    grid.print()
}

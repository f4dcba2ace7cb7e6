//! The tables of the file that speak of jobs, modules and their compiling, queues and periodic
//! entries.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::grants::GrantSettings;
use super::limits::{self, LimitSettings};
use super::read::{Place, Reader};
use super::{JobSettings, MAX_CONCURRENCY, ModuleSettings, QueueSettings};
use crate::beater::definition::{self, Definition as Periodic};
use crate::clock::MAX_AHEAD;
use crate::registry::compile::CompileSettings;

/// The tables that speak of jobs.
pub(super) struct Tables {
    pub(super) defaults: JobSettings,
    pub(super) caps: LimitSettings,
    pub(super) jobs: BTreeMap<String, JobSettings>,
    pub(super) modules: BTreeMap<String, ModuleSettings>,
}

impl Tables {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let base = reader.base();
        let mut place = reader.table("caps");
        place.check_keys(&limits::KEYS);
        let caps = LimitSettings::read(&mut place);
        reader.faults.append(&mut place.faults);
        let mut place = reader.table("defaults");
        let defaults = job_settings(&mut place, None, &caps);
        reader.faults.append(&mut place.faults);
        let mut jobs = BTreeMap::new();
        for (name, mut place) in reader.tables("jobs") {
            jobs.insert(name, job_settings(&mut place, Some(&base), &caps));
            reader.faults.append(&mut place.faults);
        }
        let mut modules = BTreeMap::new();
        for (name, mut place) in reader.tables("modules") {
            modules.insert(name, module_settings(&mut place, &base, &caps));
            reader.faults.append(&mut place.faults);
        }
        Self { defaults, caps, jobs, modules }
    }
}

/// Reads the keys of `[defaults]`, or of `[jobs.NAME]` when `base` tells what its paths stand
/// against.
fn job_settings(place: &mut Place, base: Option<&Path>, caps: &LimitSettings) -> JobSettings {
    let own = ["record", "grants", "max-attempts", "initial-backoff", "max-backoff"];
    let own = if base.is_some() { &own[..] } else { &own[2..] };
    place.check_keys(&[own, &limits::KEYS].concat());
    let limits = LimitSettings::read(place);
    limits.check(caps, place);
    JobSettings {
        record: base.and_then(|_| place.boolean("record")),
        limits,
        grants: base.and_then(|base| GrantSettings::read(place, base, true)),
        max_attempts: place
            .number("max-attempts", 1, 1_000_000)
            .and_then(|number| u32::try_from(number).ok()),
        initial_backoff: place.duration("initial-backoff", Duration::ZERO, MAX_AHEAD),
        max_backoff: place.duration("max-backoff", Duration::ZERO, MAX_AHEAD),
    }
}

fn module_settings(place: &mut Place, base: &Path, caps: &LimitSettings) -> ModuleSettings {
    place.check_keys(&[&["digest", "grants"], &limits::KEYS[..]].concat());
    let limits = LimitSettings::read(place);
    limits.check(caps, place);
    let digest = place.text("digest").and_then(|text| {
        let digest = text.strip_prefix("sha256:").unwrap_or(&text).to_ascii_lowercase();
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_digest {
            place.fault(
                "digest",
                "expected `sha256:` and 64 hexadecimal digits, as `inspect` shows them",
            );
        }
        is_digest.then_some(digest)
    });
    ModuleSettings { limits, grants: GrantSettings::read(place, base, false), digest }
}

pub(super) fn compile_settings(place: &mut Place) -> CompileSettings {
    place.check_keys(&["timeout", "memory", "at-once", "module-size", "functions"]);
    let default = CompileSettings::default();
    let most_time = Duration::from_secs(3600);
    CompileSettings {
        timeout: place
            .duration("timeout", Duration::from_millis(100), most_time)
            .unwrap_or(default.timeout),
        memory_bytes: place
            .bytes("memory", 64 << 20, 64 << 30)
            .map_or(default.memory_bytes, |n| n as u64),
        at_once: place
            .number("at-once", 1, 64)
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(default.at_once),
        module_bytes: place
            .bytes("module-size", 1 << 10, 1 << 30)
            .map_or(default.module_bytes, |n| n as u64),
        functions: place.number("functions", 1, 10_000_000).unwrap_or(default.functions),
    }
}

/// Reads the keys of `[queues.NAME]`.
pub(super) fn queue_settings(place: &mut Place) -> QueueSettings {
    place.check_keys(&["concurrency", "weight", "malformed-limit"]);
    let concurrency = place.number("concurrency", 1, MAX_CONCURRENCY);
    let weight = place.number("weight", 1, 1000);
    let malformed_limit = place.bytes("malformed-limit", 0, 1 << 40);
    QueueSettings {
        concurrency: concurrency.and_then(|number| usize::try_from(number).ok()),
        weight: weight.and_then(|number| u32::try_from(number).ok()),
        malformed_limit: malformed_limit.and_then(|bytes| u64::try_from(bytes).ok()),
    }
}

/// Reads the keys of `[periodic.NAME]`.
pub(super) fn periodic_entry(name: &str, place: &mut Place) -> Periodic {
    place.check_keys(&[
        "job",
        "queue",
        "schedule",
        "timezone",
        "every",
        "args",
        "kwargs",
        "catch-up",
        "max-lateness",
        "grace",
        "overlap",
        "jitter",
        "start",
        "end",
    ]);
    let mut span =
        |key| place.duration(key, Duration::ZERO, Duration::MAX).map(definition::span_ms);
    let (every_ms, max_lateness_ms) = (span("every"), span("max-lateness"));
    let (grace_ms, jitter_ms) = (span("grace"), span("jitter"));
    let entry = Periodic {
        // The usual entry has its job's name.
        job: place.text("job").or_else(|| Some(name.to_owned())),
        queue: place.text("queue"),
        schedule: place.text("schedule"),
        timezone: place.text("timezone"),
        every_ms,
        args: place.json("args"),
        kwargs: place.json("kwargs"),
        catch_up: place.text("catch-up"),
        max_lateness_ms,
        grace_ms,
        overlap: place.text("overlap"),
        jitter_ms,
        start_at: place.instant("start"),
        end_at: place.instant("end"),
    };
    if place.faults.is_empty()
        && let Err(reason) = definition::check_name(name).and(entry.check())
    {
        place.fault_of_all(&reason);
    }
    entry
}

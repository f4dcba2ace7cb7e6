//! `dead`: what was put aside, with reason and exact body; sent again or discarded.

mod bulk;
mod filter;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{is_json, open_store_to_read, print, results};
use crate::config::Config;
use crate::store::dead::DeadEntry;
use crate::store::read::AttemptStatus;
use crate::text::printable_block;

#[derive(Subcommand)]
pub(super) enum DeadCommand {
    /// List what was put aside, newest first
    List(DeadListArguments),
    /// Show one entry with its exact body
    Show {
        /// The entry's id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Send entries again: jobs under their ids, other messages exactly as they were
    Retry(bulk::BulkArguments),
    /// Delete entries for good
    Discard(bulk::BulkArguments),
}

#[derive(Args)]
pub(super) struct DeadListArguments {
    #[command(flatten)]
    filter: filter::FilterArguments,
    /// At most so many [default: all]
    #[arg(long, allow_hyphen_values = true, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Serialize)]
struct DeadJson<'a> {
    id: &'a str,
    kind: &'a str,
    queue: &'a str,
    job: Option<&'a str>,
    job_id: Option<&'a str>,
    message_id: Option<&'a str>,
    reason: &'a str,
    body: &'a str,
    attributes: Option<Box<RawValue>>,
    received_at: String,
    /// Only for one entry: a list would ask for each of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<AttemptJson<'a>>>,
}

#[derive(Serialize)]
struct AttemptJson<'a> {
    number: i64,
    outcome: &'a str,
    stage: Option<&'a str>,
    error: Option<&'a str>,
    backtrace: Option<&'a str>,
    logs: Option<&'a str>,
    warnings: Option<&'a str>,
    module: &'a str,
    module_digest: &'a str,
    worker: &'a str,
    started_at: String,
    finished_at: Option<String>,
    duration_ms: Option<i64>,
}

impl<'a> AttemptJson<'a> {
    fn new(attempt: &'a AttemptStatus) -> Self {
        Self {
            number: attempt.number,
            outcome: &attempt.outcome,
            stage: attempt.stage.as_deref(),
            error: attempt.error.as_deref(),
            backtrace: attempt.backtrace.as_deref(),
            logs: attempt.logs.as_deref(),
            warnings: attempt.warnings.as_deref(),
            module: &attempt.module,
            module_digest: &attempt.module_digest,
            worker: &attempt.worker_id,
            started_at: attempt.started_at.to_string(),
            finished_at: attempt.finished_at.map(|time| time.to_string()),
            duration_ms: attempt.duration_ms,
        }
    }
}

fn to_json(entry: &DeadEntry, attempts: Option<&[AttemptStatus]>) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&DeadJson {
        id: &entry.id,
        kind: &entry.kind,
        queue: &entry.queue,
        job: entry.job.as_deref(),
        job_id: entry.job_id.as_deref(),
        message_id: entry.message_id.as_deref(),
        reason: &entry.reason,
        body: &String::from_utf8_lossy(&entry.body),
        attributes: print::raw(Some(&entry.attributes)),
        received_at: entry.received_at.to_string(),
        attempts: attempts.map(|attempts| attempts.iter().map(AttemptJson::new).collect()),
    })?)
}

pub(super) async fn dead(config: &Config, command: &DeadCommand) -> anyhow::Result<()> {
    match command {
        DeadCommand::List(arguments) => list(config, arguments).await,
        DeadCommand::Show { id } => show(config, id).await,
        DeadCommand::Retry(arguments) => bulk::retry(config, arguments).await,
        DeadCommand::Discard(arguments) => bulk::discard(config, arguments).await,
    }
}

async fn list(config: &Config, arguments: &DeadListArguments) -> anyhow::Result<()> {
    arguments.filter.check()?;
    let store = open_store_to_read(config).await?;
    let filter = arguments.filter.filter(store.now().await?)?;
    let limit = arguments.limit;
    if is_json(config) {
        return store.each_dead(&filter, limit, |entry| print::json(&to_json(&entry, None)?)).await;
    }
    let mut grid = print::Grid::new(&["id", "kind", "queue", "job", "received", "reason"]);
    let mut count = 0u64;
    store
        .each_dead(&filter, limit, |entry| {
            count += 1;
            let job = entry.job.as_deref().unwrap_or("");
            let received = entry.received_at.to_string();
            grid.row(&[&entry.id, &entry.kind, &entry.queue, job, &received, &entry.reason]);
            anyhow::Ok(())
        })
        .await?;
    if count == 0 {
        print::note("nothing matches in the dead list");
        return Ok(());
    }
    grid.print()
}

async fn show(config: &Config, id: &str) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let Some(entry) = store.dead(id).await? else {
        anyhow::bail!("nothing of id `{id}` was put aside in {}; see `dead list`", store.label());
    };
    // An id that belongs to another job is no reason to show that one's attempts.
    let attempts = match &entry.job_id {
        Some(job_id) if *job_id == entry.id => store.attempts(job_id).await?,
        _ => Vec::new(),
    };
    if is_json(config) {
        return print::json(&to_json(&entry, Some(&attempts))?);
    }
    let mut grid = print::Grid::new(&[]);
    for (name, value) in [
        ("id", Some(entry.id.as_str())),
        ("kind", Some(entry.kind.as_str())),
        ("queue", Some(entry.queue.as_str())),
        ("job", entry.job.as_deref()),
        ("job id", entry.job_id.as_deref()),
        ("message", entry.message_id.as_deref()),
        ("received", Some(entry.received_at.to_string().as_str())),
        ("reason", Some(entry.reason.as_str())),
        ("attributes", Some(entry.attributes.as_str())),
    ] {
        if let Some(value) = value {
            grid.row(&[name, value]);
        }
    }
    grid.print()?;
    print::line("\nbody:")?;
    print::line(&printable_block(&String::from_utf8_lossy(&entry.body)))?;
    attempts.iter().try_for_each(results::show_attempt)
}

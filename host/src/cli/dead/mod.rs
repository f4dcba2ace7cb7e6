//! `dead`: what was put aside, with reason and exact body.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{is_json, open_store_to_read, print, results};
use crate::config::Config;
use crate::store::dead::{DeadEntry, DeadFilter, DeadKind};
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
}

#[derive(Args)]
pub(super) struct DeadListArguments {
    /// Only this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only of this queue
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    queue: Option<String>,
    /// Only of this job
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    job: Option<String>,
    /// At most so many [default: all]
    #[arg(long, allow_hyphen_values = true, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// The kinds of [`DeadKind`], as words of the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Malformed,
    UnknownJob,
    IdConflict,
    Failed,
    Crashed,
    Undeliverable,
    Lost,
}

impl From<Kind> for DeadKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Malformed => Self::Malformed,
            Kind::UnknownJob => Self::UnknownJob,
            Kind::IdConflict => Self::IdConflict,
            Kind::Failed => Self::Failed,
            Kind::Crashed => Self::Crashed,
            Kind::Undeliverable => Self::Undeliverable,
            Kind::Lost => Self::Lost,
        }
    }
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
}

fn to_json(entry: &DeadEntry) -> anyhow::Result<String> {
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
    })?)
}

pub(super) async fn dead(config: &Config, command: &DeadCommand) -> anyhow::Result<()> {
    match command {
        DeadCommand::List(arguments) => list(config, arguments).await,
        DeadCommand::Show { id } => show(config, id).await,
    }
}

async fn list(config: &Config, arguments: &DeadListArguments) -> anyhow::Result<()> {
    let filter = DeadFilter {
        kind: arguments.kind.map(|kind| DeadKind::from(kind).name().to_owned()),
        queue: arguments.queue.clone(),
        job: arguments.job.clone(),
        limit: arguments.limit,
    };
    let store = open_store_to_read(config).await?;
    if is_json(config) {
        return store.each_dead(&filter, |entry| print::json(&to_json(&entry)?)).await;
    }
    let mut grid = print::Grid::new(&["id", "kind", "queue", "job", "received", "reason"]);
    let mut count = 0u64;
    store
        .each_dead(&filter, |entry| {
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
    if is_json(config) {
        return print::json(&to_json(&entry)?);
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
    if let Some(job_id) = &entry.job_id
        && *job_id == entry.id
    {
        for attempt in store.attempts(job_id).await? {
            results::show_attempt(&attempt)?;
        }
    }
    Ok(())
}

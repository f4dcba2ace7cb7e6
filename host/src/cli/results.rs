//! `status`: what is known of one job.

use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{is_json, open_store_to_read, print};
use crate::config::Config;
use crate::json::one_line;
use crate::outage::{Backoff, chain};
use crate::store::read::{AttemptStatus, JobStatus};
use crate::store::{Store, StoreError};
use crate::text::{printable, printable_block};

#[derive(Args)]
pub(super) struct StatusArguments {
    /// The job's id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
    /// Wait until the job is done
    #[arg(long)]
    wait: bool,
}

/// A job as JSON shows it.
#[derive(Serialize)]
pub(super) struct JobJson<'a> {
    id: &'a str,
    name: &'a str,
    queue: &'a str,
    status: &'a str,
    result: Option<Box<RawValue>>,
    error: Option<&'a str>,
    error_kind: Option<&'a str>,
    error_stage: Option<&'a str>,
    backtrace: Option<&'a str>,
    attempts: i64,
    args: Option<Box<RawValue>>,
    kwargs: Option<Box<RawValue>>,
    module: Option<&'a str>,
    module_version: Option<&'a str>,
    module_digest: Option<&'a str>,
    worker: Option<&'a str>,
    parent: Option<&'a str>,
    schedule: Option<&'a str>,
    fire_time: Option<String>,
    progress: Option<f64>,
    progress_message: Option<&'a str>,
    created_at: String,
    enqueued_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    updated_at: String,
    retry_at: Option<String>,
    duration_ms: Option<i64>,
    not_before: Option<String>,
    retries: i64,
    retried_at: Option<String>,
    children: &'a [String],
}

impl<'a> JobJson<'a> {
    pub(super) fn new(job: &'a JobStatus) -> Self {
        let text = |time: Option<crate::clock::Timestamp>| time.map(|time| time.to_string());
        Self {
            id: &job.id,
            name: &job.name,
            queue: &job.queue,
            status: &job.status,
            result: print::raw(job.result.as_deref()),
            error: job.error.as_deref(),
            error_kind: job.error_kind.as_deref(),
            error_stage: job.error_stage.as_deref(),
            backtrace: job.backtrace.as_deref(),
            attempts: job.attempts,
            args: print::raw(job.args.as_deref()),
            kwargs: print::raw(job.kwargs.as_deref()),
            module: job.module.as_deref(),
            module_version: job.module_version.as_deref(),
            module_digest: job.module_digest.as_deref(),
            worker: job.worker_id.as_deref(),
            parent: job.parent_id.as_deref(),
            schedule: job.schedule.as_deref(),
            fire_time: text(job.fire_time),
            progress: job.progress,
            progress_message: job.progress_message.as_deref(),
            created_at: job.created_at.to_string(),
            enqueued_at: job.enqueued_at.to_string(),
            started_at: text(job.started_at),
            finished_at: text(job.finished_at),
            updated_at: job.updated_at.to_string(),
            retry_at: text(job.retry_at),
            duration_ms: job.duration_ms,
            not_before: text(job.not_before),
            retries: job.retries,
            retried_at: text(job.retried_at),
            children: &job.children,
        }
    }
}

pub(super) async fn status(config: &Config, arguments: &StatusArguments) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let job = if arguments.wait {
        wait_for(&store, &arguments.id).await?
    } else {
        match store.status(&arguments.id).await? {
            Some(job) => job,
            None => return Err(unknown(&store, &arguments.id)),
        }
    };
    if is_json(config) {
        return print::json(&serde_json::to_string(&JobJson::new(&job))?);
    }
    let attempts = store.attempts(&job.id).await?;
    show(&job, &attempts)
}

pub(super) fn unknown(store: &Store, id: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "no job `{id}` is known in {}; a job that records nothing has no row, and one from another producer has none until it is received",
        store.label()
    )
}

/// How long a wait for a job goes on while the database is away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a job is done, also over an outage of the database of a minute.
pub(super) async fn wait_for(store: &Store, id: &str) -> anyhow::Result<JobStatus> {
    let spinner = print::spinner(format!("waiting for job {}", printable(id)));
    let mut pause = Duration::from_millis(20);
    loop {
        match look(store, id).await? {
            Some(job) if job.is_final() => {
                spinner.finish_and_clear();
                return Ok(job);
            }
            Some(job) => spinner.set_message(format!("job {} is {}", printable(id), job.status)),
            None => return Err(unknown(store, id)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Looks a job up, again and again for a while where the database is away.
async fn look(store: &Store, id: &str) -> Result<Option<JobStatus>, StoreError> {
    let mut away_since = None;
    let mut backoff = Backoff::default();
    loop {
        let error = match store.status(id).await {
            Err(error) if error.is_transient() => error,
            answer => return answer,
        };
        let since = *away_since.get_or_insert_with(|| {
            let secs = PATIENCE.as_secs();
            print::note(format_args!(
                "waiting for the database, for at most {secs} s: {}",
                chain(&error)
            ));
            Instant::now()
        });
        if since.elapsed() >= PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

fn show(job: &JobStatus, attempts: &[AttemptStatus]) -> anyhow::Result<()> {
    let mut grid = print::Grid::new(&[]);
    let time = |time: Option<crate::clock::Timestamp>| time.map(|t| t.to_string());
    let json = |text: &Option<String>| text.as_deref().map(|text| one_line(text).into_owned());
    let progress = job.progress.map(|share| {
        format!("{:.0}% {}", share * 100.0, job.progress_message.as_deref().unwrap_or(""))
    });
    for (name, value) in [
        ("id", Some(job.id.clone())),
        ("name", Some(job.name.clone())),
        ("queue", Some(job.queue.clone())),
        ("status", Some(job.status.clone())),
        ("result", json(&job.result)),
        ("error", job.error.clone()),
        ("failed at", job.error_stage.clone()),
        ("kind", job.error_kind.clone()),
        ("attempts", Some(job.attempts.to_string())),
        ("progress", progress),
        ("args", json(&job.args)),
        ("kwargs", json(&job.kwargs)),
        ("module", job.module.clone()),
        ("digest", job.module_digest.clone()),
        ("parent", job.parent_id.clone()),
        ("children", (!job.children.is_empty()).then(|| shown_children(&job.children))),
        ("schedule", job.schedule.clone()),
        ("fire time", time(job.fire_time)),
        ("created", Some(job.created_at.to_string())),
        ("not before", time(job.not_before)),
        ("started", time(job.started_at)),
        ("finished", time(job.finished_at)),
        ("runs again", time(job.retry_at)),
        ("sent again", retried(job)),
        ("duration", job.duration_ms.map(|ms| format!("{ms} ms"))),
    ] {
        if let Some(value) = value {
            grid.row(&[name, &value]);
        }
    }
    grid.print()?;
    for attempt in attempts {
        show_attempt(attempt)?;
    }
    Ok(())
}

/// Most children that are shown to people by their ids.
const MAX_SHOWN_CHILDREN: usize = 8;

fn shown_children(children: &[String]) -> String {
    let shown = children[..children.len().min(MAX_SHOWN_CHILDREN)].join(" ");
    match children.len().saturating_sub(MAX_SHOWN_CHILDREN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// How often a person has sent the job again after it failed for good.
fn retried(job: &JobStatus) -> Option<String> {
    let times = match job.retries {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    job.retried_at.map(|last| format!("{times} by `dead retry`, last {last}"))
}

/// An attempt with its error, backtrace and logs, below the job.
pub(super) fn show_attempt(attempt: &AttemptStatus) -> anyhow::Result<()> {
    let duration = attempt.duration_ms.map(|ms| format!(", {ms} ms")).unwrap_or_default();
    print::line(&format!(
        "\nattempt {}: {}{duration}, begun {}",
        attempt.number,
        printable(&attempt.outcome),
        attempt.started_at
    ))?;
    for text in [&attempt.error, &attempt.backtrace, &attempt.warnings, &attempt.logs] {
        for line in text.as_deref().unwrap_or_default().lines() {
            print::line(&format!("  {}", printable_block(line)))?;
        }
    }
    Ok(())
}

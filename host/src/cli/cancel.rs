//! `cancel`: jobs that wait never run, those that run are stopped by their workers.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::confirm::confirm;
use super::{Exit, Usage, is_json, open_store_to_read, print, results};
use crate::config::Config;
use crate::failpoint;
use crate::store::Store;
use crate::store::cancel::{CancelFilter, Cancelled};
use crate::text::printable;

/// How long a job that is being stopped is waited for: its worker looks twice a second.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct CancelArguments {
    /// Ids of jobs
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["job", "queue", "status", "all"])]
    ids: Vec<String>,
    /// All jobs of this name
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    job: Option<String>,
    /// All jobs of this queue
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    queue: Option<String>,
    /// All jobs of this status
    #[arg(long, ignore_case = true)]
    status: Option<Status>,
    /// All jobs that wait or run
    #[arg(long)]
    all: bool,
    /// Do not ask before cancelling by a filter
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "UPPERCASE")]
enum Status {
    Pending,
    Running,
    Retry,
}

pub(super) async fn cancel(config: &Config, arguments: &CancelArguments) -> anyhow::Result<()> {
    let status = arguments.status.and_then(|status| status.to_possible_value());
    let filter = CancelFilter {
        job: arguments.job.clone(),
        queue: arguments.queue.clone(),
        status: status.map(|value| value.get_name().to_owned()),
        only_waiting: false,
    };
    let has_filter = filter.job.is_some() || filter.queue.is_some() || filter.status.is_some();
    if arguments.ids.is_empty() && !has_filter && !arguments.all {
        let text = "name jobs by ID, or by --job, --queue or --status; --all means every job that waits or runs";
        return Err(Usage(text.to_owned()).into());
    }
    let store = open_store_to_read(config).await?;
    if arguments.ids.is_empty() {
        return by_filter(config, &store, &filter, arguments.yes).await;
    }
    // All are asked for before any is waited for.
    let mut asked = Vec::with_capacity(arguments.ids.len());
    for id in &arguments.ids {
        asked.push((id, store.cancel(id).await?));
        failpoint::reach("cancelled", "");
    }
    let mut are_all_cancelled = true;
    for (id, cancelled) in asked {
        are_all_cancelled &= see_to_it(config, &store, id, cancelled).await?;
    }
    if are_all_cancelled { Ok(()) } else { Err(Exit(1).into()) }
}

/// Waits for a job's worker to stop it, and says what became of it; tells whether it is cancelled.
async fn see_to_it(
    config: &Config,
    store: &Store,
    id: &str,
    mut cancelled: Cancelled,
) -> anyhow::Result<bool> {
    if cancelled == Cancelled::Stopping {
        let ended = tokio::time::timeout(PATIENCE, results::wait_for(store, id)).await;
        cancelled = match ended {
            Ok(job) => Cancelled::Final(job?.status),
            Err(_) => cancelled,
        };
    }
    let shown = printable(id);
    match cancelled {
        Cancelled::Done => tell(config, id, "CANCELLED")?,
        Cancelled::Final(status) if status == "CANCELLED" => tell(config, id, "CANCELLED")?,
        Cancelled::Stopping => {
            tell(config, id, "RUNNING")?;
            print::note(format_args!(
                "job {shown} runs still; its worker stops it as soon as it can reach the database, or it is cancelled when the worker's lease ends"
            ));
        }
        Cancelled::Final(status) => {
            print::note(format_args!("error: job {shown} is {status} already"));
            return Ok(false);
        }
        Cancelled::Unknown => {
            print::note(format_args!("error: {}", results::unknown(store, id)));
            return Ok(false);
        }
    }
    Ok(true)
}

async fn by_filter(
    config: &Config,
    store: &Store,
    filter: &CancelFilter,
    yes: bool,
) -> anyhow::Result<()> {
    let count = store.count_to_cancel(filter).await?;
    if count == 0 {
        print::note("no job that waits or runs matches");
        return Ok(());
    }
    confirm(&format!("cancel {count} job(s)"), yes)?;
    // What is added meanwhile is left alone, or a busy producer would keep this going for ever.
    let until = store.now().await?.0;
    let (mut done, mut stopping) = (0, 0);
    let mut next = Some(String::new());
    while let Some(after) = next {
        let batch = store.cancel_some(filter, until, &after).await?;
        failpoint::reach("cancelled", "");
        done += batch.done.len();
        stopping += batch.stopping.len();
        for (ids, status) in [(&batch.done, "CANCELLED"), (&batch.stopping, "RUNNING")] {
            for id in ids {
                tell(config, id, status)?;
            }
        }
        next = batch.next;
    }
    print::note(format_args!(
        "cancelled {done} job(s) that waited; {stopping} that run are stopped by their workers"
    ));
    Ok(())
}

fn tell(config: &Config, id: &str, status: &str) -> anyhow::Result<()> {
    if is_json(config) {
        return print::json(&serde_json::json!({ "id": id, "status": status }).to_string());
    }
    let word = if status == "CANCELLED" { "cancelled" } else { "stopping" };
    print::text(&format!("{id} {word}"))
}

//! `list`: jobs by filter, in pages, or as they change.

use std::collections::HashMap;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::results::{self, JobJson};
use super::{is_json, open_store_to_read, print};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::json::one_line;
use crate::store::Store;
use crate::store::list::JobFilter;
use crate::store::read::JobStatus;
use crate::text::printable;

/// How often `--follow` looks for changes.
const LOOK: Duration = Duration::from_millis(500);
/// How far back each look reaches: a change may be committed so long after its time.
const OVERLAP: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct ListArguments {
    /// Only jobs of this name
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    job: Option<String>,
    /// Only jobs of this queue
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    queue: Option<String>,
    /// Only jobs of this status
    #[arg(long, ignore_case = true)]
    status: Option<Status>,
    /// Only jobs added then or later: 2026-01-31T12:00:00Z, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = instant, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    /// Only jobs added before then
    #[arg(long, value_name = "TIME", value_parser = instant, allow_hyphen_values = true)]
    until: Option<Timestamp>,
    /// Only jobs whose last error holds this text
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    error: Option<String>,
    /// Only jobs behind this one in the list: the next page
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    after: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, allow_hyphen_values = true,
        value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Then go on and print jobs as they change, until ctrl-c
    #[arg(long, conflicts_with_all = ["after", "until"])]
    follow: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "UPPERCASE")]
enum Status {
    Pending,
    Running,
    Retry,
    Success,
    Failure,
    Cancelled,
}

/// An instant by its date, or by how long ago it was.
fn instant(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = Timestamp::parse(text) {
        return Ok(time);
    }
    match humantime::parse_duration(text) {
        Ok(age) => Ok(Timestamp(Clock::system().now().0.saturating_sub(crate::clock::millis(age)))),
        Err(_) => {
            Err("expected a time such as `2026-01-31T12:00:00Z` or an age such as `2h`".to_owned())
        }
    }
}

pub(super) async fn list(config: &Config, arguments: &ListArguments) -> anyhow::Result<()> {
    let status = arguments.status.and_then(|status| status.to_possible_value());
    let store = open_store_to_read(config).await?;
    let after = match &arguments.after {
        None => None,
        Some(id) => match store.status(id).await? {
            Some(job) => Some((job.created_at, job.id)),
            None => return Err(results::unknown(&store, id)),
        },
    };
    let filter = JobFilter {
        job: arguments.job.clone(),
        queue: arguments.queue.clone(),
        status: status.map(|value| value.get_name().to_owned()),
        since: arguments.since,
        until: arguments.until,
        error: arguments.error.clone(),
        after,
        limit: arguments.limit,
    };
    if arguments.follow {
        return follow(config, &store, &filter).await;
    }
    let mut page = Page::new(is_json(config), filter.limit);
    store.each_job(&filter, |job| page.add(&job)).await?;
    page.end()
}

/// One page of jobs: lines of JSON as they come, a table at its end.
struct Page {
    grid: Option<print::Grid>,
    count: u64,
    limit: u64,
    last: String,
}

impl Page {
    fn new(is_json: bool, limit: u64) -> Self {
        let header = ["id", "job", "queue", "status", "attempts", "created", "result or error"];
        let grid = (!is_json).then(|| print::Grid::new(&header));
        Self { grid, count: 0, limit, last: String::new() }
    }

    fn add(&mut self, job: &JobStatus) -> anyhow::Result<()> {
        self.count += 1;
        self.last.clone_from(&job.id);
        match &mut self.grid {
            None => print::json(&serde_json::to_string(&JobJson::new(job))?),
            Some(grid) => {
                let cells = cells(job);
                grid.row(&cells.each_ref().map(String::as_str));
                Ok(())
            }
        }
    }

    fn end(self) -> anyhow::Result<()> {
        let Some(grid) = self.grid else { return Ok(()) };
        if self.count == 0 {
            print::note("no job matches");
            return Ok(());
        }
        grid.print()?;
        if self.count == self.limit {
            print::note(format_args!("there may be more: --after {}", printable(&self.last)));
        }
        Ok(())
    }
}

/// A job as the table shows it.
fn cells(job: &JobStatus) -> [String; 7] {
    let result = job.result.as_deref().map(one_line);
    let end = job.error.as_deref().or(result.as_deref()).unwrap_or_default();
    [
        job.id.clone(),
        job.name.clone(),
        job.queue.clone(),
        job.status.clone(),
        job.attempts.to_string(),
        job.created_at.to_string(),
        end.chars().take(60).collect(),
    ]
}

/// Prints the last jobs, the newest at the end, and then each that changes.
async fn follow(config: &Config, store: &Store, filter: &JobFilter) -> anyhow::Result<()> {
    let mut since = store.now().await?;
    let mut newest = Vec::new();
    let collect = |job| {
        newest.push(job);
        anyhow::Ok(())
    };
    store.each_job(filter, collect).await?;
    let mut seen = HashMap::new();
    for job in newest.iter().rev() {
        tell_change(config, &mut seen, job)?;
    }
    drop(newest);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = store.now().await?;
        let from = Timestamp(since.0.saturating_sub(crate::clock::millis(OVERLAP)));
        store.each_change(filter, from, |job| tell_change(config, &mut seen, &job)).await?;
        // What is older than the next look can't be met again.
        seen.retain(|_, (_, _, changed_at)| *changed_at >= from);
        since = now;
    }
}

/// Prints a job unless it was printed in this state.
fn tell_change(
    config: &Config,
    seen: &mut HashMap<String, (String, i64, Timestamp)>,
    job: &JobStatus,
) -> anyhow::Result<()> {
    let state = (job.status.clone(), job.attempts, job.updated_at);
    let before = seen.insert(job.id.clone(), state);
    if before.is_some_and(|(status, attempts, _)| status == job.status && attempts == job.attempts)
    {
        return Ok(());
    }
    if is_json(config) {
        return print::json(&serde_json::to_string(&JobJson::new(job))?);
    }
    let cells = cells(job)
        .map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(&cell).into_owned() });
    print::line(&cells.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_a_date_or_an_age() {
        assert_eq!(instant("1970-01-01T00:00:01Z"), Ok(Timestamp(1000)));
        let now = Clock::system().now();
        let hour_ago = instant("1h").expect("an age");
        assert!(now.since(hour_ago) >= Duration::from_secs(3599));
        for wrong in ["", "yesterday", "-1h", "2026-13-01T00:00:00Z"] {
            assert!(instant(wrong).is_err(), "{wrong}");
        }
    }
}

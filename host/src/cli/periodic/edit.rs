//! `periodic add|edit|remove|enable|disable|run-now`: commands that change entries.

use std::time::Duration;

use clap::Args;

use super::super::{Usage, open_store_to_read, print};
use super::next::instant;
use crate::beater::definition::{self, Definition};
use crate::config::Config;
use crate::json;
use crate::store::Store;
use crate::store::periodic::{DefineError, Seen, Source};
use crate::text::{nearest, printable};

#[derive(Args)]
pub(in crate::cli) struct AddArguments {
    /// The entry's name
    name: String,
    /// The job that is queued
    #[arg(long)]
    job: String,
    #[command(flatten)]
    says: Says,
}

#[derive(Args)]
pub(in crate::cli) struct EditArguments {
    /// The entry's name
    name: String,
    /// The job that is queued
    #[arg(long)]
    job: Option<String>,
    #[command(flatten)]
    says: Says,
    /// Take all that commands have said of the entry back, so that it is as its module or the
    /// configuration file says
    #[arg(long)]
    reset: bool,
}

/// What a command says of an entry. `--grace TIME` belongs here as well: how late a tick may be
/// claimed without being missed.
#[derive(Args)]
#[command(
    after_help = "--grace TIME, in this command: how late a tick may be claimed without being missed [default: 60s]"
)]
struct Says {
    /// Crontab expression, or a macro such as @daily
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    schedule: Option<String>,
    /// IANA time zone of the expression, such as Europe/Madrid
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// An interval instead of an expression, such as 10m, counted from 1970
    #[arg(long, value_name = "TIME", conflicts_with_all = ["schedule", "timezone"])]
    every: Option<String>,
    /// Positional arguments of each job, as a JSON array
    #[arg(long, value_name = "JSON")]
    args_json: Option<String>,
    /// Named arguments of each job, as a JSON object
    #[arg(long, value_name = "JSON")]
    kwargs_json: Option<String>,
    /// The queue [default: the one that the deployed job describes]
    #[arg(long)]
    queue: Option<String>,
    /// What becomes of missed ticks: none, last or all [default: last]
    #[arg(long, value_name = "RULE")]
    catch_up: Option<String>,
    /// How late a missed tick may still be queued [default for `last`: one period, at most 24h]
    #[arg(long, value_name = "TIME")]
    max_lateness: Option<String>,
    /// While the job of the tick before waits or runs: allow, skip or replace [default: allow]
    #[arg(long, value_name = "RULE")]
    overlap: Option<String>,
    /// Spread of the entries over time, stable for each [default: 0s]
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,
    /// First instant at which it may fire, as RFC 3339
    #[arg(long, value_name = "RFC3339")]
    start: Option<String>,
    /// Instant from which on it fires no more, as RFC 3339
    #[arg(long, value_name = "RFC3339")]
    end: Option<String>,
}

impl Says {
    fn definition(&self, job: Option<&str>, grace: Option<&str>) -> anyhow::Result<Definition> {
        let time = |flag: &str, text: &Option<String>| -> anyhow::Result<Option<i64>> {
            let Some(text) = text else { return Ok(None) };
            let instant = instant(text).map_err(|fault| Usage(format!("{flag}: {fault}")))?;
            Ok(Some(instant.0))
        };
        if let Some(text) = &self.args_json {
            json::check_array(text).map_err(|error| Usage(format!("--args-json: {error}")))?;
        }
        if let Some(text) = &self.kwargs_json {
            json::check_object(text).map_err(|error| Usage(format!("--kwargs-json: {error}")))?;
        }
        if self.queue.as_ref().is_some_and(String::is_empty) {
            return Err(Usage("--queue: a queue's name can't be empty".into()).into());
        }
        Ok(Definition {
            job: job.map(str::to_owned),
            queue: self.queue.clone(),
            schedule: self.schedule.clone(),
            timezone: self.timezone.clone(),
            every_ms: span("--every", self.every.as_deref())?,
            args: self.args_json.clone(),
            kwargs: self.kwargs_json.clone(),
            catch_up: self.catch_up.clone(),
            max_lateness_ms: span("--max-lateness", self.max_lateness.as_deref())?,
            grace_ms: span("--grace", grace)?,
            overlap: self.overlap.clone(),
            jitter_ms: span("--jitter", self.jitter.as_deref())?,
            start_at: time("--start", &self.start)?,
            end_at: time("--end", &self.end)?,
        })
    }
}

fn span(flag: &str, text: Option<&str>) -> anyhow::Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    let span: Duration = humantime::parse_duration(text).map_err(|_| {
        Usage(format!("{flag}: expected a duration such as `10m` or `1h 30m`, found `{text}`"))
    })?;
    Ok(Some(definition::span_ms(span)))
}

/// A definition that is rejected is wrong usage.
fn rejected(error: DefineError) -> anyhow::Error {
    match error {
        DefineError::Invalid { .. } => Usage(error.to_string()).into(),
        error => error.into(),
    }
}

pub(super) async fn add(
    config: &Config,
    arguments: &AddArguments,
    grace: Option<&str>,
) -> anyhow::Result<()> {
    let (name, says) = (&arguments.name, &arguments.says);
    let definition = says.definition(Some(&arguments.job), grace)?;
    definition::check_name(name)
        .and(definition.check())
        .map_err(|reason| Usage(format!("the periodic entry is rejected: {reason}")))?;
    let store = open_store_to_read(config).await?;
    check_job(&store, &arguments.job, definition.queue.is_some()).await?;
    let digest = uuid::Uuid::new_v4().to_string();
    let seen = Seen { name: name.clone(), source: Source::Command, digest, definition };
    store.add_periodic(&seen).await.map_err(rejected)?;
    tell_next(&store, name).await
}

/// Says when no deployed job has the name: with a queue it may be deployed later.
async fn check_job(store: &Store, job: &str, has_queue: bool) -> anyhow::Result<()> {
    let known = store.deployed_job(job).await?;
    let names = store.deployed_names().await?;
    let hint = match nearest(job, names.iter().map(String::as_str)) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    };
    match known {
        None if has_queue => {
            eprintln!(
                "warning: no deployed job is called `{}`{hint}; its ticks wait on the queue until a module holds it",
                printable(job)
            );
            Ok(())
        }
        None => anyhow::bail!(
            "no deployed job is called `{job}`{hint}; start a worker whose module holds it, or name its queue with --queue"
        ),
        Some(known) if known.queue.is_none() && !has_queue => {
            anyhow::bail!("the job `{job}` describes no queue; name one with --queue")
        }
        Some(_) => Ok(()),
    }
}

pub(super) async fn edit(
    config: &Config,
    arguments: &EditArguments,
    grace: Option<&str>,
) -> anyhow::Result<()> {
    let name = &arguments.name;
    let change = arguments.says.definition(arguments.job.as_deref(), grace)?;
    if (change == Definition::default()) != arguments.reset {
        let fault = "name what is to change, or --reset alone to take all changes back";
        return Err(Usage(fault.into()).into());
    }
    let store = open_store_to_read(config).await?;
    let before = super::entry(&store, name).await?;
    if let Some(job) = &arguments.job {
        check_job(&store, job, change.queue.is_some() || before.queue.is_some()).await?;
    }
    let change = (!arguments.reset).then_some(&change);
    store.edit_periodic(name, change).await.map_err(rejected)?;
    tell_next(&store, name).await
}

pub(super) async fn remove(config: &Config, name: &str) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let entry = super::entry(&store, name).await?;
    let in_file = config.periodic.contains_key(name);
    store.remove_periodic(name, entry.is_held, in_file).await?;
    print::line(&format!("removed {}", printable(name)))
}

pub(super) async fn enable(config: &Config, name: &str, is_enabled: bool) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let _ = super::entry(&store, name).await?;
    store.enable_periodic(name, is_enabled).await.map_err(rejected)?;
    if is_enabled {
        return tell_next(&store, name).await;
    }
    print::line(&format!("disabled {}", printable(name)))
}

pub(super) async fn run_now(config: &Config, name: &str) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    let _ = super::entry(&store, name).await?;
    print::line(&store.run_periodic_now(name).await?)
}

/// Says when the entry fires next.
async fn tell_next(store: &Store, name: &str) -> anyhow::Result<()> {
    let entry = super::entry(store, name).await?;
    let next = match entry.next_fire_at {
        _ if entry.aside.is_some() => "set aside".to_owned(),
        Some(next) if entry.is_enabled => format!("next tick {}", next.short()),
        Some(_) => "disabled".to_owned(),
        None => "no tick will come".to_owned(),
    };
    if let Ok(settings) = entry.settings() {
        let from = store.now().await?;
        let until = from.after(super::list::YEAR);
        for surprise in settings.schedule.surprises(from, until) {
            eprintln!("note: {surprise}");
        }
    }
    print::line(&format!("{}: {next}", printable(name)))
}

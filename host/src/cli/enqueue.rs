//! `add`: puts a job on its queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{Exit, Usage, loader, open_broker, open_store, print, results, time};
use crate::broker;
use crate::client::{AddError, Client, JobRequest, KnownJob};
use crate::config::{Config, ConfigError};
use crate::json;
use crate::payload::{self, MAX_NAME_BYTES, Malformed};
use crate::registry::Registry;
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::text::printable;

/// A job's arguments, as `add` and `run` take them.
#[derive(Args)]
pub(super) struct JobArguments {
    /// Positional arguments: JSON is taken as JSON, anything else as a string
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    args: Vec<String>,
    /// Named argument; may be repeated
    #[arg(long, value_name = "K=V")]
    kwarg: Vec<String>,
    /// All positional arguments as one JSON array
    #[arg(long, value_name = "JSON", conflicts_with = "args", allow_hyphen_values = true)]
    args_json: Option<String>,
    /// All named arguments as one JSON object
    #[arg(long, value_name = "JSON", conflicts_with = "kwarg", allow_hyphen_values = true)]
    kwargs_json: Option<String>,
}

impl JobArguments {
    /// The JSON texts of args and kwargs.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(super) fn texts(&self) -> Result<(String, String), ConfigError> {
        let mut faults = Vec::new();
        let args = match &self.args_json {
            Some(text) => match json::check_array(text) {
                Ok(checked) => checked.to_owned(),
                Err(error) => {
                    faults.push(format!("--args-json: {error}"));
                    String::new()
                }
            },
            None => {
                let values: Vec<String> = self.args.iter().map(|arg| value(arg)).collect();
                format!("[{}]", values.join(", "))
            }
        };
        let kwargs = match &self.kwargs_json {
            Some(text) => match json::check_object(text) {
                Ok(checked) => checked.to_owned(),
                Err(error) => {
                    faults.push(format!("--kwargs-json: {error}"));
                    String::new()
                }
            },
            None => self.members(&mut faults),
        };
        if faults.is_empty() { Ok((args, kwargs)) } else { Err(ConfigError(faults)) }
    }

    /// The object that the single named arguments make.
    fn members(&self, faults: &mut Vec<String>) -> String {
        let mut members = Vec::with_capacity(self.kwarg.len());
        let mut keys = BTreeSet::new();
        for kwarg in &self.kwarg {
            match kwarg.split_once('=') {
                Some((key, _)) if !keys.insert(key) => {
                    faults.push(format!("--kwarg: `{key}` is given twice"));
                }
                Some((key, text)) if !key.is_empty() => {
                    members.push(format!("{}: {}", serde_json::Value::from(key), value(text)));
                }
                _ => faults.push(format!("--kwarg: expected KEY=VALUE, found `{kwarg}`")),
            }
        }
        format!("{{{}}}", members.join(", "))
    }
}

/// Refuses what no message could carry, before anything is opened.
pub(super) fn check_job(name: &str, id: Option<&str>) -> Result<(), Usage> {
    let fault = |what: &str, error: Malformed| match error {
        Malformed::BadText { reason, .. } => Usage(format!("{what} {reason}")),
        other => Usage(format!("{what}: {other}")),
    };
    payload::check_text("name", name, MAX_NAME_BYTES).map_err(|e| fault("the job's name", e))?;
    id.map_or(Ok(()), payload::check_id).map_err(|e| fault("--id", e))
}

/// Refuses what can't be a queue's name or URL.
pub(super) fn check_queue(what: &str, queue: &str) -> Result<(), Usage> {
    broker::check_queue(queue).map_err(|error| Usage(format!("{what}: {error}")))
}

/// An argument that is JSON is taken as JSON, with its text unchanged; else as a string.
fn value(text: &str) -> String {
    match json::check(text) {
        Ok(checked) => checked.to_owned(),
        Err(_) => serde_json::Value::from(text).to_string(),
    }
}

#[derive(Args)]
pub(super) struct AddArguments {
    /// The job's name
    job: String,
    #[command(flatten)]
    arguments: JobArguments,
    /// The queue [default: the one that the deployed job describes]
    #[arg(long)]
    queue: Option<String>,
    /// The job's id, by which it succeeds once [default: a new UUID]
    #[arg(long)]
    id: Option<String>,
    /// Message group: order on a FIFO queue, tenant on a standard one
    #[arg(long)]
    group: Option<String>,
    /// Run it only after this time, as `90d` or `1h 30m`
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at")]
    delay: Option<String>,
    /// Run it only from this instant on, as `2030-01-31T08:00:00Z`; at once if it has passed
    #[arg(long, value_name = "INSTANT", allow_hyphen_values = true)]
    at: Option<String>,
    /// Add nothing while another job of this key waits or runs, and print that one's id
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    unique_key: Option<String>,
    /// Hold the key at least so long after the adding, as `1h`, also when the job is done
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "unique_key")]
    unique_for: Option<String>,
    /// Wait until the job is done and print its result as JSON
    #[arg(long)]
    wait: bool,
}

impl AddArguments {
    /// The job that is asked for.
    ///
    /// # Errors
    /// All that is wrong with it.
    fn request(&self) -> Result<JobRequest, ConfigError> {
        let mut faults = Vec::new();
        let texts = self.arguments.texts().map_err(|ConfigError(found)| faults.extend(found));
        let mut check = |checked: Result<(), Usage>| {
            faults.extend(checked.err().map(|fault| fault.to_string()));
        };
        check(check_job(&self.job, None));
        check(check_job("x", self.id.as_deref()));
        check(self.queue.as_ref().map_or(Ok(()), |queue| check_queue("--queue", queue)));
        check(self.group.as_ref().map_or(Ok(()), |group| {
            payload::check_group(group).map_err(|error| Usage(format!("--group: {error}")))
        }));
        let mut request = JobRequest::new(&self.job);
        request = self.queue.iter().fold(request, |request, queue| request.queue(queue));
        request = self.id.iter().fold(request, |request, id| request.id(id));
        request = self.group.iter().fold(request, |request, group| request.group(group));
        let planned = self.plan(request).map_err(|fault| faults.push(fault.to_string()));
        let (Ok((args, kwargs)), Ok(request), true) = (texts, planned, faults.is_empty()) else {
            return Err(ConfigError(faults));
        };
        let with_texts = request.args_json(&args).and_then(|request| request.kwargs_json(&kwargs));
        with_texts.map_err(|error| ConfigError(vec![error.to_string()]))
    }

    /// When the job runs, and what keeps it from being added twice.
    fn plan(&self, mut request: JobRequest) -> anyhow::Result<JobRequest> {
        if let Some(text) = &self.delay {
            request = request.delay(time::ahead("--delay", text)?);
        }
        if let Some(text) = &self.at {
            request = request.at(time::instant_ahead("--at", text)?);
        }
        if let Some(key) = &self.unique_key {
            let window = match &self.unique_for {
                Some(text) => time::ahead("--unique-for", text)?,
                None => Duration::ZERO,
            };
            let fault = |error: AddError| match error {
                AddError::Invalid(Malformed::BadText { reason, .. }) => {
                    Usage(format!("--unique-key {reason}"))
                }
                other => Usage(format!("--unique-key: {other}")),
            };
            request = request.unique(key, window).map_err(fault)?;
        }
        Ok(request)
    }
}

pub(super) async fn add(config: Arc<Config>, arguments: &AddArguments) -> anyhow::Result<()> {
    let request = arguments.request()?;
    let kind = config.broker(arguments.queue.as_slice())?;
    let store = open_store(&config, kind).await?;
    let known = known_job(&config, &store, &arguments.job).await?;
    let broker = open_broker(&config, kind, &store).await?;
    let added = Client::new(store.clone(), broker).add_known(request, known).await?;
    if arguments.unique_key.is_some() && added.is_existing {
        print::note(format_args!(
            "job {} was there already; nothing was added",
            printable(&added.id)
        ));
    }
    if let Some(reason) = &added.unsent {
        print::note(format_args!(
            "job {} waits in the database, and a worker sends it as soon as it can: {}",
            printable(&added.id),
            printable(reason)
        ));
    }
    if !arguments.wait {
        return print::text(&added.id);
    }
    if !added.records_result {
        print::note(format_args!(
            "error: job {} was added, but it records nothing, so there is no result to wait for",
            printable(&added.id)
        ));
        return Err(Exit(2).into());
    }
    let job = results::wait_for(&store, &added.id).await?;
    if job.status != "SUCCESS" {
        anyhow::bail!(
            "job {} ended as {}: {}",
            job.id,
            job.status,
            job.error.as_deref().unwrap_or("without an error")
        );
    }
    // The operator may have it record nothing although its adder did not know.
    let result = print::raw(job.result.as_deref());
    print::json(result.as_ref().map_or("null", |result| result.get()))
}

/// What is known of a job: what a worker said of it, else what the jobs folders hold.
async fn known_job(
    config: &Arc<Config>,
    store: &Store,
    name: &str,
) -> anyhow::Result<Option<KnownJob>> {
    if let Some(job) = store.deployed_job(name).await? {
        let record = config.jobs.get(name).and_then(|settings| settings.record);
        let known = KnownJob::from(job);
        let records_result = record.unwrap_or(known.records_result);
        return Ok(Some(KnownJob { records_result, ..known }));
    }
    if config.jobs_dirs.iter().any(|folder| !folder.is_dir()) {
        return Ok(None);
    }
    let sandbox = Arc::new(Sandbox::new(1)?);
    let registry = Registry::load(&loader(config, &sandbox, true), &config.jobs_dirs).await?;
    Ok(registry.current(name).map(|served| KnownJob {
        queue: served.definition.queue.clone(),
        records_result: config.records(&served.definition),
        unique: served.definition.unique.clone(),
    }))
}

//! `run`: a job here and now, with neither queue nor database nor worker.

use std::path::Path;
use std::sync::Arc;

use clap::Args;

use super::enqueue::JobArguments;
use super::{Usage, open_cache, print};
use crate::clock::Clock;
use crate::config::Config;
use crate::eager::{Eager, EagerError};
use crate::outcome::Outcome;
use crate::payload::Job;
use crate::registry::Registry;
use crate::registry::cache::Cache;
use crate::registry::load::Loader;
use crate::sandbox::Sandbox;

#[derive(Args)]
pub(super) struct RunArguments {
    /// A module file, or the name of a job in the jobs folders
    #[arg(value_name = "FILE|JOB")]
    what: String,
    #[command(flatten)]
    arguments: JobArguments,
    /// Which job of a file that holds several
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
    /// The job's id [default: a new UUID]
    #[arg(long)]
    id: Option<String>,
}

pub(super) async fn run(config: Arc<Config>, arguments: &RunArguments) -> anyhow::Result<()> {
    let (args, kwargs) = arguments.arguments.texts()?;
    let path = Path::new(&arguments.what);
    let is_file = path.is_file() || path.extension().is_some_and(|ending| ending == "wasm");
    let sandbox = Arc::new(Sandbox::new(4)?);
    let (registry, name) = if is_file {
        let loader = Loader::new(sandbox.clone(), Cache::new(None));
        let module = loader.load(path).await?;
        let name = match (&arguments.job, module.jobs.as_slice()) {
            (Some(name), _) => name.clone(),
            (None, [only]) => only.name.clone(),
            (None, several) => {
                let names: Vec<&str> = several.iter().map(|job| job.name.as_str()).collect();
                let fault = format!(
                    "`{}` holds several jobs; choose one with --job: {}",
                    path.display(),
                    names.join(", ")
                );
                return Err(Usage(fault).into());
            }
        };
        (Registry::of(module), name)
    } else {
        let loader = Loader::new(sandbox.clone(), open_cache(&config));
        (Registry::load(&loader, &config.jobs_dirs).await?, arguments.what.clone())
    };
    let job = Job {
        id: arguments.id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        name,
        args,
        kwargs,
        enqueued_at: Some(Clock::system().now()),
        is_tracked: false,
    };
    let execution = Eager::new(sandbox, Arc::new(registry), config).run(&job).await?;
    match execution.outcome {
        Outcome::Success(result) => print::line(result.as_deref().unwrap_or("null")),
        Outcome::Failed(failure) => {
            let backtrace = failure.backtrace.clone().unwrap_or_default();
            for line in backtrace.lines() {
                eprintln!("  {}", crate::text::printable(line));
            }
            Err(EagerError::Failed(failure).into())
        }
        _ => Err(EagerError::Stopped.into()),
    }
}

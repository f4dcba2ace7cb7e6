//! `run`: a job here and now, with neither queue nor database nor worker.

use std::path::Path;
use std::sync::Arc;

use clap::Args;

use super::enqueue::{JobArguments, check_job};
use super::{Usage, loader, print};
use crate::clock::Clock;
use crate::config::Config;
use crate::eager::{Eager, EagerError};
use crate::outcome::Outcome;
use crate::payload::Job;
use crate::registry::Registry;
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
    let config = Arc::new(Config::clone(&config).with_grants()?);
    let (args, kwargs) = arguments.arguments.texts()?;
    let path = Path::new(&arguments.what);
    let is_file = path.is_file() || path.extension().is_some_and(|ending| ending == "wasm");
    let name = if is_file { arguments.job.as_deref() } else { Some(arguments.what.as_str()) };
    if !is_file && arguments.job.is_some() {
        let fault = format!(
            "--job chooses one of the jobs of a module file, and `{}` is no file; name the file, or leave --job out",
            arguments.what
        );
        return Err(Usage(fault).into());
    }
    check_job(name.unwrap_or("unnamed"), arguments.id.as_deref())?;
    let sandbox = Arc::new(Sandbox::new(4)?);
    let (registry, name) = if is_file {
        let module = loader(&config, &sandbox, false).load(path).await?;
        let name = match (name, module.jobs.as_slice()) {
            (Some(name), _) => name.to_owned(),
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
        let loader = loader(&config, &sandbox, true);
        let registry = Registry::load_silently(&loader, &config.jobs_dirs).await?;
        registry.tell_refused_of(&arguments.what);
        (registry, arguments.what.clone())
    };
    let job = Job {
        id: arguments.id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        name,
        args,
        kwargs,
        enqueued_at: Some(Clock::system().now()),
        is_tracked: false,
        is_revived: false,
    };
    let execution = Eager::new(sandbox, Arc::new(registry), config).run(&job).await?;
    match execution.outcome {
        Outcome::Success(result) => print::json(result.as_deref().unwrap_or("null")),
        Outcome::Failed(failure) => {
            let backtrace = failure.backtrace.clone().unwrap_or_default();
            for line in backtrace.lines() {
                print::note(format_args!("  {}", crate::text::printable(line)));
            }
            Err(EagerError::Failed(failure).into())
        }
        _ => Err(EagerError::Stopped.into()),
    }
}

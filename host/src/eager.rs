//! Eager mode: a job runs at once in this process, with neither queue nor database, through the
//! same life cycle as on a worker.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::{info, warn};

use crate::config::Config;
use crate::outcome::{Failure, Outcome};
use crate::payload::Job;
use crate::registry::Registry;
use crate::sandbox::{Call, Execution, Sandbox, Watch};
use crate::text::printable;

/// Most jobs that one eager run may lead to, counted over all generations.
const MAX_CHILDREN: usize = 1000;

/// Why an eager run brought no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EagerError {
    /// No module holds the job.
    #[error("no module holds a job `{job}`; known are: {known}")]
    UnknownJob {
        /// The name that was asked for.
        job: String,
        /// The jobs that there are.
        known: String,
    },
    /// The job failed.
    #[error("the job failed at {} ({}): {}", .0.stage, .0.cause.name(), .0.message)]
    Failed(Failure),
    /// The run was stopped.
    #[error("the job was stopped before it ended")]
    Stopped,
}

/// Runs jobs in this process.
pub struct Eager {
    sandbox: Arc<Sandbox>,
    registry: Arc<Registry>,
    config: Arc<Config>,
}

impl Eager {
    /// Runs the jobs of `registry` in `sandbox`.
    #[must_use]
    pub fn new(sandbox: Arc<Sandbox>, registry: Arc<Registry>, config: Arc<Config>) -> Self {
        Self { sandbox, registry, config }
    }

    /// Runs one attempt of a job, then the jobs that it added, and theirs. A failure is not
    /// tried again, since whoever runs a job eagerly wants to see it; `on-failure` is told what
    /// it would be told on a worker.
    ///
    /// # Errors
    /// No module holds the job.
    pub async fn run(&self, job: &Job) -> Result<Execution, EagerError> {
        let mut execution = self.attempt(job, 0).await?;
        let mut children: VecDeque<_> = execution.added.drain(..).collect();
        let mut count = 0;
        while let Some(child) = children.pop_front() {
            count += 1;
            if count > MAX_CHILDREN {
                warn!(
                    "{} added job(s) are not run: an eager run leads to at most {MAX_CHILDREN}",
                    children.len() + 1
                );
                break;
            }
            match self.attempt(&child.job, child.generation).await {
                Ok(mut execution) => {
                    info!(job.id = %child.job.id, "added job {}: {}", printable(&child.job.name), execution.outcome.name());
                    children.extend(execution.added.drain(..));
                }
                Err(error) => warn!("an added job is not run: {error}"),
            }
        }
        Ok(execution)
    }

    async fn attempt(&self, job: &Job, generation: u32) -> Result<Execution, EagerError> {
        let Some(served) = self.registry.current(&job.name) else {
            let snapshot = self.registry.snapshot();
            let known: Vec<&str> = snapshot.jobs.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(EagerError::UnknownJob { job: job.name.clone(), known });
        };
        let call = Call {
            job_id: job.id.clone(),
            job: job.name.clone(),
            module: served.module.version.name.clone(),
            queue: String::new(),
            address: String::new(),
            attempt: 1,
            spent: 0,
            enqueued_at: job.enqueued_at,
            schedule: None,
            generation,
            args: job.args.clone(),
            kwargs: job.kwargs.clone(),
            limits: self.config.limits(&served.module.version.name, &served.definition),
            grants: self.config.grants(served.module.source(), &job.name),
            policy: self.config.policy(&served.definition),
            unique: self.registry.snapshot().unique.clone(),
        };
        let execution =
            self.sandbox.execute(&served.module.prepared, &call, None, Watch::none()).await;
        for warning in &execution.warnings {
            warn!(job.id = %job.id, "{}: {}", printable(&job.name), printable(warning));
        }
        if let Outcome::Failed(failure) = &execution.outcome {
            tracing::debug!(job.id = %job.id, stage = %failure.stage, "{}", printable(&failure.message));
        }
        Ok(execution)
    }
}

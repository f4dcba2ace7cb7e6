//! Runs a job in a unit test: natively, without a sandbox, through the same life as on a host.
//!
//! ```
//! use sqjobs_sdk::prelude::*;
//!
//! #[derive(Default)]
//! struct Mailer;
//!
//! impl Job for Mailer {
//!     const NAME: &str = "mailer";
//!
//!     fn run(&mut self, call: &Call) -> Result<impl Serialize> {
//!         let to: String = call.arg(0)?;
//!         progress(0.5, "half");
//!         info!("sent to {to}");
//!         add_job(NewJob::new("count_mail").arg(&to))?;
//!         Ok(())
//!     }
//! }
//!
//! let outcome = testing::attempt::<Mailer>().arg("a@b.c").attempt(2).run();
//! assert!(outcome.is_success());
//! assert_eq!(outcome.log_text(), "sent to a@b.c");
//! assert_eq!(outcome.progress()[0].0, 0.5);
//! assert_eq!(outcome.added_jobs()[0].args, r#"["a@b.c"]"#);
//!
//! let outcome = testing::attempt::<Mailer>().arg(7).run();
//! assert!(outcome.is_permanent());
//! assert!(outcome.added_jobs().is_empty(), "an attempt that fails adds nothing");
//! ```
//!
//! What differs from a host: there are no limits on time and memory, nothing is denied, and the
//! waits before a retry are the upper bounds of those that a host draws.

pub(crate) mod recorder;

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

pub use self::recorder::{AddedJob, LogLine};

use crate::bindings::sqjobs::job::types as wit;
use crate::export::{Erased, Stages};
use crate::options::{Arguments, epoch_millis, to_raw};
use crate::{Call, Failure, FailureCause, FailureKind, FailureReport, Job, Result, Stage, log};

/// Attempts that a job has in a test where neither the job nor the test says how many.
const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// Upper bound of the wait before a retry in a test where the job doesn't say one.
const DEFAULT_WAIT: Duration = Duration::from_secs(5);

/// An attempt of a job, to be set up by the methods and then [`run`](Attempt::run).
pub fn attempt<J: Job>() -> Attempt<J> {
    Attempt {
        context: wit::Context {
            id: "11111111-2222-4333-8444-555555555555".to_owned(),
            name: J::NAME.to_owned(),
            queue: J::QUEUE.unwrap_or_default().to_owned(),
            attempt: 1,
            max_attempts: J::options().retry(1).0.unwrap_or(DEFAULT_MAX_ATTEMPTS),
            enqueued_at_ms: None,
            fire_time_ms: None,
            schedule: None,
            extra: Vec::new(),
        },
        arguments: Arguments::default(),
        args_json: None,
        kwargs_json: None,
        job: PhantomData,
    }
}

/// See [`attempt`].
#[derive(Debug)]
#[must_use = "nothing happens before `run`"]
pub struct Attempt<J> {
    context: wit::Context,
    arguments: Arguments,
    args_json: Option<String>,
    kwargs_json: Option<String>,
    job: PhantomData<fn() -> J>,
}

impl<J: Job> Attempt<J> {
    /// One more positional argument.
    ///
    /// # Panics
    /// The value is not JSON.
    #[track_caller]
    pub fn arg(mut self, value: impl Serialize) -> Self {
        self.arguments.push(to_raw(&value));
        self
    }

    /// More positional arguments, one after the other.
    ///
    /// # Panics
    /// A value is not JSON.
    #[track_caller]
    pub fn args<T: Serialize>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        for value in values {
            self.arguments.push(to_raw(&value));
        }
        self
    }

    /// One more named argument.
    ///
    /// # Panics
    /// The value is not JSON.
    #[track_caller]
    pub fn kwarg(mut self, name: &str, value: impl Serialize) -> Self {
        self.arguments.insert(name.to_owned(), to_raw(&value));
        self
    }

    /// All positional arguments, as text that reaches the job as it is.
    ///
    /// # Panics
    /// The text is no JSON array: a host lets none pass either.
    #[track_caller]
    pub fn args_json(mut self, text: &str) -> Self {
        if let Err(error) = serde_json::from_str::<Vec<&RawValue>>(text) {
            panic!("the args are no JSON array: {error}");
        }
        self.args_json = Some(text.to_owned());
        self
    }

    /// All named arguments, as text that reaches the job as it is.
    ///
    /// # Panics
    /// The text is no JSON object: a host lets none pass either.
    #[track_caller]
    pub fn kwargs_json(mut self, text: &str) -> Self {
        let kwargs = serde_json::from_str::<std::collections::BTreeMap<String, &RawValue>>(text);
        if let Err(error) = kwargs {
            panic!("the kwargs are no JSON object: {error}");
        }
        self.kwargs_json = Some(text.to_owned());
        self
    }

    /// The job's id; by itself one that is always the same.
    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.context.id);
        self
    }

    /// The queue that the message came from; by itself the job's own.
    pub fn queue(mut self, queue: &str) -> Self {
        queue.clone_into(&mut self.context.queue);
        self
    }

    /// Number of the attempt; by itself 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.context.attempt = attempt;
        self
    }

    /// Attempts in all; by itself what the job says, or else 3.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.context.max_attempts = max_attempts;
        self
    }

    /// When the job was first queued; by itself unknown.
    pub fn enqueued_at(mut self, at: SystemTime) -> Self {
        self.context.enqueued_at_ms = Some(epoch_millis(at));
        self
    }

    /// The attempt is of a periodic job: the name of its entry, and the instant that was meant.
    pub fn periodic(mut self, schedule: &str, fire_time: SystemTime) -> Self {
        self.context.schedule = Some(schedule.to_owned());
        self.context.fire_time_ms = Some(epoch_millis(fire_time));
        self
    }

    /// Runs the attempt, all its stages, and tells how it ended. A panic of the job ends the
    /// attempt, as it does on a host, and not the test.
    pub fn run(self) -> Outcome {
        log::install();
        let (args, kwargs) = self.arguments.to_json();
        let call = Call::new(
            self.context,
            self.args_json.unwrap_or(args),
            self.kwargs_json.unwrap_or(kwargs),
        );
        let recorder = recorder::start();
        let mut life = Life {
            make: || Box::new(Erased(J::default())),
            call,
            job: None,
            stages: Vec::new(),
            warnings: Vec::new(),
        };
        let ended = life.live();
        let ended = ended.map_err(|failed| {
            let report = failed.report(&life.call, &J::options());
            life.on_failure(&report);
            report
        });
        if let Ok(result) = &ended {
            life.on_success(result.as_deref());
        }
        let recording = recorder.finish();
        let added_jobs =
            recording.added_jobs.into_iter().filter(|job| job.at_once || ended.is_ok()).collect();
        Outcome {
            ended,
            stages: life.stages,
            warnings: life.warnings,
            log_lines: recording.log_lines,
            progress: recording.progress,
            added_jobs,
        }
    }
}

/// The stages of one attempt, one after the other, as the host calls them.
struct Life {
    make: fn() -> Box<dyn Stages>,
    call: Call,
    /// The job of the instance that lives; none before the first stage and after a panic.
    job: Option<Box<dyn Stages>>,
    stages: Vec<Stage>,
    warnings: Vec<String>,
}

/// The stage that failed, and how.
struct Failed(Stage, Why);

enum Why {
    Failure(Failure),
    Panic(String),
}

impl Life {
    /// From `set_up` to `tear_down`.
    fn live(&mut self) -> Result<Option<String>, Failed> {
        self.stage(Stage::SetUp, |job, call| job.set_up(call))?;
        let ran = self.stage(Stage::Run, |job, call| job.run(call));
        if matches!(ran, Err(Failed(_, Why::Panic(_)))) {
            return ran; // the instance is dead
        }
        let torn_down = self.stage(Stage::TearDown, |job, call| job.tear_down(call));
        match (ran, torn_down) {
            (Ok(result), Ok(())) => Ok(result),
            (Ok(_), Err(failed)) => Err(failed),
            (Err(failed), Ok(())) => Err(failed),
            (Err(failed), Err(warning)) => {
                self.warn(&warning);
                Err(failed)
            }
        }
    }

    fn on_success(&mut self, result: Option<&str>) {
        let stage = self.stage(Stage::OnSuccess, |job, call| job.on_success(call, result));
        if let Err(failed) = stage {
            self.warn(&failed);
        }
    }

    fn on_failure(&mut self, report: &FailureReport) {
        let stage = self.stage(Stage::OnFailure, |job, call| job.on_failure(call, report));
        if let Err(failed) = stage {
            self.warn(&failed);
        }
    }

    /// One stage, in a fresh instance when the one before is dead.
    fn stage<T>(
        &mut self,
        stage: Stage,
        run: impl FnOnce(&mut dyn Stages, &Call) -> Result<T>,
    ) -> Result<T, Failed> {
        self.stages.push(stage);
        let job = match self.job.take() {
            Some(job) => Ok(job),
            None => catch_unwind(self.make),
        };
        // The job that was hit by a panic is dropped here, as its instance is on a host.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut job = job.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let result = run(job.as_mut(), &self.call);
            (job, result)
        }));
        match ended {
            Ok((job, result)) => {
                self.job = Some(job);
                result.map_err(|failure| Failed(stage, Why::Failure(failure)))
            }
            Err(panic) => Err(Failed(stage, Why::Panic(panic_message(panic.as_ref())))),
        }
    }

    fn warn(&mut self, failed: &Failed) {
        self.warnings.push(failed.message().to_owned());
    }
}

impl Failed {
    fn message(&self) -> &str {
        match &self.1 {
            Why::Failure(failure) => failure.message(),
            Why::Panic(message) => message,
        }
    }

    /// The report for `on_failure`, with the retry decided.
    fn report(&self, call: &Call, options: &crate::Options) -> FailureReport {
        let wait = options.retry(call.attempt()).1.unwrap_or(DEFAULT_WAIT);
        let backoff = (!call.is_last_attempt()).then_some(wait);
        let (cause, retry_in) = match &self.1 {
            Why::Panic(_) => (FailureCause::Trap, backoff),
            Why::Failure(failure) => match failure.kind() {
                FailureKind::RetryAfter(wait) => (FailureCause::RetryAfter(wait), Some(wait)),
                FailureKind::Transient => (FailureCause::Transient, backoff),
                FailureKind::Permanent => (FailureCause::Permanent, None),
            },
        };
        FailureReport::new(cause, self.0, self.message().to_owned(), call.attempt(), retry_in)
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the job panicked").to_owned()
}

/// How an attempt ended, and what it did.
#[derive(Clone, Debug)]
#[must_use]
pub struct Outcome {
    ended: Result<Option<String>, FailureReport>,
    stages: Vec<Stage>,
    warnings: Vec<String>,
    log_lines: Vec<LogLine>,
    progress: Vec<(f64, Option<String>)>,
    added_jobs: Vec<AddedJob>,
}

impl Outcome {
    /// Whether the attempt succeeded.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.ended.is_ok()
    }

    /// Whether the attempt failed for good by the job's own word.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.failure().is_some_and(|report| *report.cause() == FailureCause::Permanent)
    }

    /// The result, read as a type; a job without one gives what `null` is in that type.
    ///
    /// # Panics
    /// The attempt failed, or the result does not fit the type: the test fails, and says why.
    #[track_caller]
    pub fn result<T: DeserializeOwned>(&self) -> T {
        let text = self.result_json().unwrap_or("null");
        match serde_json::from_str(text) {
            Ok(result) => result,
            Err(error) => panic!("the result `{text}` is of another type: {error}"),
        }
    }

    /// The JSON text of the result; none for a job without one.
    ///
    /// # Panics
    /// The attempt failed: the test fails, and says why.
    #[track_caller]
    pub fn result_json(&self) -> Option<&str> {
        match &self.ended {
            Ok(result) => result.as_deref(),
            Err(report) => {
                panic!("the attempt failed at {:?}: {}", report.stage(), report.message())
            }
        }
    }

    /// What `on_failure` was told; none for an attempt that succeeded.
    #[must_use]
    pub fn failure(&self) -> Option<&FailureReport> {
        self.ended.as_ref().err()
    }

    /// Message of the failure.
    ///
    /// # Panics
    /// The attempt succeeded: the test fails.
    #[track_caller]
    pub fn failure_message(&self) -> &str {
        match &self.ended {
            Ok(result) => panic!("the attempt succeeded, with the result {result:?}"),
            Err(report) => report.message(),
        }
    }

    /// The stages that were called, in their order.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Failures that did not change how the attempt ended: those of `on_success` and
    /// `on_failure`, and of a `tear_down` after a `run` that had failed.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the job wrote by the `log` crate's macros, on the thread of the test.
    #[must_use]
    pub fn log_lines(&self) -> &[LogLine] {
        &self.log_lines
    }

    /// The messages of [`Outcome::log_lines`], one a line.
    #[must_use]
    pub fn log_text(&self) -> String {
        let messages: Vec<_> = self.log_lines.iter().map(|line| line.message.as_str()).collect();
        messages.join("\n")
    }

    /// What the job told by [`progress`](crate::progress), as the host would take it.
    #[must_use]
    pub fn progress(&self) -> &[(f64, Option<String>)] {
        &self.progress
    }

    /// The jobs that are sent: all that were added when the attempt succeeded, else those that
    /// were to be sent at once.
    #[must_use]
    pub fn added_jobs(&self) -> &[AddedJob] {
        &self.added_jobs
    }
}

#[cfg(test)]
mod tests;

//! The trait that a job implements.

use serde::Serialize;

use crate::{Call, FailureReport, Options, Result};

/// A background job.
///
/// Only [`NAME`](Job::NAME) and [`run`](Job::run) have to be written. For each attempt the host
/// makes a fresh instance of the module, and the SDK a fresh job by [`Default`]: what a stage
/// keeps in a field is there in the next stage of the same attempt, and nowhere else.
///
/// | what happens | then |
/// |---|---|
/// | `set_up` fails | `run` and `tear_down` are skipped, `on_failure` is called |
/// | `run` fails | `tear_down`, then `on_failure` |
/// | `tear_down` fails after a good `run` | the attempt failed, `on_failure` is called |
/// | `run` and `tear_down` both fail | `run`'s failure stands, the other is a warning |
/// | a panic, the timeout or the memory limit at any stage | `on_failure` is called in a fresh instance |
/// | `on_success` or `on_failure` fails | a warning, the outcome stands |
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use sqjobs_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct Report {
///     started: Option<Instant>,
/// }
///
/// impl Job for Report {
///     const NAME: &str = "report";
///     const QUEUE: Option<&str> = Some("reports");
///
///     fn options() -> Options {
///         Options::new().timeout(Duration::from_secs(300)).max_attempts(5)
///     }
///
///     fn set_up(&mut self, _call: &Call) -> Result<()> {
///         self.started = Some(Instant::now());
///         Ok(())
///     }
///
///     fn run(&mut self, call: &Call) -> Result<impl Serialize> {
///         let month: String = call.kwarg("month")?;
///         Ok(format!("report of {month}"))
///     }
///
///     fn tear_down(&mut self, call: &Call) -> Result<()> {
///         info!("{} took {:?}", call.id(), self.started.map(|at| at.elapsed()));
///         Ok(())
///     }
///
///     fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
///         if report.retry_in().is_none() {
///             error!("{} will not run again: {}", call.id(), report.message());
///         }
///         Ok(())
///     }
/// }
/// # let outcome = testing::attempt::<Report>().kwarg("month", "May").run();
/// # assert_eq!(outcome.result::<String>(), "report of May");
/// ```
pub trait Job: Default + 'static {
    /// Name by which messages ask for the job: 1 to 256 bytes, no control characters. Unique over
    /// all modules of a host.
    const NAME: &'static str;

    /// Queue on which the job is put when its adder names none.
    const QUEUE: Option<&'static str> = None;

    /// What the job says about itself beyond its name and queue. Must be the same each time.
    fn options() -> Options {
        Options::new()
    }

    /// First stage. When it fails, `run` and `tear_down` are skipped.
    ///
    /// # Errors
    /// The attempt can't go on.
    #[expect(unused_variables, reason = "the default does nothing; the name is for the docs")]
    fn set_up(&mut self, call: &Call) -> Result<()> {
        Ok(())
    }

    /// The work. What it returns is stored as JSON; `Ok(())` is a job without a result. A value
    /// that is not JSON (a map with keys that are no strings, for one) is a permanent failure.
    ///
    /// The signature is the same for every job, `impl Serialize` included: the compiler finds the
    /// type from the `Ok(...)`. It may borrow from the call.
    ///
    /// # Errors
    /// The attempt failed; the [`Failure`](crate::Failure) tells whether it may be repeated.
    fn run(&mut self, call: &Call) -> Result<impl Serialize>;

    /// Called after `run`, also when that failed.
    ///
    /// # Errors
    /// The attempt failed, even when `run` had succeeded.
    #[expect(unused_variables, reason = "the default does nothing; the name is for the docs")]
    fn tear_down(&mut self, call: &Call) -> Result<()> {
        Ok(())
    }

    /// Called last in an attempt that succeeded, with the JSON text of the result.
    ///
    /// # Errors
    /// Kept as a warning: the outcome stands.
    #[expect(unused_variables, reason = "the default does nothing; the names are for the docs")]
    fn on_success(&mut self, call: &Call, result: Option<&str>) -> Result<()> {
        Ok(())
    }

    /// Called last in an attempt that failed; after a panic, a timeout or too much memory in a
    /// fresh instance, hence with a fresh job. Whether the job runs again is decided before.
    ///
    /// # Errors
    /// Kept as a warning: the outcome stands.
    #[expect(unused_variables, reason = "the default does nothing; the names are for the docs")]
    fn on_failure(&mut self, call: &Call, report: &FailureReport) -> Result<()> {
        Ok(())
    }
}

//! Adding further jobs from within a job.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::to_raw_value;

use crate::bindings::sqjobs::job::add_job as wit;
use crate::options::{Arguments, millis};
use crate::{Failure, Job, Result, host};

/// A job to be added, made step by step and given to [`add_job`].
#[derive(Debug)]
#[must_use = "a job is added by `add_job`"]
pub struct NewJob {
    name: String,
    arguments: Arguments,
    queue: Option<String>,
    delay: Option<Duration>,
    unique_key: Option<String>,
    unique_for: Option<Duration>,
    group: Option<String>,
    at_once: bool,
    /// Why an argument could not be taken; told by `add_job`, so that the steps stay a chain.
    fault: Option<Failure>,
}

impl NewJob {
    /// A job by its name, without arguments, on the queue of the job that adds it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            arguments: Arguments::default(),
            queue: None,
            delay: None,
            unique_key: None,
            unique_for: None,
            group: None,
            at_once: false,
            fault: None,
        }
    }

    /// A job by its type: its name, and its queue if it says one.
    pub fn of<J: Job>() -> Self {
        let job = Self::new(J::NAME);
        match J::QUEUE {
            Some(queue) => job.queue(queue),
            None => job,
        }
    }

    /// One more positional argument.
    #[track_caller]
    pub fn arg(mut self, value: impl Serialize) -> Self {
        match to_raw_value(&value) {
            Ok(value) => self.arguments.push(value),
            Err(error) => self.refuse(&error),
        }
        self
    }

    /// One more named argument; a name that is given again takes the new value.
    #[track_caller]
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        match to_raw_value(&value) {
            Ok(value) => self.arguments.insert(name.into(), value),
            Err(error) => self.refuse(&error),
        }
        self
    }

    /// The queue, by name; the operator may have to grant it.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Wait before it may run; ten years at most.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Key under which only one job may wait or run, of whatever name; 1 to 256 bytes. While
    /// another job holds it, [`add_job`] adds nothing and returns that one's id.
    pub fn unique_key(mut self, key: impl Into<String>) -> Self {
        self.unique_key = Some(key.into());
        self
    }

    /// How long the key is held after the adding, even when the job has finished; without, until
    /// it has finished. Wants a [`Self::unique_key`].
    pub fn unique_for(mut self, window: Duration) -> Self {
        self.unique_for = Some(window);
        self
    }

    /// Message group on a FIFO queue; tenant on a standard one.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Send it now, even if this attempt fails later.
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }

    #[track_caller]
    fn refuse(&mut self, error: &serde_json::Error) {
        let message = format!("an argument of the new job `{}` is not JSON: {error}", self.name);
        self.fault.get_or_insert(Failure::permanent(message));
    }
}

/// Adds a job and returns its id.
///
/// It is sent when this attempt has succeeded, in one transaction with its outcome; an attempt
/// that fails adds nothing, and one that is repeated doubles nothing. See [`NewJob::at_once`] for
/// the exception.
///
/// ```
/// use sqjobs_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct Fan;
///
/// impl Job for Fan {
///     const NAME: &str = "fan";
///
///     fn run(&mut self, call: &Call) -> Result<impl Serialize> {
///         for part in 0..call.arg(0)? {
///             add_job(NewJob::new("part").arg(part).kwarg("of", call.id()))?;
///         }
///         Ok(())
///     }
/// }
///
/// let outcome = testing::attempt::<Fan>().arg(2).run();
/// let added: Vec<_> = outcome.added_jobs().iter().map(|job| job.args.as_str()).collect();
/// assert_eq!(added, ["[0]", "[1]"]);
/// ```
///
/// # Errors
/// The operator has not granted the queue or the job, the request is not well formed, or a limit
/// of the attempt is reached: permanent, and the message names the remedy. It could not be sent
/// now: transient.
#[track_caller]
pub fn add_job(job: NewJob) -> Result<String> {
    if let Some(fault) = job.fault {
        return Err(fault);
    }
    let (args, kwargs) = job.arguments.to_json();
    let name = job.name;
    let request = wit::Request {
        name: name.clone(),
        args,
        kwargs,
        queue: job.queue,
        delay_ms: job.delay.map(millis),
        unique_key: job.unique_key,
        unique_for_ms: job.unique_for.map(millis),
        group: job.group,
        at_once: job.at_once,
        extra: Vec::new(),
    };
    match host::add_job(request) {
        Ok(id) => Ok(id),
        Err(wit::Error::Unavailable(reason)) => {
            Err(Failure::transient(format!("cannot add `{name}` now: {reason}")))
        }
        Err(
            wit::Error::Denied(reason) | wit::Error::Invalid(reason) | wit::Error::Limit(reason),
        ) => Err(Failure::permanent(format!("cannot add `{name}`: {reason}"))),
    }
}

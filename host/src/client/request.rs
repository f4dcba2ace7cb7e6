//! What is to be added, made step by step.

use std::time::Duration;

use serde::Serialize;

use super::AddError;
use crate::clock::Timestamp;
use crate::json::{self, JsonError};
use crate::store::unique::UniqueRule;

/// A job to be added.
///
/// ```
/// use sqjobs::client::JobRequest;
/// let request = JobRequest::new("adder_job").args(&[1, 2, 3, 4])?.queue("my_queue");
/// # Ok::<(), sqjobs::client::AddError>(())
/// ```
#[derive(Debug, Clone)]
pub struct JobRequest {
    pub(super) name: String,
    pub(super) args: String,
    pub(super) kwargs: String,
    pub(super) queue: Option<String>,
    pub(super) id: Option<String>,
    pub(super) group: Option<String>,
    pub(super) delay: Duration,
    pub(super) at: Option<Timestamp>,
    pub(super) unique: Option<UniqueRule>,
}

impl JobRequest {
    /// A job without arguments, on the queue that it describes.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: "[]".into(),
            kwargs: "{}".into(),
            queue: None,
            id: None,
            group: None,
            delay: Duration::ZERO,
            at: None,
            unique: None,
        }
    }

    /// Positional arguments: anything that serialises as a JSON array.
    ///
    /// # Errors
    /// It can't be serialised, or is no array.
    pub fn args(self, args: &impl Serialize) -> Result<Self, AddError> {
        let text = serialised("args", args)?;
        self.args_json(&text)
    }

    /// Named arguments: anything that serialises as a JSON object.
    ///
    /// # Errors
    /// It can't be serialised, or is no object.
    pub fn kwargs(self, kwargs: &impl Serialize) -> Result<Self, AddError> {
        let text = serialised("kwargs", kwargs)?;
        self.kwargs_json(&text)
    }

    /// Positional arguments: the text of a JSON array, passed on as it is.
    ///
    /// # Errors
    /// It is no JSON array.
    pub fn args_json(mut self, text: &str) -> Result<Self, AddError> {
        let checked = json::check_array(text);
        self.args = checked.map_err(|source| AddError::Arguments { what: "args", source })?.into();
        Ok(self)
    }

    /// Named arguments: the text of a JSON object, passed on as it is.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn kwargs_json(mut self, text: &str) -> Result<Self, AddError> {
        let checked = json::check_object(text);
        self.kwargs =
            checked.map_err(|source| AddError::Arguments { what: "kwargs", source })?.into();
        Ok(self)
    }

    /// The queue, instead of the one that the deployed job describes.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// The job's id, the key by which it succeeds once; a fresh UUID without.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Message group: order on a FIFO queue, tenant on a standard one.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Time before the job may run, at most [`MAX_AHEAD`](crate::clock::MAX_AHEAD).
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The instant before which the job must not run, instead of a delay. One in the past is now.
    #[must_use]
    pub fn at(mut self, instant: Timestamp) -> Self {
        self.at = Some(instant);
        self
    }

    /// Adds nothing while another job of this key waits or runs, or was added less than `window`
    /// ago; the answer is then that job's id. Without, what the deployed job describes counts.
    ///
    /// # Errors
    /// The key is empty, has over 256 bytes or control characters.
    pub fn unique(mut self, key: &str, window: Duration) -> Result<Self, AddError> {
        self.unique = Some(UniqueRule::named(key, window)?);
        Ok(self)
    }
}

fn serialised(what: &'static str, value: &impl Serialize) -> Result<String, AddError> {
    serde_json::to_string(value)
        .map_err(|error| AddError::Arguments { what, source: JsonError::Syntax(error.to_string()) })
}

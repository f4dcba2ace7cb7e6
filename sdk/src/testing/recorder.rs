//! The host's imports in a unit test: what the job sends is kept for the test to look at. One
//! recording a thread, so that tests run side by side.

use std::cell::RefCell;
use std::time::Duration;

use crate::bindings::sqjobs::job::add_job::{Error, Request};
use crate::bindings::sqjobs::job::log::Level as HostLevel;
use crate::log::Level;

/// A line that the job wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// Where in the module it comes from.
    pub target: String,
    /// The line.
    pub message: String,
    /// Keys and values.
    pub fields: Vec<(String, String)>,
}

/// A job that the job added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedJob {
    /// The id that the job was told.
    pub id: String,
    /// Name of the job.
    pub name: String,
    /// Positional arguments: the text of a JSON array.
    pub args: String,
    /// Named arguments: the text of a JSON object.
    pub kwargs: String,
    /// The queue; none is the adding job's own.
    pub queue: Option<String>,
    /// Wait before it may run.
    pub delay: Option<Duration>,
    /// Key under which only one job may wait or run.
    pub unique_key: Option<String>,
    /// How long the key is held after the adding.
    pub unique_for: Option<Duration>,
    /// Message group or tenant.
    pub group: Option<String>,
    /// Whether it is sent even if the attempt fails.
    pub at_once: bool,
}

/// What one attempt sent.
#[derive(Default)]
pub(crate) struct Recording {
    pub(crate) log_lines: Vec<LogLine>,
    pub(crate) progress: Vec<(f64, Option<String>)>,
    pub(crate) added_jobs: Vec<AddedJob>,
}

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Records until it is finished or dropped.
pub(crate) struct Recorder {
    /// The recording of an attempt around this one: a job may be tested from within a job.
    outer: Option<Recording>,
}

/// Begins a recording on this thread.
pub(crate) fn start() -> Recorder {
    Recorder { outer: RECORDING.replace(Some(Recording::default())) }
}

impl Recorder {
    /// What was sent since the start.
    pub(crate) fn finish(mut self) -> Recording {
        RECORDING.replace(self.outer.take()).unwrap_or_default()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(outer) = self.outer.take() {
            RECORDING.set(Some(outer));
        }
    }
}

pub(crate) fn write_log(
    level: HostLevel,
    target: &str,
    message: &str,
    fields: Vec<(String, String)>,
) {
    let level = match level {
        HostLevel::Error => Level::Error,
        HostLevel::Warn => Level::Warn,
        HostLevel::Info => Level::Info,
        HostLevel::Debug => Level::Debug,
        HostLevel::Trace => Level::Trace,
    };
    let (target, message) = (target.to_owned(), message.to_owned());
    RECORDING.with_borrow_mut(|recording| {
        if let Some(recording) = recording {
            recording.log_lines.push(LogLine { level, target, message, fields });
        }
    });
}

pub(crate) fn set_progress(fraction: f64, message: Option<&str>) {
    if fraction.is_nan() {
        return;
    }
    RECORDING.with_borrow_mut(|recording| {
        if let Some(recording) = recording {
            recording.progress.push((fraction.clamp(0.0, 1.0), message.map(str::to_owned)));
        }
    });
}

pub(crate) fn add_job(request: Request) -> Result<String, Error> {
    RECORDING.with_borrow_mut(|recording| {
        let Some(recording) = recording else {
            return Err(Error::Unavailable("no attempt runs on this thread".to_owned()));
        };
        let id = format!("00000000-0000-5000-8000-{:012}", recording.added_jobs.len() + 1);
        recording.added_jobs.push(AddedJob {
            id: id.clone(),
            name: request.name,
            args: request.args,
            kwargs: request.kwargs,
            queue: request.queue,
            delay: request.delay_ms.map(Duration::from_millis),
            unique_key: request.unique_key,
            unique_for: request.unique_for_ms.map(Duration::from_millis),
            group: request.group,
            at_once: request.at_once,
        });
        Ok(id)
    })
}

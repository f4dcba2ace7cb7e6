//! What `on_failure` is told.

use std::time::Duration;

use crate::bindings::sqjobs::job::types as wit;

/// What [`Job::on_failure`](crate::Job::on_failure) is told. The decision about a retry is made
/// before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureReport {
    cause: FailureCause,
    stage: Stage,
    message: String,
    attempt: u32,
    retry_in: Option<Duration>,
}

impl FailureReport {
    /// Why the attempt failed.
    #[must_use]
    pub fn cause(&self) -> &FailureCause {
        &self.cause
    }

    /// The stage that failed.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Why, in a line for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Number of the attempt that failed, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// After how long the job runs again; none when it does not.
    #[must_use]
    pub fn retry_in(&self) -> Option<Duration> {
        self.retry_in
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn new(
        cause: FailureCause,
        stage: Stage,
        message: String,
        attempt: u32,
        retry_in: Option<Duration>,
    ) -> Self {
        Self { cause, stage, message, attempt, retry_in }
    }
}

/// How an attempt ended that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureCause {
    /// The job asked to be run again after this long.
    RetryAfter(Duration),
    /// The job failed and may work later.
    Transient,
    /// The job said that it can never work, or its result could not be taken.
    Permanent,
    /// The code trapped: a panic, an access out of bounds, an exit.
    Trap,
    /// The attempt took longer than it may.
    Timeout,
    /// The attempt wanted more memory than it may have.
    OutOfMemory,
    /// A cause of a later release, by name.
    Other(String),
}

/// One step in the life of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The instance is made and told its payload.
    Begin,
    /// `set_up`
    SetUp,
    /// `run`
    Run,
    /// `tear_down`
    TearDown,
    /// `on_success`
    OnSuccess,
    /// `on_failure`
    OnFailure,
}

impl From<wit::FailureReport> for FailureReport {
    fn from(report: wit::FailureReport) -> Self {
        Self {
            cause: match report.cause {
                wit::FailureCause::RetryAfter(secs) => {
                    FailureCause::RetryAfter(Duration::from_secs(secs))
                }
                wit::FailureCause::Transient => FailureCause::Transient,
                wit::FailureCause::Permanent => FailureCause::Permanent,
                wit::FailureCause::Trap => FailureCause::Trap,
                wit::FailureCause::Timeout => FailureCause::Timeout,
                wit::FailureCause::OutOfMemory => FailureCause::OutOfMemory,
                wit::FailureCause::Other(name) => FailureCause::Other(name),
            },
            stage: match report.stage {
                wit::Stage::Begin => Stage::Begin,
                wit::Stage::SetUp => Stage::SetUp,
                wit::Stage::Run => Stage::Run,
                wit::Stage::TearDown => Stage::TearDown,
                wit::Stage::OnSuccess => Stage::OnSuccess,
                wit::Stage::OnFailure => Stage::OnFailure,
            },
            message: report.message,
            attempt: report.attempt,
            retry_in: report.retry_in_ms.map(Duration::from_millis),
        }
    }
}

//! Path 1, step 7: how an attempt ended, and at which stage.

use std::fmt;
use std::time::Duration;

/// One step in the life of an attempt, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each is the WIT export of that name
pub enum Stage {
    Begin,
    SetUp,
    Run,
    TearDown,
    OnSuccess,
    OnFailure,
}

impl Stage {
    /// The stage's name as WIT spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::SetUp => "set-up",
            Self::Run => "run",
            Self::TearDown => "tear-down",
            Self::OnSuccess => "on-success",
            Self::OnFailure => "on-failure",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The job asked to be run again after this time; spends no attempt.
    RetryAfter(Duration),
    /// The job failed and may work later.
    Transient,
    /// The job can never work, or its result can't be taken.
    Permanent,
    /// The guest's code trapped.
    Trap,
    /// The attempt took longer than it may.
    Timeout,
    /// The attempt wanted more memory than it may have.
    OutOfMemory,
}

impl Cause {
    /// The word that rows and log lines use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RetryAfter(_) => "retry-after",
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out-of-memory",
        }
    }

    /// Whether the instance is unusable afterwards, so that `on-failure` needs a fresh one.
    #[must_use]
    pub const fn kills_instance(self) -> bool {
        matches!(self, Self::Trap | Self::Timeout | Self::OutOfMemory)
    }
}

/// A failure, at the stage where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// Where.
    pub stage: Stage,
    /// One line for people.
    pub message: String,
    /// Where in the guest's code, if that is known.
    pub backtrace: Option<String>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All stages went well; the JSON text that `run` returned, if it returned any.
    Success(Option<String>),
    /// A stage failed.
    Failed(Failure),
    /// The host stopped it: it is shutting down. Not counted as an attempt.
    Interrupted,
    /// Somebody cancelled the job.
    Cancelled,
    /// Another attempt owns the job by now. Nothing of this one is stored.
    LeaseLost,
}

impl Outcome {
    /// The word that log lines and rows use.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Success(_) => "success",
            Self::Failed(failure) => failure.cause.name(),
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
            Self::LeaseLost => "lease-lost",
        }
    }
}

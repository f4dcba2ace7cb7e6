//! Which entries of the dead list a command is about.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use crate::cli::Usage;
use crate::cli::time::Past;
use crate::clock::Timestamp;
use crate::store::dead::{DeadFilter, DeadKind};

#[derive(Args)]
pub(super) struct FilterArguments {
    /// Only this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only of this queue
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    queue: Option<String>,
    /// Only of this job
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    job: Option<String>,
    /// Only those whose reason holds this text
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), allow_hyphen_values = true)]
    reason: Option<String>,
    /// Only those with an attempt whose error or backtrace holds this text
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), allow_hyphen_values = true)]
    error: Option<String>,
    /// Only those put aside at this instant or later: `2030-01-31T08:00:00Z`, or an age as `2h`
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Only those put aside before this instant, or longer ago than this age
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
}

impl FilterArguments {
    /// Whether there is any condition.
    pub(super) fn is_given(&self) -> bool {
        let texts = [&self.queue, &self.job, &self.reason, &self.error, &self.since, &self.until];
        self.kind.is_some() || texts.iter().any(|text| text.is_some())
    }

    /// Refuses what is no time, before anything is opened.
    pub(super) fn check(&self) -> Result<(), Usage> {
        self.filter(Timestamp(0)).map(|_| ())
    }

    /// The filter; ages are counted from `now`.
    pub(super) fn filter(&self, now: Timestamp) -> Result<DeadFilter, Usage> {
        let past = |what: &str, text: &Option<String>| {
            text.as_ref()
                .map(|text| Past::read(what, text).map(|past| past.instant(now)))
                .transpose()
        };
        Ok(DeadFilter {
            ids: Vec::new(),
            kind: self.kind.map(|kind| DeadKind::from(kind).name().to_owned()),
            queue: self.queue.clone(),
            job: self.job.clone(),
            reason: self.reason.clone(),
            error: self.error.clone(),
            since: past("--since", &self.since)?,
            until: past("--until", &self.until)?,
        })
    }
}

/// The kinds of [`DeadKind`], as words of the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Malformed,
    UnknownJob,
    IdConflict,
    Failed,
    Crashed,
    Undeliverable,
    Lost,
}

impl From<Kind> for DeadKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Malformed => Self::Malformed,
            Kind::UnknownJob => Self::UnknownJob,
            Kind::IdConflict => Self::IdConflict,
            Kind::Failed => Self::Failed,
            Kind::Crashed => Self::Crashed,
            Kind::Undeliverable => Self::Undeliverable,
            Kind::Lost => Self::Lost,
        }
    }
}

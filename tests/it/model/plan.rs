//! What is sent, drawn from the seed, and what must become of it.

use std::time::Duration;

use fastrand::Rng;
use sqjobs::client::JobRequest;

/// How a job will go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Succeeds at once.
    Good,
    /// Succeeds at once, added by our own client, through the outbox.
    Added,
    /// Succeeds, added by our client with a delay of a second or of an hour.
    Delayed,
    /// Succeeds, added twice under one unique key.
    Unique,
    /// Would run for ten minutes, added by our own client, and is cancelled in the next round.
    Cancelled,
    /// Fails transiently before its second or third attempt.
    Fickle,
    /// Asks to be run again in a second, then succeeds.
    Late,
    /// Fails transiently until its attempts are spent.
    Hopeless,
    /// Fails for good.
    Permanent,
    /// Traps until its attempts are spent.
    Trap,
    /// Runs into its timeout, its only attempt.
    Timeout,
    /// Wants more memory than it may have until its attempts are spent.
    Memory,
    /// Adds two jobs.
    Parent,
    /// Adds two jobs and fails.
    FailingParent,
    /// Succeeds and records nothing.
    Unrecorded,
    /// Fails for good although it records nothing.
    UnrecordedFailure,
    /// Is no job.
    Malformed,
    /// Is sent twice.
    Twice,
    /// Is sent twice, with other arguments the second time.
    Conflict,
    /// Succeeds, one of a message group of the FIFO queue.
    Ordered,
    /// Fails transiently before its second or third attempt, in a group.
    OrderedFickle,
    /// Fails transiently until its attempts are spent, in a group.
    OrderedHopeless,
}

/// Message groups of the FIFO queue.
const GROUPS: usize = 4;

/// How often each kind is drawn, of all the draws.
const WEIGHTS: [(Kind, u32); 22] = [
    (Kind::Good, 30),
    (Kind::Added, 8),
    (Kind::Delayed, 5),
    (Kind::Unique, 5),
    (Kind::Cancelled, 4),
    (Kind::Fickle, 8),
    (Kind::Late, 4),
    (Kind::Hopeless, 3),
    (Kind::Permanent, 5),
    (Kind::Trap, 3),
    (Kind::Timeout, 1),
    (Kind::Memory, 2),
    (Kind::Parent, 5),
    (Kind::FailingParent, 3),
    (Kind::Unrecorded, 12),
    (Kind::UnrecordedFailure, 3),
    (Kind::Malformed, 4),
    (Kind::Twice, 6),
    (Kind::Conflict, 3),
    (Kind::Ordered, 12),
    (Kind::OrderedFickle, 4),
    (Kind::OrderedHopeless, 2),
];

/// A job that was sent.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: String,
    pub(super) kind: Kind,
    /// Milliseconds that a good run takes.
    ms: u32,
    /// The attempt at which a fickle one succeeds.
    attempt: u32,
    /// Of the messages that asked for it.
    pub(super) message_ids: Vec<String>,
}

impl Planned {
    pub(super) fn draw(rng: &mut Rng, number: usize) -> Self {
        let weights: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = rng.u32(..weights);
        let mut kind = Kind::Good;
        for (next, weight) in WEIGHTS {
            if drawn < weight {
                kind = next;
                break;
            }
            drawn -= weight;
        }
        let id = super::unique_id(number);
        Self { id, kind, ms: rng.u32(..40), attempt: rng.u32(2..=3), message_ids: Vec::new() }
    }

    /// The bodies to be put on the queue.
    pub(super) fn bodies(&self) -> Vec<String> {
        let Self { id, ms, attempt, .. } = self;
        let body = |name: &str, args: &str, kwargs: &str| {
            format!(r#"{{"id": "{id}", "name": "{name}", "args": {args}, "kwargs": {kwargs}}}"#)
        };
        let good = body("effect", "[]", &format!(r#"{{"ms": {ms}}}"#));
        match self.kind {
            Kind::Good => vec![good],
            Kind::Added | Kind::Delayed | Kind::Unique | Kind::Cancelled => Vec::new(),
            Kind::Ordered | Kind::OrderedFickle | Kind::OrderedHopeless => Vec::new(),
            Kind::Fickle => {
                vec![body("effect", "[]", &format!(r#"{{"fail_before": {attempt}}}"#))]
            }
            Kind::Late => vec![body("effect", "[]", r#"{"fail_before": 2, "retry_after": 1}"#)],
            Kind::Hopeless => vec![body("fail_transient", "[]", "{}")],
            Kind::Permanent => vec![body("fail_permanent", "[]", "{}")],
            Kind::Trap => vec![body("trap_in", r#"["run"]"#, "{}")],
            Kind::Timeout => vec![body("hurried", "[]", "{}")],
            Kind::Memory => vec![body("allocate", "[3000000000]", "{}")],
            Kind::Parent => vec![body("add_children", "[2]", "{}")],
            Kind::FailingParent => vec![body("add_children", "[2]", r#"{"fail": true}"#)],
            Kind::Unrecorded => {
                vec![body("unrecorded_effect", "[]", &format!(r#"{{"ms": {ms}}}"#))]
            }
            Kind::UnrecordedFailure => vec![body("unrecorded", "[true]", "{}")],
            Kind::Malformed => vec![format!("{id} is no job")],
            Kind::Twice => vec![good.clone(), good],
            Kind::Conflict => vec![good, body("effect", r#"["other"]"#, "{}")],
        }
    }

    /// The message group that it is of, on the FIFO queue.
    pub(super) fn group(&self) -> Option<usize> {
        matches!(self.kind, Kind::Ordered | Kind::OrderedFickle | Kind::OrderedHopeless)
            .then_some(self.ms as usize % GROUPS)
    }

    /// What our client is asked to add, one after the other.
    pub(super) fn requests(&self, queue: &str, fifo: &str) -> Vec<JobRequest> {
        let ordered = |job: &str| {
            let group = self.group().map_or_else(String::new, |group| format!("g{group}"));
            JobRequest::new(job).id(&self.id).queue(fifo).group(group)
        };
        let request = |id: &str| JobRequest::new("effect").id(id).queue(queue);
        let hour = Duration::from_secs(3600);
        match self.kind {
            Kind::Added => vec![request(&self.id)],
            Kind::Ordered => {
                let kwargs = format!(r#"{{"ms": {}}}"#, self.ms);
                vec![ordered("effect").kwargs_json(&kwargs).unwrap()]
            }
            Kind::OrderedFickle => {
                let kwargs = format!(r#"{{"fail_before": {}}}"#, self.attempt);
                vec![ordered("effect").kwargs_json(&kwargs).unwrap()]
            }
            Kind::OrderedHopeless => vec![ordered("fail_transient")],
            // Ten minutes: only a cancel ends it in time.
            Kind::Cancelled => {
                let sleeps = JobRequest::new("sleep_ms").args(&[600_000]).unwrap();
                vec![sleeps.id(&self.id).queue(queue)]
            }
            Kind::Delayed if self.ms.is_multiple_of(2) => {
                vec![request(&self.id).delay(Duration::from_secs(1))]
            }
            Kind::Delayed => vec![request(&self.id).delay(hour)],
            Kind::Unique => [self.id.clone(), format!("{}-second", self.id)]
                .iter()
                .map(|id| request(id).unique(&self.id, hour).unwrap())
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The status that its row must come to; `None` where there must be no row.
    pub(super) fn status(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Malformed => None,
            Kind::Cancelled => Some("CANCELLED"),
            _ if self.is_dead() => Some("FAILURE"),
            _ => Some("SUCCESS"),
        }
    }

    /// Whether it must be in the dead list under its own id.
    pub(super) fn is_dead(&self) -> bool {
        matches!(
            self.kind,
            Kind::Hopeless
                | Kind::OrderedHopeless
                | Kind::Permanent
                | Kind::Trap
                | Kind::Timeout
                | Kind::Memory
                | Kind::FailingParent
                | Kind::UnrecordedFailure
        )
    }

    /// How many jobs it must have added.
    pub(super) fn children(&self) -> usize {
        if self.kind == Kind::Parent { 2 } else { 0 }
    }
}

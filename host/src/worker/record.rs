//! Path 1, step 9: the outcome of an attempt, on its way into the database.

use super::lease::Lease;
use super::message::{Answer, Message};
use super::process::Attempt;
use crate::outcome::{Cause, Failure, Outcome, Stage};
use crate::payload::Job;
use crate::registry::Served;
use crate::retry::{self, Settlement};
use crate::sandbox::{Call, Execution};
use crate::store::dead::DeadKind;
use crate::store::finish::{Ending, FinishRequest};
use crate::text::{cut, without_nul};

/// Most bytes kept of an attempt's warnings.
const MAX_WARNINGS_BYTES: usize = 64 << 10;

impl Message<'_> {
    /// Stores the outcome; tells whether it was this attempt's to store. One that the database
    /// will never take becomes a failure for good that says so. `None`: the lease was lost before
    /// the database could be reached.
    #[allow(clippy::too_many_arguments)] // each is one fact of the attempt
    pub(super) async fn store(
        &self,
        lease: &Lease,
        job: &Job,
        served: &Served,
        call: &Call,
        attempt: &Attempt,
        execution: &mut Execution,
        is_parked: bool,
    ) -> Option<bool> {
        let leaves_nothing =
            matches!(execution.outcome, Outcome::Success(_) | Outcome::Interrupted)
                && execution.added.is_empty()
                && !is_parked;
        if attempt.begun.is_none() && leaves_nothing {
            return Some(true);
        }
        let request = self.finished(job, served, call, attempt, execution, is_parked);
        let finishes = &self.worker.finishes;
        match self.ask(lease, || finishes.call(request.clone()), || false).await {
            Answer::Said(is_stored) => return Some(is_stored),
            Answer::None => return None,
            Answer::Refused(reason) => *execution = impossible(execution, &reason),
        }
        let request = self.finished(job, served, call, attempt, execution, false);
        self.persist(lease, || finishes.call(request.clone())).await
    }

    fn finished(
        &self,
        job: &Job,
        served: &Served,
        call: &Call,
        attempt: &Attempt,
        execution: &Execution,
        is_parked: bool,
    ) -> FinishRequest {
        let outcome = &execution.outcome;
        let records = attempt.config.records(&served.definition);
        let failure = match outcome {
            Outcome::Failed(failure) => Some((
                failure.stage.name().to_owned(),
                failure.message.clone(),
                failure.backtrace.clone(),
            )),
            _ => None,
        };
        let ending = match execution.settlement {
            Settlement::Delete => Ending::Success,
            Settlement::RetryIn(wait) => Ending::Retry(wait),
            Settlement::DeadLetter => {
                let reason = failure.as_ref().map_or("", |failure| &failure.1);
                Ending::Failure(Box::new(self.dead(DeadKind::Failed, Some(job), reason)))
            }
            Settlement::Cancel => Ending::Cancelled,
            Settlement::Release | Settlement::Abandon => Ending::Released,
        };
        let queue = &self.polled.queue;
        FinishRequest {
            job: job.clone(),
            queue: self.delivery.queue.clone(),
            group: self.delivery.group.clone(),
            token: attempt.token.clone(),
            worker_id: self.worker.id.clone(),
            module: served.module.version.clone(),
            attempt: call.attempt,
            is_claimed: attempt.begun.is_some(),
            is_spent: retry::spends_attempt(outcome),
            ending,
            outcome: outcome.name(),
            result: match outcome {
                Outcome::Success(result) if records => result.clone(),
                _ => None,
            },
            failure,
            logs: execution.logs.clone(),
            warnings: cut(without_nul(execution.warnings.join("\n")), MAX_WARNINGS_BYTES),
            duration: execution.duration,
            children: execution.added.clone(),
            is_parked,
            address: self.polled.address.clone(),
            attributes: self.delivery.attributes.clone(),
            is_ordered: queue.is_fifo,
            dead_letter_queue: queue.dead_letter_queue.clone(),
        }
    }
}

/// What is stored instead of an outcome that the database refuses: nothing that the guest said,
/// since any of it may be the reason. Run again, it would end the same.
fn impossible(execution: &Execution, reason: &str) -> Execution {
    Execution {
        outcome: Outcome::Failed(Failure {
            cause: Cause::Permanent,
            stage: Stage::Run,
            message: format!("the database refuses this attempt's outcome: {reason}"),
            backtrace: None,
        }),
        settlement: Settlement::DeadLetter,
        logs: String::new(),
        warnings: Vec::new(),
        added: Vec::new(),
        duration: execution.duration,
    }
}

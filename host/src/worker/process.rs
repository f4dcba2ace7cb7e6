//! Path 1, step 2: one message from receipt to settlement. The page to read first.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::Shared;
use super::lease::Lease;
use super::settle::Settler;
use crate::broker::{Delivery, MAX_VISIBILITY_TIMEOUT_SECS, Queue};
use crate::clock::millis;
use crate::config::Config;
use crate::outage::{Backoff, chain};
use crate::outcome::Outcome;
use crate::payload::{self, Job};
use crate::registry::Served;
use crate::retry::{self, Settlement};
use crate::sandbox::{Call, Execution, Watch};
use crate::store::StoreError;
use crate::store::claim::{Begun, Claim, ClaimRequest};
use crate::store::dead::{DeadKind, DeadMessage};
use crate::store::finish::{Ending, FinishRequest};
use crate::text::{cut, printable, without_nul};

/// A queue that a worker polls.
pub(super) struct Polled {
    pub(super) queue: Arc<Queue>,
    pub(super) settler: Settler,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// The message is gone from the queue.
    Gone,
    /// The message comes again, or another attempt owns it: what follows it in its group waits.
    Stays,
}

/// Carries one delivery from receipt to settlement.
///
/// The outcome is stored before the message is settled: a crash in between costs one more
/// delivery, never a result. `slot` is given back as soon as the guest is done and its outcome
/// stored; the settlement travels in a batch and needs none.
pub(super) async fn process(
    worker: &Shared,
    polled: &Polled,
    delivery: Delivery,
    lease: Lease,
    slot: super::Slot,
) -> Settled {
    let held = Message { worker, polled, delivery, config: worker.live.load() };
    let job = match payload::decode(
        &held.delivery.body,
        &held.delivery.attributes,
        &held.delivery.message_id,
    ) {
        Ok(job) => job,
        Err(reason) => return held.put_aside(lease, DeadKind::Malformed, None, &reason).await,
    };
    let Some(served) = worker.registry.choose(&job.name, &job.id) else {
        return held.give_back_unknown(lease, job).await;
    };
    if worker.stopping.is_cancelled() {
        return held.give_back(lease, Duration::ZERO).await;
    }
    let token = uuid::Uuid::new_v4().to_string();
    let begun = match held.claim(&lease, &job, &served, &token).await {
        Some(Claim::Begun(begun)) => Some(begun),
        Some(Claim::Finished(status)) => {
            info!(job.id = %printable(&job.id), "job {} is {status} already; its message is deleted", printable(&job.id));
            return held.delete(lease).await;
        }
        Some(Claim::Held(wait)) => return held.give_back(lease, wait).await,
        Some(Claim::Conflict(reason)) => {
            return held.put_aside(lease, DeadKind::IdConflict, Some(&job), &reason).await;
        }
        None if held.needs_claim(&job, &served) => return Settled::Stays,
        None => None,
    };

    let call = held.call(&job, &served, begun.as_ref());
    let (progress, told) = tokio::sync::watch::channel(None);
    let watch = Watch { stop: lease.stopped(), progress };
    let execution =
        worker.sandbox.execute(&served.module.prepared, &call, Some(&worker.store), watch);
    let execution = tokio::select! {
        execution = execution => execution,
        never = note_progress(&worker.store, &job.id, &token, told.clone()) => match never {},
    };
    served.tally.note(&execution.outcome);
    let last_told = told.borrow().clone();
    if let (Some(_), Some((share, message))) = (&begun, last_told) {
        // The last word may have come just before the end. Losing it harms nothing.
        let noted = worker.store.set_progress(&job.id, &token, share, message.as_deref()).await;
        if let Err(error) = noted {
            debug!("a job's progress was not noted: {error}");
        }
    }
    if execution.outcome == Outcome::LeaseLost {
        warn!(job.id = %printable(&job.id), attempt = call.attempt, "job {} lost its lease; nothing of this attempt is stored", printable(&job.id));
        return Settled::Stays;
    }
    let is_parked = held.must_park(execution.settlement);
    let is_stored =
        held.store(&lease, &job, &served, &call, &token, begun.is_some(), &execution, is_parked);
    let is_stored = is_stored.await;
    drop(slot);
    match is_stored {
        Some(true) => {}
        Some(false) => {
            warn!(job.id = %printable(&job.id), attempt = call.attempt, "another attempt owns job {} by now; this one's outcome is dropped", printable(&job.id));
            return Settled::Stays;
        }
        None => return Settled::Stays,
    }
    // Told only now: an outcome that was not stored did not happen.
    held.tell(&call, &served, &execution);
    let is_dead = execution.settlement == Settlement::DeadLetter;
    if !execution.added.is_empty() || is_parked || is_dead {
        worker.sender.wake();
    }
    match execution.settlement {
        Settlement::Delete | Settlement::DeadLetter | Settlement::Cancel => {
            held.delete(lease).await
        }
        Settlement::RetryIn(_) if is_parked => held.delete(lease).await,
        Settlement::RetryIn(wait) => held.give_back(lease, wait).await,
        Settlement::Release => held.give_back(lease, Duration::ZERO).await,
        Settlement::Abandon => Settled::Stays,
    }
}

/// Writes what the guest tells of its progress, at most twice a second, until it is dropped.
async fn note_progress(
    store: &crate::store::Store,
    job_id: &str,
    token: &str,
    mut told: tokio::sync::watch::Receiver<crate::sandbox::context::Progress>,
) -> std::convert::Infallible {
    while told.changed().await.is_ok() {
        let latest = told.borrow_and_update().clone();
        if let Some((share, message)) = latest
            && let Err(error) = store.set_progress(job_id, token, share, message.as_deref()).await
        {
            debug!("a job's progress was not noted: {error}");
        }
        tokio::time::sleep(PROGRESS_PAUSE).await;
    }
    std::future::pending().await
}

/// Least time between two writes of one job's progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// A delivery, and who holds it.
struct Message<'a> {
    worker: &'a Shared,
    polled: &'a Polled,
    delivery: Delivery,
    /// The settings of this attempt: a change meanwhile is the next one's.
    config: Arc<Config>,
}

impl Message<'_> {
    /// A job that records nothing has no row for a first attempt that succeeds; all others are
    /// claimed before they run.
    fn needs_claim(&self, job: &Job, served: &Served) -> bool {
        self.config.records(&served.definition) || job.is_tracked || self.delivery.receive_count > 1
    }

    /// Takes ownership of the job; `None` when it needs no claim, or the lease was lost while
    /// the database was away.
    async fn claim(&self, lease: &Lease, job: &Job, served: &Served, token: &str) -> Option<Claim> {
        if !self.needs_claim(job, served) {
            return None;
        }
        let request = ClaimRequest {
            job: job.clone(),
            queue: self.delivery.queue.clone(),
            group: self.delivery.group.clone(),
            sent_at: self.delivery.sent_at,
            token: token.to_owned(),
            worker_id: self.worker.id.clone(),
            module: served.module.version.clone(),
        };
        let claims = &self.worker.claims;
        self.persist(lease, || claims.call(request.clone())).await
    }

    fn call(&self, job: &Job, served: &Served, begun: Option<&Begun>) -> Call {
        let config = &self.config;
        Call {
            job_id: job.id.clone(),
            job: job.name.clone(),
            module: served.module.version.name.clone(),
            queue: self.delivery.queue.clone(),
            attempt: begun.map_or(1, |begun| begun.attempt),
            spent: begun.map_or(0, |begun| begun.spent),
            enqueued_at: begun
                .map(|begun| begun.enqueued_at)
                .or(job.enqueued_at)
                .or(self.delivery.sent_at),
            schedule: begun.and_then(|begun| begun.schedule.clone()),
            generation: begun.map_or(0, |begun| begun.generation),
            args: job.args.clone(),
            kwargs: job.kwargs.clone(),
            limits: config.limits(&served.definition),
            policy: config.policy(&served.definition),
        }
    }

    /// Whether a return of the message would have the queue itself move or lose it: then the
    /// job waits in SQL instead, and is sent again when it is due.
    fn must_park(&self, settlement: Settlement) -> bool {
        let Settlement::RetryIn(wait) = settlement else { return false };
        let queue = &self.polled.queue;
        let held = self.delivery.received_at.elapsed();
        let most = Duration::from_secs(u64::from(MAX_VISIBILITY_TIMEOUT_SECS));
        let passes_redrive =
            queue.max_receive_count.is_some_and(|most| self.delivery.receive_count >= most);
        let outlives_retention = self.delivery.sent_at.is_some_and(|sent_at| {
            let now = crate::clock::Clock::system().now();
            let due = now.since(sent_at).saturating_add(wait);
            due.saturating_add(Duration::from_secs(3600)) > queue.retention
        });
        passes_redrive || outlives_retention || held.saturating_add(wait) >= most
    }

    /// Stores the outcome; tells whether it was this attempt's to store. `None`: the lease was
    /// lost before the database could be reached.
    #[allow(clippy::too_many_arguments)] // each is one fact of the attempt
    async fn store(
        &self,
        lease: &Lease,
        job: &Job,
        served: &Served,
        call: &Call,
        token: &str,
        is_claimed: bool,
        execution: &Execution,
        is_parked: bool,
    ) -> Option<bool> {
        let outcome = &execution.outcome;
        let leaves_nothing = matches!(outcome, Outcome::Success(_) | Outcome::Interrupted)
            && execution.added.is_empty();
        if !is_claimed && leaves_nothing {
            return Some(true);
        }
        let records = self.config.records(&served.definition);
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
        let request = FinishRequest {
            job: job.clone(),
            queue: self.delivery.queue.clone(),
            group: self.delivery.group.clone(),
            token: token.to_owned(),
            worker_id: self.worker.id.clone(),
            module: served.module.version.clone(),
            attempt: call.attempt,
            is_claimed,
            is_spent: retry::spends_attempt(outcome),
            ending,
            outcome: outcome.name(),
            result: match outcome {
                Outcome::Success(result) if records => result.clone(),
                _ => None,
            },
            failure,
            logs: execution.logs.clone(),
            warnings: cut(without_nul(execution.warnings.join("\n")), 64 << 10),
            duration: execution.duration,
            children: execution.added.clone(),
            is_parked,
            dead_letter_queue: self.polled.queue.dead_letter_queue.clone(),
        };
        let finishes = &self.worker.finishes;
        self.persist(lease, || finishes.call(request.clone())).await
    }

    /// Calls the database until it answers, or the lease is lost. An answer that says no (a row
    /// that the database will never take) ends it too: the message stays and comes again.
    async fn persist<T, F>(&self, lease: &Lease, call: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Arc<StoreError>>>,
    {
        let mut backoff = Backoff::default();
        while lease.is_held() {
            match call().await {
                Ok(answer) => {
                    self.worker.database_outage.over();
                    return Some(answer);
                }
                Err(error) if error.is_transient() => {
                    self.worker.database_outage.note(&*error);
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => {
                    error!(
                        message.id = %self.delivery.message_id,
                        "the database refused a row of this message, which stays on the queue: {}",
                        chain(&*error)
                    );
                    return None;
                }
            }
        }
        None
    }

    fn dead(&self, kind: DeadKind, job: Option<&Job>, reason: &str) -> DeadMessage {
        let delivery = &self.delivery;
        let is_own = matches!(kind, DeadKind::Failed | DeadKind::Crashed | DeadKind::UnknownJob);
        let id = match job {
            Some(job) if is_own => job.id.clone(),
            _ => delivery.message_id.clone(),
        };
        DeadMessage {
            id,
            kind,
            queue: delivery.queue.clone(),
            job: job.map(|job| job.name.clone()),
            job_id: job.map(|job| job.id.clone()),
            message_id: Some(delivery.message_id.clone()),
            reason: reason.to_owned(),
            body: delivery.body.clone(),
            attributes: serde_json::to_string(&delivery.attributes).unwrap_or_default(),
            group: delivery.group.clone(),
        }
    }

    /// Keeps a message that can't be run where a person can see it, then deletes it.
    async fn put_aside(
        &self,
        lease: Lease,
        kind: DeadKind,
        job: Option<&Job>,
        reason: &(dyn ToString + Sync),
    ) -> Settled {
        let reason = reason.to_string();
        warn!(
            queue = %self.delivery.queue, message.id = %self.delivery.message_id,
            "put a message aside as {}: {}; see `dead show`", kind.name(), printable(&reason)
        );
        let dead = self.dead(kind, job, &reason);
        let store = &self.worker.store;
        let put = || async { store.put_aside(&dead).await.map_err(Arc::new) };
        match self.persist(&lease, put).await {
            Some(()) => self.delete(lease).await,
            None => Settled::Stays,
        }
    }

    /// A job that no module holds is no attempt: it returns with a growing delay, so that a
    /// deploy can catch up, until the queue itself would move it.
    async fn give_back_unknown(&self, lease: Lease, job: Job) -> Settled {
        let receives = self.delivery.receive_count;
        let most =
            self.polled.queue.max_receive_count.unwrap_or(u32::MAX).min(MAX_UNKNOWN_RECEIVES);
        if receives >= most {
            let reason = format!(
                "no module holds the job `{}`; the message was received {receives} times",
                job.name
            );
            return self.put_aside(lease, DeadKind::UnknownJob, Some(&job), &reason).await;
        }
        let delay = retry::unknown_job_delay(receives);
        warn!(
            queue = %self.delivery.queue, job.id = %printable(&job.id),
            "no module holds the job `{}`; its message returns in {} s",
            printable(&job.name), delay.as_secs()
        );
        self.give_back(lease, delay).await
    }

    async fn delete(&self, lease: Lease) -> Settled {
        lease.end().await;
        if let Err(error) = self.polled.settler.delete(self.delivery.receipt.clone()).await {
            warn!(
                queue = %self.delivery.queue, message.id = %self.delivery.message_id,
                "a finished message was not deleted and comes once more: {error}"
            );
        }
        Settled::Gone
    }

    /// Makes the message visible after `wait`, rounded up to whole seconds: never too soon.
    async fn give_back(&self, lease: Lease, wait: Duration) -> Settled {
        lease.end().await;
        let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let held = self.delivery.received_at.elapsed().as_secs() + 1;
        let most = u64::from(MAX_VISIBILITY_TIMEOUT_SECS).saturating_sub(held);
        let secs = u32::try_from(secs.min(most)).unwrap_or(0);
        let receipt = self.delivery.receipt.clone();
        if let Err(error) = self.polled.settler.give_back(receipt, secs).await {
            debug!(
                queue = %self.delivery.queue, message.id = %self.delivery.message_id,
                "a message was not given back and returns when its lease ends: {error}"
            );
        }
        Settled::Stays
    }

    /// One log line for each settled attempt.
    fn tell(&self, call: &Call, served: &Served, execution: &Execution) {
        let (id, name) = (printable(&call.job_id), printable(&call.job));
        let duration_ms = millis(execution.duration);
        for warning in &execution.warnings {
            warn!(job.id = %id, attempt = call.attempt, "{name}: {}", printable(warning));
        }
        let then = match execution.settlement {
            Settlement::RetryIn(wait) => {
                format!("; runs again in {:.1} s", wait.as_secs_f64())
            }
            Settlement::DeadLetter => "; it is in the dead list".to_owned(),
            Settlement::Release => "; it waits again".to_owned(),
            _ => String::new(),
        };
        let module = &served.module.version;
        match &execution.outcome {
            Outcome::Failed(failure) => warn!(
                queue = %call.queue, job.id = %id, module = %module.name, module.digest = %&module.digest[..12.min(module.digest.len())],
                attempt = call.attempt, stage = %failure.stage, duration_ms,
                "job {name} failed ({}): {}{then}", failure.cause.name(), printable(&failure.message)
            ),
            outcome => info!(
                queue = %call.queue, job.id = %id, module = %module.name, module.digest = %&module.digest[..12.min(module.digest.len())],
                attempt = call.attempt, duration_ms,
                "job {name}: {}{then}", outcome.name()
            ),
        }
    }
}

/// Receipts after which a message whose job nobody holds is put aside: with the growing delay
/// that is about an hour and a half.
const MAX_UNKNOWN_RECEIVES: u32 = 24;

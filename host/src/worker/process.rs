//! Path 1, step 2: one message from receipt to settlement. The page to read first.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};
use tracing::{debug, info, warn};

use super::lease::Lease;
use super::message::{Answer, Message};
use super::slots::Slot;
use crate::clock::millis;
use crate::config::Config;
use crate::failpoint;
use crate::metrics;
use crate::outcome::Outcome;
use crate::payload::{self, Job};
use crate::registry::Served;
use crate::retry::Settlement;
use crate::sandbox::{Call, Execution, Watch};
use crate::store::claim::{Begun, Claim, ClaimRequest};
use crate::store::dead::DeadKind;
use crate::text::printable;

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
pub(super) async fn process(held: Message<'_>, lease: Lease, slot: Slot) -> Settled {
    let worker = held.worker;
    failpoint::reach("held", "");
    let decoded = {
        let delivery = &held.delivery;
        payload::decode(&delivery.body, &delivery.attributes, &delivery.message_id)
    };
    let job = match decoded {
        Ok(job) => Job { enqueued_at: job.enqueued_at.or(held.delivery.sent_at), ..job },
        Err(reason) => return held.put_aside(lease, DeadKind::Malformed, None, &reason).await,
    };
    failpoint::reach("decoded", &job.name);
    let Some(served) = worker.registry.choose(&job.name, &job.id) else {
        return held.give_back_unknown(lease, job).await;
    };
    let attempt = match held.begin(&lease, &job, &served).await {
        Beginning::Begun(attempt) => attempt,
        Beginning::Refused(why) => return held.refuse(lease, &job, why).await,
        Beginning::Impossible(reason) => {
            let reason = format!("the database refuses the job: {reason}");
            return held.put_aside(lease, DeadKind::Malformed, None, &reason).await;
        }
        Beginning::LeaseLost => return Settled::Stays,
    };

    failpoint::reach("claimed", &job.name);
    let call = held.call(&job, &served, &attempt);
    let mut execution = held.run(&lease, &served, &call, &attempt).await;
    served.tally.note(&execution.outcome);
    if execution.outcome == Outcome::LeaseLost {
        warn!(job.id = %printable(&job.id), attempt = call.attempt, "job {} lost its lease; nothing of this attempt is stored", printable(&job.id));
        held.let_go(&job.id, &attempt.token).await;
        return Settled::Stays;
    }
    failpoint::reach("storing", &job.name);
    let is_parked = execution.settlement.wait().is_some_and(|wait| held.must_park(wait));
    let stored = held.store(&lease, &job, &served, &call, &attempt, &mut execution, is_parked);
    let is_stored = stored.await;
    // What the database has refused has failed for good instead.
    let is_parked = is_parked && execution.settlement.wait().is_some();
    if is_stored.is_none() {
        held.let_go(&job.id, &attempt.token).await;
    }
    drop((slot, attempt));
    match is_stored {
        Some(true) => {}
        Some(false) => {
            warn!(job.id = %printable(&job.id), attempt = call.attempt, "another attempt owns job {} by now; this one's outcome is dropped", printable(&job.id));
            return Settled::Stays;
        }
        None => return Settled::Stays,
    }
    failpoint::reach("stored", &job.name);
    // Told only now: an outcome that was not stored did not happen.
    held.tell(&call, &served, &execution, is_parked);
    let is_dead = execution.settlement == Settlement::DeadLetter;
    if !execution.added.is_empty() || is_parked || is_dead {
        worker.sender.wake();
    }
    match execution.settlement {
        Settlement::Delete | Settlement::DeadLetter | Settlement::Cancel => {
            held.delete(lease).await
        }
        Settlement::RetryIn(_) | Settlement::Release if is_parked => {
            failpoint::reach("parked", &job.name);
            held.delete(lease).await
        }
        Settlement::RetryIn(wait) => held.give_back(lease, wait).await,
        Settlement::Release => held.give_back(lease, Duration::ZERO).await,
        Settlement::Abandon => Settled::Stays,
    }
}

/// The right to run an attempt, beside others or with none beside it. A job that takes workers
/// down runs alone; while it waits for that, no other begins.
pub(super) enum Turn {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// An attempt that may run.
pub(super) struct Attempt {
    /// Names its owner in SQL.
    pub(super) token: String,
    /// What the claim told; `None` for a job that needs no claim.
    pub(super) begun: Option<Begun>,
    /// The settings that it began with: they hold to its end.
    pub(super) config: Arc<Config>,
    _turn: Turn,
}

enum Beginning {
    Begun(Attempt),
    Refused(Refusal),
    /// The database will never take the job's row, and says why.
    Impossible(String),
    /// The lease was lost before the database could be reached, or while it waited for its turn.
    LeaseLost,
}

/// Why an attempt does not begin.
enum Refusal {
    /// The worker is stopping.
    Stopping,
    /// The claim says so.
    Claim(Claim),
}

impl Message<'_> {
    /// Takes the turn, and the job's row where it needs one.
    async fn begin(&self, lease: &Lease, job: &Job, served: &Served) -> Beginning {
        let turn = self.worker.turns.clone().read_owned();
        let Some(guard) = self.unless_stopped(lease, turn).await else {
            return self.not_begun(lease);
        };
        let token = uuid::Uuid::new_v4().to_string();
        let config = self.worker.live.load();
        if !self.needs_claim(&config, job, served) {
            let turn = Turn::Shared { _guard: guard };
            return Beginning::Begun(Attempt { token, begun: None, config, _turn: turn });
        }
        match self.claim(lease, job, served, &token, false).await {
            Answer::Said(Claim::Begun(begun)) => {
                let turn = Turn::Shared { _guard: guard };
                Beginning::Begun(Attempt { token, begun: Some(begun), config, _turn: turn })
            }
            Answer::Said(Claim::OnlyAlone) => {
                drop(guard);
                self.begin_alone(lease, job, served, token).await
            }
            Answer::Said(claim) => Beginning::Refused(Refusal::Claim(claim)),
            Answer::Refused(reason) => Beginning::Impossible(reason),
            Answer::None => {
                // It may have been made all the same, and its answer lost.
                self.let_go(&job.id, &token).await;
                self.not_begun(lease)
            }
        }
    }

    /// Waits until no other attempt of this worker runs, then takes the job's row.
    async fn begin_alone(
        &self,
        lease: &Lease,
        job: &Job,
        served: &Served,
        token: String,
    ) -> Beginning {
        warn!(
            job.id = %printable(&job.id),
            "job {} has taken workers down; it runs alone, as soon as nothing else runs here",
            printable(&job.name)
        );
        let turn = self.worker.turns.clone().write_owned();
        let Some(guard) = self.unless_stopped(lease, turn).await else {
            return self.not_begun(lease);
        };
        let config = self.worker.live.load();
        match self.claim(lease, job, served, &token, true).await {
            Answer::Said(Claim::Begun(begun)) => {
                let turn = Turn::Alone { _guard: guard };
                Beginning::Begun(Attempt { token, begun: Some(begun), config, _turn: turn })
            }
            Answer::Said(claim) => Beginning::Refused(Refusal::Claim(claim)),
            Answer::Refused(reason) => Beginning::Impossible(reason),
            Answer::None => {
                // It may have been made all the same, and its answer lost.
                self.let_go(&job.id, &token).await;
                self.not_begun(lease)
            }
        }
    }

    /// What comes, unless the worker is told to stop or the lease is lost before.
    async fn unless_stopped<T>(&self, lease: &Lease, what: impl Future<Output = T>) -> Option<T> {
        let mut stopped = lease.stopped();
        tokio::select! {
            biased;
            () = self.worker.stopping.cancelled() => None,
            _ = stopped.wait_for(Option::is_some) => None,
            it = what => Some(it),
        }
    }

    fn not_begun(&self, lease: &Lease) -> Beginning {
        match lease.is_held() {
            true => Beginning::Refused(Refusal::Stopping),
            false => Beginning::LeaseLost,
        }
    }

    /// What becomes of a message whose attempt does not begin.
    async fn refuse(&self, lease: Lease, job: &Job, why: Refusal) -> Settled {
        match why {
            Refusal::Stopping => self.return_later(lease, job, Duration::ZERO).await,
            Refusal::Claim(Claim::Finished(status)) => {
                info!(job.id = %printable(&job.id), "job {} is {status} already; its message is deleted", printable(&job.id));
                self.delete(lease).await
            }
            Refusal::Claim(Claim::Held(wait)) => self.return_later(lease, job, wait).await,
            Refusal::Claim(Claim::Behind) => self.park(lease, job, Duration::ZERO).await,
            Refusal::Claim(Claim::Conflict(reason)) => {
                self.put_aside(lease, DeadKind::IdConflict, Some(job), &reason).await
            }
            Refusal::Claim(Claim::Crashed(reason)) => {
                self.put_aside(lease, DeadKind::Crashed, Some(job), &reason).await
            }
            // Neither comes here: one has begun, the other was asked for alone.
            Refusal::Claim(Claim::Begun(_) | Claim::OnlyAlone) => {
                self.return_later(lease, job, Duration::ZERO).await
            }
        }
    }

    /// A job that records nothing has no row for a first attempt that succeeds; all others are
    /// claimed before they run. So is every job of a FIFO queue: its row tells its place.
    fn needs_claim(&self, config: &Config, job: &Job, served: &Served) -> bool {
        config.records(&served.definition)
            || job.is_tracked
            || job.is_revived
            || self.delivery.receive_count > 1
            || self.polled.queue.is_fifo
    }

    /// Takes ownership of the job.
    async fn claim(
        &self,
        lease: &Lease,
        job: &Job,
        served: &Served,
        token: &str,
        is_alone: bool,
    ) -> Answer<Claim> {
        failpoint::reach("claiming", &job.name);
        let request = ClaimRequest {
            job: job.clone(),
            queue: self.delivery.queue.clone(),
            group: self.delivery.group.clone(),
            sent_at: self.delivery.sent_at,
            message_id: self.delivery.message_id.clone(),
            token: token.to_owned(),
            worker_id: self.worker.id.clone(),
            module: served.module.version.clone(),
            is_alone,
            is_ordered: self.polled.queue.is_fifo,
        };
        let claims = &self.worker.claims;
        // A worker that stops does not wait for a database that is away: what has not begun goes
        // back at once.
        let is_stopping = || self.worker.stopping.is_cancelled();
        self.ask(lease, || claims.call(request.clone()), is_stopping).await
    }

    fn call(&self, job: &Job, served: &Served, attempt: &Attempt) -> Call {
        let (config, begun) = (&attempt.config, attempt.begun.as_ref());
        Call {
            job_id: job.id.clone(),
            job: job.name.clone(),
            module: served.module.version.name.clone(),
            queue: self.delivery.queue.clone(),
            address: self.polled.address.clone(),
            attempt: begun.map_or(1, |begun| begun.attempt),
            spent: begun.map_or(0, |begun| begun.spent),
            enqueued_at: begun.map(|begun| begun.enqueued_at).or(job.enqueued_at),
            schedule: begun.and_then(|begun| begun.schedule.clone()),
            generation: begun.map_or(0, |begun| begun.generation),
            args: job.args.clone(),
            kwargs: job.kwargs.clone(),
            limits: config.limits(&served.module.version.name, &served.definition),
            grants: config.grants(served.module.source(), &job.name),
            policy: config.policy(&served.definition),
            unique: self.worker.registry.snapshot().unique.clone(),
        }
    }

    /// Runs the guest, and writes what it tells of its progress meanwhile.
    async fn run(
        &self,
        lease: &Lease,
        served: &Served,
        call: &Call,
        attempt: &Attempt,
    ) -> Execution {
        let worker = self.worker;
        let (progress, told) = tokio::sync::watch::channel(None);
        let watch = Watch { stop: lease.stopped(), progress };
        let _stoppable = worker.running.add(&attempt.token, lease.stopper());
        let execution =
            worker.sandbox.execute(&served.module.prepared, call, Some(&worker.sender), watch);
        let noted = self.note_progress(&call.job_id, &attempt.token, told.clone());
        let execution = tokio::select! {
            execution = execution => execution,
            never = noted => match never {},
        };
        failpoint::reach("ran", &call.job);
        let last_told = told.borrow().clone();
        if let (Some(_), Some((share, message))) = (&attempt.begun, last_told) {
            // The last word may have come just before the end. Losing it harms nothing.
            let store = &worker.store;
            let noted =
                store.set_progress(&call.job_id, &attempt.token, share, message.as_deref()).await;
            if let Err(error) = noted {
                debug!("a job's progress was not noted: {error}");
            }
        }
        execution
    }

    /// Writes what the guest tells of its progress, at most twice a second, until it is dropped.
    async fn note_progress(
        &self,
        job_id: &str,
        token: &str,
        mut told: tokio::sync::watch::Receiver<crate::sandbox::context::Progress>,
    ) -> std::convert::Infallible {
        let store = &self.worker.store;
        while told.changed().await.is_ok() {
            let latest = told.borrow_and_update().clone();
            if let Some((share, message)) = latest
                && let Err(error) =
                    store.set_progress(job_id, token, share, message.as_deref()).await
            {
                debug!("a job's progress was not noted: {error}");
            }
            tokio::time::sleep(PROGRESS_PAUSE).await;
        }
        std::future::pending().await
    }

    /// One log line and the counts for each settled attempt.
    fn tell(&self, call: &Call, served: &Served, execution: &Execution, is_parked: bool) {
        let (id, name) = (printable(&call.job_id), printable(&call.job));
        let duration_ms = millis(execution.duration);
        metrics::attempt_settled(
            &call.queue,
            &call.job,
            execution.outcome.name(),
            execution.duration,
        );
        if is_parked {
            metrics::count(metrics::PARKED, &call.queue, 1);
        }
        if execution.settlement == Settlement::DeadLetter {
            metrics::put_aside(&call.queue, DeadKind::Failed.name());
        }
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

/// Least time between two writes of one job's progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

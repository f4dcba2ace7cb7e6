//! A delivery in the worker's hands, and the ways in which it leaves them.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::Shared;
use super::lease::Lease;
use super::process::Settled;
use super::settle::Settler;
use crate::broker::{Delivery, MAX_VISIBILITY_TIMEOUT_SECS, Queue};
use crate::clock::Clock;
use crate::failpoint;
use crate::metrics;
use crate::outage::{Backoff, Outage, chain};
use crate::payload::{self, Job};
use crate::retry;
use crate::store::StoreError;
use crate::store::dead::{DeadKind, DeadMessage};
use crate::store::park::{ParkRequest, Seen};
use crate::text::printable;

/// How long a message whose job nobody holds comes again and again, so that a deploy can catch
/// up, before it is put aside.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(90 * 60);
/// How long before its retention ends a message must be back, or it is parked.
const RETENTION_MARGIN: Duration = Duration::from_secs(3600);

/// A queue that a worker polls.
pub(super) struct Polled {
    pub(super) queue: Arc<Queue>,
    /// Its rank in the worker's list.
    pub(super) index: usize,
    /// How the operator named it: its name or its URL. Where we send to.
    pub(super) address: String,
    /// Whether the worker polls no other.
    pub(super) is_only: bool,
    pub(super) settler: Settler,
    /// Notes when that space is full.
    pub(super) space_outage: Outage,
    /// Notes when nothing can be received.
    pub(super) receive_outage: Outage,
}

impl Polled {
    /// Whether the message may not return to the queue: the queue itself would move it at its
    /// next receipt, or at the one after that. One is kept in reserve where there is one, for
    /// the host that dies with it or the answer that is lost on the way.
    pub(super) fn is_last_receipt(&self, delivery: &Delivery) -> bool {
        let reserve = |most: u32| if most >= 3 { 1 } else { 0 };
        self.queue
            .max_receive_count
            .is_some_and(|most| delivery.receive_count >= most.saturating_sub(reserve(most)))
    }
}

/// A delivery, and who holds it.
pub(super) struct Message<'a> {
    pub(super) worker: &'a Shared,
    pub(super) polled: &'a Polled,
    pub(super) delivery: Delivery,
    /// Whether it may not return to the queue, since one behind it in its group can't.
    pub(super) must_leave: bool,
}

/// What came of a call to the database.
pub(super) enum Answer<T> {
    /// It was carried out.
    Said(T),
    /// The database will never take it, and says why.
    Refused(String),
    /// The lease was lost before the database answered, or the worker no longer waits for it.
    None,
}

impl Message<'_> {
    /// Whether a return of the message after this wait would have the queue itself move or lose
    /// it: then the job waits in SQL instead, and is sent again when it is due.
    pub(super) fn must_park(&self, wait: Duration) -> bool {
        let queue = &self.polled.queue;
        let held = self.delivery.received_at.elapsed();
        let most = Duration::from_secs(u64::from(MAX_VISIBILITY_TIMEOUT_SECS));
        let outlives_retention = self.delivery.sent_at.is_some_and(|sent_at| {
            let due = Clock::system().now().since(sent_at).saturating_add(wait);
            // What returns at once is not parked over and over on a queue of short retention.
            !wait.is_zero() && due.saturating_add(RETENTION_MARGIN) > queue.retention
        });
        self.must_leave
            || self.polled.is_last_receipt(&self.delivery)
            || outlives_retention
            || held.saturating_add(wait) >= most
    }

    /// [`Self::ask`], for what is left to the queue when the database refuses it: the message
    /// stays and comes again.
    pub(super) async fn persist<T, F>(&self, lease: &Lease, call: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Arc<StoreError>>>,
    {
        match self.ask(lease, call, || false).await {
            Answer::Said(answer) => Some(answer),
            Answer::Refused(_) | Answer::None => None,
        }
    }

    /// Calls the database until it answers, the lease is lost, or it is away while `gives_up`.
    pub(super) async fn ask<T, F>(
        &self,
        lease: &Lease,
        call: impl Fn() -> F,
        gives_up: impl Fn() -> bool,
    ) -> Answer<T>
    where
        F: Future<Output = Result<T, Arc<StoreError>>>,
    {
        let mut backoff = Backoff::default();
        while lease.is_held() {
            match call().await {
                Ok(answer) => {
                    self.worker.database_outage.over();
                    return Answer::Said(answer);
                }
                Err(error) if !error.is_refusal() => {
                    self.worker.database_outage.note(&*error);
                    if gives_up() {
                        break;
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => {
                    let reason = chain(&*error);
                    error!(
                        message.id = %self.delivery.message_id,
                        "the database refused a row of this message: {reason}"
                    );
                    return Answer::Refused(reason);
                }
            }
        }
        Answer::None
    }

    /// Ends the claim of an attempt whose lease was lost: it would live as long as this worker,
    /// and hold the job's next deliveries off. Called until the database answers; a worker that
    /// stops need not, since its claims end with its row.
    pub(super) async fn let_go(&self, job_id: &str, token: &str) {
        let mut backoff = Backoff::default();
        loop {
            match self.worker.store.let_go(job_id, token).await {
                Ok(()) => return self.worker.database_outage.over(),
                Err(error) if error.is_transient() && !self.worker.stopping.is_cancelled() => {
                    self.worker.database_outage.note(&error);
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => {
                    let id = printable(job_id);
                    warn!(job.id = %id, "job {id} waits for this worker's end: {}", chain(&error));
                    return;
                }
            }
        }
    }

    /// Most bytes of malformed bodies that are kept of this queue.
    fn malformed_limit(&self) -> u64 {
        let config = self.worker.live.load();
        let settings = config.queues.get(&self.polled.queue.name);
        settings.and_then(|settings| settings.malformed_limit).unwrap_or(super::MALFORMED_LIMIT)
    }

    /// What the dead list keeps of the message.
    pub(super) fn dead(&self, kind: DeadKind, job: Option<&Job>, reason: &str) -> DeadMessage {
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
    pub(super) async fn put_aside(
        &self,
        lease: Lease,
        kind: DeadKind,
        job: Option<&Job>,
        reason: &(dyn ToString + Sync),
    ) -> Settled {
        let reason = reason.to_string();
        let dead = self.dead(kind, job, &reason);
        let store = &self.worker.store;
        // The row of an id that belongs to another job is not this message's.
        let job = job.filter(|_| kind != DeadKind::IdConflict);
        let space = Some(self.malformed_limit());
        failpoint::reach("putting-aside", job.map_or("", |job| &job.name));
        let put = || async { store.put_aside(&dead, job, space).await.map_err(Arc::new) };
        match self.persist(&lease, put).await {
            Some(true) => {
                failpoint::reach("put-aside", job.map_or("", |job| &job.name));
                warn!(
                    queue = %self.delivery.queue, message.id = %self.delivery.message_id,
                    "put a message aside as {}: {}; see `dead show`", kind.name(), printable(&reason)
                );
                metrics::put_aside(&self.delivery.queue, kind.name());
                self.polled.space_outage.over();
                self.delete(lease).await
            }
            Some(false) => {
                self.polled.space_outage.note(&NoSpace { queue: self.delivery.queue.clone() });
                let wait = retry::malformed_delay(self.delivery.receive_count);
                self.give_back(lease, wait).await
            }
            None => Settled::Stays,
        }
    }

    /// A job that no module holds is no attempt: it returns with a growing delay, so that a
    /// deploy can catch up, by the queue or from the outbox, and after a limit is put aside.
    pub(super) async fn give_back_unknown(&self, lease: Lease, job: Job) -> Settled {
        let store = &self.worker.store;
        let request = self.park_request(&job, Duration::ZERO);
        let seen = || async { store.note_unknown(&request).await.map_err(Arc::new) };
        let age = match self.persist(&lease, seen).await {
            Some(Seen::Waiting { age }) => age,
            Some(Seen::Finished) if job.is_revived => Duration::ZERO,
            Some(Seen::Finished) => return self.delete(lease).await,
            Some(Seen::Other) => {
                let reason = "the id belongs to a job with another name or other arguments";
                return self.put_aside(lease, DeadKind::IdConflict, Some(&job), &reason).await;
            }
            None => return Settled::Stays,
        };
        if age >= UNKNOWN_PATIENCE {
            let reason = format!(
                "no module holds the job `{}`; its message has come again and again for {}",
                job.name,
                humantime::format_duration(Duration::from_secs(age.as_secs()))
            );
            return self.put_aside(lease, DeadKind::UnknownJob, Some(&job), &reason).await;
        }
        let delay = retry::unknown_job_delay(age);
        warn!(
            queue = %self.delivery.queue, job.id = %printable(&job.id),
            "no module holds the job `{}`; its message returns in {} s",
            printable(&job.name), delay.as_secs()
        );
        self.return_later(lease, &job, delay).await
    }

    /// Gives back, at once, a message that has not been looked at.
    pub(super) async fn turn_back(&self, lease: Lease) -> Settled {
        let delivery = &self.delivery;
        match payload::decode(&delivery.body, &delivery.attributes, &delivery.message_id) {
            Ok(job) => self.return_later(lease, &job, Duration::ZERO).await,
            Err(reason) => self.put_aside(lease, DeadKind::Malformed, None, &reason).await,
        }
    }

    /// Has a message that has not begun come again after this time: by the queue, or, where that
    /// would count the return as one too many, from the outbox.
    pub(super) async fn return_later(&self, lease: Lease, job: &Job, wait: Duration) -> Settled {
        if self.must_park(wait) {
            self.park(lease, job, wait).await
        } else {
            self.give_back(lease, wait).await
        }
    }

    /// Parks a message that has not begun, then deletes it.
    pub(super) async fn park(&self, lease: Lease, job: &Job, wait: Duration) -> Settled {
        let delivery = &self.delivery;
        let request = self.park_request(job, wait);
        let store = &self.worker.store;
        let park = || async { store.park_message(&request).await.map_err(Arc::new) };
        match self.persist(&lease, park).await {
            Some(()) => {
                failpoint::reach("parked", &job.name);
                metrics::count(metrics::PARKED, &delivery.queue, 1);
                self.worker.sender.wake();
                self.delete(lease).await
            }
            None => Settled::Stays,
        }
    }

    fn park_request(&self, job: &Job, wait: Duration) -> ParkRequest {
        let delivery = &self.delivery;
        ParkRequest {
            job: Job { enqueued_at: job.enqueued_at.or(delivery.sent_at), ..job.clone() },
            queue: delivery.queue.clone(),
            address: self.polled.address.clone(),
            group: delivery.group.clone(),
            attributes: delivery.attributes.clone(),
            wait,
            is_ordered: self.polled.queue.is_fifo,
        }
    }

    pub(super) async fn delete(&self, lease: Lease) -> Settled {
        lease.end().await;
        failpoint::reach("deleting", "");
        if let Err(error) = self.polled.settler.delete(self.delivery.receipt.clone()).await {
            warn!(
                queue = %self.delivery.queue, message.id = %self.delivery.message_id,
                "a finished message was not deleted and comes once more: {error}"
            );
        }
        failpoint::reach("deleted", "");
        Settled::Gone
    }

    /// Makes the message visible after `wait`, rounded up to whole seconds: never too soon.
    pub(super) async fn give_back(&self, lease: Lease, wait: Duration) -> Settled {
        lease.end().await;
        failpoint::reach("giving-back", "");
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
        failpoint::reach("given-back", "");
        Settled::Stays
    }
}

/// The space for malformed bodies of a queue is used up.
#[derive(Debug, thiserror::Error)]
#[error(
    "the space for malformed messages of queue `{queue}` is full, and they stay on the queue; mend their producer, empty it by `dead discard`, or raise `malformed-limit` in [queues.{queue}]"
)]
struct NoSpace {
    queue: String,
}

//! Path 1, step 1: counts free slots, then receives at most that many.
//!
//! Each queue is polled by a loop of its own, side by side; all share the worker's slots. A slot
//! is free again as soon as its attempt's outcome is stored, never after the slowest of a batch.

mod lease;
mod process;
mod queue_slots;
mod settle;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::broker::{
    Broker, BrokerError, Delivery, MAX_BATCH, MAX_WAIT_SECS, Queue, ReceiveOptions,
};
use crate::config::Config;
use crate::config::live::LiveConfig;
use crate::outage::{Backoff, Outage};
use crate::registry::Registry;
use crate::sandbox::{Sandbox, Stop};
use crate::sender::Sender;
use crate::store::claim::{Claim, ClaimRequest};
use crate::store::finish::FinishRequest;
use crate::store::group::Group;
use crate::store::workers::WorkerRow;
use crate::store::{Store, StoreError};
use lease::Leases;
use process::{Polled, Settled, process};
use settle::Settler;

/// How long a receive waits for ten free slots while other jobs run.
const FILL: Duration = Duration::from_millis(10);
/// Receive calls under way at once for one busy queue.
const MAX_POLLS: usize = 4;
/// How long a receive that is under way at the stop may still bring messages, which are then
/// given back; one that is cut off leaves them invisible until their lease ends.
const LAST_RECEIVE: Duration = Duration::from_millis(500);
/// How long settlements may take after the grace time.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(10);

/// Room for one attempt; free again when dropped.
pub(crate) type Slot = Vec<OwnedSemaphorePermit>;

/// Why a worker can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A queue can't be used.
    #[error(transparent)]
    Queue(#[from] BrokerError),
    /// The database can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What all tasks of a worker share.
pub(crate) struct Shared {
    pub(crate) id: String,
    /// What needs a restart to change; all else is read from `live`.
    pub(crate) config: Arc<Config>,
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) claims: Group<ClaimRequest, Claim>,
    pub(crate) finishes: Group<FinishRequest, bool>,
    pub(crate) sender: Sender,
    pub(crate) database_outage: Outage,
    /// Cancelled when nothing new may begin.
    pub(crate) stopping: CancellationToken,
    slots: Arc<Semaphore>,
    attempts: TaskTracker,
}

/// Runs the jobs of some queues until it is told to stop.
pub struct Worker {
    shared: Arc<Shared>,
    queues: Vec<(Arc<Polled>, Arc<Semaphore>)>,
    row: WorkerRow,
}

impl Worker {
    /// Looks its queues up and writes its row; receives nothing yet.
    ///
    /// # Errors
    /// A queue or the database can't be used.
    pub async fn new(
        live: Arc<LiveConfig>,
        broker: Arc<dyn Broker>,
        store: Store,
        registry: Arc<Registry>,
        sandbox: Arc<Sandbox>,
        queues: &[String],
        stopping: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let config = live.load();
        let mut polled = Vec::with_capacity(queues.len());
        for name in queues {
            let queue = Arc::new(broker.queue(name).await?);
            let limit = queue_slots::limit(&config, &queue.name);
            let settler = Settler::start(&broker, &queue);
            polled.push((Arc::new(Polled { queue, settler }), Arc::new(Semaphore::new(limit))));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let names: Vec<&str> =
            polled.iter().map(|(polled, _)| polled.queue.name.as_str()).collect();
        let row = WorkerRow {
            id: id.clone(),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            queues: names.join(","),
            lease: config.lease,
        };
        store.renew_worker(&row).await?;
        store.register_jobs(&registry.snapshot().deployed_jobs(&config)).await?;
        let (claiming, finishing) = (store.clone(), store.clone());
        let shared = Shared {
            id,
            leases: Leases::new(broker.clone(), config.lease),
            claims: Group::start(move |requests| {
                let store = claiming.clone();
                Box::pin(async move { store.claim(requests).await })
            }),
            finishes: Group::start(move |requests| {
                let store = finishing.clone();
                Box::pin(async move { store.finish(requests).await })
            }),
            sender: Sender::new(store.clone(), broker.clone()),
            database_outage: Outage::new("use the database"),
            slots: Arc::new(Semaphore::new(config.concurrency)),
            attempts: TaskTracker::new(),
            config,
            live,
            broker,
            store,
            registry,
            sandbox,
            stopping,
        };
        Ok(Self { shared: Arc::new(shared), queues: polled, row })
    }

    /// Receives and runs jobs until it is told to stop, then drains: what runs gets the grace
    /// time, then it is stopped and given back, and does not count as an attempt.
    pub async fn run(self) {
        let Self { shared, queues, row } = self;
        let mut background = vec![
            tokio::spawn(shared.leases.clone().keep()),
            tokio::spawn(keep_row(shared.store.clone(), row.clone())),
            tokio::spawn(shared.sender.clone().sweep()),
        ];
        for (polled, slots) in &queues {
            let (live, name) = (shared.live.clone(), polled.queue.name.clone());
            let given = queue_slots::limit(&shared.config, &name);
            let follow = queue_slots::follow(live, name, slots.clone(), given);
            background.push(tokio::spawn(follow));
        }
        let patience = Patience::of(queues.len(), shared.config.concurrency);
        let polls: Vec<_> = queues
            .into_iter()
            .map(|(polled, slots)| tokio::spawn(poll(shared.clone(), polled, slots, patience)))
            .collect();
        for poll in polls {
            if let Err(error) = poll.await {
                warn!("a receive loop ended early: {error}");
            }
        }
        drain(&shared).await;
        for task in &background {
            task.abort();
        }
        if let Err(error) = shared.store.remove_worker(&row.id).await {
            warn!("the worker's row stays until its lease is over: {error}");
        }
    }
}

/// Renews the worker's row, by which its claims live.
async fn keep_row(store: Store, row: WorkerRow) {
    let outage = Outage::new("renew the worker's row");
    let mut backoff = Backoff::default();
    loop {
        match store.renew_worker(&row).await {
            Ok(()) => {
                outage.over();
                backoff = Backoff::default();
                tokio::time::sleep(row.lease / 3).await;
            }
            Err(error) => {
                outage.note(&error);
                tokio::time::sleep(backoff.next().min(row.lease / 6)).await;
            }
        }
    }
}

/// Waits for what runs, for the grace time; then stops it.
async fn drain(shared: &Arc<Shared>) {
    shared.attempts.close();
    let running = shared.attempts.len();
    if running > 0 {
        info!(running, "finishing {running} job(s), for at most {:?}", shared.config.grace);
    }
    if tokio::time::timeout(shared.config.grace, shared.attempts.wait()).await.is_ok() {
        return;
    }
    warn!("the grace time is over: {} job(s) are stopped and given back", shared.leases.count());
    shared.leases.stop_all(Stop::Interrupted);
    if tokio::time::timeout(LAST_SETTLEMENTS, shared.attempts.wait()).await.is_err() {
        warn!("some messages were not given back; they return when their lease ends");
    }
}

/// How many slots a poll of an idle queue keeps from the worker's other queues, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patience {
    idle_slots: usize,
    wait_secs: u32,
}

impl Patience {
    /// A queue that is alone has all slots. Of several, an idle one is polled with one slot; when
    /// there are not enough slots for one each and one to spare, polls are short, so that the
    /// slots go round.
    fn of(queues: usize, concurrency: usize) -> Self {
        Self {
            idle_slots: if queues <= 1 { MAX_BATCH } else { 1 },
            wait_secs: if queues <= 1 || concurrency > queues { MAX_WAIT_SECS } else { 1 },
        }
    }
}

/// One answer of a receive call, with the slots that were kept for it.
struct Polling {
    asked: usize,
    slots: Vec<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    received: Result<Vec<Delivery>, BrokerError>,
}

/// Receives from one queue until the worker stops.
async fn poll(
    shared: Arc<Shared>,
    polled: Arc<Polled>,
    queue_slots: Arc<Semaphore>,
    patience: Patience,
) {
    let queue = &polled.queue;
    let outage = Outage::new(&format!("receive from queue `{}`", queue.name));
    let mut backoff = Backoff::default();
    let mut polls = FuturesUnordered::new();
    // A queue that filled its last answer has more: it is asked again before that is worked off.
    let mut is_full = false;
    // An idle queue keeps few slots from the others while it is polled.
    let mut is_idle = true;
    loop {
        let may_ask = polls.is_empty() || (is_full && polls.len() < MAX_POLLS);
        let most = if is_idle { patience.idle_slots } else { MAX_BATCH };
        // Only a poll that keeps no more slots than an idle queue may is a long one.
        let is_long = polls.is_empty() && most == patience.idle_slots;
        let wait = if is_long { patience.wait_secs } else { 0 };
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => break,
            Some(polling) = polls.next(), if !polls.is_empty() => {
                let Polling { asked, slots, received } = polling;
                match received {
                    Ok(deliveries) => {
                        outage.over();
                        backoff = Backoff::default();
                        is_full = deliveries.len() == asked;
                        is_idle = deliveries.is_empty();
                        dispatch(&shared, &polled, deliveries, slots);
                    }
                    Err(error) => {
                        outage.note(&error);
                        is_full = false;
                        drop(slots);
                        tokio::select! {
                            () = shared.stopping.cancelled() => break,
                            () = tokio::time::sleep(backoff.next()) => {}
                        }
                    }
                }
            }
            slots = take_slots(&shared, &queue_slots, most), if may_ask => {
                polls.push(receive(&shared, queue, slots, wait));
            }
        }
    }
    // What a receive under way still brings is given back at once: it has not started.
    let last = async {
        while let Some(Polling { slots, received, .. }) = polls.next().await {
            if let Ok(deliveries) = received {
                dispatch(&shared, &polled, deliveries, slots);
            }
        }
    };
    // Cut off, what it may have received becomes visible when its lease ends.
    let _ = tokio::time::timeout(LAST_RECEIVE, last).await;
}

/// Takes from one to ten slots. While other jobs run it waits a moment for ten of them, since a
/// call that brings ten messages costs as much as one that brings one.
async fn take_slots(
    shared: &Shared,
    queue_slots: &Arc<Semaphore>,
    most: usize,
) -> Vec<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
    let mut slots = Vec::with_capacity(MAX_BATCH);
    let mut linger_until = None;
    while slots.len() < most {
        let take = async {
            let own = queue_slots.clone().acquire_owned().await;
            (own, shared.slots.clone().acquire_owned().await)
        };
        let taken = match linger_until {
            None => take.await,
            Some(until) => match tokio::time::timeout_at(until, take).await {
                Ok(taken) => taken,
                Err(_) => break,
            },
        };
        // Never closed: the semaphores live as long as the worker.
        let (Ok(own), Ok(common)) = taken else { break };
        slots.push((own, common));
        let is_idle = shared.slots.available_permits() + slots.len() >= shared.config.concurrency;
        let until = if is_idle { Duration::ZERO } else { FILL };
        linger_until.get_or_insert_with(|| tokio::time::Instant::now() + until);
    }
    slots
}

async fn receive(
    shared: &Shared,
    queue: &Queue,
    slots: Vec<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    wait_secs: u32,
) -> Polling {
    let options = ReceiveOptions {
        max_messages: slots.len(),
        wait: Duration::from_secs(u64::from(wait_secs)),
        visibility: shared.leases.lease(),
    };
    let received = shared.broker.receive(queue, options).await;
    Polling { asked: slots.len(), slots, received }
}

/// Starts a task for each message; on a FIFO queue for each message group, whose messages run
/// one after the other.
fn dispatch(
    shared: &Arc<Shared>,
    polled: &Arc<Polled>,
    deliveries: Vec<Delivery>,
    slots: Vec<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
) {
    let mut groups: BTreeMap<String, Vec<(Delivery, Slot)>> = BTreeMap::new();
    for (index, (delivery, (own, common))) in deliveries.into_iter().zip(slots).enumerate() {
        let group = match &delivery.group {
            Some(group) if polled.queue.is_fifo => group.clone(),
            _ => format!("\0{index}"),
        };
        groups.entry(group).or_default().push((delivery, vec![own, common]));
    }
    for group in groups.into_values() {
        let (shared, polled) = (shared.clone(), polled.clone());
        let tracker = shared.attempts.clone();
        tracker.spawn(async move { run_group(&shared, &polled, group).await });
    }
}

/// Runs the messages of one group in their order. When one of them stays on the queue, those
/// behind it go back, so that none overtakes it.
async fn run_group(shared: &Shared, polled: &Polled, group: Vec<(Delivery, Slot)>) {
    // Held from now on, also while they wait for those before them.
    let mut waiting: Vec<_> = group
        .into_iter()
        .map(|(delivery, slot)| {
            let lease = shared.leases.hold(&polled.queue, &delivery);
            (delivery, lease, slot)
        })
        .collect();
    waiting.reverse();
    while let Some((delivery, lease, slot)) = waiting.pop() {
        if !lease.is_held()
            || process(shared, polled, delivery, lease, slot).await == Settled::Stays
        {
            break;
        }
    }
    while let Some((delivery, lease, slot)) = waiting.pop() {
        lease.end().await;
        drop(slot);
        // It returns when its lease ends, if it can't be given back now.
        let _ = polled.settler.give_back(delivery.receipt, 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_queues_leave_slots_to_the_others() {
        assert_eq!(Patience::of(1, 1), Patience { idle_slots: 10, wait_secs: 20 });
        assert_eq!(Patience::of(11, 64), Patience { idle_slots: 1, wait_secs: 20 });
        assert_eq!(Patience::of(2, 2), Patience { idle_slots: 1, wait_secs: 1 });
        assert_eq!(Patience::of(10, 1), Patience { idle_slots: 1, wait_secs: 1 });
    }
}

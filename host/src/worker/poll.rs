//! Path 1, step 1: takes free slots, then receives at most that many messages.
//!
//! Each queue is polled by a loop of its own, side by side; all share the worker's slots. A slot
//! is free again as soon as its attempt's outcome is stored, never after the slowest of a batch.
//!
//! An idle queue of several is long-polled with one slot, which it lends meanwhile. When its slot
//! was taken and a message comes all the same, the message has a second to get the next free one;
//! then it goes back for another worker. While no slot is to be had at all, idle queues wait for
//! one like the others and look only for a moment, so that no message is received for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tracing::{debug, info};

use super::Shared;
use super::lease::Lease;
use super::message::{Message, Polled};
use super::process::{Settled, process};
use super::slots::{Lent, Slot};
use crate::broker::{BrokerError, Delivery, MAX_BATCH, MAX_WAIT_SECS, ReceiveOptions};
use crate::failpoint;
use crate::metrics;
use crate::outage::Backoff;

/// How long a receive waits for ten free slots while other jobs run.
const FILL: Duration = Duration::from_millis(10);
/// Receive calls under way at once for one busy queue.
const MAX_POLLS: usize = 4;
/// How long a receive that is under way at the stop may still bring messages, which are then
/// given back, where cutting it off harms nothing.
const LAST_RECEIVE: Duration = Duration::from_millis(500);
/// The same where a receive must not be cut off: a long poll, and its way back.
const LONGEST_RECEIVE: Duration = Duration::from_secs(MAX_WAIT_SECS as u64 + 2);
/// How long a message waits for a slot whose own was taken while its queue was polled.
const URGENT: Duration = Duration::from_secs(1);
/// How long an idle queue is left alone after it was looked at while no slot was free.
const CROWDED_PAUSE: Duration = Duration::from_secs(1);

/// What a receive call keeps for the messages that it brings.
enum Kept {
    Slots(Vec<Slot>),
    /// An idle queue's slot, which others may take meanwhile.
    Lent(Lent),
}

/// One answer of a receive call.
struct Polling {
    asked: usize,
    kept: Kept,
    received: Result<Vec<Delivery>, BrokerError>,
}

/// Receives from one queue until the worker stops.
pub(super) async fn poll(shared: Arc<Shared>, polled: Arc<Polled>) {
    let queue = &polled.queue;
    let outage = &polled.receive_outage;
    let mut backoff = Backoff::default();
    let mut polls = FuturesUnordered::new();
    // A queue that filled its last answer has more: it is asked again before that is worked off.
    let mut is_full = false;
    let mut is_idle = true;
    // Nothing is asked before this, while what was asked is still taken.
    let mut resume_at: Option<tokio::time::Instant> = None;
    loop {
        if shared.pauses.is_paused(&queue.name) {
            info!(queue = %queue.name, "queue `{}` is paused: nothing is received from it", queue.name);
            // In strict order what it has is not waited for.
            shared.slots.set_busy(polled.index, false);
            tokio::select! {
                biased;
                () = shared.stopping.cancelled() => break,
                () = end_polls(&shared, &polled, &mut polls, LONGEST_RECEIVE) => {}
            }
            polls = FuturesUnordered::new();
            tokio::select! {
                biased;
                () = shared.stopping.cancelled() => break,
                () = shared.pauses.until(&queue.name, false) => {}
            }
            info!(queue = %queue.name, "queue `{}` is no longer paused", queue.name);
            (is_full, is_idle) = (false, true);
        }
        let may_ask = polls.is_empty() || (is_full && polls.len() < MAX_POLLS);
        let most = if is_idle && !polled.is_only { 1 } else { MAX_BATCH };
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => break,
            () = shared.pauses.until(&queue.name, true) => continue,
            Some(polling) = polls.next(), if !polls.is_empty() => {
                let Polling { asked, kept, received } = polling;
                let pause = match received {
                    Ok(deliveries) => {
                        outage.over();
                        backoff = Backoff::default();
                        is_full = deliveries.len() == asked;
                        is_idle = deliveries.is_empty();
                        shared.slots.set_busy(polled.index, !is_idle);
                        let was_crowded = matches!(kept, Kept::Slots(_)) && !polled.is_only;
                        dispatch(&shared, &polled, deliveries, kept);
                        (is_idle && was_crowded && shared.slots.is_exhausted()).then_some(CROWDED_PAUSE)
                    }
                    Err(error) => {
                        outage.note(&error);
                        is_full = false;
                        shared.slots.set_busy(polled.index, false);
                        drop(kept);
                        Some(backoff.next())
                    }
                };
                resume_at = pause.map(|pause| tokio::time::Instant::now() + pause).or(resume_at);
            }
            () = sleep_until(resume_at), if resume_at.is_some() => resume_at = None,
            slots = take_slots(&shared, polled.index, most), if may_ask && resume_at.is_none() => {
                let is_first = polls.is_empty();
                polls.push(ask(&shared, &polled, slots, is_first && is_idle, is_first));
            }
        }
    }
    end_polls(&shared, &polled, &mut polls, shared.config.grace.min(LONGEST_RECEIVE)).await;
}

/// Has the receives that are under way end. What they still bring is given back at once, each
/// group in its order, since it has not started; where a pause has ended by then, it runs.
///
/// Cut off, what a receive may have brought becomes visible when its lease ends; and a service
/// may go on to hand messages to a caller that is gone. So it is left to end by itself, for
/// `most` at the longest.
async fn end_polls(
    shared: &Arc<Shared>,
    polled: &Arc<Polled>,
    polls: &mut FuturesUnordered<impl Future<Output = Polling>>,
    most: Duration,
) {
    let patience = if shared.broker.can_drop_receives() { LAST_RECEIVE } else { most };
    let last = async {
        while let Some(Polling { kept, received, .. }) = polls.next().await {
            if let Ok(deliveries) = received {
                dispatch(shared, polled, deliveries, kept);
            }
        }
    };
    let _ = tokio::time::timeout(patience, last).await;
}

/// Waits for an instant; for ever without one.
async fn sleep_until(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// One receive call: a long one where that keeps no slot from another queue.
fn ask<'a>(
    shared: &'a Shared,
    polled: &'a Polled,
    mut slots: Vec<Slot>,
    is_idle: bool,
    is_first: bool,
) -> impl Future<Output = Polling> + 'a {
    let asked = slots.len();
    let is_crowded = shared.slots.is_exhausted();
    let (kept, wait) = match (polled.is_only, is_idle && !is_crowded) {
        (true, _) => (Kept::Slots(slots), if is_first { MAX_WAIT_SECS } else { 0 }),
        (false, true) => match slots.pop() {
            Some(slot) => (Kept::Lent(slot.lend()), MAX_WAIT_SECS),
            None => (Kept::Slots(slots), 0),
        },
        (false, false) => (Kept::Slots(slots), 0),
    };
    async move {
        let options = ReceiveOptions {
            max_messages: asked,
            wait: Duration::from_secs(u64::from(wait)),
            visibility: shared.leases.lease(),
        };
        let received = shared.broker.receive(&polled.queue, options).await;
        Polling { asked, kept, received }
    }
}

/// Takes from one to `most` slots. While other jobs run it waits a moment for that many, since a
/// call that brings ten messages costs as much as one that brings one. Where there will never be
/// as many, each one works at once.
async fn take_slots(shared: &Shared, queue: usize, most: usize) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(most);
    let mut linger_until = None;
    while slots.len() < most {
        let take = shared.slots.take(queue, false);
        let slot = match linger_until {
            None => take.await,
            Some(until) => match tokio::time::timeout_at(until, take).await {
                Ok(slot) => slot,
                Err(_) => break,
            },
        };
        slots.push(slot);
        let is_vain = shared.slots.is_idle_but_for(slots.len()) || shared.slots.most(queue) < most;
        let until = if is_vain { Duration::ZERO } else { FILL };
        linger_until.get_or_insert_with(|| tokio::time::Instant::now() + until);
    }
    slots
}

/// Starts a task for each message; on a FIFO queue for each message group, whose messages run
/// one after the other.
fn dispatch(shared: &Arc<Shared>, polled: &Arc<Polled>, deliveries: Vec<Delivery>, kept: Kept) {
    metrics::count(metrics::RECEIVED, &polled.queue.name, deliveries.len() as u64);
    let slots = match kept {
        Kept::Slots(slots) => slots,
        Kept::Lent(lent) => match lent.back() {
            Some(slot) => vec![slot],
            None => {
                // One slot was lent, so one message was asked for.
                if let Some(delivery) = deliveries.into_iter().next() {
                    let (shared, polled) = (shared.clone(), polled.clone());
                    let tracker = shared.attempts.clone();
                    tracker.spawn(async move {
                        wait_for_slot(&shared, &polled, delivery).await;
                    });
                }
                return;
            }
        },
    };
    let mut groups: BTreeMap<String, (Vec<Delivery>, Slot)> = BTreeMap::new();
    let mut slots = slots.into_iter();
    for (index, delivery) in deliveries.into_iter().enumerate() {
        let group = match &delivery.group {
            Some(group) if polled.queue.is_fifo => group.clone(),
            _ => format!("\0{index}"),
        };
        // The messages of a group run one after the other, so one slot is enough for all.
        if let Some((waiting, _)) = groups.get_mut(&group) {
            waiting.push(delivery);
        } else if let Some(slot) = slots.next() {
            groups.insert(group, (vec![delivery], slot));
        } else {
            // More came than was asked for.
            let (shared, polled) = (shared.clone(), polled.clone());
            let tracker = shared.attempts.clone();
            tracker.spawn(async move { wait_for_slot(&shared, &polled, delivery).await });
        }
    }
    for (group, slot) in groups.into_values() {
        let (shared, polled) = (shared.clone(), polled.clone());
        let tracker = shared.attempts.clone();
        tracker.spawn(async move { run_group(&shared, &polled, group, slot).await });
    }
}

/// Runs the messages of one group in their order. When one of them stays on the queue, those
/// behind it go back, so that none overtakes it.
async fn run_group(shared: &Shared, polled: &Polled, group: Vec<Delivery>, slot: Slot) {
    failpoint::reach("received", "");
    // Held from now on, also while they wait for those before them.
    let mut waiting: Vec<_> = group
        .into_iter()
        .map(|delivery| {
            let lease = shared.leases.hold(&polled.queue, &delivery);
            (delivery, lease)
        })
        .collect();
    waiting.reverse();
    let mut slot = Some(slot);
    while let Some((delivery, lease)) = waiting.pop() {
        // One that waits behind it can't return any more: then neither may this one, or it would
        // be overtaken.
        let must_leave = waiting.iter().any(|(other, _)| polled.is_last_receipt(other));
        let message = Message { worker: shared, polled, delivery, must_leave };
        if !lease.is_held() {
            break;
        }
        if shared.pauses.is_paused(&polled.queue.name) {
            message.turn_back(lease).await;
            break;
        }
        // Its slot is free as soon as its outcome is stored; the next one takes another.
        let own = match slot.take() {
            Some(slot) => slot,
            None => match shared.slot_for(polled, &lease).await {
                Some(slot) => slot,
                None => {
                    message.turn_back(lease).await;
                    break;
                }
            },
        };
        if process(message, lease, own).await == Settled::Stays {
            break;
        }
    }
    while let Some((delivery, lease)) = waiting.pop() {
        let must_leave = waiting.iter().any(|(other, _)| polled.is_last_receipt(other));
        let message = Message { worker: shared, polled, delivery, must_leave };
        message.turn_back(lease).await;
    }
}

/// Holds a message whose slot was lent and taken, until it gets another, or gives it back.
async fn wait_for_slot(shared: &Shared, polled: &Polled, delivery: Delivery) {
    let lease = shared.leases.hold(&polled.queue, &delivery);
    let message = Message { worker: shared, polled, delivery, must_leave: false };
    // One that can't return waits as long as it takes.
    let patience = if polled.is_last_receipt(&message.delivery) { Duration::MAX } else { URGENT };
    let slot = tokio::select! {
        biased;
        () = shared.stopping.cancelled() => None,
        () = shared.pauses.until(&polled.queue.name, true) => None,
        slot = shared.slots.take(polled.index, true) => Some(slot),
        () = tokio::time::sleep(patience) => None,
    };
    match slot {
        Some(slot) => {
            process(message, lease, slot).await;
        }
        None => {
            debug!(queue = %polled.queue.name, "no slot is free for a message; it goes back");
            message.turn_back(lease).await;
        }
    }
}

impl Shared {
    /// A slot for a message that is held; none when the worker stops or the lease is lost before.
    async fn slot_for(&self, polled: &Polled, lease: &Lease) -> Option<Slot> {
        let mut stopped = lease.stopped();
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            _ = stopped.wait_for(Option::is_some) => None,
            slot = self.slots.take(polled.index, true) => Some(slot),
        }
    }
}

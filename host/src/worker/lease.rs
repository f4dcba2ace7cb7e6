//! Path 1, step 3: keeps every message that the worker holds invisible until it is settled, and
//! tells when that can't be done.
//!
//! A message is held from the moment of its receipt, also while it waits for the database. Its
//! visibility timeout is extended before half of it is gone, never past 12 hours from receipt.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};
use tracing::{debug, warn};

use crate::broker::{
    Broker, Delivery, EntryError, MAX_BATCH, MAX_VISIBILITY_TIMEOUT_SECS, Queue, Receipt,
};
use crate::failpoint;
use crate::metrics;
use crate::outage::Outage;
use crate::sandbox::Stop;

/// All messages that one worker holds.
pub(crate) struct Leases {
    broker: Arc<dyn Broker>,
    lease: Duration,
    held: Mutex<HashMap<u64, Held>>,
    next: AtomicU64,
    /// When the loop that extends leases last looked.
    looked_at: Mutex<Instant>,
}

/// One message that is held.
struct Held {
    queue: Arc<Queue>,
    receipt: Receipt,
    received_at: Instant,
    /// When it becomes visible unless it is extended before: counted from before the call that
    /// set it, so never too late.
    expires_at: Instant,
    stop: watch::Sender<Option<Stop>>,
    /// Locked while an extension is under way, so that it can't undo a settlement.
    turn: Arc<AsyncMutex<()>>,
}

impl Held {
    /// How long the message is to be held from `now` on, where that is due: with 60% of its lease
    /// or less left. Never past 12 hours from its receipt: less than a second can't be asked for,
    /// and then the lease runs out, as it must.
    fn extension(&self, now: Instant, lease: Duration) -> Option<Duration> {
        if self.expires_at.saturating_duration_since(now) > lease.mul_f64(0.6) {
            return None;
        }
        let most = Duration::from_secs(u64::from(MAX_VISIBILITY_TIMEOUT_SECS));
        let left = most.saturating_sub(now.saturating_duration_since(self.received_at));
        let extension = Duration::from_secs(lease.min(left).as_secs());
        (!extension.is_zero() && self.expires_at < self.received_at + most).then_some(extension)
    }
}

/// The hold on one message. Dropped, the message is left alone and becomes visible in time.
pub(crate) struct Lease {
    leases: Arc<Leases>,
    key: u64,
    stop: watch::Sender<Option<Stop>>,
}

impl Leases {
    pub(crate) fn new(broker: Arc<dyn Broker>, lease: Duration) -> Arc<Self> {
        let looked_at = Mutex::new(Instant::now());
        Arc::new(Self { broker, lease, held: Mutex::default(), next: AtomicU64::new(0), looked_at })
    }

    /// How long a message is held at a time.
    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// Holds a delivery that was received with this lease as its visibility timeout.
    pub(crate) fn hold(self: &Arc<Self>, queue: &Arc<Queue>, delivery: &Delivery) -> Lease {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        // The timeout began when the queue handed the message out: at the call's beginning at
        // the earliest, but a long poll may have waited there. No answer is taken to have
        // travelled for more than a third of a lease.
        let now = Instant::now();
        let begun = delivery.received_at.max(now.checked_sub(self.lease / 3).unwrap_or(now));
        let stop = watch::channel(None).0;
        let held = Held {
            queue: queue.clone(),
            receipt: delivery.receipt.clone(),
            received_at: delivery.received_at,
            expires_at: begun + self.lease,
            stop: stop.clone(),
            turn: Arc::default(),
        };
        self.lock().insert(key, held);
        Lease { leases: self.clone(), key, stop }
    }

    /// Stops every attempt that is under way, for this reason.
    pub(crate) fn stop_all(&self, stop: Stop) {
        for held in self.lock().values() {
            held.stop.send_if_modified(|current| {
                let is_first = current.is_none();
                *current = current.or(Some(stop));
                is_first
            });
        }
    }

    /// How many messages are held.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// How long ago [`Self::keep`] last looked at what is held.
    pub(crate) fn looked_ago(&self) -> Duration {
        self.looked_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Extends what is held, for ever. Looks about sixteen times in a lease, so that an extension
    /// that fails is tried again several times before the message is lost.
    pub(crate) async fn keep(self: Arc<Self>) {
        let pause = (self.lease / 16).clamp(Duration::from_millis(50), Duration::from_secs(5));
        let outage = Outage::new("extend visibility timeouts");
        loop {
            tokio::time::sleep(pause).await;
            *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.give_up_what_is_lost();
            for (queue, group) in self.due() {
                let leases = self.clone();
                let outage = outage.clone();
                // Queues and batches side by side: one that stalls does not cost the others
                // their leases. What is still under way is skipped by the next look.
                tokio::spawn(async move { leases.extend(&queue, group, &outage).await });
            }
        }
    }

    /// Stops the attempts whose message is about to become visible.
    fn give_up_what_is_lost(&self) {
        let margin = (self.lease / 10).min(Duration::from_secs(2));
        let mut lost = 0;
        self.lock().retain(|_, held| {
            let is_alive = held.expires_at > Instant::now() + margin;
            if !is_alive {
                lost += 1;
                metrics::count(metrics::LEASES_LOST, &held.queue.name, 1);
                held.stop.send_replace(Some(Stop::LeaseLost));
            }
            is_alive
        });
        if lost > 0 {
            warn!(
                lost,
                "lost the lease of {lost} message(s); their attempts are stopped and store nothing"
            );
        }
    }

    /// The messages whose lease is to be extended now, in batches of one queue.
    #[allow(clippy::type_complexity)]
    fn due(&self) -> Vec<(Arc<Queue>, Vec<(u64, Receipt, Duration, OwnedMutexGuard<()>)>)> {
        let mut batches: Vec<(Arc<Queue>, Vec<_>)> = Vec::new();
        for (key, held) in self.lock().iter() {
            let Some(extension) = held.extension(Instant::now(), self.lease) else { continue };
            let Ok(turn) = held.turn.clone().try_lock_owned() else { continue };
            let entry = (*key, held.receipt.clone(), extension, turn);
            match batches
                .iter_mut()
                .find(|(queue, batch)| *queue == held.queue && batch.len() < MAX_BATCH)
            {
                Some((_, batch)) => batch.push(entry),
                None => batches.push((held.queue.clone(), vec![entry])),
            }
        }
        batches
    }

    async fn extend(
        &self,
        queue: &Queue,
        group: Vec<(u64, Receipt, Duration, OwnedMutexGuard<()>)>,
        outage: &Outage,
    ) {
        let asked_at = Instant::now();
        let changes: Vec<(Receipt, u32)> = group
            .iter()
            .map(|(_, receipt, extension, _)| {
                (receipt.clone(), u32::try_from(extension.as_secs()).unwrap_or(u32::MAX))
            })
            .collect();
        failpoint::reach("extending", "");
        let results = match self.broker.set_visibility(queue, &changes).await {
            Ok(results) => results,
            Err(error) => return outage.note(&error),
        };
        failpoint::reach("extended", "");
        outage.over();
        for ((key, _, extension, _turn), result) in group.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    if let Some(held) = self.lock().get_mut(&key) {
                        held.expires_at = asked_at + extension;
                    }
                }
                Err(EntryError::Transient(reason)) => debug!("an extension failed: {reason}"),
                Err(error) => {
                    if let Some(held) = self.lock().remove(&key) {
                        metrics::count(metrics::LEASES_LOST, &queue.name, 1);
                        warn!(queue = %queue.name, "lost a lease: {error}; its attempt is stopped");
                        held.stop.send_replace(Some(Stop::LeaseLost));
                    }
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Tells when and why the attempt must stop.
    pub(crate) fn stopped(&self) -> watch::Receiver<Option<Stop>> {
        self.stop.subscribe()
    }

    /// What stops the attempt.
    pub(crate) fn stopper(&self) -> watch::Sender<Option<Stop>> {
        self.stop.clone()
    }

    /// Whether the message is still ours.
    pub(crate) fn is_held(&self) -> bool {
        self.leases.lock().contains_key(&self.key)
    }

    /// Ends the hold, so that the message can be settled: waits for an extension that is under
    /// way, and lets none begin.
    pub(crate) async fn end(self) {
        let turn = self.leases.lock().get(&self.key).map(|held| held.turn.clone());
        if let Some(turn) = turn {
            let _turn = turn.lock().await;
            self.leases.lock().remove(&self.key);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const HOURS: Duration = Duration::from_secs(12 * 3600);

    fn held(received_at: Instant, expires_at: Instant) -> Held {
        let queue = Queue {
            name: "q".into(),
            address: "q".into(),
            is_fifo: false,
            max_receive_count: None,
            dead_letter_queue: None,
            retention: Duration::from_secs(4 * 86_400),
            max_message_bytes: 1 << 20,
        };
        Held {
            queue: Arc::new(queue),
            receipt: Receipt("r".into()),
            received_at,
            expires_at,
            stop: watch::channel(None).0,
            turn: Arc::default(),
        }
    }

    #[test]
    fn a_lease_is_extended_before_half_of_it_is_gone_and_not_all_the_time() {
        let now = Instant::now();
        let left = |secs| held(now, now + Duration::from_secs(secs)).extension(now, LEASE);
        assert_eq!(left(30), None);
        assert_eq!(left(19), None);
        assert_eq!(left(18), Some(LEASE));
        assert_eq!(left(0), Some(LEASE));
    }

    /// Source: Amazon SQS API reference, `ChangeMessageVisibility`: 12 hours from the receipt, and
    /// to ask for more is an error.
    #[test]
    fn no_lease_passes_twelve_hours_from_the_receipt() {
        let received_at = Instant::now();
        let mut lease = held(received_at, received_at + LEASE);
        let (mut now, mut extensions) = (received_at, 0);
        while now < received_at + HOURS + LEASE {
            if let Some(extension) = lease.extension(now, LEASE) {
                lease.expires_at = now + extension;
                extensions += 1;
                assert!(lease.expires_at <= received_at + HOURS, "{:?}", now - received_at);
                assert_eq!(extension.subsec_nanos(), 0, "SQS takes whole seconds");
            }
            now += Duration::from_millis(700);
        }
        assert!(extensions > 3000, "{extensions}");
        let last = received_at + HOURS - lease.expires_at;
        assert!(last < Duration::from_secs(2), "given up {last:?} too early");
    }
}

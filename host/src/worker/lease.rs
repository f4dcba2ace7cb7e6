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
    use async_trait::async_trait;
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;

    use super::*;
    use crate::broker::{
        Attributes, BrokerError, Depth, EntryResults, NewQueue, OutgoingMessage, ReceiveOptions,
    };

    const LEASE: Duration = Duration::from_secs(30);
    const TWELVE_HOURS: Duration = Duration::from_secs(12 * 3600);

    /// What a broker answers to the extension of one message.
    type Answer = fn(&str) -> Result<EntryResults<()>, BrokerError>;

    /// A broker that can only extend, and tells what it was asked for.
    struct Extending {
        answer: Answer,
        asked: mpsc::UnboundedSender<Vec<(Receipt, u32)>>,
    }

    #[async_trait]
    impl Broker for Extending {
        async fn set_visibility(
            &self,
            _: &Queue,
            changes: &[(Receipt, u32)],
        ) -> Result<EntryResults<()>, BrokerError> {
            let _ = self.asked.send(changes.to_vec());
            changes.iter().try_fold(Vec::new(), |mut all, (receipt, _)| {
                all.extend((self.answer)(&receipt.0)?);
                Ok(all)
            })
        }
        fn label(&self) -> String {
            "a broker that extends".into()
        }
        fn can_drop_receives(&self) -> bool {
            true
        }
        fn shares_file_with(&self, _: &str) -> bool {
            false
        }
        async fn queue(&self, _: &str) -> Result<Queue, BrokerError> {
            unreachable!("a lease knows its queue")
        }
        async fn send(
            &self,
            _: &Queue,
            _: &[OutgoingMessage],
        ) -> Result<EntryResults<String>, BrokerError> {
            unreachable!("a lease sends nothing")
        }
        async fn receive(
            &self,
            _: &Queue,
            _: ReceiveOptions,
        ) -> Result<Vec<Delivery>, BrokerError> {
            unreachable!("a lease receives nothing")
        }
        async fn delete(&self, _: &Queue, _: &[Receipt]) -> Result<EntryResults<()>, BrokerError> {
            unreachable!("a lease deletes nothing")
        }
        async fn depth(&self, _: &Queue) -> Result<Depth, BrokerError> {
            unreachable!("a lease counts nothing")
        }
        async fn create(&self, _: &NewQueue) -> Result<Queue, BrokerError> {
            unreachable!("a lease creates nothing")
        }
        async fn list(&self) -> Result<Vec<String>, BrokerError> {
            unreachable!("a lease lists nothing")
        }
        async fn purge(&self, _: &Queue) -> Result<(), BrokerError> {
            unreachable!("a lease purges nothing")
        }
    }

    fn queue(name: &str) -> Arc<Queue> {
        Arc::new(Queue {
            name: name.into(),
            address: name.into(),
            is_fifo: false,
            max_receive_count: None,
            dead_letter_queue: None,
            retention: TWELVE_HOURS,
            max_message_bytes: 1024,
        })
    }

    fn delivery(receipt: &str, age: Duration) -> Delivery {
        Delivery {
            queue: "q".into(),
            message_id: receipt.into(),
            receipt: Receipt(receipt.into()),
            body: String::new(),
            attributes: Attributes::new(),
            receive_count: 1,
            sent_at: None,
            group: None,
            received_at: Instant::now() - age,
        }
    }

    type Asked = mpsc::UnboundedReceiver<Vec<(Receipt, u32)>>;

    fn leases_with(lease: Duration, answer: Answer) -> (Arc<Leases>, Asked) {
        let (asked, told) = mpsc::unbounded_channel();
        (Leases::new(Arc::new(Extending { answer, asked }), lease), told)
    }

    fn leases(lease: Duration) -> Arc<Leases> {
        leases_with(lease, |_| Ok(vec![Ok(())])).0
    }

    /// Holds a message that was received `age` ago and has `left` before it is visible.
    fn hold(leases: &Arc<Leases>, receipt: &str, age: Duration, left: Duration) -> Lease {
        let lease = leases.hold(&queue("q"), &delivery(receipt, age));
        leases.lock().get_mut(&lease.key).expect("held").expires_at = Instant::now() + left;
        lease
    }

    fn left(lease: &Lease) -> Duration {
        let held = lease.leases.lock();
        held[&lease.key].expires_at.saturating_duration_since(Instant::now())
    }

    fn is_about(found: Duration, secs: u64) -> bool {
        found <= Duration::from_secs(secs)
            && found + Duration::from_secs(2) > Duration::from_secs(secs)
    }

    /// The extensions that are due, in seconds, by batch.
    fn due(leases: &Leases) -> Vec<Vec<u64>> {
        let batches = leases.due();
        let secs = |batch: &Vec<(u64, Receipt, Duration, _)>| {
            batch.iter().map(|entry| entry.2.as_secs()).collect()
        };
        batches.iter().map(|(_, batch)| secs(batch)).collect()
    }

    async fn extend_all(leases: &Leases) -> Outage {
        let outage = Outage::new("extend");
        for (queue, group) in leases.due() {
            leases.extend(&queue, group, &outage).await;
        }
        outage
    }

    #[test]
    fn a_message_is_held_from_the_receive_call_on_but_for_a_long_poll() {
        let leases = leases(LEASE);
        assert_eq!(leases.lease(), LEASE);
        let quick = leases.hold(&queue("q"), &delivery("a", Duration::from_secs(4)));
        let polled = leases.hold(&queue("q"), &delivery("b", Duration::from_secs(20)));
        assert!(is_about(left(&quick), 26) && is_about(left(&polled), 20));
        assert_eq!(leases.count(), 2);
        drop(quick);
        assert_eq!((leases.count(), polled.is_held()), (1, true));
    }

    #[test]
    fn an_extension_is_due_before_half_of_the_lease_is_gone() {
        let leases = leases(LEASE);
        let _fresh = hold(&leases, "a", Duration::ZERO, Duration::from_secs(20));
        assert!(due(&leases).is_empty());
        let _older = hold(&leases, "b", Duration::ZERO, Duration::from_secs(17));
        assert_eq!(due(&leases), [[30]]);
    }

    #[test]
    fn nothing_is_held_for_more_than_twelve_hours_from_its_receipt() {
        let leases = leases(LEASE);
        let age = TWELVE_HOURS - Duration::from_secs(10);
        let last = hold(&leases, "a", age, Duration::from_secs(5));
        let due_secs = due(&leases);
        assert!(due_secs == [[9]] || due_secs == [[10]], "{due_secs:?}");
        drop(last);
        let _at_its_end = hold(&leases, "b", age, Duration::from_secs(11));
        assert!(due(&leases).is_empty());
        let _too_short = hold(&leases, "c", TWELVE_HOURS, Duration::ZERO);
        assert!(due(&leases).is_empty());
    }

    #[test]
    fn extensions_go_in_batches_of_ten_of_one_queue() {
        let leases = leases(LEASE);
        let mut held: Vec<Lease> = (0..23)
            .map(|number| {
                hold(&leases, &number.to_string(), Duration::ZERO, Duration::from_secs(9))
            })
            .collect();
        let other = leases.hold(&queue("other"), &delivery("o", Duration::ZERO));
        leases.lock().get_mut(&other.key).expect("held").expires_at = Instant::now();
        held.push(other);
        let mut sizes: Vec<_> =
            leases.due().iter().map(|(queue, batch)| (queue.name.clone(), batch.len())).collect();
        sizes.sort();
        let of_q = |size| ("q".to_owned(), size);
        assert_eq!(sizes, [("other".to_owned(), 1), of_q(3), of_q(10), of_q(10)]);
    }

    #[tokio::test]
    async fn an_extension_counts_from_before_its_call() {
        let (leases, mut asked) = leases_with(LEASE, |_| Ok(vec![Ok(())]));
        let lease = hold(&leases, "a", Duration::ZERO, Duration::from_secs(9));
        let outage = extend_all(&leases).await;
        assert_eq!(asked.try_recv(), Ok(vec![(Receipt("a".into()), 30)]));
        assert!(is_about(left(&lease), 30) && !outage.is_on());
    }

    #[tokio::test]
    async fn an_extension_that_fails_leaves_the_lease_as_it_was_to_be_tried_again() {
        let unavailable: Answer = |_| {
            Err(BrokerError::Unavailable {
                broker: "b".into(),
                action: "extend",
                reason: "away".into(),
                remedy: "wait",
            })
        };
        let transient: Answer = |_| Ok(vec![Err(EntryError::Transient("not now".into()))]);
        for (answer, is_outage) in [(unavailable, true), (transient, false)] {
            let leases = leases_with(LEASE, answer).0;
            let lease = hold(&leases, "a", Duration::ZERO, Duration::from_secs(9));
            assert_eq!(extend_all(&leases).await.is_on(), is_outage);
            assert!(is_about(left(&lease), 9) && lease.stopped().borrow().is_none());
            assert_eq!(due(&leases), [[30]]);
        }
    }

    #[tokio::test]
    async fn an_expired_receipt_stops_its_own_attempt_and_no_other() {
        let expired: Answer = |receipt| {
            Ok(vec![if receipt == "a" { Err(EntryError::ReceiptExpired) } else { Ok(()) }])
        };
        let leases = leases_with(LEASE, expired).0;
        let lost = hold(&leases, "a", Duration::ZERO, Duration::from_secs(9));
        let kept = hold(&leases, "b", Duration::ZERO, Duration::from_secs(9));
        extend_all(&leases).await;
        assert_eq!((lost.is_held(), *lost.stopped().borrow()), (false, Some(Stop::LeaseLost)));
        assert_eq!((kept.is_held(), *kept.stopped().borrow()), (true, None));
        assert!(is_about(left(&kept), 30));
    }

    #[test]
    fn an_attempt_is_stopped_a_tenth_of_a_lease_and_at_most_two_seconds_before_its_end() {
        for (lease_secs, too_late_ms, in_time_ms) in [(30, 1_500, 5_000), (5, 250, 1_500)] {
            let leases = leases(Duration::from_secs(lease_secs));
            let lost = hold(&leases, "a", Duration::ZERO, Duration::from_millis(too_late_ms));
            let kept = hold(&leases, "b", Duration::ZERO, Duration::from_millis(in_time_ms));
            leases.give_up_what_is_lost();
            assert_eq!((lost.is_held(), *lost.stopped().borrow()), (false, Some(Stop::LeaseLost)));
            assert_eq!((kept.is_held(), *kept.stopped().borrow()), (true, None));
        }
    }

    #[test]
    fn the_first_reason_to_stop_stays() {
        let leases = leases(LEASE);
        let (cancelled, running) =
            (hold(&leases, "a", Duration::ZERO, LEASE), hold(&leases, "b", Duration::ZERO, LEASE));
        cancelled.stopper().send_replace(Some(Stop::Cancelled));
        let (first, second) = (cancelled.stopped(), running.stopped());
        leases.stop_all(Stop::Interrupted);
        assert_eq!(
            (*first.borrow(), first.has_changed().ok()),
            (Some(Stop::Cancelled), Some(false))
        );
        assert_eq!(
            (*second.borrow(), second.has_changed().ok()),
            (Some(Stop::Interrupted), Some(true))
        );
    }

    #[tokio::test]
    async fn a_settlement_waits_for_the_extension_that_is_under_way() {
        let leases = leases(LEASE);
        let lease = hold(&leases, "a", Duration::ZERO, Duration::from_secs(9));
        let under_way = leases.due();
        assert!(due(&leases).is_empty(), "one at a time");
        let mut end = std::pin::pin!(lease.end());
        assert!(end.as_mut().now_or_never().is_none());
        assert_eq!(leases.count(), 1);
        drop(under_way);
        end.await;
        assert_eq!(leases.count(), 0);
    }

    /// A look comes several times in a lease: the first one of a lease of 5 s is in time for a
    /// message that has half of it.
    #[tokio::test]
    async fn what_is_held_is_looked_at_and_extended_by_itself() {
        let (leases, mut asked) = leases_with(Duration::from_secs(5), |_| Ok(vec![Ok(())]));
        let lease = hold(&leases, "a", Duration::ZERO, Duration::from_millis(2_900));
        let hour = Duration::from_secs(3600);
        *leases.looked_at.lock().expect("no panic") = Instant::now() - hour;
        assert!(leases.looked_ago() >= hour);
        let keeper = tokio::spawn(leases.clone().keep());
        let mut stopped = lease.stopped();
        tokio::select! {
            changes = asked.recv() => assert_eq!(changes.map(|all| all[0].1), Some(5)),
            _ = stopped.changed() => panic!("the lease was lost"),
        }
        assert!(leases.looked_ago() < hour);
        keeper.abort();
    }

    /// Source: Amazon SQS API reference, `ChangeMessageVisibility`: 12 hours from the receipt, and
    /// to ask for more is an error.
    #[test]
    fn extended_again_and_again_a_lease_ends_twelve_hours_after_the_receipt() {
        let leases = leases(LEASE);
        let lease = hold(&leases, "a", Duration::ZERO, LEASE);
        let mut all = leases.lock();
        let held = all.get_mut(&lease.key).expect("held");
        let end = held.received_at + TWELVE_HOURS;
        let (mut now, mut extensions) = (held.received_at, 0);
        while now < end + LEASE {
            if let Some(extension) = held.extension(now, LEASE) {
                held.expires_at = now + extension;
                extensions += 1;
                assert!(held.expires_at <= end);
                assert_eq!(extension.subsec_nanos(), 0, "SQS takes whole seconds");
            }
            now += Duration::from_millis(700);
        }
        assert!(extensions > 3000, "{extensions}");
        assert!(end - held.expires_at < Duration::from_secs(2), "given up too early");
        drop(all);
    }
}

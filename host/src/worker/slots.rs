//! The worker's slots: room for one attempt each, shared by its queues.
//!
//! Where several queues want a slot, the one of the least weighted use gets it; in strict order
//! the first in the list. An idle queue that is being long-polled lends its slot: whoever needs
//! one takes it, so that idle queues cost the busy ones nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// All slots of one worker.
pub(crate) struct Slots {
    state: Mutex<State>,
    total: usize,
}

/// What a queue may have of the slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Its part where several queues want slots; from 1.
    pub(crate) weight: u32,
    /// Most slots that it may have at once.
    pub(crate) limit: usize,
}

struct State {
    free: usize,
    /// Slots that long polls of idle queues have lent and that nobody has taken.
    lent: BTreeSet<u64>,
    next_lent: u64,
    waiting: Vec<Waiting>,
    shares: Vec<Share>,
    is_strict: bool,
    /// Weighted use of the queue that got the last slot: one that comes back from idling begins
    /// here, and has saved nothing up.
    present: f64,
}

/// A queue's part of the slots.
struct Share {
    terms: Terms,
    in_use: usize,
    /// Whether its last answer brought messages: in strict order the later queues wait then.
    is_busy: bool,
    /// Slots taken so far, over the weight.
    used: f64,
}

struct Waiting {
    queue: usize,
    /// A message has come for which its lent slot is gone: before all that have none yet.
    is_urgent: bool,
    door: oneshot::Sender<Slot>,
}

/// Room for one attempt; free again when dropped.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    queue: usize,
    is_returned: bool,
}

/// A slot that others may take meanwhile.
pub(crate) struct Lent {
    slots: Arc<Slots>,
    queue: usize,
    key: u64,
}

impl Slots {
    /// `total` slots for queues on these terms, in the order of their rank.
    pub(crate) fn new(total: usize, queues: &[Terms], is_strict: bool) -> Arc<Self> {
        let state = State {
            free: total,
            lent: BTreeSet::new(),
            next_lent: 0,
            waiting: Vec::new(),
            shares: queues
                .iter()
                .map(|&terms| Share { terms, in_use: 0, is_busy: false, used: 0.0 })
                .collect(),
            is_strict,
            present: 0.0,
        };
        Arc::new(Self { state: Mutex::new(state), total })
    }

    /// Takes a slot for a queue, by its index, as soon as one is to be had.
    pub(crate) async fn take(self: &Arc<Self>, queue: usize, is_urgent: bool) -> Slot {
        loop {
            let turn = self.lock().take_or_wait(queue, is_urgent);
            let Some(answer) = turn else {
                self.give_spare();
                return self.slot(queue);
            };
            // Never closed without an answer while this waits; if it were, it would ask again.
            if let Ok(slot) = answer.await {
                return slot;
            }
        }
    }

    /// Notes whether a queue has messages. In strict order what it leaves is the others' then.
    pub(crate) fn set_busy(self: &Arc<Self>, queue: usize, is_busy: bool) {
        {
            let mut state = self.lock();
            let Some(share) = state.shares.get_mut(queue) else { return };
            if share.is_busy == is_busy {
                return;
            }
            share.is_busy = is_busy;
        }
        if !is_busy {
            self.give_spare();
        }
    }

    /// Changes what a queue may have. What it has beyond a lower limit it keeps until it is done.
    pub(crate) fn set_terms(self: &Arc<Self>, queue: usize, terms: Terms) {
        if let Some(share) = self.lock().shares.get_mut(queue) {
            share.terms = terms;
        }
        self.give_spare();
    }

    /// Gives what nobody uses to those who wait and may have it by now: in strict order the later
    /// queues may as soon as the earlier ones have all that their limits allow.
    fn give_spare(self: &Arc<Self>) {
        loop {
            let Some(next) = self.lock().next_for_spare() else { return };
            let queue = next.queue;
            if let Err(slot) = next.door.send(self.slot(queue)) {
                drop(slot);
            }
        }
    }

    /// How many slots there are, and how many of them nobody uses; lent ones count as unused.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (self.total, state.free + state.lent.len())
    }

    /// Whether no slot is to be had at once.
    pub(crate) fn is_exhausted(&self) -> bool {
        let state = self.lock();
        state.free == 0 && state.lent.is_empty()
    }

    /// Most slots that a queue can ever have, as the settings are now.
    pub(crate) fn most(&self, queue: usize) -> usize {
        self.lock().shares[queue].terms.limit.min(self.total)
    }

    /// Whether no slot is in use, apart from `mine` and the lent ones.
    pub(crate) fn is_idle_but_for(&self, mine: usize) -> bool {
        let state = self.lock();
        state.free + state.lent.len() + mine >= self.total
    }

    fn slot(self: &Arc<Self>, queue: usize) -> Slot {
        Slot { slots: self.clone(), queue, is_returned: false }
    }

    /// Gives the slot of a queue to whoever is next, or keeps it free.
    fn release(self: &Arc<Self>, queue: usize) {
        let mut back = queue;
        // A receiver that is gone hands the slot back: then the next one is asked, not by a
        // nested call, which could go as deep as there are waiters.
        loop {
            let Some(next) = self.lock().pass_on(back) else { return };
            match next.door.send(self.slot(next.queue)) {
                Ok(()) => return self.give_spare(),
                Err(mut slot) => {
                    slot.is_returned = true;
                    back = next.queue;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a slot; tells where one will come if none is to be had now.
    fn take_or_wait(&mut self, queue: usize, is_urgent: bool) -> Option<oneshot::Receiver<Slot>> {
        if self.take_spare(queue) {
            return None;
        }
        let (door, answer) = oneshot::channel();
        self.arrive(Waiting { queue, is_urgent, door });
        Some(answer)
    }

    /// Takes a slot that is free or lent. Who waits meanwhile has all that its queue may have.
    fn take_spare(&mut self, queue: usize) -> bool {
        if !self.has_room(queue) {
            return false;
        }
        if self.free > 0 {
            self.free -= 1;
        } else if self.lent.pop_first().is_none() {
            return false;
        }
        self.settle_up(queue);
        self.charge(queue);
        true
    }

    fn arrive(&mut self, waiting: Waiting) {
        // Those that were dropped while they waited are forgotten here.
        self.waiting.retain(|other| !other.door.is_closed());
        self.settle_up(waiting.queue);
        self.waiting.push(waiting);
    }

    /// Whether the queue may have another slot: within its limit, and in strict order only when
    /// no earlier one could use it.
    fn has_room(&self, queue: usize) -> bool {
        let below = |share: &Share| share.in_use < share.terms.limit;
        let is_first = !self.is_strict
            || !self.shares.iter().take(queue).any(|share| share.is_busy && below(share));
        is_first && self.shares.get(queue).is_none_or(below)
    }

    /// A waiter for a slot that is free or lent, if both are there.
    fn next_for_spare(&mut self) -> Option<Waiting> {
        if self.free == 0 && self.lent.is_empty() {
            return None;
        }
        let index = self.best()?;
        if self.free > 0 {
            self.free -= 1;
        } else {
            self.lent.pop_first();
        }
        let next = self.waiting.remove(index);
        self.charge(next.queue);
        Some(next)
    }

    /// A queue that asked for nothing for a while has not saved its share up.
    fn settle_up(&mut self, queue: usize) {
        let present = self.present;
        if !self.waiting.iter().any(|waiting| waiting.queue == queue)
            && let Some(share) = self.shares.get_mut(queue)
        {
            share.used = share.used.max(present);
        }
    }

    fn charge(&mut self, queue: usize) {
        if let Some(share) = self.shares.get_mut(queue) {
            self.present = self.present.max(share.used);
            share.used += 1.0 / f64::from(share.terms.weight.max(1));
            share.in_use += 1;
        }
    }

    /// Takes a queue's slot back; returns the waiter that gets it. Without one it is free.
    fn pass_on(&mut self, from: usize) -> Option<Waiting> {
        if let Some(share) = self.shares.get_mut(from) {
            share.in_use = share.in_use.saturating_sub(1);
        }
        let Some(index) = self.best() else {
            self.free += 1;
            return None;
        };
        let next = self.waiting.remove(index);
        self.charge(next.queue);
        Some(next)
    }

    /// The waiter that comes next, among those whose queue may have a slot.
    fn best(&mut self) -> Option<usize> {
        self.waiting.retain(|other| !other.door.is_closed());
        let used = |waiting: &Waiting| match self.is_strict {
            #[allow(clippy::cast_precision_loss, reason = "there are far fewer than 2^52 queues")]
            true => waiting.queue as f64,
            false => self.shares.get(waiting.queue).map_or(0.0, |share| share.used),
        };
        let able = self.waiting.iter().enumerate().filter(|(_, next)| self.has_room(next.queue));
        let best = able.min_by(|(_, a), (_, b)| {
            b.is_urgent.cmp(&a.is_urgent).then(used(a).total_cmp(&used(b)))
        });
        best.map(|(index, _)| index)
    }

    /// Whether anybody could use a slot now.
    fn is_wanted(&self) -> bool {
        let wants = |next: &Waiting| !next.door.is_closed() && self.has_room(next.queue);
        self.waiting.iter().any(wants)
    }
}

impl Slot {
    /// Lends the slot to whoever needs one.
    pub(crate) fn lend(mut self) -> Lent {
        self.is_returned = true;
        let mut state = self.slots.lock();
        let key = state.next_lent;
        state.next_lent += 1;
        if state.is_wanted() {
            drop(state);
            self.slots.release(self.queue);
        } else {
            state.lent.insert(key);
            if let Some(share) = state.shares.get_mut(self.queue) {
                share.in_use = share.in_use.saturating_sub(1);
            }
        }
        Lent { slots: self.slots.clone(), queue: self.queue, key }
    }
}

impl Lent {
    /// The slot, unless somebody has taken it.
    pub(crate) fn back(self) -> Option<Slot> {
        let slot = self.take_back().then(|| self.slots.slot(self.queue));
        self.slots.give_spare();
        slot
    }

    fn take_back(&self) -> bool {
        let mut state = self.slots.lock();
        let is_there = state.lent.remove(&self.key);
        if is_there && let Some(share) = state.shares.get_mut(self.queue) {
            share.in_use += 1;
        }
        is_there
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.take_back() {
            self.slots.release(self.queue);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.is_returned {
            self.slots.release(self.queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Slots for queues of these weights, without limits of their own.
    fn slots(total: usize, weights: &[u32], is_strict: bool) -> Arc<Slots> {
        let terms: Vec<Terms> =
            weights.iter().map(|&weight| Terms { weight, limit: total }).collect();
        Slots::new(total, &terms, is_strict)
    }

    fn take(slots: &Arc<Slots>, queue: usize) -> Option<Slot> {
        slots.take(queue, false).now_or_never()
    }

    /// Who gets the slot, over and over, while all queues wait for it.
    fn order(weights: &[u32], is_strict: bool, turns: usize) -> Vec<usize> {
        let slots = slots(1, weights, is_strict);
        let mut held = take(&slots, 0);
        let mut waiting: Vec<_> =
            (0..weights.len()).map(|queue| Box::pin(slots.take(queue, false))).collect();
        waiting.iter_mut().for_each(|wait| assert!(wait.as_mut().now_or_never().is_none()));
        let mut order = Vec::new();
        for _ in 0..turns {
            drop(held.take());
            for (queue, wait) in waiting.iter_mut().enumerate() {
                if let Some(slot) = wait.as_mut().now_or_never() {
                    held = Some(slot);
                    order.push(queue);
                    *wait = Box::pin(slots.take(queue, false));
                    assert!(wait.as_mut().now_or_never().is_none());
                    break;
                }
            }
        }
        order
    }

    #[test]
    fn no_more_slots_are_out_than_there_are() {
        let slots = slots(2, &[1], false);
        let (a, b) = (take(&slots, 0), take(&slots, 0));
        assert!(a.is_some() && b.is_some() && take(&slots, 0).is_none());
        drop(a);
        assert!(take(&slots, 0).is_some());
    }

    #[test]
    fn queues_get_slots_by_their_weights() {
        let order = order(&[3, 1], false, 400);
        let first = order.iter().filter(|queue| **queue == 0).count();
        assert!((299..=301).contains(&first), "{first} of 400");
        let longest = order.chunk_by(|a, b| a == b).map(<[usize]>::len).max();
        assert!(longest <= Some(4), "taking turns, not in long runs: {longest:?}");
    }

    #[test]
    fn in_strict_order_the_first_queue_comes_first() {
        assert!(order(&[1, 100, 100], true, 50).iter().all(|queue| *queue == 0));
    }

    #[test]
    fn a_queue_that_was_idle_has_saved_nothing_up() {
        let slots = slots(1, &[1, 1], false);
        for _ in 0..1000 {
            drop(take(&slots, 0));
        }
        let held = take(&slots, 0);
        let mut waits = [0, 1, 1, 1].map(|queue| Box::pin(slots.take(queue, false)));
        waits.iter_mut().for_each(|wait| assert!(wait.as_mut().now_or_never().is_none()));
        drop(held);
        let mut got = Vec::new();
        for _ in 0..3 {
            let next = waits.iter_mut().enumerate().find_map(|(n, wait)| {
                (!got.contains(&n)).then(|| wait.as_mut().now_or_never()).flatten().map(|_| n)
            });
            got.extend(next);
        }
        assert!(got.contains(&0), "the busy queue waits for two turns at most: {got:?}");
    }

    #[test]
    fn a_lent_slot_is_anybodys_and_comes_back_if_nobody_took_it() {
        let slots = slots(1, &[1, 1], false);
        let lent = take(&slots, 0).map(Slot::lend);
        let taken = take(&slots, 1);
        assert!(taken.is_some(), "the idle queue costs the other nothing");
        assert!(lent.and_then(Lent::back).is_none());
        drop(taken);
        let lent = take(&slots, 0).map(Slot::lend);
        assert!(lent.and_then(Lent::back).is_some());
        assert!(take(&slots, 0).is_some(), "and is free again afterwards");
    }

    #[test]
    fn a_lent_slot_goes_to_whoever_waits_already() {
        let slots = slots(1, &[1, 1], false);
        let held = take(&slots, 0);
        let mut wait = Box::pin(slots.take(1, false));
        assert!(wait.as_mut().now_or_never().is_none());
        let lent = held.map(Slot::lend);
        assert!(wait.as_mut().now_or_never().is_some());
        assert!(lent.and_then(Lent::back).is_none());
    }

    #[test]
    fn a_waiter_that_went_away_takes_no_slot_with_it() {
        let slots = slots(1, &[1, 1], false);
        let held = take(&slots, 0);
        {
            let mut gone = Box::pin(slots.take(1, false));
            assert!(gone.as_mut().now_or_never().is_none());
        }
        let mut waits = [0, 1].map(|queue| Box::pin(slots.take(queue, false)));
        waits.iter_mut().for_each(|wait| assert!(wait.as_mut().now_or_never().is_none()));
        drop(held);
        drop(waits);
        assert!(take(&slots, 0).is_some(), "one that was given and not looked at is free again");
    }

    #[test]
    fn a_message_that_lost_its_lent_slot_is_next() {
        let slots = slots(1, &[1, 1], true);
        let held = take(&slots, 0);
        let mut first = Box::pin(slots.take(0, false));
        let mut urgent = Box::pin(slots.take(1, true));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(urgent.as_mut().now_or_never().is_none());
        drop(held);
        assert!(urgent.as_mut().now_or_never().is_some());
    }

    #[test]
    fn in_strict_order_a_busy_queue_keeps_what_it_could_use_from_the_later_ones() {
        let slots = slots(2, &[1, 1], true);
        slots.set_busy(0, true);
        let mut late = Box::pin(slots.take(1, false));
        assert!(late.as_mut().now_or_never().is_none(), "while the first is being asked");
        let first = take(&slots, 0);
        assert!(first.is_some() && late.as_mut().now_or_never().is_none());
        slots.set_busy(0, false);
        assert!(late.as_mut().now_or_never().is_some(), "the first has no more");
    }

    #[test]
    fn in_strict_order_a_busy_queue_at_its_limit_lets_the_later_ones_in() {
        let terms = [Terms { weight: 1, limit: 1 }, Terms { weight: 1, limit: 3 }];
        let slots = Slots::new(3, &terms, true);
        slots.set_busy(0, true);
        let [mut late, mut last] = [1, 1].map(|queue| Box::pin(slots.take(queue, false)));
        assert!(late.as_mut().now_or_never().is_none() && last.as_mut().now_or_never().is_none());
        let first = take(&slots, 0);
        assert!(first.is_some());
        let others = [late.as_mut().now_or_never(), last.as_mut().now_or_never()];
        assert!(others.iter().all(Option::is_some), "the first can use no more");
        drop((first, others));
        assert!(slots.is_idle_but_for(0), "none is lost");
    }

    #[test]
    fn a_raised_limit_lets_in_who_waits_and_a_lowered_one_takes_no_slot_away() {
        let terms = |limit| Terms { weight: 1, limit };
        let slots = Slots::new(3, &[terms(1)], false);
        let first = take(&slots, 0);
        let [mut wait, mut last] = [0, 0].map(|queue| Box::pin(slots.take(queue, false)));
        assert!(wait.as_mut().now_or_never().is_none() && last.as_mut().now_or_never().is_none());
        slots.set_terms(0, terms(2));
        let second = wait.as_mut().now_or_never();
        assert!(second.is_some() && last.as_mut().now_or_never().is_none());
        slots.set_terms(0, terms(1));
        drop(first);
        assert!(take(&slots, 0).is_none(), "the second one is still at work");
        drop(second);
        assert!(last.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_raised_limit_takes_lent_slots_too() {
        let terms = |limit| Terms { weight: 1, limit };
        let slots = Slots::new(2, &[terms(1), terms(2)], false);
        let lent = take(&slots, 1).map(Slot::lend);
        let first = take(&slots, 0);
        let mut wait = Box::pin(slots.take(0, false));
        assert!(first.is_some() && wait.as_mut().now_or_never().is_none());
        slots.set_terms(0, terms(2));
        let second = wait.as_mut().now_or_never();
        assert!(second.is_some());
        drop((first, second, lent));
        assert!(slots.is_idle_but_for(0), "none is lost");
    }

    #[test]
    fn a_queue_at_its_own_limit_leaves_the_slot_to_the_others() {
        let terms = [Terms { weight: 1, limit: 1 }, Terms { weight: 1, limit: 3 }];
        let slots = Slots::new(3, &terms, true);
        let first = take(&slots, 0);
        let mut wait = Box::pin(slots.take(0, false));
        assert!(wait.as_mut().now_or_never().is_none());
        let others = [take(&slots, 1), take(&slots, 1)];
        assert!(others.iter().all(Option::is_some));
        let mut other = Box::pin(slots.take(1, false));
        assert!(other.as_mut().now_or_never().is_none());
        drop(others);
        assert!(wait.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_some());
        drop(first);
        assert!(wait.as_mut().now_or_never().is_some());
    }
}

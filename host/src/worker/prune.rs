//! Prunes jobs that are done, in the background and in small batches, so that nobody waits long
//! for the database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::Shared;
use super::message::Polled;
use crate::outage::chain;
use crate::store::StoreError;
use crate::store::prune::Keep;

/// How often the worker looks for what is to be pruned.
const PAUSE: Duration = Duration::from_secs(60);
/// Least pause between two batches; one is as long as the batch before took, so that pruning
/// takes half of the database's time at most.
const BREATH: Duration = Duration::from_millis(20);

/// Prunes again and again, for ever. Without a retention only old fences are removed.
pub(super) async fn prune(shared: Arc<Shared>, queues: Vec<Arc<Polled>>) {
    let keep = Keep { time: shared.config.keep, count: shared.config.keep_count };
    let retentions: Vec<(String, Duration)> =
        queues.iter().map(|polled| (polled.queue.name.clone(), polled.queue.retention)).collect();
    // Hosts that started together do not look together.
    let mut pause = Duration::from_secs(2).mul_f64(fastrand::f64());
    loop {
        tokio::time::sleep(pause).await;
        pause = PAUSE.mul_f64(0.75 + fastrand::f64() / 2.0);
        let begun = Instant::now();
        match pass(&shared, keep, &retentions).await {
            Ok((0, 0)) => {}
            Ok((pruned, removed)) => info!(
                "pruned {pruned} job(s) that are done and removed {removed} old one(s), in {:.1} s",
                begun.elapsed().as_secs_f64()
            ),
            Err(error) => debug!("could not prune: {}", chain(&error)),
        }
    }
}

/// Prunes what there is; tells how many jobs were pruned, and how many rows removed.
async fn pass(
    shared: &Shared,
    keep: Keep,
    retentions: &[(String, Duration)],
) -> Result<(u64, u64), StoreError> {
    let store = &shared.store;
    let (mut pruned, mut removed) = (0, 0);
    if let Some(until) = store.prune_until(keep).await? {
        let mut after = None;
        loop {
            let begun = Instant::now();
            let (count, last) = store.prune_some(after.as_ref(), &until).await?;
            pruned += count;
            if last.is_none() {
                break;
            }
            after = last;
            breathe(begun).await;
        }
    }
    let mut after = None;
    loop {
        let begun = Instant::now();
        let (count, last) = store.remove_fences(retentions, after.as_ref()).await?;
        removed += count;
        if last.is_none() {
            return Ok((pruned, removed));
        }
        after = last;
        breathe(begun).await;
    }
}

async fn breathe(begun: Instant) {
    tokio::time::sleep(begun.elapsed().max(BREATH)).await;
}

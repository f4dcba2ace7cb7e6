//! Looks for jobs whose message is gone from the queue, and gives them up.
//!
//! Two ways to be sure enough: the queue's retention has passed since the message was sent; or
//! the queue was found empty at three looks in a row, a lease apart, while the job was overdue by
//! two leases. SQS counts are approximate for about a minute after a change, and a job that was
//! given up too soon runs all the same when its message comes.
//!
//! Beside it, what unique keys leave behind is swept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error};

use super::Shared;
use super::message::Polled;
use crate::metrics;
use crate::outage::chain;
use crate::store::dead::DeadKind;
use crate::store::lost::LostFilter;
use crate::text::printable;

/// Looks in a row that must find the queue empty.
const LOOKS: u32 = 3;
/// Time that a queue may take to drop a message after its retention.
const RETENTION_SLACK: Duration = Duration::from_secs(3600);

/// Looks again and again, for ever.
pub(super) async fn sweep(shared: Arc<Shared>, queues: Vec<Arc<Polled>>) {
    let pause = shared.leases.lease();
    let mut empty_looks: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        // Hosts that started together do not look together.
        tokio::time::sleep(pause.mul_f64(1.0 + fastrand::f64() / 4.0)).await;
        if let Err(problem) = shared.store.sweep_keys().await {
            debug!("could not sweep unique keys: {}", chain(&problem));
        }
        for polled in &queues {
            let looks = empty_looks.entry(polled.queue.name.clone()).or_default();
            if let Err(problem) = look(&shared, polled, looks).await {
                debug!(queue = %polled.queue.name, "could not look for lost jobs: {problem}");
            }
        }
    }
}

async fn look(shared: &Shared, polled: &Polled, looks: &mut u32) -> Result<(), String> {
    let queue = &polled.queue;
    let overdue = shared.leases.lease() * 2;
    let expired = LostFilter {
        queue: queue.name.clone(),
        overdue,
        sent_before: Some(queue.retention.saturating_add(RETENTION_SLACK)),
    };
    give_up(shared, &expired, "its message has outlived the queue's retention").await?;
    let gone = LostFilter { sent_before: None, ..expired };
    if !shared.store.has_overdue(&gone).await.map_err(|error| chain(&error))? {
        *looks = 0;
        return Ok(());
    }
    let depth = shared.broker.depth(queue).await.map_err(|error| chain(&error))?;
    if depth.visible + depth.in_flight + depth.delayed > 0 {
        *looks = 0;
        return Ok(());
    }
    *looks += 1;
    if *looks >= LOOKS {
        *looks = 0;
        let reason = "its message is gone: the queue is empty while the job waits. It was purged, taken by another program, or moved to a dead-letter queue by the queue itself";
        give_up(shared, &gone, reason).await?;
    }
    Ok(())
}

async fn give_up(shared: &Shared, filter: &LostFilter, reason: &str) -> Result<(), String> {
    loop {
        let given_up = shared.store.give_up_lost(filter, reason).await;
        let ids = given_up.map_err(|error| chain(&error))?;
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            error!(queue = %filter.queue, job.id = %printable(&id), "job {} is lost and in the dead list: {reason}", printable(&id));
            metrics::put_aside(&filter.queue, DeadKind::Lost.name());
        }
    }
}

//! Deletes and visibility changes, in batches of up to 10 with a short linger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::broker::{Broker, BrokerError, EntryError, EntryResults, MAX_BATCH, Queue, Receipt};
use crate::outage::{Backoff, Outage};

/// How long the first entry of a batch waits for others.
const LINGER: Duration = Duration::from_millis(10);
/// Batches of one kind under way at once for one queue.
const MAX_CALLS: usize = 8;
/// How long a failing call is tried again: what is stored is stored, and a message that comes
/// once more is found finished.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// Settles messages of one queue.
#[derive(Clone)]
pub(crate) struct Settler {
    deletes: mpsc::Sender<Entry<()>>,
    returns: mpsc::Sender<Entry<u32>>,
}

struct Entry<T> {
    receipt: Receipt,
    what: T,
    done: oneshot::Sender<Result<(), EntryError>>,
}

impl Settler {
    /// Starts the batches of one queue; they end when the last clone is dropped and all is sent.
    pub(crate) fn start(broker: &Arc<dyn Broker>, queue: &Arc<Queue>) -> Self {
        let (deletes, to_delete) = mpsc::channel(1024);
        let (returns, to_return) = mpsc::channel(1024);
        let (b, q) = (broker.clone(), queue.clone());
        tokio::spawn(batches(to_delete, "delete messages", move |entries: Vec<(Receipt, ())>| {
            let (broker, queue) = (b.clone(), q.clone());
            async move {
                let receipts: Vec<Receipt> =
                    entries.into_iter().map(|(receipt, ())| receipt).collect();
                broker.delete(&queue, &receipts).await
            }
        }));
        let (b, q) = (broker.clone(), queue.clone());
        tokio::spawn(batches(to_return, "give messages back", move |changes: Vec<_>| {
            let (broker, queue) = (b.clone(), q.clone());
            async move { broker.set_visibility(&queue, &changes).await }
        }));
        Self { deletes, returns }
    }

    /// Deletes a message. An error means that it may come once more.
    pub(crate) async fn delete(&self, receipt: Receipt) -> Result<(), EntryError> {
        call(&self.deletes, receipt, ()).await
    }

    /// Makes a message visible again after so many seconds.
    pub(crate) async fn give_back(&self, receipt: Receipt, secs: u32) -> Result<(), EntryError> {
        call(&self.returns, receipt, secs).await
    }
}

async fn call<T>(
    door: &mpsc::Sender<Entry<T>>,
    receipt: Receipt,
    what: T,
) -> Result<(), EntryError> {
    let (done, answered) = oneshot::channel();
    let stopped = || EntryError::Transient("the worker is stopping".into());
    door.send(Entry { receipt, what, done }).await.map_err(|_| stopped())?;
    answered.await.unwrap_or_else(|_| Err(stopped()))
}

/// Gathers entries into batches and sends these side by side.
async fn batches<T, F>(
    mut entries: mpsc::Receiver<Entry<T>>,
    activity: &'static str,
    send: impl Fn(Vec<(Receipt, T)>) -> F + Clone + Send + Sync + 'static,
) where
    T: Copy + Send + 'static,
    F: Future<Output = Result<EntryResults<()>, BrokerError>> + Send + 'static,
{
    let outage = Outage::new(activity);
    let calls = Arc::new(tokio::sync::Semaphore::new(MAX_CALLS));
    while let Some(first) = entries.recv().await {
        let mut batch = vec![first];
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while batch.len() < MAX_BATCH {
            tokio::select! {
                biased;
                entry = entries.recv() => match entry {
                    Some(entry) => batch.push(entry),
                    None => break,
                },
                () = &mut linger => break,
            }
        }
        // Never closed: the semaphore lives as long as this loop.
        let Ok(turn) = calls.clone().acquire_owned().await else { return };
        let (send, outage) = (send.clone(), outage.clone());
        tokio::spawn(async move {
            carry_out(batch, &send, &outage).await;
            drop(turn);
        });
    }
}

/// Sends one batch, and again those of its entries that failed for the moment.
async fn carry_out<T, F>(
    mut batch: Vec<Entry<T>>,
    send: &impl Fn(Vec<(Receipt, T)>) -> F,
    outage: &Outage,
) where
    T: Copy,
    F: Future<Output = Result<EntryResults<()>, BrokerError>>,
{
    let (begun, mut backoff) = (Instant::now(), Backoff::default());
    loop {
        let call = batch.iter().map(|entry| (entry.receipt.clone(), entry.what)).collect();
        let results = match send(call).await {
            Ok(results) => {
                outage.over();
                results
            }
            Err(error) => {
                outage.note(&error);
                let reason = error.to_string();
                let failed = || {
                    if error.is_transient() {
                        EntryError::Transient(reason.clone())
                    } else {
                        EntryError::Refused(reason.clone())
                    }
                };
                batch.iter().map(|_| Err(failed())).collect()
            }
        };
        let is_late = begun.elapsed() > GIVE_UP_AFTER;
        let mut again = Vec::new();
        for (entry, result) in batch.into_iter().zip(results) {
            match result {
                Err(EntryError::Transient(_)) if !is_late => again.push(entry),
                // An attempt that was stopped no longer waits for the answer.
                result => drop(entry.done.send(result)),
            }
        }
        if again.is_empty() {
            return;
        }
        batch = again;
        tokio::time::sleep(backoff.next()).await;
    }
}

//! What operators say by way of the database: jobs that are to be stopped, queues that are paused.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use super::Shared;
use crate::failpoint;
use crate::outage::Outage;
use crate::sandbox::Stop;
use crate::store::StoreError;
use crate::text::printable;

/// How often the worker looks whether one of its running jobs was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(500);
/// How often the worker looks which queues are paused.
const PAUSE_LOOK: Duration = Duration::from_secs(2);

/// The attempts of one worker that can be stopped, by token.
#[derive(Default)]
pub(super) struct Running {
    attempts: Mutex<HashMap<String, watch::Sender<Option<Stop>>>>,
}

/// An attempt that can be stopped, until this is dropped.
pub(super) struct Stoppable<'a> {
    running: &'a Running,
    token: &'a str,
}

impl Running {
    /// Has the attempt be stopped through `stop` when its job is cancelled.
    pub(super) fn add<'a>(
        &'a self,
        token: &'a str,
        stop: watch::Sender<Option<Stop>>,
    ) -> Stoppable<'a> {
        self.lock().insert(token.to_owned(), stop);
        Stoppable { running: self, token }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Stops an attempt; `false` when it is not here, or was stopped before.
    fn stop(&self, token: &str) -> bool {
        let stop = self.lock().get(token).cloned();
        stop.is_some_and(|stop| {
            stop.send_if_modified(|current| {
                let is_first = current.is_none();
                *current = current.or(Some(Stop::Cancelled));
                is_first
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<Stop>>>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stoppable<'_> {
    fn drop(&mut self) {
        self.running.lock().remove(self.token);
    }
}

/// Stops attempts whose jobs were cancelled, for ever. Nothing is asked while nothing runs.
pub(super) async fn stop_cancelled(shared: Arc<Shared>) {
    let outage = Outage::new("look for cancelled jobs");
    loop {
        tokio::time::sleep(CANCEL_LOOK).await;
        if shared.running.is_empty() {
            continue;
        }
        match shared.store.to_stop(&shared.id).await {
            Ok(found) => {
                outage.over();
                for attempt in found {
                    failpoint::reach("stopping", "");
                    if shared.running.stop(&attempt.token) {
                        let id = printable(&attempt.job_id);
                        info!(job.id = %id, "job {id} was cancelled; its attempt is stopped");
                    }
                }
            }
            Err(error) => outage.note(&error),
        }
    }
}

/// The queues that are paused, as the worker knows it.
pub(super) struct Pauses(watch::Sender<BTreeSet<String>>);

impl Pauses {
    pub(super) fn new(paused: BTreeSet<String>) -> Self {
        Self(watch::channel(paused).0)
    }

    pub(super) fn is_paused(&self, queue: &str) -> bool {
        self.0.borrow().contains(queue)
    }

    /// Waits until the queue is paused, or is not.
    pub(super) async fn until(&self, queue: &str, is_paused: bool) {
        let mut changes = self.0.subscribe();
        if changes.wait_for(|paused| paused.contains(queue) == is_paused).await.is_err() {
            // Nobody can say so any more.
            std::future::pending::<()>().await;
        }
    }

    fn set(&self, paused: BTreeSet<String>) {
        self.0.send_if_modified(|current| {
            let is_new = *current != paused;
            *current = paused;
            is_new
        });
    }
}

/// Keeps what is known of pauses up to date, for ever. While the database is away, what was
/// paused stays so.
pub(super) async fn watch_pauses(shared: Arc<Shared>) {
    let outage = Outage::new("look for paused queues");
    loop {
        tokio::time::sleep(PAUSE_LOOK).await;
        let paused: Result<_, StoreError> = shared.store.paused_queues().await;
        match paused {
            Ok(paused) => {
                outage.over();
                shared.pauses.set(paused);
            }
            Err(error) => outage.note(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn an_attempt_is_stopped_once_and_only_while_it_runs() {
        let running = Running::default();
        let stop = watch::channel(None).0;
        let stoppable = running.add("token", stop.clone());
        assert!(running.stop("token") && !running.stop("token") && !running.stop("other"));
        assert_eq!(*stop.borrow(), Some(Stop::Cancelled));
        drop(stoppable);
        assert!(running.is_empty());
    }

    #[test]
    fn a_lost_lease_is_no_cancel() {
        let running = Running::default();
        let stop = watch::channel(Some(Stop::LeaseLost)).0;
        let _stoppable = running.add("token", stop.clone());
        assert!(!running.stop("token"));
        assert_eq!(*stop.borrow(), Some(Stop::LeaseLost));
    }

    #[test]
    fn whoever_waits_for_a_pause_hears_of_it() {
        let pauses = Pauses::new(BTreeSet::new());
        let mut paused = Box::pin(pauses.until("q", true));
        assert!(paused.as_mut().now_or_never().is_none());
        assert!(pauses.until("q", false).now_or_never().is_some());
        pauses.set(["q".to_owned()].into());
        assert!(paused.now_or_never().is_some() && pauses.is_paused("q"));
    }
}

//! Grouped writes: many attempts, one transaction.
//!
//! Calls that come while a transaction runs wait for the next one and share it. When the
//! database refuses a group, or one of its rows is held by another session, each call is tried by
//! itself, so that such a row harms its own job only.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Most calls in one transaction: keeps a transaction short, and its statement's parameters
/// below SQLite's limit of 32,766.
const MAX_GROUP: usize = 64;

/// Where the answer to one request goes.
type Answer<A> = oneshot::Sender<Result<A, Arc<StoreError>>>;

/// A door to a writer: requests of type `Q`, answered by `A`.
#[derive(Debug)]
pub(crate) struct Group<Q, A> {
    calls: mpsc::Sender<(Q, Answer<A>)>,
}

impl<Q, A> Clone for Group<Q, A> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone() }
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Group<Q, A> {
    /// Starts a writer. `write` carries out all of its requests in one transaction, or none, and
    /// answers each in order.
    pub(crate) fn start<W>(write: W) -> Self
    where
        W: for<'a> Fn(&'a [Q]) -> BoxFuture<'a, Result<Vec<A>, StoreError>> + Send + Sync + 'static,
    {
        let (calls, mut waiting) = mpsc::channel::<(Q, Answer<A>)>(1024);
        tokio::spawn(async move {
            let mut group = Vec::new();
            while waiting.recv_many(&mut group, MAX_GROUP).await > 0 {
                let (requests, answers): (Vec<Q>, Vec<_>) = group.drain(..).unzip();
                carry_out(&write, &requests, answers).await;
            }
        });
        Self { calls }
    }

    /// Has one request carried out, together with whatever else waits.
    pub(crate) async fn call(&self, request: Q) -> Result<A, Arc<StoreError>> {
        let (answer, answered) = oneshot::channel();
        let stopped = || Arc::new(StoreError::Stopped);
        self.calls.send((request, answer)).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// Carries out a group, split into single requests if the database refuses it as a whole.
async fn carry_out<Q, A, W>(write: &W, requests: &[Q], answers: Vec<Answer<A>>)
where
    W: for<'a> Fn(&'a [Q]) -> BoxFuture<'a, Result<Vec<A>, StoreError>>,
{
    match write(requests).await {
        Ok(results) => {
            for (answer, result) in answers.into_iter().zip(results) {
                // A caller that no longer waits has lost its lease or is being stopped.
                let _ = answer.send(Ok(result));
            }
        }
        Err(error) if requests.len() == 1 || (error.is_transient() && !error.is_stall()) => {
            let error = Arc::new(error);
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
        Err(_) => {
            for (request, answer) in requests.iter().zip(answers) {
                let result = write(std::slice::from_ref(request)).await;
                let result = result.map_err(Arc::new).and_then(|mut results| {
                    results.pop().ok_or_else(|| Arc::new(StoreError::Stopped))
                });
                let _ = answer.send(result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> StoreError {
        StoreError::Statement {
            database: "test".into(),
            action: "write",
            source: sqlx::Error::RowNotFound,
        }
    }

    #[tokio::test]
    async fn a_refused_group_is_split_so_that_one_poison_row_harms_only_itself() {
        let group = Group::start(|requests: &[u32]| {
            let poisoned = requests.contains(&13);
            let answers = requests.iter().map(|n| n * 2).collect();
            Box::pin(async move { if poisoned { Err(refused()) } else { Ok(answers) } })
        });
        let calls = (0..40).map(|n| {
            let group = group.clone();
            tokio::spawn(async move { group.call(n).await.ok() })
        });
        for (n, call) in calls.enumerate().collect::<Vec<_>>() {
            let n = u32::try_from(n).unwrap();
            assert_eq!(call.await.unwrap(), (n != 13).then_some(n * 2));
        }
    }

    fn stalled() -> StoreError {
        StoreError::Timeout { database: "test".into(), action: "write" }
    }

    fn away() -> StoreError {
        StoreError::Statement {
            database: "test".into(),
            action: "write",
            source: sqlx::Error::PoolTimedOut,
        }
    }

    /// Carries out three requests, of which the writer refuses groups of this size and more; tells
    /// what was answered and in what groups it was called.
    async fn three(refuse: fn() -> StoreError, from: usize) -> (Vec<Option<u32>>, Vec<usize>) {
        let calls = std::sync::Mutex::new(Vec::new());
        let (answers, answered): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        carry_out(
            &|requests: &[u32]| {
                calls.lock().unwrap().push(requests.len());
                let answers = requests.to_vec();
                Box::pin(
                    async move { if answers.len() >= from { Err(refuse()) } else { Ok(answers) } },
                )
            },
            &[1, 2, 3],
            answers,
        )
        .await;
        let mut told = Vec::new();
        for answer in answered {
            told.push(answer.await.unwrap().ok());
        }
        (told, calls.into_inner().unwrap())
    }

    #[tokio::test]
    async fn what_another_session_holds_splits_the_group() {
        let all = vec![Some(1), Some(2), Some(3)];
        assert_eq!(three(stalled, 2).await, (all.clone(), vec![3, 1, 1, 1]));
        assert_eq!(three(stalled, 4).await, (all, vec![3]));
    }

    /// One call after the other would hold them all up for as long as each of them may take.
    #[tokio::test]
    async fn a_database_that_is_away_fails_the_group_at_once() {
        assert_eq!(three(away, 1).await, (vec![None; 3], vec![3]));
    }

    #[tokio::test]
    async fn a_single_call_that_is_refused_is_tried_once() {
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = calls.clone();
        let group: Group<u32, u32> = Group::start(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Box::pin(async { Err(refused()) })
        });
        assert!(!group.call(1).await.unwrap_err().is_transient());
        assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_writer_ends_with_its_last_caller() {
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let group: Group<u32, u32> = Group::start(move |requests: &[u32]| {
            let (_alive, answers) = (&alive, requests.to_vec());
            Box::pin(async move { Ok(answers) })
        });
        assert_eq!(group.call(7).await.unwrap(), 7);
        drop(group);
        assert_eq!(ended.recv().await, None);
    }
}

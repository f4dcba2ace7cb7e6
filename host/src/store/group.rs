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

    #[tokio::test]
    async fn a_database_that_is_away_fails_the_group_at_once() {
        let group: Group<u32, u32> = Group::start(|_| {
            Box::pin(async {
                Err(StoreError::Timeout { database: "test".into(), action: "write" })
            })
        });
        assert!(group.call(1).await.unwrap_err().is_transient());
    }
}

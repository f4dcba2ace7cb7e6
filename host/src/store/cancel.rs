//! Cancelling: a job that waits never runs, one that runs is stopped by its worker.
//!
//! Whoever commits first wins: a job that has its final status keeps it, and an attempt whose job
//! is to be stopped may still succeed before its worker hears of it.

use sqlx::Row as _;

use super::{Store, StoreError, Write, placeholders};
use crate::failpoint;

/// Jobs cancelled in one transaction.
const BATCH: usize = 200;

/// Which jobs are to be cancelled; all conditions must hold. Those that are done never match.
#[derive(Debug, Clone, Default)]
pub struct CancelFilter {
    /// Only jobs of this name.
    pub job: Option<String>,
    /// Only jobs of this queue.
    pub queue: Option<String>,
    /// Only jobs of this status: `PENDING`, `RUNNING` or `RETRY`.
    pub status: Option<String>,
    /// Leave jobs that run to their end.
    pub only_waiting: bool,
}

/// What a cancel came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// The job is `CANCELLED`, and its message is deleted when it comes.
    Done,
    /// An attempt runs: its worker is told to stop it.
    Stopping,
    /// The job has this final status already.
    Final(String),
    /// No job of this id has a row.
    Unknown,
}

/// What one batch of a cancel by filter came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CancelledBatch {
    /// Ids of jobs that are `CANCELLED` now.
    pub done: Vec<String>,
    /// Ids of jobs whose workers are told to stop them.
    pub stopping: Vec<String>,
    /// The id behind which the next batch begins; `None` after the last one.
    pub next: Option<String>,
}

/// SQL: the worker that runs the job `jobs` is gone.
const IS_ABANDONED: &str = "status = 'RUNNING' AND NOT EXISTS (SELECT 1 FROM {p}workers w \
    WHERE w.id = {p}jobs.worker_id AND w.renewed_at + w.lease_ms > {now})";

/// An attempt that its worker is to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToStop {
    /// The job.
    pub job_id: String,
    /// The attempt.
    pub token: String,
}

impl Store {
    /// Cancels one job.
    ///
    /// # Errors
    /// The database failed; nothing was cancelled.
    pub async fn cancel(&self, id: &str) -> Result<Cancelled, StoreError> {
        self.within("cancel a job", async {
            let mut write = self.begin().await?;
            let batch = self.cancel_ids(&mut write, &[id.to_owned()]).await?;
            let status: Option<String> =
                sqlx::query_scalar(self.sql("SELECT status FROM {p}jobs WHERE id = $1"))
                    .bind(id.to_owned())
                    .fetch_optional(&mut *write.tx)
                    .await?;
            write.tx.commit().await?;
            Ok(match status {
                None => Cancelled::Unknown,
                Some(_) if !batch.done.is_empty() => Cancelled::Done,
                Some(status) if status == "RUNNING" => Cancelled::Stopping,
                Some(status) => Cancelled::Final(status),
            })
        })
        .await
    }

    /// How many jobs match, those that are being stopped apart.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count_to_cancel(&self, filter: &CancelFilter) -> Result<u64, StoreError> {
        let (conditions, values) = filter.conditions();
        let statement =
            format!("SELECT CAST(count(*) AS bigint) FROM {{p}}jobs WHERE {conditions}");
        let mut query = sqlx::query_scalar::<_, i64>(self.sql(&statement));
        for value in values {
            query = query.bind(value);
        }
        let count = self.within("count jobs", query.fetch_one(&self.inner.pool)).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Cancels some of the jobs that match and were there at `until`, in milliseconds since 1970:
    /// the first ones behind the id `after`, which a first call leaves empty. What is behind a
    /// batch is not looked at again, or a million jobs would be passed over once for each.
    ///
    /// # Errors
    /// The database failed; nothing of the batch was cancelled.
    pub async fn cancel_some(
        &self,
        filter: &CancelFilter,
        until: i64,
        after: &str,
    ) -> Result<CancelledBatch, StoreError> {
        self.within("cancel jobs", async {
            let mut write = self.begin().await?;
            let (conditions, values) = filter.conditions();
            let statement = format!(
                "SELECT id FROM {{p}}jobs WHERE {conditions} AND created_at <= {until} \
                 AND id > ${} ORDER BY id LIMIT {BATCH} {{for_update}}",
                values.len() + 1
            );
            let mut query = sqlx::query_scalar::<_, String>(self.sql(&statement));
            for value in values {
                query = query.bind(value);
            }
            let ids = query.bind(after.to_owned()).fetch_all(&mut *write.tx).await?;
            let batch = self.cancel_ids(&mut write, &ids).await?;
            write.tx.commit().await?;
            let next = ids.last().filter(|_| ids.len() == BATCH).cloned();
            Ok(CancelledBatch { next, ..batch })
        })
        .await
    }

    /// Cancels those of these jobs that are not done.
    pub(super) async fn cancel_ids(
        &self,
        write: &mut Write,
        ids: &[String],
    ) -> Result<CancelledBatch, sqlx::Error> {
        if ids.is_empty() {
            return Ok(CancelledBatch::default());
        }
        let list = placeholders(1, ids.len());
        let cancel = format!(
            "UPDATE {{p}}jobs SET status = 'CANCELLED', token = NULL, alone = 0, retry_at = NULL, \
             cancel_requested = 0, finished_at = {{now}}, updated_at = {{now}} WHERE id IN {list} \
             AND (status IN ('PENDING', 'RETRY') OR ({IS_ABANDONED})) RETURNING id"
        );
        let stop = format!(
            "UPDATE {{p}}jobs SET cancel_requested = 1 WHERE id IN {list} \
             AND status = 'RUNNING' AND cancel_requested = 0 RETURNING id"
        );
        let done = self.ids_of(write, &cancel, ids).await?;
        let stopping = self.ids_of(write, &stop, ids).await?;
        if !done.is_empty() {
            let list = placeholders(1, done.len());
            // What is being sent at this moment is deleted when it comes.
            let unsend = format!("DELETE FROM {{p}}outbox WHERE body IS NULL AND job_id IN {list}");
            let mut query = sqlx::query(self.sql(&unsend));
            for id in &done {
                query = query.bind(id.clone());
            }
            query.execute(&mut *write.tx).await?;
            for id in &done {
                self.end_dead_attempts(write, id).await?;
            }
        }
        failpoint::reach("cancel-written", "");
        Ok(CancelledBatch { done, stopping, next: None })
    }

    async fn ids_of(
        &self,
        write: &mut Write,
        statement: &str,
        ids: &[String],
    ) -> Result<Vec<String>, sqlx::Error> {
        let mut query = sqlx::query_scalar::<_, String>(self.sql(statement));
        for id in ids {
            query = query.bind(id.clone());
        }
        query.fetch_all(&mut *write.tx).await
    }

    /// The attempts of a worker that are to be stopped.
    ///
    /// # Errors
    /// The database failed.
    pub async fn to_stop(&self, worker_id: &str) -> Result<Vec<ToStop>, StoreError> {
        let query = sqlx::query(self.sql(
            "SELECT id, token FROM {p}jobs WHERE worker_id = $1 AND cancel_requested = 1 \
             AND status = 'RUNNING'",
        ))
        .bind(worker_id.to_owned());
        let action = "look for cancelled jobs";
        let rows = self.within(action, query.fetch_all(&self.inner.pool)).await?;
        let read = |row: &sqlx::any::AnyRow| -> Result<ToStop, sqlx::Error> {
            Ok(ToStop { job_id: row.try_get("id")?, token: row.try_get("token")? })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(self.failed(action))
    }
}

impl CancelFilter {
    /// The words behind WHERE, and what is bound to them.
    fn conditions(&self) -> (String, Vec<String>) {
        let statuses = match &self.status {
            // One of three words, so it may stand in the statement.
            Some(status) => format!("'{}'", status.replace('\'', "''")),
            None if self.only_waiting => "'PENDING', 'RETRY'".to_owned(),
            None => "'PENDING', 'RUNNING', 'RETRY'".to_owned(),
        };
        let mut conditions = format!(
            "status IN ({statuses}) AND status IN ('PENDING', 'RUNNING', 'RETRY') \
             AND cancel_requested = 0"
        );
        let mut values = Vec::new();
        for (column, value) in [("name", &self.job), ("queue", &self.queue)] {
            if let Some(value) = value {
                values.push(value.clone());
                conditions.push_str(&format!(" AND {column} = ${}", values.len()));
            }
        }
        (conditions, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_never_matches_what_is_done() {
        for filter in [
            CancelFilter::default(),
            CancelFilter { status: Some("RETRY".into()), ..CancelFilter::default() },
            CancelFilter { only_waiting: true, ..CancelFilter::default() },
        ] {
            let (conditions, _) = filter.conditions();
            assert!(conditions.contains("status IN ('PENDING', 'RUNNING', 'RETRY')"));
        }
    }

    #[test]
    fn values_are_bound_in_their_order() {
        let filter = CancelFilter {
            job: Some("a".into()),
            queue: Some("b".into()),
            ..CancelFilter::default()
        };
        let (conditions, values) = filter.conditions();
        assert!(conditions.ends_with("name = $1 AND queue = $2"), "{conditions}");
        assert_eq!(values, ["a", "b"]);
    }
}

//! Jobs that wait for a message that is gone from the queue: somebody purged it, another program
//! took it, the queue moved it to its dead-letter queue, or its retention has passed.
//!
//! No queue can be asked for one message. A message is surely gone when its retention has passed
//! since it was sent; it is taken to be gone when the queue was found empty again and again while
//! the job was overdue. Should it come all the same, its job runs (see [`super::claim`]).

use std::time::Duration;

use sqlx::Row as _;

use super::dead::{DeadKind, DeadMessage};
use super::{Store, StoreError, Write};
use crate::broker::Attributes;
use crate::clock::{Timestamp, millis};
use crate::payload::{self, Job};

/// Most jobs given up in one transaction.
const BATCH: i64 = 100;

/// Which jobs of a queue are looked for.
#[derive(Debug, Clone)]
pub struct LostFilter {
    /// The queue's name.
    pub queue: String,
    /// How long a job must be overdue: a retry past its time, an attempt whose worker died, a
    /// message that was sent and never received.
    pub overdue: Duration,
    /// Only jobs whose message was sent longer ago than this: the queue's retention. Without,
    /// every overdue one.
    pub sent_before: Option<Duration>,
}

const WHERE: &str = "queue = $1 AND status IN ('PENDING', 'RUNNING', 'RETRY') \
    AND updated_at < {now} - $2 \
    AND (status <> 'PENDING' OR (coalesce(sent_at, created_at) < {now} - $2 AND coalesce(not_before, 0) < {now} - $2)) \
    AND (status <> 'RETRY' OR retry_at < {now} - $2) \
    AND (status <> 'RUNNING' OR NOT EXISTS (SELECT 1 FROM {p}workers w WHERE w.id = j.worker_id \
         AND w.renewed_at + w.lease_ms > {now} - $2)) \
    AND ($3 < 0 OR coalesce(sent_at, created_at) < {now} - $3) \
    AND NOT EXISTS (SELECT 1 FROM {p}outbox o WHERE o.job_id = j.id AND o.body IS NULL)";

impl Store {
    /// Whether any job matches.
    ///
    /// # Errors
    /// The database failed.
    pub async fn has_overdue(&self, filter: &LostFilter) -> Result<bool, StoreError> {
        let statement = format!("SELECT id FROM {{p}}jobs j WHERE {WHERE} LIMIT 1");
        let query = sqlx::query(self.sql(&statement))
            .bind(filter.queue.clone())
            .bind(millis(filter.overdue))
            .bind(filter.sent_before.map_or(-1, millis));
        let action = "look for jobs whose message is gone";
        let found = self.within(action, query.fetch_optional(&self.inner.pool)).await?;
        Ok(found.is_some())
    }

    /// Gives up the jobs that match, oldest first, at most a hundred: they fail, and the dead
    /// list keeps them as `lost`. Returns their ids.
    ///
    /// # Errors
    /// The database failed; nothing was given up.
    pub async fn give_up_lost(
        &self,
        filter: &LostFilter,
        reason: &str,
    ) -> Result<Vec<String>, StoreError> {
        self.within("give up jobs whose message is gone", async {
            let mut write = self.begin().await?;
            let now: i64 =
                sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
            let statement = format!(
                "SELECT id FROM {{p}}jobs j WHERE {WHERE} \
                 ORDER BY updated_at, id LIMIT {BATCH} {{skip_locked}}"
            );
            let ids: Vec<String> = sqlx::query_scalar(self.sql(&statement))
                .bind(&filter.queue)
                .bind(millis(filter.overdue))
                .bind(filter.sent_before.map_or(-1, millis))
                .fetch_all(&mut *write.tx)
                .await?;
            for id in &ids {
                self.give_up_job(&mut write, id, reason, now).await?;
            }
            write.tx.commit().await?;
            Ok(ids)
        })
        .await
    }

    /// Fails a job whose message is gone; the dead list keeps it.
    pub(super) async fn give_up_job(
        &self,
        write: &mut Write,
        id: &str,
        reason: &str,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let row = sqlx::query(self.sql(
            "UPDATE {p}jobs SET status = 'FAILURE', token = NULL, alone = 0, error = $1, \
             error_kind = 'lost', error_stage = NULL, backtrace = NULL, retry_at = NULL, \
             finished_at = {now}, updated_at = {now} WHERE id = $2 \
             AND status IN ('PENDING', 'RUNNING', 'RETRY') RETURNING name, queue, args, kwargs, message_group, enqueued_at",
        ))
        .bind(reason.to_owned())
        .bind(id.to_owned())
        .fetch_optional(&mut *write.tx)
        .await?;
        // Somebody was quicker.
        let Some(row) = row else { return Ok(()) };
        let text = |column: &str, empty: &str| -> Result<String, sqlx::Error> {
            let text: Option<String> = row.try_get(column)?;
            Ok(text.unwrap_or_else(|| empty.to_owned()))
        };
        let job = Job {
            id: id.to_owned(),
            name: row.try_get("name")?,
            args: text("args", "[]")?,
            kwargs: text("kwargs", "{}")?,
            enqueued_at: Some(Timestamp(row.try_get("enqueued_at")?)),
            is_tracked: true,
            is_revived: false,
        };
        let queue: String = row.try_get("queue")?;
        let dead = lost(&job, &queue, row.try_get("message_group")?, reason);
        self.end_dead_attempts(write, id).await?;
        self.insert_dead(write, &dead, now).await
    }
}

fn lost(job: &Job, queue: &str, group: Option<String>, reason: &str) -> DeadMessage {
    let (body, attributes) = payload::outgoing(job, &Attributes::new());
    DeadMessage {
        id: job.id.clone(),
        kind: DeadKind::Lost,
        queue: queue.to_owned(),
        job: Some(job.name.clone()),
        job_id: Some(job.id.clone()),
        message_id: None,
        reason: reason.to_owned(),
        body,
        attributes: super::json_of(&attributes),
        group,
    }
}

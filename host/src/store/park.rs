//! Parked jobs: what the queue must not hold any longer waits in the outbox and is sent again.
//!
//! A message that would return once too often, or outlive its queue, would be moved or dropped
//! by the queue itself. On a FIFO queue a parked job keeps its place: those of its message group
//! that come meanwhile are parked behind it (see [`Claim::Behind`](super::claim::Claim::Behind)).

use std::time::Duration;

use sqlx::Row as _;

use super::{Store, StoreError, Write, json_of};
use crate::broker::Attributes;
use crate::clock::millis;
use crate::payload::Job;

/// A message that is to be sent again by us.
#[derive(Debug, Clone)]
pub struct ParkRequest {
    /// The job, as its message asks for it.
    pub job: Job,
    /// The queue's name.
    pub queue: String,
    /// Where it is sent again: the queue's name, or its URL.
    pub address: String,
    /// The message's group.
    pub group: Option<String>,
    /// The sender's message attributes.
    pub attributes: Attributes,
    /// How long from now it waits.
    pub wait: Duration,
    /// Whether the group has an order: the queue is FIFO.
    pub is_ordered: bool,
}

/// What is known of a job that no module holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It waits, since so long.
    Waiting {
        /// Time since a message of it was received first and no module held it.
        age: Duration,
    },
    /// It has its final status.
    Finished,
    /// Its id belongs to another job, or to the same with other arguments.
    Other,
}

impl Store {
    /// Writes the row of a job that no module holds, if it has none, and tells what is known.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note_unknown(&self, request: &ParkRequest) -> Result<Seen, StoreError> {
        self.within("note a job that nobody holds", async {
            let mut write = self.begin().await?;
            let now: i64 =
                sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
            self.insert_unknown(&mut write, request, now).await?;
            let row = sqlx::query(self.sql(
                "UPDATE {p}jobs SET unknown_since = CASE WHEN name = $3 THEN \
                 coalesce(unknown_since, $1) ELSE unknown_since END WHERE id = $2 \
                 RETURNING name, fingerprint, status, error_kind, unknown_since",
            ))
            .bind(now)
            .bind(&request.job.id)
            .bind(&request.job.name)
            .fetch_one(&mut *write.tx)
            .await?;
            write.tx.commit().await?;
            let text = |column: &str| row.try_get::<String, _>(column);
            let is_same = text("name")? == request.job.name
                && text("fingerprint")? == request.job.fingerprint();
            let was_lost =
                row.try_get::<Option<String>, _>("error_kind")?.as_deref() == Some("lost");
            let is_final = matches!(text("status")?.as_str(), "SUCCESS" | "FAILURE" | "CANCELLED");
            Ok(match (is_same, is_final && !was_lost) {
                (false, _) => Seen::Other,
                (true, true) => Seen::Finished,
                (true, false) => {
                    let age = now.saturating_sub(row.try_get("unknown_since")?);
                    Seen::Waiting { age: Duration::from_millis(u64::try_from(age).unwrap_or(0)) }
                }
            })
        })
        .await
    }

    /// Parks a message whose attempt has not begun; it can be deleted then. A row that would send
    /// the job already is replaced: the message is here, so that row was sent, and a repeated
    /// send of it may be taken for the first one.
    ///
    /// # Errors
    /// The database failed; nothing was parked.
    pub async fn park_message(&self, request: &ParkRequest) -> Result<(), StoreError> {
        self.within("park a message", async {
            let mut write = self.begin().await?;
            let now: i64 =
                sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
            self.insert_unknown(&mut write, request, now).await?;
            // Before its outbox row, as all who lock both.
            sqlx::query(self.sql("SELECT id FROM {p}jobs WHERE id = $1 {for_update}"))
                .bind(&request.job.id)
                .fetch_optional(&mut *write.tx)
                .await?;
            sqlx::query(self.sql("DELETE FROM {p}outbox WHERE job_id = $1 AND body IS NULL"))
                .bind(&request.job.id)
                .execute(&mut *write.tx)
                .await?;
            self.park(&mut write, request, now).await?;
            write.tx.commit().await
        })
        .await
    }

    /// Writes the row of a job that another producer sent, where there is none yet.
    async fn insert_unknown(
        &self,
        write: &mut Write,
        request: &ParkRequest,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let job = &request.job;
        sqlx::query(self.sql(
            "INSERT INTO {p}jobs (id, name, queue, args, kwargs, fingerprint, message_group, \
             created_at, enqueued_at, updated_at, sent_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (id) DO NOTHING",
        ))
        .bind(&job.id)
        .bind(&job.name)
        .bind(&request.queue)
        .bind(&job.args)
        .bind(&job.kwargs)
        .bind(job.fingerprint())
        .bind(&request.group)
        .bind(now)
        .bind(job.enqueued_at.map_or(now, |time| time.0))
        .bind(now)
        // Not before it was: the sweep for what is lost counts from here.
        .bind(now)
        .execute(&mut *write.tx)
        .await
        .map(|_| ())
    }

    /// Puts the job's message into the outbox, to be sent when its wait is over.
    pub(super) async fn park(
        &self,
        write: &mut Write,
        request: &ParkRequest,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let row: i64 = sqlx::query_scalar(self.sql(
            "INSERT INTO {p}outbox (job_id, job_name, queue, args, kwargs, message_group, \
             enqueued_at, not_before, send_number, attributes) SELECT id, name, $1, $2, $3, $4, \
             enqueued_at, $5, sends + 1, $6 FROM {p}jobs WHERE id = $7 RETURNING id",
        ))
        .bind(&request.address)
        .bind(&request.job.args)
        .bind(&request.job.kwargs)
        .bind(&request.group)
        .bind(now.saturating_add(millis(request.wait)))
        .bind(json_of(&request.attributes))
        .bind(&request.job.id)
        .fetch_one(&mut *write.tx)
        .await?;
        if !request.is_ordered {
            return Ok(());
        }
        // The place of its first parking stays its place, however often it is parked.
        for statement in [
            "UPDATE {p}jobs SET group_position = coalesce(group_position, $1) WHERE id = $2",
            "UPDATE {p}outbox SET group_position = (SELECT group_position FROM {p}jobs \
             WHERE id = $2) WHERE id = $1",
        ] {
            sqlx::query(self.sql(statement))
                .bind(row)
                .bind(&request.job.id)
                .execute(&mut *write.tx)
                .await?;
        }
        Ok(())
    }
}

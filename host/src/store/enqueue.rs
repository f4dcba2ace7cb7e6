//! New jobs: the row and the outbox row, in one transaction.

use std::time::Duration;

use sqlx::Row as _;

use super::unique::UniqueRule;
use super::{Store, StoreError, Write};
use crate::broker::MAX_DELAY_SECS;
use crate::clock::{Timestamp, millis};
use crate::failpoint;
use crate::payload::Job;

/// When a new job may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// Not before this instant.
    At(Timestamp),
    /// So long after its row was written, by the database's clock. What an attempt adds counts
    /// from the moment at which its outcome is stored, however long the attempt took.
    After(Duration),
}

impl Start {
    /// The instant before which the job must not run, of a row that is written at `now`.
    fn not_before(self, now: i64) -> Option<i64> {
        match self {
            Self::Now | Self::After(Duration::ZERO) => None,
            Self::At(instant) => Some(instant.0),
            Self::After(delay) => Some(now.saturating_add(millis(delay))),
        }
    }
}

/// When a row of the outbox may leave it. What the queue can hold back goes at once, and is
/// delayed there; the sender looks once more whether this queue can.
fn leaves_at(queue: &str, not_before: Option<i64>, now: i64) -> i64 {
    let longest = i64::from(MAX_DELAY_SECS) * 1000;
    match not_before {
        Some(due) if queue.ends_with(".fifo") || due.saturating_sub(now) > longest => due,
        _ => 0,
    }
}

/// A job to be added.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Id, name and arguments.
    pub job: Job,
    /// The queue's name, by which the job's row knows it.
    pub queue: String,
    /// Where to send it, where that is not the name: the queue's URL.
    pub queue_url: Option<String>,
    /// Message group: order on a FIFO queue, tenant on a standard one.
    pub group: Option<String>,
    /// When it may run.
    pub start: Start,
    /// The job whose attempt added it.
    pub parent_id: Option<String>,
    /// How many jobs stand between it and one that no job added.
    pub generation: u32,
    /// Which other jobs count as the same.
    pub unique: Option<UniqueRule>,
}

/// What became of an added job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// It has a row now, and this outbox row, which the caller should send.
    Added {
        /// The outbox row.
        outbox_id: i64,
        /// Whether nothing of its message group waits to be sent before it. Otherwise the sweep
        /// sends it in its turn, and the caller must not.
        is_next: bool,
    },
    /// The id is known with the same name and arguments: nothing was added.
    Existing,
    /// The id is known with another name or other arguments: nothing was added.
    Conflict,
    /// Another job, of this id, holds its unique key: nothing was added.
    Held(String),
}

impl Store {
    /// Writes a new job and its outbox row. The outbox row is left to the caller for 15 s; then
    /// the sweep of any worker sends it.
    ///
    /// # Errors
    /// The database failed; nothing was added.
    pub async fn enqueue(&self, new: &NewJob) -> Result<Enqueued, StoreError> {
        self.enqueue_for(new, 15_000).await
    }

    /// Writes a new job and its outbox row, which the sweep sends at once.
    ///
    /// # Errors
    /// The database failed; nothing was added.
    pub async fn enqueue_for_sweep(&self, new: &NewJob) -> Result<Enqueued, StoreError> {
        self.enqueue_for(new, 0).await
    }

    async fn enqueue_for(&self, new: &NewJob, ms: i64) -> Result<Enqueued, StoreError> {
        self.within("add a job", async {
            let mut write = self.begin().await?;
            let now: i64 =
                sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
            let enqueued = self.insert_job(&mut write, new, now, now + ms).await?;
            failpoint::reach("add-written", &new.job.name);
            write.tx.commit().await?;
            Ok(enqueued)
        })
        .await
    }

    /// Writes a new job and its outbox row, which the sweep leaves alone until `taken_until`.
    pub(super) async fn insert_job(
        &self,
        write: &mut Write,
        new: &NewJob,
        now: i64,
        taken_until: i64,
    ) -> Result<Enqueued, sqlx::Error> {
        let job = &new.job;
        let fingerprint = job.fingerprint();
        if let Some(rule) = &new.unique {
            // First, so that an id that is known takes no key.
            if let Some(known) = self.known_job(write, job, &fingerprint).await? {
                return Ok(known);
            }
            if let Some(holder) = self.take_key(write, rule, job, now).await? {
                return Ok(Enqueued::Held(holder));
            }
        }
        let enqueued_at = job.enqueued_at.map_or(now, |time| time.0);
        let not_before = new.start.not_before(now);
        let address = new.queue_url.as_ref().unwrap_or(&new.queue);
        let inserted = sqlx::query(self.sql(
            "INSERT INTO {p}jobs (id, name, queue, args, kwargs, fingerprint, message_group, \
             parent_id, generation, not_before, created_at, enqueued_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             ON CONFLICT (id) DO NOTHING",
        ))
        .bind(&job.id)
        .bind(&job.name)
        .bind(&new.queue)
        .bind(&job.args)
        .bind(&job.kwargs)
        .bind(&fingerprint)
        .bind(&new.group)
        .bind(&new.parent_id)
        .bind(i64::from(new.generation))
        .bind(not_before)
        .bind(now)
        .bind(enqueued_at)
        .bind(now)
        .execute(&mut *write.tx)
        .await?;
        if inserted.rows_affected() == 0 {
            let known = self.known_job(write, job, &fingerprint).await?;
            return known.ok_or(sqlx::Error::RowNotFound);
        }
        let row = sqlx::query(self.sql(
            "INSERT INTO {p}outbox (job_id, job_name, queue, args, kwargs, message_group, \
             enqueued_at, not_before, taken_until) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id",
        ))
        .bind(&job.id)
        .bind(&job.name)
        .bind(address)
        .bind(&job.args)
        .bind(&job.kwargs)
        .bind(&new.group)
        .bind(enqueued_at)
        .bind(leaves_at(address, not_before, now))
        .bind(taken_until)
        .fetch_one(&mut *write.tx)
        .await?;
        let outbox_id: i64 = row.try_get("id")?;
        let is_next = !self.is_blocked(write, outbox_id).await?;
        if !is_next && taken_until > now {
            sqlx::query(self.sql("UPDATE {p}outbox SET taken_until = 0 WHERE id = $1"))
                .bind(outbox_id)
                .execute(&mut *write.tx)
                .await?;
        }
        Ok(Enqueued::Added { outbox_id, is_next })
    }

    /// What becomes of a job whose id is known already; `None` when it is new.
    async fn known_job(
        &self,
        write: &mut Write,
        job: &Job,
        fingerprint: &str,
    ) -> Result<Option<Enqueued>, sqlx::Error> {
        let known: Option<(String, String)> =
            sqlx::query_as(self.sql("SELECT name, fingerprint FROM {p}jobs WHERE id = $1"))
                .bind(&job.id)
                .fetch_optional(&mut *write.tx)
                .await?;
        Ok(known.map(|(name, known)| match name == job.name && known == fingerprint {
            true => Enqueued::Existing,
            false => Enqueued::Conflict,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_counts_from_the_writing_and_an_instant_stands() {
        assert_eq!(Start::Now.not_before(5), None);
        assert_eq!(Start::After(Duration::ZERO).not_before(5), None);
        assert_eq!(Start::After(Duration::from_secs(1)).not_before(5), Some(1005));
        assert_eq!(Start::At(Timestamp(7)).not_before(5), Some(7));
        assert_eq!(Start::After(Duration::MAX).not_before(5), Some(i64::MAX));
    }

    #[test]
    fn what_the_queue_can_hold_back_leaves_at_once_and_the_rest_when_it_is_due() {
        let after = |ms: i64| Some(1000 + ms);
        assert_eq!(leaves_at("q", None, 1000), 0);
        assert_eq!(leaves_at("q", after(900_000), 1000), 0);
        assert_eq!(leaves_at("q", after(900_001), 1000), 901_001);
        assert_eq!(leaves_at("q.fifo", after(1), 1000), 1001, "takes no delay for one message");
        assert_eq!(leaves_at("https://h/1/q.fifo", after(1), 1000), 1001);
    }
}

//! The outbox: whatever we send is a row first, written in the transaction that changes the
//! job's row, and swept by every worker.
//!
//! Rows are taken by state, never by a cursor over ids: a lower id may commit later. A row whose
//! job is delayed for longer than its queue can hold it back waits here and is taken when it is
//! due, by the database's clock. One that was just added with a delay of minutes is sent at once,
//! and its queue is asked to keep it for what is left of the delay (see [`super::enqueue`]).

use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::dead::{DeadKind, DeadMessage};
use super::{Store, StoreError, Write, placeholders};
use crate::broker::Attributes;
use crate::clock::Timestamp;
use crate::payload::Job;
use crate::text::without_nul;

/// How long a taken row is left to the sender that took it, in milliseconds.
const TAKEN_FOR_MS: i64 = 30_000;
/// The longest that a row is held, by a sender or after a send that failed. What is held for
/// longer was held before the database's clock was set back.
const LONGEST_HELD_MS: i64 = 61_000;

/// A row of the outbox that this sender took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// The row.
    pub id: i64,
    /// The job that it sends.
    pub job: Job,
    /// The queue to send it to.
    pub queue: String,
    /// Message group.
    pub group: Option<String>,
    /// Until when the queue is to keep the message from its receivers.
    pub due: Option<Instant>,
    /// How often the job has been sent, this time included. Part of the deduplication id on a
    /// FIFO queue: a repeated send of this row keeps it, a new send changes it.
    pub send_number: i64,
    /// The sender's message attributes.
    pub attributes: Attributes,
    /// An exact body to send instead of the job's own.
    pub body: Option<String>,
    /// The kind of the dead list's entry that this row sends again, exactly as it was.
    pub aside: Option<DeadKind>,
    /// How often sending this row was tried before.
    pub tries: i64,
}

/// `wait_ms` is what is left of the job's delay, by the database's clock. A copy for a dead-letter
/// queue has none, nor has what goes back exactly as it was.
const COLUMNS: &str = "id, job_id, job_name, queue, args, kwargs, message_group, enqueued_at, \
    send_number, attributes, body, aside, exact_body, tries, \
    CASE WHEN body IS NULL AND exact_body IS NULL THEN coalesce((SELECT j.not_before \
    FROM {p}jobs j WHERE j.id = job_id), 0) ELSE 0 END - {now} AS wait_ms";

/// Whether something of the same message group of a FIFO queue must be sent before the row `o`:
/// an earlier row that is due, or one that stands before it in the group.
/// Rows name their queue by name or by URL, so what counts is the last part.
const IS_BLOCKED: &str = "o.queue LIKE '%.fifo' AND EXISTS (SELECT 1 FROM {p}outbox e \
    WHERE e.message_group = o.message_group AND e.id <> o.id \
    AND replace(e.queue, rtrim(e.queue, replace(e.queue, '/', '')), '') \
    = replace(o.queue, rtrim(o.queue, replace(o.queue, '/', '')), '') AND e.body IS NULL \
    AND (e.group_position < o.group_position OR (o.group_position IS NULL \
    AND e.group_position IS NULL AND e.id < o.id AND e.not_before <= {now})))";

/// The instant that lies so many milliseconds ahead; none when it does not.
fn due_in(ms: i64) -> Option<Instant> {
    let wait = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    if wait.is_zero() { None } else { Instant::now().checked_add(wait) }
}

impl OutboxRow {
    /// What is left of the job's delay.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()))
    }

    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            job: Job {
                id: row.try_get("job_id")?,
                name: row.try_get("job_name")?,
                args: row.try_get("args")?,
                kwargs: row.try_get("kwargs")?,
                enqueued_at: Some(Timestamp(row.try_get("enqueued_at")?)),
                is_tracked: true,
                is_revived: false,
            },
            queue: row.try_get("queue")?,
            group: row.try_get("message_group")?,
            due: due_in(row.try_get("wait_ms")?),
            send_number: row.try_get("send_number")?,
            // A row that somebody edited to nonsense is sent without.
            attributes: serde_json::from_str(row.try_get("attributes")?).unwrap_or_default(),
            body: match row.try_get::<Option<Vec<u8>>, _>("exact_body")? {
                Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                None => row.try_get("body")?,
            },
            aside: row.try_get::<Option<&str>, _>("aside")?.and_then(DeadKind::of_name),
            tries: row.try_get("tries")?,
        })
    }
}

impl Store {
    /// Takes up to `limit` rows that are due within `ahead_ms` milliseconds and that no other
    /// sender holds.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_outbox(
        &self,
        limit: u32,
        ahead_ms: i64,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.take_outbox_but(limit, ahead_ms, &[]).await
    }

    /// [`Self::take_outbox`] without the rows of some queues, as the rows name them.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_outbox_but(
        &self,
        limit: u32,
        ahead_ms: i64,
        closed: &[String],
    ) -> Result<Vec<OutboxRow>, StoreError> {
        self.within("take rows of the outbox", async {
            let mut write = self.begin().await?;
            let is_open = match closed.len() {
                0 => String::new(),
                count => {
                    let list: Vec<String> = (3..3 + count).map(|n| format!("${n}")).collect();
                    format!("AND o.queue NOT IN ({})", list.join(", "))
                }
            };
            let statement = format!(
                "UPDATE {{p}}outbox SET taken_until = {{now}} + {TAKEN_FOR_MS}, tries = tries + 1 \
                 WHERE id IN (SELECT id FROM {{p}}outbox o \
                 WHERE not_before <= {{now}} + $1 \
                 AND (taken_until <= {{now}} OR taken_until > {{now}} + {LONGEST_HELD_MS}) \
                 AND NOT ({IS_BLOCKED}) {is_open} \
                 ORDER BY not_before, id LIMIT $2 {{skip_locked}}) RETURNING {COLUMNS}"
            );
            let query = sqlx::query(self.sql(&statement)).bind(ahead_ms).bind(i64::from(limit));
            let query = closed.iter().fold(query, |query, queue| query.bind(queue.clone()));
            let rows = query.fetch_all(&mut *write.tx).await?;
            let rows = rows.iter().map(OutboxRow::read).collect::<Result<Vec<_>, _>>()?;
            let rows = self.take_in(&mut write, rows).await?;
            write.tx.commit().await?;
            Ok(rows)
        })
        .await
    }

    /// Whether a row of a FIFO queue has to wait for another of its group.
    pub(super) async fn is_blocked(&self, write: &mut Write, id: i64) -> Result<bool, sqlx::Error> {
        let statement = format!("SELECT id FROM {{p}}outbox o WHERE id = $1 AND {IS_BLOCKED}");
        let blocked: Option<i64> = sqlx::query_scalar(self.sql(&statement))
            .bind(id)
            .fetch_optional(&mut *write.tx)
            .await?;
        Ok(blocked.is_some())
    }

    /// Notes rows as sent: they leave the outbox, and their jobs keep the number of the send.
    ///
    /// # Errors
    /// The database failed; the rows will be sent once more, and run once.
    pub async fn outbox_sent(&self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.within("note what was sent", async {
            let mut write = self.begin().await?;
            let list = placeholders(1, ids.len());
            for statement in [
                // In the order of their ids, as all locks are taken.
                format!(
                    "SELECT id FROM {{p}}jobs WHERE id IN (SELECT job_id FROM {{p}}outbox \
                     WHERE body IS NULL AND id IN {list}) ORDER BY id {{for_update}}"
                ),
                format!(
                    "UPDATE {{p}}jobs SET sent_at = {{now}}, sends = sends + 1 WHERE id IN \
                     (SELECT job_id FROM {{p}}outbox WHERE body IS NULL AND id IN {list})"
                ),
                format!("DELETE FROM {{p}}outbox WHERE id IN {list}"),
            ] {
                let mut query = sqlx::query(self.sql(&statement));
                for id in ids {
                    query = query.bind(*id);
                }
                query.execute(&mut *write.tx).await?;
            }
            write.tx.commit().await
        })
        .await
    }

    /// Gives rows back that were taken and not tried.
    ///
    /// # Errors
    /// The database failed; they are taken again in half a minute.
    pub async fn outbox_released(&self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let statement = format!(
            "UPDATE {{p}}outbox SET taken_until = 0, tries = tries - 1 WHERE id IN {}",
            placeholders(1, ids.len())
        );
        let query = sqlx::query(self.sql(&statement));
        let query = ids.iter().fold(query, |query, id| query.bind(*id));
        self.within("give rows of the outbox back", query.execute(&self.inner.pool))
            .await
            .map(|_| ())
    }

    /// Notes that a row could not be sent now, and leaves it alone for `wait_ms` milliseconds: a
    /// minute at most.
    ///
    /// # Errors
    /// The database failed.
    pub async fn outbox_failed(
        &self,
        id: i64,
        error: &str,
        wait_ms: i64,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            self.sql("UPDATE {p}outbox SET error = $1, taken_until = {now} + $2 WHERE id = $3"),
        )
        .bind(without_nul(error.to_owned()))
        .bind(wait_ms)
        .bind(id);
        self.within("note what was not sent", query.execute(&self.inner.pool)).await.map(|_| ())
    }

    /// Leaves a row that was to be sent ahead, to a queue that can't hold it back, until its job
    /// is due.
    ///
    /// # Errors
    /// The database failed; the row is tried again.
    pub async fn outbox_waits(&self, id: i64) -> Result<(), StoreError> {
        let query = sqlx::query(self.sql(
            "UPDATE {p}outbox SET taken_until = 0, tries = 0, not_before = coalesce((SELECT \
             j.not_before FROM {p}jobs j WHERE j.id = job_id), not_before) WHERE id = $1",
        ))
        .bind(id);
        let action = "leave a row of the outbox until it is due";
        self.within(action, query.execute(&self.inner.pool)).await.map(|_| ())
    }

    /// Sets a row aside that can never be sent: its job fails, and the dead list keeps it. A job
    /// that runs or has ended meanwhile needs no send: its row is dropped.
    ///
    /// # Errors
    /// The database failed.
    pub async fn outbox_undeliverable(
        &self,
        id: i64,
        dead: &DeadMessage,
    ) -> Result<(), StoreError> {
        self.within("set an outbox row aside", async {
            let mut write = self.begin().await?;
            let now: i64 =
                sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
            // Before its outbox row, as all who lock both.
            sqlx::query(self.sql("SELECT id FROM {p}jobs WHERE id = $1 {for_update}"))
                .bind(&dead.job_id)
                .fetch_optional(&mut *write.tx)
                .await?;
            let deleted = sqlx::query(self.sql("DELETE FROM {p}outbox WHERE id = $1"))
                .bind(id)
                .execute(&mut *write.tx)
                .await?;
            if deleted.rows_affected() > 0 {
                let failed = sqlx::query(self.sql(
                    "UPDATE {p}jobs SET status = 'FAILURE', error = $1, \
                     error_kind = 'undeliverable', finished_at = {now}, updated_at = {now}, \
                     retry_at = NULL WHERE id = $2 AND status IN ('PENDING', 'RETRY')",
                ))
                .bind(without_nul(dead.reason.clone()))
                .bind(&dead.job_id)
                .execute(&mut *write.tx)
                .await?;
                if dead.kind == DeadKind::Undeliverable && failed.rows_affected() == 0 {
                    return write.tx.commit().await;
                }
                self.free_keys(&mut write, dead.job_id.as_ref()).await?;
                if dead.kind == DeadKind::Malformed {
                    self.take_space(&mut write, dead, u64::MAX).await?;
                }
                self.insert_dead(&mut write, dead, now).await?;
            }
            write.tx.commit().await
        })
        .await
    }
}

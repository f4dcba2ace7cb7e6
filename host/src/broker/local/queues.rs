//! The queues themselves: found or made, listed, counted, emptied.

use std::time::Duration;

use sqlx::SqliteConnection;

use super::Inner;
use crate::broker::limits::{check_new_queue, check_queue_name};
use crate::broker::{BrokerError, Depth, NewQueue, Queue};
use crate::clock::{Timestamp, millis};

/// What SQS gives a queue that was created without attributes.
/// Source: Amazon SQS API reference, `CreateQueue`.
const DEFAULT_VISIBILITY: Duration = Duration::from_secs(30);
const DEFAULT_RETENTION: Duration = Duration::from_secs(345_600);

/// Most bytes of a message, as on SQS. Source: Amazon SQS developer guide, "Message quotas".
const MAX_MESSAGE_BYTES: usize = 1_048_576;

/// One row of `sqjobs_queues`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct QueueRow {
    pub(super) id: i64,
    name: String,
    pub(super) is_fifo: bool,
    visibility_ms: i64,
    pub(super) retention_ms: i64,
    pub(super) max_receive_count: Option<u32>,
    pub(super) dead_letter_queue: Option<String>,
}

impl QueueRow {
    pub(super) async fn find(
        connection: &mut SqliteConnection,
        name: &str,
    ) -> Result<Option<Self>, sqlx::Error> {
        sqlx::query_as(
            "SELECT id, name, is_fifo, visibility_ms, retention_ms, max_receive_count, dead_letter_queue \
             FROM sqjobs_queues WHERE name = ?",
        )
        .bind(name)
        .fetch_optional(connection)
        .await
    }

    fn has_attributes_of(&self, new: &NewQueue) -> bool {
        let redrive = self.max_receive_count.zip(self.dead_letter_queue.clone());
        self.visibility_ms == millis(new.visibility)
            && self.retention_ms == millis(new.retention)
            && redrive == new.redrive
    }
}

impl From<QueueRow> for Queue {
    fn from(row: QueueRow) -> Self {
        Self {
            address: row.name.clone(),
            name: row.name,
            is_fifo: row.is_fifo,
            max_receive_count: row.max_receive_count,
            dead_letter_queue: row.dead_letter_queue,
            retention: Duration::from_millis(u64::try_from(row.retention_ms).unwrap_or(0)),
            max_message_bytes: MAX_MESSAGE_BYTES,
        }
    }
}

impl Inner {
    /// The queue; made with the defaults of SQS when there is none.
    pub(super) async fn queue(&self, name: &str) -> Result<Queue, BrokerError> {
        match self.find(name).await? {
            Some(queue) => Ok(queue),
            None => {
                let new = NewQueue {
                    name: name.to_owned(),
                    redrive: None,
                    retention: DEFAULT_RETENTION,
                    visibility: DEFAULT_VISIBILITY,
                };
                let (row, _) = self.find_or_insert(&new).await?;
                Ok(row.into())
            }
        }
    }

    /// The queue, where there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Queue>, BrokerError> {
        check_queue_name(name)?;
        let failed = self.failed("looking a queue up");
        let mut connection = self.pool.acquire().await.map_err(&failed)?;
        let found = QueueRow::find(&mut connection, name).await.map_err(&failed)?;
        Ok(found.map(Queue::from))
    }

    /// How long the oldest message that is kept has been here.
    pub(super) async fn oldest(&self, queue: &Queue) -> Result<Option<Duration>, BrokerError> {
        let now = self.options.clock.now();
        let sent_at: Option<i64> = sqlx::query_scalar(
            "SELECT min(sent_at) FROM sqjobs_messages WHERE sent_at > ?2 \
             AND queue_id = (SELECT id FROM sqjobs_queues WHERE name = ?1)",
        )
        .bind(&queue.address)
        .bind(now.0.saturating_sub(millis(queue.retention)))
        .fetch_one(&self.pool)
        .await
        .map_err(self.failed("looking for the oldest message"))?;
        Ok(sent_at.map(|sent_at| now.since(Timestamp(sent_at))))
    }

    pub(super) async fn create(&self, new: &NewQueue) -> Result<Queue, BrokerError> {
        check_new_queue(new)?;
        let (row, is_new) = self.find_or_insert(new).await?;
        if !is_new && !row.has_attributes_of(new) {
            return Err(BrokerError::Refused {
                action: "CreateQueue",
                queue: new.name.clone(),
                reason: "a queue of this name exists with other attributes".to_owned(),
            });
        }
        Ok(row.into())
    }

    async fn find_or_insert(&self, new: &NewQueue) -> Result<(QueueRow, bool), BrokerError> {
        let failed = self.failed("creating a queue");
        let mut write = self.begin().await.map_err(&failed)?;
        if let Some(row) = QueueRow::find(&mut write, &new.name).await.map_err(&failed)? {
            return Ok((row, false));
        }
        if let Some((_, dead)) = &new.redrive
            && QueueRow::find(&mut write, dead).await.map_err(&failed)?.is_none()
        {
            return Err(self.no_such_queue(dead));
        }
        let (count, dead) = new.redrive.clone().unzip();
        let insert = sqlx::query(
            "INSERT INTO sqjobs_queues (name, is_fifo, visibility_ms, retention_ms, \
             max_receive_count, dead_letter_queue, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        );
        insert
            .bind(&new.name)
            .bind(new.name.ends_with(".fifo"))
            .bind(millis(new.visibility))
            .bind(millis(new.retention))
            .bind(count)
            .bind(dead)
            .bind(self.options.clock.now().0)
            .execute(&mut *write)
            .await
            .map_err(&failed)?;
        let row = QueueRow::find(&mut write, &new.name).await.map_err(&failed)?;
        write.transaction.commit().await.map_err(&failed)?;
        row.map(|row| (row, true)).ok_or_else(|| self.no_such_queue(&new.name))
    }

    pub(super) fn no_such_queue(&self, name: &str) -> BrokerError {
        BrokerError::NoSuchQueue { queue: name.to_owned(), broker: self.label() }
    }

    pub(super) async fn list(&self) -> Result<Vec<String>, BrokerError> {
        sqlx::query_scalar("SELECT name FROM sqjobs_queues ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed("listing queues"))
    }

    pub(super) async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        let failed = self.failed("counting messages");
        let mut connection = self.pool.acquire().await.map_err(&failed)?;
        let row = QueueRow::find(&mut connection, &queue.address).await.map_err(&failed)?;
        let row = row.ok_or_else(|| self.no_such_queue(&queue.address))?;
        let now = self.options.clock.now().0;
        let (visible, in_flight, delayed): (i64, i64, i64) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE visible_at <= ?1), \
                    count(*) FILTER (WHERE visible_at > ?1 AND receipt IS NOT NULL), \
                    count(*) FILTER (WHERE visible_at > ?1 AND receipt IS NULL) \
             FROM sqjobs_messages WHERE queue_id = ?2 AND sent_at > ?3",
        )
        .bind(now)
        .bind(row.id)
        .bind(now.saturating_sub(row.retention_ms))
        .fetch_one(&mut *connection)
        .await
        .map_err(&failed)?;
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        Ok(Depth { visible: count(visible), in_flight: count(in_flight), delayed: count(delayed) })
    }

    pub(super) async fn purge(&self, queue: &Queue) -> Result<(), BrokerError> {
        let failed = self.failed("deleting all messages");
        let mut write = self.begin().await.map_err(&failed)?;
        let row = QueueRow::find(&mut write, &queue.address).await.map_err(&failed)?;
        let row = row.ok_or_else(|| self.no_such_queue(&queue.address))?;
        for statement in [
            "DELETE FROM sqjobs_messages WHERE queue_id = ?",
            "DELETE FROM sqjobs_message_groups WHERE queue_id = ?",
        ] {
            sqlx::query(statement).bind(row.id).execute(&mut *write).await.map_err(&failed)?;
        }
        write.transaction.commit().await.map_err(&failed)
    }
}

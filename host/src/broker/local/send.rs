//! Puts messages into a queue.

use std::time::Duration;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::queues::QueueRow;
use super::{Inner, groups};
use crate::broker::limits::{check_batch, check_message};
use crate::broker::{BrokerError, EntryResults, OutgoingMessage, Queue};
use crate::clock::millis;

/// How long a deduplication id counts. Source: Amazon SQS developer guide, "Exactly-once processing".
const DEDUPLICATION: Duration = Duration::from_secs(300);

/// A message that passed all checks, as it is stored.
struct NewRow<'a> {
    message_id: String,
    delay_ms: i64,
    group: Option<&'a str>,
    attributes: String,
    body: &'a str,
}

impl Inner {
    pub(super) async fn send(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
    ) -> Result<EntryResults<String>, BrokerError> {
        check_batch("SendMessageBatch", queue, messages.len())?;
        let ids: Vec<Uuid> = messages.iter().map(|_| Uuid::new_v4()).collect();
        let checked: EntryResults<NewRow<'_>> = messages
            .iter()
            .zip(&ids)
            .map(|(message, id)| {
                check_message(queue, message).map(|()| new_row(queue, message, id))
            })
            .collect();
        if checked.iter().all(Result::is_err) {
            return Ok(checked.into_iter().map(|entry| entry.map(|row| row.message_id)).collect());
        }
        let failed = self.failed("sending");
        let mut write = self.begin().await.map_err(&failed)?;
        let row = QueueRow::find(&mut write, &queue.address).await.map_err(&failed)?;
        let row = row.ok_or_else(|| self.no_such_queue(&queue.address))?;
        let now = self.options.clock.now().0;
        let mut results = Vec::with_capacity(checked.len());
        let mut fresh = Vec::with_capacity(checked.len());
        if row.is_fifo {
            forget_old_ids(&mut write, row.id, now).await.map_err(&failed)?;
        }
        for (entry, message) in checked.into_iter().zip(messages) {
            let new = match entry {
                Ok(new) => new,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            if row.is_fifo
                && let Some(deduplication_id) = &message.deduplication_id
                && let Some(earlier) =
                    note_id(&mut write, row.id, deduplication_id, &new.message_id, now)
                        .await
                        .map_err(&failed)?
            {
                results.push(Ok(earlier));
                continue;
            }
            results.push(Ok(new.message_id.clone()));
            fresh.push(new);
        }
        if !fresh.is_empty() {
            insert(&mut write, &row, &fresh, now).await.map_err(&failed)?;
        }
        write.transaction.commit().await.map_err(&failed)?;
        drop(write._turn);
        self.wake.wake(&queue.address);
        Ok(results)
    }
}

fn new_row<'a>(queue: &Queue, message: &'a OutgoingMessage, id: &Uuid) -> NewRow<'a> {
    let message_id = id.to_string();
    let group = message.group.as_deref();
    let group = match queue.is_fifo {
        true => group.or(message.deduplication_id.as_deref()),
        false => group,
    };
    let attributes = serde_json::to_string(&message.attributes);
    NewRow {
        message_id,
        delay_ms: i64::from(message.delay_secs) * 1000,
        group,
        attributes: attributes.expect("a map of strings is JSON"),
        body: &message.body,
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    queue: &QueueRow,
    rows: &[NewRow<'_>],
    now: i64,
) -> Result<(), sqlx::Error> {
    // On a FIFO queue a message without a group is a group of its own.
    let group = |row: &NewRow<'_>| match row.group {
        Some(group) => Some(group.to_owned()),
        None => queue.is_fifo.then(|| row.message_id.clone()),
    };
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO sqjobs_messages (queue_id, message_id, visible_at, sent_at, message_group, \
         attributes, body) ",
    );
    query.push_values(rows, |mut values, row| {
        values
            .push_bind(queue.id)
            .push_bind(&row.message_id)
            .push_bind(now.saturating_add(row.delay_ms))
            .push_bind(now)
            .push_bind(group(row))
            .push_bind(&row.attributes)
            .push_bind(row.body);
    });
    query.build().execute(&mut *connection).await?;
    if queue.is_fifo {
        for group in rows.iter().filter_map(group) {
            groups::add(connection, queue.id, &group, now).await?;
        }
    }
    Ok(())
}

async fn forget_old_ids(
    connection: &mut SqliteConnection,
    queue_id: i64,
    now: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM sqjobs_deduplication WHERE queue_id = ? AND sent_at <= ?")
        .bind(queue_id)
        .bind(now.saturating_sub(millis(DEDUPLICATION)))
        .execute(connection)
        .await
        .map(|_| ())
}

/// Notes a deduplication id; tells the message that was sent under it before, if one was.
async fn note_id(
    connection: &mut SqliteConnection,
    queue_id: i64,
    deduplication_id: &str,
    message_id: &str,
    now: i64,
) -> Result<Option<String>, sqlx::Error> {
    let earlier: Option<String> = sqlx::query_scalar(
        "SELECT message_id FROM sqjobs_deduplication WHERE queue_id = ? AND deduplication_id = ?",
    )
    .bind(queue_id)
    .bind(deduplication_id)
    .fetch_optional(&mut *connection)
    .await?;
    if earlier.is_none() {
        sqlx::query(
            "INSERT INTO sqjobs_deduplication (queue_id, deduplication_id, message_id, sent_at) \
             VALUES (?, ?, ?, ?)",
        )
        .bind(queue_id)
        .bind(deduplication_id)
        .bind(message_id)
        .bind(now)
        .execute(connection)
        .await?;
    }
    Ok(earlier)
}

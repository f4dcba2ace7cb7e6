//! Takes messages out of a queue for a while, waiting for the first one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::mend::{self, receive_count, whole_or};
use super::queues::QueueRow;
use super::{Inner, groups};
use crate::broker::limits::check_receive;
use crate::broker::{BrokerError, Delivery, Queue, Receipt, ReceiveOptions};
use crate::clock::{Timestamp, millis};

/// A message that could be taken.
#[derive(Debug, sqlx::FromRow)]
struct Candidate {
    seq: i64,
    sent_at: i64,
    receive_count: u32,
}

/// A message that was taken. What may be no text after an edit by hand is read as bytes.
#[derive(Debug, sqlx::FromRow)]
struct TakenRow {
    seq: i64,
    message_id: Vec<u8>,
    sent_at: i64,
    receive_count: u32,
    receipt: String,
    message_group: Option<Vec<u8>>,
    attributes: Vec<u8>,
    body: Vec<u8>,
}

/// What one look into the queue brought.
#[derive(Default)]
struct Taken {
    deliveries: Vec<Delivery>,
    /// Messages were in the way and no longer are, so the next look may find others.
    has_cleared: bool,
    /// The dead-letter queue that got a message.
    dead_letter_queue: Option<String>,
}

impl Inner {
    pub(super) async fn receive(
        &self,
        queue: &Queue,
        options: ReceiveOptions,
    ) -> Result<Vec<Delivery>, BrokerError> {
        check_receive(queue, &options)?;
        let deadline = Instant::now() + options.wait;
        loop {
            if options.wait.is_zero() {
                return Ok(self.look(queue, options).await?.0);
            }
            let (notify, recheck) = self.wake.waiting(&queue.address);
            let notified = notify.notified();
            tokio::pin!(notified);
            // From here on nothing is missed: what arrives during the look ends the wait.
            notified.as_mut().enable();
            let (deliveries, next) = self.look(queue, options).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !deliveries.is_empty() || left.is_zero() {
                return Ok(deliveries);
            }
            let pause = recheck.min(left).min(next.unwrap_or(recheck));
            let _woken_or_due = tokio::time::timeout(pause, notified).await;
        }
    }

    /// Takes what is due, and else tells in how long a message will be. Taking needs the write
    /// lock, so it begins only when a read has shown that something is due.
    async fn look(
        &self,
        queue: &Queue,
        options: ReceiveOptions,
    ) -> Result<(Vec<Delivery>, Option<Duration>), BrokerError> {
        let failed = self.failed("receiving");
        loop {
            let due = self.next_due(queue).await?;
            let wait_ms = due.map(|due| due.saturating_sub(self.options.clock.now().0));
            if wait_ms.is_none_or(|wait_ms| wait_ms > 0) {
                let wait = wait_ms.and_then(|wait_ms| u64::try_from(wait_ms).ok());
                return Ok((Vec::new(), wait.map(Duration::from_millis)));
            }
            let mut write = self.begin().await.map_err(&failed)?;
            let row = QueueRow::find(&mut write, &queue.address).await.map_err(&failed)?;
            let row = row.ok_or_else(|| self.no_such_queue(&queue.address))?;
            let received_at = Instant::now();
            let now = self.options.clock.now().0;
            let taken = take(&mut write, queue, &row, options, now, received_at).await;
            let taken = taken.map_err(&failed)?;
            write.transaction.commit().await.map_err(&failed)?;
            drop(write._turn);
            if let Some(dead_letter_queue) = &taken.dead_letter_queue {
                self.wake.wake(dead_letter_queue);
            }
            if !taken.deliveries.is_empty() || !taken.has_cleared {
                // Nothing: another receiver was quicker, and what comes next is worth a new look.
                return Ok((taken.deliveries, Some(Duration::from_millis(1))));
            }
        }
    }

    /// When the next message can be received; may be past. A text sorts behind all numbers, so
    /// the last row tells whether there is one where a time should stand.
    async fn next_due(&self, queue: &Queue) -> Result<Option<i64>, BrokerError> {
        macro_rules! statement {
            ($table:literal) => {
                concat!(
                    "SELECT (SELECT CAST(visible_at AS INTEGER) FROM ",
                    $table,
                    " WHERE queue_id = q.id ORDER BY visible_at LIMIT 1), \
                     (SELECT visible_at >= '' FROM ",
                    $table,
                    " WHERE queue_id = q.id ORDER BY visible_at DESC LIMIT 1) \
                     FROM sqjobs_queues AS q WHERE q.name = ?"
                )
            };
        }
        let statement = match queue.is_fifo {
            true => statement!("sqjobs_message_groups"),
            false => statement!("sqjobs_messages"),
        };
        let query = sqlx::query_as(statement).bind(&queue.address);
        let found: Option<(Option<i64>, Option<bool>)> =
            query.fetch_optional(&self.pool).await.map_err(self.failed("receiving"))?;
        let (due, has_text) = found.ok_or_else(|| self.no_such_queue(&queue.address))?;
        if has_text == Some(true) {
            self.mend_times(queue).await?;
            return Ok(Some(self.options.clock.now().0));
        }
        Ok(due)
    }
}

async fn take(
    connection: &mut SqliteConnection,
    queue: &Queue,
    row: &QueueRow,
    options: ReceiveOptions,
    now: i64,
    received_at: Instant,
) -> Result<Taken, sqlx::Error> {
    let candidates = match row.is_fifo {
        true => fifo_candidates(connection, row.id, options.max_messages, now).await?,
        false => candidates(connection, row.id, options.max_messages, now).await?,
    };
    let kept_since = now.saturating_sub(row.retention_ms);
    if candidates.iter().any(|candidate| candidate.sent_at <= kept_since) {
        delete_expired(connection, row, kept_since).await?;
        return Ok(Taken { has_cleared: true, ..Taken::default() });
    }
    let is_exhausted = |candidate: &Candidate| {
        row.max_receive_count.is_some_and(|most| candidate.receive_count >= most)
    };
    let (exhausted, good): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_exhausted);
    let mut taken = Taken::default();
    if let Some(name) = &row.dead_letter_queue
        && !exhausted.is_empty()
        && let Some(dead_letter_queue) = QueueRow::find(connection, name).await?
    {
        for message in &exhausted {
            dead_letter(connection, row, &dead_letter_queue, message.seq, now).await?;
        }
        taken.has_cleared = true;
        taken.dead_letter_queue = Some(name.clone());
    }
    if good.is_empty() {
        return Ok(taken);
    }
    let visible_at = now.saturating_add(millis(options.visibility));
    let rows = mark(connection, &good, visible_at, now).await?;
    if row.is_fifo {
        let touched: BTreeSet<_> =
            rows.iter().filter_map(|row| row.message_group.as_deref()).collect();
        for group in touched {
            groups::refresh(connection, row.id, &String::from_utf8_lossy(group), now).await?;
        }
    }
    let deliveries = rows.into_iter().map(|row| delivery(queue, row, received_at));
    taken.deliveries = deliveries.collect();
    Ok(taken)
}

async fn candidates(
    connection: &mut SqliteConnection,
    queue_id: i64,
    most: usize,
    now: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as(concat!(
        "SELECT seq, ",
        whole_or!("sent_at", "?2"),
        " AS sent_at, ",
        receive_count!(),
        " AS receive_count FROM sqjobs_messages \
         WHERE queue_id = ?1 AND visible_at <= ?2 ORDER BY visible_at, seq LIMIT ?3",
    ))
    .bind(queue_id)
    .bind(now)
    .bind(limit(most))
    .fetch_all(connection)
    .await
}

/// As SQS does, many of one group rather than one of many; the group is blocked until all of
/// them are settled or visible again.
async fn fifo_candidates(
    connection: &mut SqliteConnection,
    queue_id: i64,
    most: usize,
    now: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let mut found = Vec::new();
    for group in groups::due(connection, queue_id, now).await? {
        let of_group: Vec<Candidate> = sqlx::query_as(concat!(
            "SELECT seq, ",
            whole_or!("sent_at", "?4"),
            " AS sent_at, ",
            receive_count!(),
            " AS receive_count FROM sqjobs_messages \
             WHERE queue_id = ?1 AND message_group = ?2 ORDER BY seq LIMIT ?3",
        ))
        .bind(queue_id)
        .bind(&group)
        .bind(limit(most - found.len()))
        .bind(now)
        .fetch_all(&mut *connection)
        .await?;
        if of_group.is_empty() {
            groups::refresh(connection, queue_id, &group, now).await?;
        }
        found.extend(of_group);
        if found.len() >= most {
            break;
        }
    }
    Ok(found)
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

/// Marks messages as received, each under a fresh receipt, and returns them oldest first.
async fn mark(
    connection: &mut SqliteConnection,
    messages: &[Candidate],
    visible_at: i64,
    now: i64,
) -> Result<Vec<TakenRow>, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE sqjobs_messages SET visible_at = ");
    query.push_bind(visible_at).push(", received_at = ").push_bind(now);
    query.push(concat!(
        ", receive_count = ",
        receive_count!(),
        " + 1, receipt = lower(hex(randomblob(16))) \
         WHERE seq IN (",
    ));
    let mut list = query.separated(", ");
    for message in messages {
        list.push_bind(message.seq);
    }
    query.push(concat!(
        ") RETURNING seq, message_id, ",
        whole_or!("sent_at", "received_at"),
        " AS sent_at, \
         receive_count, receipt, message_group, attributes, body",
    ));
    let mut rows: Vec<TakenRow> = query.build_query_as().fetch_all(connection).await?;
    rows.sort_unstable_by_key(|row| row.seq);
    Ok(rows)
}

fn delivery(queue: &Queue, row: TakenRow, received_at: Instant) -> Delivery {
    let message_id = text(row.message_id);
    Delivery {
        queue: queue.name.clone(),
        receipt: Receipt(format!("{}.{}", row.seq, row.receipt)),
        body: mend::body(row.body, &queue.name, &message_id),
        attributes: mend::attributes(&row.attributes, &queue.name, &message_id),
        message_id,
        receive_count: row.receive_count,
        sent_at: Some(Timestamp(row.sent_at)),
        group: row.message_group.map(text),
        received_at,
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn delete_expired(
    connection: &mut SqliteConnection,
    queue: &QueueRow,
    kept_since: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM sqjobs_messages WHERE queue_id = ? AND sent_at <= ?")
        .bind(queue.id)
        .bind(kept_since)
        .execute(&mut *connection)
        .await?;
    if queue.is_fifo {
        groups::forget_empty(connection, queue.id).await?;
    }
    Ok(())
}

/// Moves a message to the dead-letter queue, behind what is there. As on SQS, its receive count
/// goes on, and its retention counts on from its first sending, or anew on FIFO.
async fn dead_letter(
    connection: &mut SqliteConnection,
    from: &QueueRow,
    to: &QueueRow,
    seq: i64,
    now: i64,
) -> Result<(), sqlx::Error> {
    let group: Option<Vec<u8>> = sqlx::query_scalar(
        "INSERT INTO sqjobs_messages (queue_id, message_id, visible_at, sent_at, receive_count, \
         message_group, attributes, body) \
         SELECT ?1, message_id, ?2, CASE WHEN ?3 THEN ?2 ELSE sent_at END, receive_count, \
         message_group, attributes, body FROM sqjobs_messages WHERE seq = ?4 \
         RETURNING message_group",
    )
    .bind(to.id)
    .bind(now)
    .bind(to.is_fifo)
    .bind(seq)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM sqjobs_messages WHERE seq = ?")
        .bind(seq)
        .execute(&mut *connection)
        .await?;
    if let Some(group) = group.filter(|_| from.is_fifo).map(text) {
        groups::refresh(connection, from.id, &group, now).await?;
        groups::add(connection, to.id, &group, now).await?;
    }
    Ok(())
}

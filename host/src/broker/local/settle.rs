//! Deletes received messages, or changes how long they stay invisible.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::mend::whole_or;
use super::queues::QueueRow;
use super::{Inner, groups};
use crate::broker::limits::{check_batch, check_visibility};
use crate::broker::{
    BrokerError, EntryError, EntryResults, MAX_VISIBILITY_TIMEOUT_SECS, Queue, Receipt,
};

/// A receipt handle taken apart: which message, and the random text of one receipt of it.
#[derive(Clone, Copy)]
struct Handle<'a> {
    seq: i64,
    receipt: &'a str,
}

fn parse(receipt: &Receipt) -> Option<Handle<'_>> {
    let (seq, receipt) = receipt.0.split_once('.')?;
    Some(Handle { seq: seq.parse().ok()?, receipt })
}

/// A message as it stands when its visibility is to change.
#[derive(Debug, sqlx::FromRow)]
struct Held {
    seq: i64,
    visible_at: i64,
    received_at: Option<i64>,
    receipt: Option<Vec<u8>>,
    message_group: Option<Vec<u8>>,
}

impl Inner {
    pub(super) async fn delete(
        &self,
        queue: &Queue,
        receipts: &[Receipt],
    ) -> Result<EntryResults<()>, BrokerError> {
        check_batch("DeleteMessageBatch", queue, receipts.len())?;
        let handles: Vec<_> = receipts.iter().filter_map(parse).collect();
        if !handles.is_empty() {
            let failed = self.failed("deleting");
            let mut write = self.begin().await.map_err(&failed)?;
            let row = QueueRow::find(&mut write, &queue.address).await.map_err(&failed)?;
            let row = row.ok_or_else(|| self.no_such_queue(&queue.address))?;
            let freed = delete(&mut write, row.id, &handles).await.map_err(&failed)?;
            if row.is_fifo {
                self.refresh(&mut write, row.id, &freed).await.map_err(&failed)?;
            }
            write.transaction.commit().await.map_err(&failed)?;
            drop(write._turn);
            if row.is_fifo {
                self.wake.wake(&queue.address);
            }
        }
        let outcome = |receipt| parse(receipt).map(|_| ()).ok_or(EntryError::ReceiptExpired);
        Ok(receipts.iter().map(outcome).collect())
    }

    pub(super) async fn set_visibility(
        &self,
        queue: &Queue,
        changes: &[(Receipt, u32)],
    ) -> Result<EntryResults<()>, BrokerError> {
        check_batch("ChangeMessageVisibilityBatch", queue, changes.len())?;
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let failed = self.failed("changing visibility");
        let mut write = self.begin().await.map_err(&failed)?;
        let row = QueueRow::find(&mut write, &queue.address).await.map_err(&failed)?;
        let row = row.ok_or_else(|| self.no_such_queue(&queue.address))?;
        let now = self.options.clock.now().0;
        let held = held(&mut write, row.id, changes).await.map_err(&failed)?;
        let mut results = Vec::with_capacity(changes.len());
        let mut moves: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        let mut touched = BTreeSet::new();
        let mut is_sooner = false;
        for (receipt, seconds) in changes {
            results.push(new_visibility(&held, receipt, *seconds, now).map(
                |(message, visible_at)| {
                    is_sooner |= visible_at < message.visible_at;
                    moves.entry(visible_at).or_default().push(message.seq);
                    touched.extend(message.message_group.as_deref().map(text));
                },
            ));
        }
        for (visible_at, seqs) in moves {
            set(&mut write, visible_at, &seqs).await.map_err(&failed)?;
        }
        if row.is_fifo {
            self.refresh(&mut write, row.id, &touched).await.map_err(&failed)?;
        }
        write.transaction.commit().await.map_err(&failed)?;
        drop(write._turn);
        if is_sooner {
            self.wake.wake(&queue.address);
        }
        Ok(results)
    }

    async fn refresh(
        &self,
        connection: &mut SqliteConnection,
        queue_id: i64,
        touched: &BTreeSet<String>,
    ) -> Result<(), sqlx::Error> {
        let now = self.options.clock.now().0;
        for group in touched {
            groups::refresh(connection, queue_id, group, now).await?;
        }
        Ok(())
    }
}

/// Deletes what is held under the handles, and tells the groups of what went.
async fn delete(
    connection: &mut SqliteConnection,
    queue_id: i64,
    handles: &[Handle<'_>],
) -> Result<BTreeSet<String>, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM sqjobs_messages WHERE seq IN (");
    let mut list = query.separated(", ");
    for handle in handles {
        list.push_bind(handle.seq);
    }
    // A receipt is 128 random bits of one message, so the two lists need not be paired.
    query.push(") AND receipt IN (");
    let mut list = query.separated(", ");
    for handle in handles {
        list.push_bind(handle.receipt);
    }
    // The plus keeps the planner from walking the whole queue by its index.
    query.push(") AND +queue_id = ").push_bind(queue_id).push(" RETURNING message_group");
    let groups: Vec<Option<Vec<u8>>> = query.build_query_scalar().fetch_all(connection).await?;
    Ok(groups.iter().flatten().map(|group| text(group)).collect())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn held(
    connection: &mut SqliteConnection,
    queue_id: i64,
    changes: &[(Receipt, u32)],
) -> Result<Vec<Held>, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new(concat!(
        "SELECT seq, ",
        whole_or!("visible_at", "0"),
        " AS visible_at, ",
        whole_or!("received_at", "NULL"),
        " AS received_at, receipt, message_group \
             FROM sqjobs_messages WHERE seq IN (",
    ));
    let mut list = query.separated(", ");
    for (receipt, _) in changes {
        list.push_bind(parse(receipt).map(|handle| handle.seq));
    }
    query.push(") AND +queue_id = ").push_bind(queue_id);
    query.build_query_as().fetch_all(connection).await
}

/// The message that a change is about and when it will be visible, if the change may be.
fn new_visibility<'a>(
    held: &'a [Held],
    receipt: &Receipt,
    seconds: u32,
    now: i64,
) -> Result<(&'a Held, i64), EntryError> {
    check_visibility(seconds)?;
    let handle = parse(receipt).ok_or(EntryError::ReceiptExpired)?;
    let is_held = |held: &&Held| {
        held.seq == handle.seq
            && held.receipt.as_deref() == Some(handle.receipt.as_bytes())
            && held.visible_at > now
    };
    let message = held.iter().find(is_held).ok_or(EntryError::ReceiptExpired)?;
    let visible_at = now.saturating_add(i64::from(seconds) * 1000);
    let latest = message.received_at.map_or(i64::MAX, |received_at| {
        received_at.saturating_add(i64::from(MAX_VISIBILITY_TIMEOUT_SECS) * 1000)
    });
    if visible_at > latest {
        return Err(EntryError::Refused(format!(
            "a visibility timeout of {seconds} s from now passes the limit of {MAX_VISIBILITY_TIMEOUT_SECS} s (12 hours) from its receipt"
        )));
    }
    Ok((message, visible_at))
}

async fn set(
    connection: &mut SqliteConnection,
    visible_at: i64,
    seqs: &[i64],
) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE sqjobs_messages SET visible_at = ");
    query.push_bind(visible_at).push(" WHERE seq IN (");
    let mut list = query.separated(", ");
    for seq in seqs {
        list.push_bind(seq);
    }
    query.push(")").build().execute(connection).await.map(|_| ())
}

//! Rows that somebody edited by hand to what the queue itself never writes. Each harms itself
//! only: it is delivered with what can be read of it, and the log says what can't.
//!
//! Whole numbers are read by [`whole_or`], so that a text counts as what stands in for it. A time
//! of visibility that is no number sorts behind all numbers, so it is looked for and set to now.
//! Texts are read as bytes: a body that is no UTF-8 gets U+FFFD in it, and the worker puts it
//! aside as malformed.

use serde_json::Value;
use sqlx::SqliteConnection;
use tracing::warn;

use super::{Inner, groups};
use crate::broker::{Attributes, BrokerError, Queue};
use crate::text::printable;

/// SQL: the column's value where it is a whole number, else `other`.
macro_rules! whole_or {
    ($column:literal, $other:literal) => {
        concat!(
            "CASE typeof(",
            $column,
            ") WHEN 'integer' THEN ",
            $column,
            " ELSE ",
            $other,
            " END"
        )
    };
}

/// SQL: how often a message was received; 0 where that is no count.
macro_rules! receive_count {
    () => {
        "CASE WHEN typeof(receive_count) = 'integer' AND receive_count BETWEEN 0 AND 4294967294 \
         THEN receive_count ELSE 0 END"
    };
}

pub(super) use {receive_count, whole_or};

impl Inner {
    /// Makes due at once what has no time at which it becomes visible.
    pub(super) async fn mend_times(&self, queue: &Queue) -> Result<(), BrokerError> {
        let statement = match queue.is_fifo {
            true => {
                "UPDATE sqjobs_message_groups SET visible_at = ?2 WHERE visible_at >= '' \
                 AND queue_id = (SELECT id FROM sqjobs_queues WHERE name = ?1)"
            }
            false => {
                "UPDATE sqjobs_messages SET visible_at = ?2 WHERE visible_at >= '' \
                 AND queue_id = (SELECT id FROM sqjobs_queues WHERE name = ?1)"
            }
        };
        let failed = self.failed("mending times");
        let mut write = self.begin().await.map_err(&failed)?;
        let query = sqlx::query(statement).bind(&queue.address).bind(self.options.clock.now().0);
        let mended = query.execute(&mut *write).await.map_err(&failed)?.rows_affected();
        write.transaction.commit().await.map_err(&failed)?;
        warn!(
            queue = queue.name,
            "{mended} row(s) of {} had a text where the time of visibility stands; they are visible now",
            self.label()
        );
        Ok(())
    }
}

/// Gives a message group whose name is no text one that is, and returns that.
pub(super) async fn rename_group(
    connection: &mut SqliteConnection,
    queue_id: i64,
    name: &[u8],
    now: i64,
) -> Result<String, sqlx::Error> {
    let text = String::from_utf8_lossy(name).into_owned();
    for statement in [
        "UPDATE sqjobs_messages SET message_group = ?3 \
         WHERE queue_id = ?1 AND CAST(message_group AS BLOB) = ?2",
        "DELETE FROM sqjobs_message_groups \
         WHERE queue_id = ?1 AND CAST(name AS BLOB) = ?2 AND ?3 IS NOT NULL",
    ] {
        let query = sqlx::query(statement).bind(queue_id).bind(name).bind(&text);
        query.execute(&mut *connection).await?;
    }
    groups::add(connection, queue_id, &text, now).await?;
    groups::refresh(connection, queue_id, &text, now).await?;
    warn!("a message group had a name that is no text; it is `{}` now", printable(&text));
    Ok(text)
}

/// The body; where it is no UTF-8, with U+FFFD for what is not.
pub(super) fn body(bytes: Vec<u8>, queue: &str, message_id: &str) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        warn!(queue, message.id = %printable(message_id), "the body of a message is not UTF-8");
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    })
}

/// The attributes that can be read.
pub(super) fn attributes(bytes: &[u8], queue: &str, message_id: &str) -> Attributes {
    if let Ok(attributes) = serde_json::from_slice(bytes) {
        return attributes;
    }
    warn!(
        queue, message.id = %printable(message_id),
        "the attributes of a message are no JSON object of attributes; what can't be read is left out"
    );
    let object: serde_json::Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
    let readable = object
        .into_iter()
        .filter_map(|(name, value)| Some((name, serde_json::from_value(value).ok()?)));
    readable.collect()
}

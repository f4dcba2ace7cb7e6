//! Message groups of FIFO queues: when each may be received from next.
//!
//! A group is blocked while any message of it is in flight. Messages are taken from its front
//! only, at most 10 at once and never while others are out, so those in flight are always among
//! its first 10.

use sqlx::SqliteConnection;

use super::mend::{rename_group, whole_or};
use crate::broker::MAX_BATCH;

/// Notes that a group has a message, now or already.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    queue_id: i64,
    group: &str,
    now: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO sqjobs_message_groups (queue_id, name, visible_at) VALUES (?, ?, ?) \
         ON CONFLICT DO NOTHING",
    )
    .bind(queue_id)
    .bind(group)
    .bind(now)
    .execute(connection)
    .await
    .map(|_| ())
}

/// Groups that can be received from, the one that has waited longest first.
pub(super) async fn due(
    connection: &mut SqliteConnection,
    queue_id: i64,
    now: i64,
) -> Result<Vec<String>, sqlx::Error> {
    let found: Vec<(Vec<u8>, bool)> = sqlx::query_as(
        "SELECT name, typeof(name) = 'text' FROM sqjobs_message_groups \
         WHERE queue_id = ? AND visible_at <= ? ORDER BY visible_at, name LIMIT ?",
    )
    .bind(queue_id)
    .bind(now)
    .bind(MAX_BATCH as i64)
    .fetch_all(&mut *connection)
    .await?;
    let mut names = Vec::with_capacity(found.len());
    for (name, is_text) in found {
        names.push(match String::from_utf8(name) {
            Ok(name) if is_text => name,
            Ok(name) => rename_group(connection, queue_id, name.as_bytes(), now).await?,
            Err(error) => rename_group(connection, queue_id, error.as_bytes(), now).await?,
        });
    }
    Ok(names)
}

/// Sets a group by what its messages now are: blocked, free, or gone.
pub(super) async fn refresh(
    connection: &mut SqliteConnection,
    queue_id: i64,
    group: &str,
    now: i64,
) -> Result<(), sqlx::Error> {
    let latest: Option<i64> = sqlx::query_scalar(
        concat!(
            "SELECT max(", whole_or!("visible_at", "?4"), ") FROM (SELECT visible_at \
             FROM sqjobs_messages WHERE queue_id = ?1 AND message_group = ?2 ORDER BY seq LIMIT ?3)",
        ),
    )
    .bind(queue_id)
    .bind(group)
    .bind(MAX_BATCH as i64)
    .bind(now)
    .fetch_one(&mut *connection)
    .await?;
    let change = match latest {
        // Not before now, so that the groups take turns.
        Some(latest) => sqlx::query(
            "UPDATE sqjobs_message_groups SET visible_at = ?3 WHERE queue_id = ?1 AND name = ?2",
        )
        .bind(queue_id)
        .bind(group)
        .bind(latest.max(now)),
        None => sqlx::query("DELETE FROM sqjobs_message_groups WHERE queue_id = ? AND name = ?")
            .bind(queue_id)
            .bind(group),
    };
    change.execute(connection).await.map(|_| ())
}

/// Forgets the groups whose messages have all expired.
pub(super) async fn forget_empty(
    connection: &mut SqliteConnection,
    queue_id: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM sqjobs_message_groups WHERE queue_id = ? AND NOT EXISTS (SELECT 1 \
         FROM sqjobs_messages AS m WHERE m.queue_id = sqjobs_message_groups.queue_id \
         AND m.message_group = sqjobs_message_groups.name)",
    )
    .bind(queue_id)
    .execute(connection)
    .await
    .map(|_| ())
}

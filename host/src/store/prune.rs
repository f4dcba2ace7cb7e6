//! Pruning: what is kept of jobs that are done, and for how long.
//!
//! A pruned job loses its arguments, result, error and attempts. Its id, name, fingerprint and
//! final status stay as the fence: while its queue may still hold a copy of its message, the row
//! is what keeps the job from running again. Then the row goes too. What the dead list holds is
//! not pruned: a person has yet to look at it.

use std::time::Duration;

use sqlx::Row as _;

use super::{Store, StoreError, placeholders};
use crate::clock::millis;
use crate::failpoint;

/// Jobs pruned in one transaction: few, so that nobody waits long for the database.
const BATCH: i64 = 200;

/// The longest that SQS keeps a message. Source: Amazon SQS API reference, `CreateQueue`.
pub const LONGEST_RETENTION: Duration = Duration::from_secs(14 * 86_400);

/// How much is kept of jobs that are done; both conditions prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// For how long after its end.
    pub time: Option<Duration>,
    /// How many, the last ones.
    pub count: Option<u64>,
}

/// A place among the finished jobs, in the order of their ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    finished_at: i64,
    id: String,
}

impl Store {
    /// The last job, in the order of their ends, that is not to be kept; `None` when all are.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prune_until(&self, keep: Keep) -> Result<Option<Place>, StoreError> {
        let action = "look for what is to be pruned";
        let by_time = match keep.time {
            None => None,
            Some(time) => {
                let now: i64 = self
                    .within(
                        action,
                        sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&self.inner.pool),
                    )
                    .await?;
                Some(Place { finished_at: now.saturating_sub(millis(time)), id: String::new() })
            }
        };
        let by_count = match keep.count {
            None => None,
            Some(count) => {
                let query = sqlx::query(self.sql(
                    "SELECT finished_at, id FROM {p}jobs WHERE finished_at IS NOT NULL \
                     AND pruned = 0 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET $1",
                ))
                .bind(i64::try_from(count).unwrap_or(i64::MAX));
                let row = self.within(action, query.fetch_optional(&self.inner.pool)).await?;
                row.map(|row| {
                    Ok(Place { finished_at: row.try_get("finished_at")?, id: row.try_get("id")? })
                })
                .transpose()
                .map_err(self.failed(action))?
            }
        };
        Ok(by_time.max(by_count))
    }

    /// Prunes some jobs behind `after` up to `until`; tells how many, and where to go on.
    /// `None` for the place: there are no more.
    ///
    /// # Errors
    /// The database failed; nothing of the batch was pruned.
    pub async fn prune_some(
        &self,
        after: Option<&Place>,
        until: &Place,
    ) -> Result<(u64, Option<Place>), StoreError> {
        self.within("prune finished jobs", async {
            let mut write = self.begin().await?;
            let from = after.cloned().unwrap_or(Place { finished_at: i64::MIN, id: String::new() });
            let statement = format!(
                "SELECT id, finished_at FROM {{p}}jobs WHERE finished_at IS NOT NULL \
                 AND pruned = 0 AND (finished_at, id) > ($1, $2) \
                 AND (finished_at, id) <= ($3, $4) \
                 ORDER BY finished_at, id LIMIT {BATCH} {{skip_locked}}"
            );
            let rows = sqlx::query(self.sql(&statement))
                .bind(from.finished_at)
                .bind(from.id)
                .bind(until.finished_at)
                .bind(until.id.clone())
                .fetch_all(&mut *write.tx)
                .await?;
            let mut places = Vec::with_capacity(rows.len());
            for row in &rows {
                places.push(Place {
                    finished_at: row.try_get("finished_at")?,
                    id: row.try_get("id")?,
                });
            }
            let Some(last) = places.last().cloned() else { return Ok((0, None)) };
            let list = placeholders(1, places.len());
            let prune = format!(
                "UPDATE {{p}}jobs SET pruned = 1, args = NULL, kwargs = NULL, result = NULL, \
                 error = NULL, error_stage = NULL, backtrace = NULL, progress_message = NULL \
                 WHERE id IN {list} AND pruned = 0 AND finished_at IS NOT NULL \
                 AND NOT EXISTS (SELECT 1 FROM {{p}}dead d WHERE d.id = {{p}}jobs.id) \
                 RETURNING id"
            );
            let mut query = sqlx::query_scalar::<_, String>(self.sql(&prune));
            for place in &places {
                query = query.bind(place.id.clone());
            }
            let pruned = query.fetch_all(&mut *write.tx).await?;
            if !pruned.is_empty() {
                let list = placeholders(1, pruned.len());
                let forget = format!("DELETE FROM {{p}}attempts WHERE job_id IN {list}");
                let mut query = sqlx::query(self.sql(&forget));
                for id in &pruned {
                    query = query.bind(id.clone());
                }
                query.execute(&mut *write.tx).await?;
            }
            failpoint::reach("prune-written", "");
            write.tx.commit().await?;
            Ok((pruned.len() as u64, Some(last)))
        })
        .await
    }

    /// Removes rows of some pruned jobs whose message can be nowhere any more: longer ago than
    /// the retention they ended and were last sent. `known` are queues with their retention; any
    /// other may keep messages for [`LONGEST_RETENTION`]. Tells how many went, and where to go on:
    /// `None` when there are no more. What is behind a place is not passed over again, since the
    /// fences of other queues that must stay for longer may be a million.
    ///
    /// # Errors
    /// The database failed; nothing was removed.
    pub async fn remove_fences(
        &self,
        known: &[(String, Duration)],
        after: Option<&Place>,
    ) -> Result<(u64, Option<Place>), StoreError> {
        let from = after.cloned().unwrap_or(Place { finished_at: i64::MIN, id: String::new() });
        self.within("remove old jobs", async {
            // Looked for outside of the transaction, which on SQLite keeps all others from writing.
            let places = self.fences(known, &from).await?;
            let Some(last) = places.last().cloned() else { return Ok((0, None)) };
            let statement = format!(
                "DELETE FROM {{p}}jobs WHERE id IN (SELECT id FROM {{p}}jobs j WHERE pruned = 1 \
                 AND id IN {} \
                 AND NOT EXISTS (SELECT 1 FROM {{p}}outbox o WHERE o.job_id = j.id) \
                 AND NOT EXISTS (SELECT 1 FROM {{p}}dead d WHERE d.id = j.id) {{skip_locked}})",
                placeholders(1, places.len())
            );
            let mut write = self.begin().await?;
            let mut query = sqlx::query(self.sql(&statement));
            for place in &places {
                query = query.bind(place.id.clone());
            }
            let removed = query.execute(&mut *write.tx).await?.rows_affected();
            write.tx.commit().await?;
            Ok((removed, Some(last)))
        })
        .await
    }

    /// The next fences that are old enough, in the order of their jobs' ends.
    async fn fences(
        &self,
        known: &[(String, Duration)],
        from: &Place,
    ) -> Result<Vec<Place>, sqlx::Error> {
        let shortest = known.iter().map(|(_, retention)| *retention).min();
        let longest = millis(LONGEST_RETENTION);
        let ago = |column: &str, ms: i64| format!("{column} < {{now}} - {ms}");
        let is_old = |ms: i64| {
            let (finished, sent) = (ago("finished_at", ms), ago("sent_at", ms));
            format!("{finished} AND (sent_at IS NULL OR {sent})")
        };
        let mut are_old = format!("({})", is_old(longest));
        for (index, (_, retention)) in known.iter().enumerate() {
            are_old += &format!(" OR (queue = ${} AND {})", index + 3, is_old(millis(*retention)));
        }
        let statement = format!(
            "SELECT id, finished_at FROM {{p}}jobs WHERE pruned = 1 \
             AND (finished_at, id) > ($1, $2) AND {} AND ({are_old}) \
             ORDER BY finished_at, id LIMIT {BATCH}",
            ago("finished_at", shortest.map_or(longest, |shortest| millis(shortest).min(longest)))
        );
        let mut query =
            sqlx::query(self.sql(&statement)).bind(from.finished_at).bind(from.id.clone());
        for (queue, _) in known {
            query = query.bind(queue.clone());
        }
        let rows = query.fetch_all(&self.inner.pool).await?;
        let place = |row: &sqlx::any::AnyRow| {
            Ok(Place { finished_at: row.try_get("finished_at")?, id: row.try_get("id")? })
        };
        rows.iter().map(place).collect()
    }
}

//! The dead list emptied: entries sent again, or discarded, in batches.
//!
//! A batch is one transaction of a few statements, however many entries it has, and no body
//! leaves the database: 100,000 entries take seconds and no memory. Each is taken out of the list
//! in the transaction that writes its outbox row, so that whoever is killed half-way, or works
//! beside another, sends none twice.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::dead::{DeadFilter, DeadKind, bind};
use super::{Dialect, Store, StoreError, Write, placeholders};
use crate::clock::Timestamp;
use crate::failpoint;

/// Most entries of one transaction.
const BATCH: usize = 500;

/// A place in the dead list, oldest first: when the entry was put aside, and its id.
pub type DeadPlace = (Timestamp, String);

/// What became of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadBatch {
    /// Entries that left the list.
    pub entries: u64,
    /// Entries that are sent again; the others' jobs run, wait or have succeeded meanwhile.
    pub sent: u64,
    /// Where the next batch begins; `None` after the last one.
    pub next: Option<DeadPlace>,
}

/// What is known of an entry that is being taken out of the list.
struct Taken {
    id: String,
    kind: Option<DeadKind>,
    queue: String,
    body_bytes: i64,
    received_at: i64,
    /// Whether its job has a row, and the entry is that job's. Of a message that no module was
    /// there for it is only known to be when its row has failed with it.
    has_job: bool,
    /// Whether that row still holds the arguments.
    has_arguments: bool,
}

impl Taken {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let kind = DeadKind::of_name(row.try_get("kind")?);
        let is_own = row.try_get::<i64, _>("is_own")? != 0;
        Ok(Self {
            id: row.try_get("id")?,
            kind,
            queue: row.try_get("queue")?,
            body_bytes: row.try_get("body_bytes")?,
            received_at: row.try_get("received_at")?,
            has_job: is_own && kind.is_some_and(DeadKind::is_of_job),
            has_arguments: row.try_get::<i64, _>("has_arguments")? != 0,
        })
    }
}

impl Store {
    /// How many entries match.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let (conditions, values) = filter.conditions();
        let statement =
            format!("SELECT CAST(count(*) AS bigint) FROM {{p}}dead d WHERE {conditions}");
        let mut query = sqlx::query_scalar::<_, i64>(self.sql(&statement));
        for value in values {
            query = bind!(query, value);
        }
        let count = self.within("count what was put aside", query.fetch_one(&self.inner.pool));
        Ok(u64::try_from(count.await?).unwrap_or(0))
    }

    /// Sends a batch of the entries that match again, oldest first, from a place on. A job that
    /// failed waits again under its id, as one that was never tried, and its row counts the
    /// retry; a message that is no job goes back to its queue exactly as it was.
    ///
    /// # Errors
    /// The database failed; nothing of the batch is sent again.
    pub async fn retry_dead(
        &self,
        filter: &DeadFilter,
        after: Option<&DeadPlace>,
    ) -> Result<DeadBatch, StoreError> {
        self.within("send what was put aside again", async {
            let mut write = self.begin().await?;
            let taken = self.take_dead(&mut write, filter, after).await?;
            let jobs = taken.iter().filter(|entry| entry.has_job);
            let revived =
                self.revive_all(&mut write, jobs.map(|entry| entry.id.as_str()).collect()).await?;
            let (as_jobs, exact): (Vec<&Taken>, Vec<&Taken>) = taken
                .iter()
                .filter(|entry| !entry.has_job || revived.contains(&entry.id))
                .partition(|entry| entry.has_job && entry.has_arguments);
            self.send_jobs_again(&mut write, &as_jobs).await?;
            self.send_exactly_again(&mut write, &exact).await?;
            self.remove_dead(&mut write, &taken).await?;
            failpoint::reach("retry-written", "");
            write.tx.commit().await?;
            failpoint::reach("retried", "");
            Ok(DeadBatch { sent: count(as_jobs.len() + exact.len()), ..batch(&taken) })
        })
        .await
    }

    /// Deletes a batch of the entries that match, oldest first, from a place on. The rows of
    /// their jobs stay as they are.
    ///
    /// # Errors
    /// The database failed; nothing of the batch is deleted.
    pub async fn discard_dead(
        &self,
        filter: &DeadFilter,
        after: Option<&DeadPlace>,
    ) -> Result<DeadBatch, StoreError> {
        self.within("discard what was put aside", async {
            let mut write = self.begin().await?;
            let taken = self.take_dead(&mut write, filter, after).await?;
            self.remove_dead(&mut write, &taken).await?;
            write.tx.commit().await?;
            Ok(batch(&taken))
        })
        .await
    }

    /// The entries of the next batch, which no other process can take until it is done.
    async fn take_dead(
        &self,
        write: &mut Write,
        filter: &DeadFilter,
        after: Option<&DeadPlace>,
    ) -> Result<Vec<Taken>, sqlx::Error> {
        let (mut conditions, values) = filter.conditions();
        let next = values.len() + 1;
        if after.is_some() {
            conditions.push_str(&format!(
                " AND (d.received_at > ${next} OR (d.received_at = ${next} AND d.id > ${}))",
                next + 1
            ));
        }
        let lock = match self.dialect() {
            Dialect::Sqlite => "",
            Dialect::Postgres => "FOR UPDATE OF d SKIP LOCKED",
        };
        let statement = format!(
            "SELECT d.id, d.kind, d.queue, d.body_bytes, d.received_at, \
             CAST(CASE WHEN d.job_id = d.id AND j.id IS NOT NULL \
             AND (d.kind <> 'unknown-job' OR j.error_kind = 'unknown-job') \
             THEN 1 ELSE 0 END AS bigint) AS is_own, \
             CAST(CASE WHEN j.args IS NULL OR j.kwargs IS NULL THEN 0 ELSE 1 END AS bigint) AS has_arguments \
             FROM {{p}}dead d LEFT JOIN {{p}}jobs j ON j.id = d.id WHERE {conditions} \
             ORDER BY d.received_at, d.id LIMIT {BATCH} {lock}"
        );
        let mut query = sqlx::query(self.sql(&statement));
        for value in values {
            query = bind!(query, value);
        }
        if let Some((received_at, id)) = after {
            query = query.bind(received_at.0).bind(id.clone());
        }
        query.fetch_all(&mut *write.tx).await?.iter().map(Taken::read).collect()
    }

    /// Has jobs that failed wait again, as ones that were never tried; returns the ids of those
    /// that had. Their place in a message group is gone: the group has moved on without them.
    async fn revive_all(
        &self,
        write: &mut Write,
        mut ids: Vec<&str>,
    ) -> Result<std::collections::HashSet<String>, sqlx::Error> {
        if ids.is_empty() {
            return Ok(std::collections::HashSet::new());
        }
        ids.sort_unstable();
        let statement = format!(
            "UPDATE {{p}}jobs SET status = 'PENDING', spent = 0, crashes = 0, alone = 0, \
             error = NULL, error_kind = NULL, error_stage = NULL, backtrace = NULL, \
             retry_at = NULL, finished_at = NULL, not_before = NULL, group_position = NULL, \
             retries = retries + 1, retried_at = {{now}}, updated_at = {{now}} \
             WHERE status IN ('FAILURE', 'CANCELLED') AND id IN {} RETURNING id",
            placeholders(1, ids.len())
        );
        let mut query = sqlx::query_scalar::<_, String>(self.sql(&statement));
        for id in ids {
            query = query.bind(id.to_owned());
        }
        Ok(query.fetch_all(&mut *write.tx).await?.into_iter().collect())
    }

    /// Writes the outbox rows of jobs that wait again, in the order in which they failed.
    async fn send_jobs_again(
        &self,
        write: &mut Write,
        entries: &[&Taken],
    ) -> Result<(), sqlx::Error> {
        self.insert_outbox(
            write,
            entries,
            "INSERT INTO {p}outbox (job_id, job_name, queue, args, kwargs, message_group, \
             enqueued_at, send_number, attributes) SELECT j.id, j.name, d.queue, j.args, j.kwargs, \
             d.message_group, j.enqueued_at, j.sends + 1, d.attributes \
             FROM {p}dead d JOIN {p}jobs j ON j.id = d.id",
        )
        .await
    }

    /// Writes the outbox rows of messages that go back exactly as they were.
    async fn send_exactly_again(
        &self,
        write: &mut Write,
        entries: &[&Taken],
    ) -> Result<(), sqlx::Error> {
        self.insert_outbox(
            write,
            entries,
            "INSERT INTO {p}outbox (job_id, job_name, queue, message_group, enqueued_at, \
             attributes, exact_body, aside) SELECT d.id, coalesce(d.job, ''), d.queue, \
             d.message_group, d.received_at, d.attributes, d.body, d.kind FROM {p}dead d",
        )
        .await
    }

    async fn insert_outbox(
        &self,
        write: &mut Write,
        entries: &[&Taken],
        insert: &str,
    ) -> Result<(), sqlx::Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let ids = placeholders(1, entries.len());
        let statement = format!("{insert} WHERE d.id IN {ids} ORDER BY d.received_at, d.id");
        let mut query = sqlx::query(self.sql(&statement));
        for entry in entries {
            query = query.bind(entry.id.clone());
        }
        query.execute(&mut *write.tx).await.map(|_| ())
    }

    /// Takes entries out of the list, and gives the space of malformed bodies back.
    async fn remove_dead(&self, write: &mut Write, entries: &[Taken]) -> Result<(), sqlx::Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut space: BTreeMap<&str, i64> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == Some(DeadKind::Malformed)) {
            *space.entry(&entry.queue).or_default() += entry.body_bytes;
        }
        for (queue, bytes) in space {
            sqlx::query(self.sql(
                "UPDATE {p}malformed_space SET bytes = CASE WHEN bytes > $1 THEN bytes - $1 \
                 ELSE 0 END WHERE queue = $2",
            ))
            .bind(bytes)
            .bind(queue.to_owned())
            .execute(&mut *write.tx)
            .await?;
        }
        let statement =
            format!("DELETE FROM {{p}}dead WHERE id IN {}", placeholders(1, entries.len()));
        let mut query = sqlx::query(self.sql(&statement));
        for entry in entries {
            query = query.bind(entry.id.clone());
        }
        query.execute(&mut *write.tx).await.map(|_| ())
    }
}

fn batch(taken: &[Taken]) -> DeadBatch {
    let last = taken.last().map(|entry| (Timestamp(entry.received_at), entry.id.clone()));
    DeadBatch { entries: count(taken.len()), sent: 0, next: last.filter(|_| taken.len() == BATCH) }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

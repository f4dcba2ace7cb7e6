//! The dead list: messages that can't be run, and jobs that failed for good, kept where a
//! person can see them and send them again.

use futures_util::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Store, StoreError, Write};
use crate::clock::Timestamp;
use crate::payload::Job;
use crate::text::without_nul;

/// Why an entry is in the dead list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the words are explained in docs/operations.md
pub enum DeadKind {
    Malformed,
    UnknownJob,
    IdConflict,
    Failed,
    Crashed,
    Undeliverable,
    Lost,
}

impl DeadKind {
    /// All kinds.
    const ALL: [Self; 7] = [
        Self::Malformed,
        Self::UnknownJob,
        Self::IdConflict,
        Self::Failed,
        Self::Crashed,
        Self::Undeliverable,
        Self::Lost,
    ];

    /// The word that rows and commands use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownJob => "unknown-job",
            Self::IdConflict => "id-conflict",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::Undeliverable => "undeliverable",
            Self::Lost => "lost",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether the entry is a job that failed, known by the job's id; else a message that is no
    /// job, or not this one.
    #[must_use]
    pub const fn is_of_job(self) -> bool {
        !matches!(self, Self::Malformed | Self::IdConflict)
    }
}

/// A message to be put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadMessage {
    /// The job's id; the message's where the job's is not known, or belongs to another job.
    pub id: String,
    /// Why it is here.
    pub kind: DeadKind,
    /// The queue it came from.
    pub queue: String,
    /// The job's name, where it is known.
    pub job: Option<String>,
    /// The job's id, where it is known.
    pub job_id: Option<String>,
    /// The broker's id of the message.
    pub message_id: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// The body, exactly as it was received.
    pub body: String,
    /// The message attributes, as a JSON object.
    pub attributes: String,
    /// The message's group.
    pub group: Option<String>,
}

/// An entry of the dead list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadEntry {
    /// What names the entry.
    pub id: String,
    /// Why it is here; see [`DeadKind::name`].
    pub kind: String,
    /// The queue it came from.
    pub queue: String,
    /// The job's name, where it is known.
    pub job: Option<String>,
    /// The job's id, where it is known.
    pub job_id: Option<String>,
    /// The broker's id of the message.
    pub message_id: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// The body, exactly as it was received.
    pub body: Vec<u8>,
    /// The message attributes, as a JSON object.
    pub attributes: String,
    /// When it was put aside.
    pub received_at: Timestamp,
}

impl DeadEntry {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            queue: row.try_get("queue")?,
            job: row.try_get("job")?,
            job_id: row.try_get("job_id")?,
            message_id: row.try_get("message_id")?,
            reason: row.try_get("reason")?,
            body: row.try_get("body")?,
            attributes: row.try_get("attributes")?,
            received_at: Timestamp(row.try_get("received_at")?),
        })
    }
}

const COLUMNS: &str =
    "id, kind, queue, job, job_id, message_id, reason, body, attributes, received_at";

/// Which entries of the dead list are asked for; all conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// Only these, by their ids; all without. At most a few hundred at a time.
    pub ids: Vec<String>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only of this job.
    pub job: Option<String>,
    /// Only those whose reason holds this text.
    pub reason: Option<String>,
    /// Only those with an attempt whose error or backtrace holds this text.
    pub error: Option<String>,
    /// Only those put aside at this instant or later.
    pub since: Option<Timestamp>,
    /// Only those put aside before this instant.
    pub until: Option<Timestamp>,
}

/// A value of a condition.
pub(super) enum Value {
    Text(String),
    Number(i64),
}

/// Binds a value to a query of any kind.
macro_rules! bind {
    ($query:expr, $value:expr) => {
        match $value {
            $crate::store::dead::Value::Text(text) => $query.bind(text),
            $crate::store::dead::Value::Number(number) => $query.bind(number),
        }
    };
}
pub(super) use bind;

impl DeadFilter {
    /// The conditions on the entry `d` as SQL, `TRUE` without any, and their values from `$1` on.
    pub(super) fn conditions(&self) -> (String, Vec<Value>) {
        let mut sql = vec!["TRUE".to_owned()];
        let mut values = Vec::new();
        let mut add = |condition: &str, value: Value| {
            values.push(value);
            sql.push(condition.replace('?', &format!("${}", values.len())));
        };
        for (condition, text) in [
            ("d.kind = ?", &self.kind),
            ("d.queue = ?", &self.queue),
            ("d.job = ?", &self.job),
            // The one test for a part of a text that both databases make alike.
            ("replace(d.reason, ?, '') <> d.reason", &self.reason),
            (
                "EXISTS (SELECT 1 FROM {p}attempts a WHERE a.job_id = d.job_id \
                 AND (replace(a.error, ?, '') <> a.error \
                 OR replace(a.backtrace, ?, '') <> a.backtrace))",
                &self.error,
            ),
        ] {
            if let Some(text) = text {
                add(condition, Value::Text(text.clone()));
            }
        }
        for (condition, time) in
            [("d.received_at >= ?", self.since), ("d.received_at < ?", self.until)]
        {
            if let Some(time) = time {
                add(condition, Value::Number(time.0));
            }
        }
        if !self.ids.is_empty() {
            let first = values.len() + 1;
            values.extend(self.ids.iter().cloned().map(Value::Text));
            let marks: Vec<_> = (first..=values.len()).map(|n| format!("${n}")).collect();
            sql.push(format!("d.id IN ({})", marks.join(", ")));
        }
        (sql.join(" AND "), values)
    }
}

impl Store {
    /// Puts a message aside. The same message put aside once more changes nothing. The row of
    /// its job, where `job` tells one, fails in the same transaction, unless it is another job's,
    /// has its final status, or an attempt that lives owns it.
    ///
    /// `space` is how many bytes of malformed bodies the queue may have; what would pass it is
    /// not kept, and `false` is returned.
    ///
    /// # Errors
    /// The database failed.
    pub async fn put_aside(
        &self,
        dead: &DeadMessage,
        job: Option<&Job>,
        space: Option<u64>,
    ) -> Result<bool, StoreError> {
        self.within("put a message aside", async {
            let mut write = self.begin().await?;
            let now: i64 =
                sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
            if dead.kind == DeadKind::Malformed
                && !self.take_space(&mut write, dead, space.unwrap_or(u64::MAX)).await?
            {
                return Ok(false);
            }
            if let Some(job) = job {
                self.fail_waiting(&mut write, dead, job).await?;
            }
            self.insert_dead(&mut write, dead, now).await?;
            write.tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Counts a malformed body against its queue's space; `false` when there is no room for it.
    pub(super) async fn take_space(
        &self,
        write: &mut Write,
        dead: &DeadMessage,
        space: u64,
    ) -> Result<bool, sqlx::Error> {
        let is_known: Option<i64> =
            sqlx::query_scalar(self.sql("SELECT body_bytes FROM {p}dead WHERE id = $1"))
                .bind(&dead.id)
                .fetch_optional(&mut *write.tx)
                .await?;
        if is_known.is_some() {
            return Ok(true);
        }
        let size = i64::try_from(dead.body.len()).unwrap_or(i64::MAX);
        let taken = sqlx::query(self.sql(
            "INSERT INTO {p}malformed_space AS s (queue, bytes) SELECT $1, $2 WHERE $2 <= $3 \
             ON CONFLICT (queue) DO UPDATE SET bytes = s.bytes + excluded.bytes \
             WHERE s.bytes + excluded.bytes <= $3",
        ))
        .bind(&dead.queue)
        .bind(size)
        .bind(i64::try_from(space).unwrap_or(i64::MAX))
        .execute(&mut *write.tx)
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    /// Fails the row of a job whose message is put aside.
    async fn fail_waiting(
        &self,
        write: &mut Write,
        dead: &DeadMessage,
        job: &Job,
    ) -> Result<(), sqlx::Error> {
        let failed = sqlx::query(self.sql(
            "UPDATE {p}jobs SET status = 'FAILURE', token = NULL, alone = 0, error = $1, \
             error_kind = $2, error_stage = NULL, backtrace = NULL, retry_at = NULL, \
             finished_at = {now}, updated_at = {now} \
             WHERE id = $3 AND name = $4 AND fingerprint = $5 AND (status IN ('PENDING', 'RETRY') \
             OR (status = 'RUNNING' AND NOT EXISTS (SELECT 1 FROM {p}workers w \
             WHERE w.id = {p}jobs.worker_id AND w.renewed_at + w.lease_ms > {now})))",
        ))
        .bind(without_nul(dead.reason.clone()))
        .bind(dead.kind.name())
        .bind(&job.id)
        .bind(&job.name)
        .bind(job.fingerprint())
        .execute(&mut *write.tx)
        .await?;
        if failed.rows_affected() > 0 {
            self.end_dead_attempts(write, &job.id).await?;
        }
        Ok(())
    }

    /// Ends the attempts of a job whose workers died.
    pub(super) async fn end_dead_attempts(
        &self,
        write: &mut Write,
        job_id: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql(
            "UPDATE {p}attempts SET outcome = 'crashed', finished_at = {now}, \
             error = 'the worker died while the attempt ran' \
             WHERE outcome = 'running' AND job_id = $1",
        ))
        .bind(job_id.to_owned())
        .execute(&mut *write.tx)
        .await
        .map(|_| ())
    }

    /// Writes an entry. One of this id that another message left stays as it is: then the new
    /// one is known by its message's id, so that neither body is lost.
    pub(super) async fn insert_dead(
        &self,
        write: &mut Write,
        dead: &DeadMessage,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        if self.upsert_dead(write, &dead.id, dead, now).await? {
            return Ok(());
        }
        let other = match &dead.message_id {
            Some(id) if *id != dead.id => id.clone(),
            _ => uuid::Uuid::new_v4().to_string(),
        };
        self.upsert_dead(write, &other, dead, now).await.map(|_| ())
    }

    /// Inserts an entry, or renews the one that the same message or the same job left; tells
    /// whether it did.
    async fn upsert_dead(
        &self,
        write: &mut Write,
        id: &str,
        dead: &DeadMessage,
        now: i64,
    ) -> Result<bool, sqlx::Error> {
        let done = sqlx::query(self.sql(
            "INSERT INTO {p}dead AS d (id, kind, queue, job, job_id, message_id, reason, body, \
             attributes, body_bytes, message_group, received_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, body = excluded.body, \
             attributes = excluded.attributes, body_bytes = excluded.body_bytes, \
             received_at = excluded.received_at WHERE d.kind = excluded.kind \
             AND (d.body = excluded.body OR d.kind IN ('failed', 'crashed', 'undeliverable', 'lost'))",
        ))
        .bind(id.to_owned())
        .bind(dead.kind.name())
        .bind(&dead.queue)
        .bind(&dead.job)
        .bind(&dead.job_id)
        .bind(&dead.message_id)
        .bind(without_nul(dead.reason.clone()))
        .bind(dead.body.as_bytes().to_vec())
        .bind(without_nul(dead.attributes.clone()))
        .bind(i64::try_from(dead.body.len()).unwrap_or(i64::MAX))
        .bind(&dead.group)
        .bind(now)
        .execute(&mut *write.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Calls `each` with the entries that match, newest first, at most `limit`, in bounded memory.
    ///
    /// # Errors
    /// The database failed, or `each` did.
    pub async fn each_dead<E: From<StoreError>>(
        &self,
        filter: &DeadFilter,
        limit: Option<u64>,
        mut each: impl FnMut(DeadEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let (conditions, values) = filter.conditions();
        let statement = format!(
            "SELECT {COLUMNS} FROM {{p}}dead d WHERE {conditions} \
             ORDER BY received_at DESC, id DESC LIMIT ${}",
            values.len() + 1
        );
        let mut query = sqlx::query(self.sql(&statement));
        for value in values {
            query = bind!(query, value);
        }
        let limit = limit.map_or(i64::MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let mut rows = query.bind(limit).fetch(&self.inner.pool);
        let action = "list what was put aside";
        while let Some(row) = rows.try_next().await.map_err(self.failed(action))? {
            each(DeadEntry::read(&row).map_err(self.failed(action))?)?;
        }
        Ok(())
    }

    /// The entry of this id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn dead(&self, id: &str) -> Result<Option<DeadEntry>, StoreError> {
        let statement = format!("SELECT {COLUMNS} FROM {{p}}dead WHERE id = $1");
        let query = sqlx::query(self.sql(&statement)).bind(id.to_owned());
        let action = "show what was put aside";
        let row = self.within(action, query.fetch_optional(&self.inner.pool)).await?;
        row.map(|row| DeadEntry::read(&row)).transpose().map_err(self.failed(action))
    }
}

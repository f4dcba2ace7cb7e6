//! Reading: what `status` shows.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Store, StoreError};
use crate::clock::Timestamp;

/// A job as the database knows it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // each is the column of that name; see docs/database.md
pub struct JobStatus {
    pub id: String,
    pub name: String,
    pub queue: String,
    pub status: String,
    pub args: Option<String>,
    pub kwargs: Option<String>,
    pub result: Option<String>,
    pub error: Option<String>,
    pub error_kind: Option<String>,
    pub error_stage: Option<String>,
    pub backtrace: Option<String>,
    pub attempts: i64,
    pub module: Option<String>,
    pub module_version: Option<String>,
    pub module_digest: Option<String>,
    pub worker_id: Option<String>,
    pub progress: Option<f64>,
    pub progress_message: Option<String>,
    pub schedule: Option<String>,
    pub fire_time: Option<Timestamp>,
    pub parent_id: Option<String>,
    /// The ids of the jobs that it has added, oldest first.
    pub children: Vec<String>,
    pub created_at: Timestamp,
    pub enqueued_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub updated_at: Timestamp,
    pub retry_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    pub not_before: Option<Timestamp>,
    pub retries: i64,
    pub retried_at: Option<Timestamp>,
}

impl JobStatus {
    /// Whether nothing more will happen to the job by itself.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.status.as_str(), "SUCCESS" | "FAILURE" | "CANCELLED")
    }

    pub(super) fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let time = |column: &str| -> Result<Option<Timestamp>, sqlx::Error> {
            Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp))
        };
        let progress: f64 = row.try_get("progress")?;
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            queue: row.try_get("queue")?,
            status: row.try_get("status")?,
            args: row.try_get("args")?,
            kwargs: row.try_get("kwargs")?,
            result: row.try_get("result")?,
            error: row.try_get("error")?,
            error_kind: row.try_get("error_kind")?,
            error_stage: row.try_get("error_stage")?,
            backtrace: row.try_get("backtrace")?,
            attempts: row.try_get("attempts")?,
            module: row.try_get("module")?,
            module_version: row.try_get("module_version")?,
            module_digest: row.try_get("module_digest")?,
            worker_id: row.try_get("worker_id")?,
            progress: (progress >= 0.0).then_some(progress),
            progress_message: row.try_get("progress_message")?,
            schedule: row.try_get("schedule")?,
            fire_time: time("fire_time")?,
            parent_id: row.try_get("parent_id")?,
            children: serde_json::from_str(row.try_get("children")?)
                .map_err(|error| sqlx::Error::Decode(error.into()))?,
            created_at: Timestamp(row.try_get("created_at")?),
            enqueued_at: Timestamp(row.try_get("enqueued_at")?),
            started_at: time("started_at")?,
            finished_at: time("finished_at")?,
            updated_at: Timestamp(row.try_get("updated_at")?),
            retry_at: time("retry_at")?,
            duration_ms: row.try_get("duration_ms")?,
            not_before: time("not_before")?,
            retries: row.try_get("retries")?,
            retried_at: time("retried_at")?,
        })
    }
}

/// What [`JobStatus::read`] reads of `{p}jobs j`.
pub(super) const COLUMNS: &str = "id, name, queue, status, args, kwargs, result, error, error_kind, \
    error_stage, backtrace, attempts, module, module_version, module_digest, worker_id, progress, \
    progress_message, schedule, fire_time, parent_id, created_at, enqueued_at, started_at, \
    finished_at, updated_at, retry_at, duration_ms, not_before, retries, retried_at, \
    coalesce((SELECT CAST({json_array}(c.id ORDER BY c.created_at, c.enqueued_at, c.id) AS text) \
     FROM {p}jobs c WHERE c.parent_id = j.id), '[]') AS children";

/// One run of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each is the column of that name; see docs/database.md
pub struct AttemptStatus {
    pub number: i64,
    pub outcome: String,
    pub stage: Option<String>,
    pub error: Option<String>,
    pub backtrace: Option<String>,
    pub logs: Option<String>,
    pub warnings: Option<String>,
    pub module: String,
    pub module_digest: String,
    pub worker_id: String,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
}

impl Store {
    /// The job of this id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn status(&self, id: &str) -> Result<Option<JobStatus>, StoreError> {
        let statement = format!("SELECT {COLUMNS} FROM {{p}}jobs j WHERE id = $1");
        let query = sqlx::query(self.sql(&statement)).bind(id.to_owned());
        let action = "look up a job";
        let row = self.within(action, query.fetch_optional(&self.inner.pool)).await?;
        row.map(|row| JobStatus::read(&row)).transpose().map_err(self.failed(action))
    }

    /// The runs of a job, in their order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn attempts(&self, job_id: &str) -> Result<Vec<AttemptStatus>, StoreError> {
        let query = sqlx::query(self.sql(
            "SELECT number, outcome, stage, error, backtrace, logs, warnings, module, \
             module_digest, worker_id, started_at, finished_at, duration_ms \
             FROM {p}attempts WHERE job_id = $1 ORDER BY number",
        ))
        .bind(job_id.to_owned());
        let action = "list a job's attempts";
        let rows = self.within(action, query.fetch_all(&self.inner.pool)).await?;
        let read = |row: &AnyRow| -> Result<AttemptStatus, sqlx::Error> {
            Ok(AttemptStatus {
                number: row.try_get("number")?,
                outcome: row.try_get("outcome")?,
                stage: row.try_get("stage")?,
                error: row.try_get("error")?,
                backtrace: row.try_get("backtrace")?,
                logs: row.try_get("logs")?,
                warnings: row.try_get("warnings")?,
                module: row.try_get("module")?,
                module_digest: row.try_get("module_digest")?,
                worker_id: row.try_get("worker_id")?,
                started_at: Timestamp(row.try_get("started_at")?),
                finished_at: row.try_get::<Option<i64>, _>("finished_at")?.map(Timestamp),
                duration_ms: row.try_get("duration_ms")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(self.failed(action))
    }
}

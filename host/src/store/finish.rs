//! Outcomes: what an attempt leaves behind, stored under its owner's token.

use std::time::Duration;

use sqlx::Row as _;

use super::dead::{DeadKind, DeadMessage};
use super::enqueue::{Enqueued, NewJob};
use super::park::ParkRequest;
use super::{Store, StoreError, Write, json_of, placeholders};
use crate::broker::Attributes;
use crate::clock::millis;
use crate::failpoint;
use crate::payload::{self, Job};
use crate::store::claim::ModuleVersion;

/// Longest error, backtrace or log that is kept, in bytes each.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;

/// What becomes of the job's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The job succeeded.
    Success,
    /// The attempt failed and the job comes again after this time.
    Retry(Duration),
    /// The job failed for good; with what the dead list keeps of it.
    Failure(Box<DeadMessage>),
    /// The job was cancelled.
    Cancelled,
    /// The attempt was interrupted and does not count; the job waits again.
    Released,
}

impl Ending {
    const fn status(&self) -> &'static str {
        match self {
            Self::Success => "SUCCESS",
            Self::Retry(_) => "RETRY",
            Self::Failure(_) => "FAILURE",
            Self::Cancelled => "CANCELLED",
            Self::Released => "PENDING",
        }
    }

    const fn is_final(&self) -> bool {
        matches!(self, Self::Success | Self::Failure(_) | Self::Cancelled)
    }
}

/// The outcome of one attempt.
#[derive(Debug, Clone)]
pub struct FinishRequest {
    /// The job as its message asked for it.
    pub job: Job,
    /// The queue its message came from.
    pub queue: String,
    /// The message's group.
    pub group: Option<String>,
    /// The attempt's token.
    pub token: String,
    /// The worker's row.
    pub worker_id: String,
    /// What ran.
    pub module: ModuleVersion,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Whether the attempt holds a claim. One of a job that records nothing does not, and leaves
    /// its first row here.
    pub is_claimed: bool,
    /// Whether the attempt counts against the retry policy.
    pub is_spent: bool,
    /// What becomes of the job.
    pub ending: Ending,
    /// The word for how the attempt ended (`success`, `transient`, `trap`, …).
    pub outcome: &'static str,
    /// JSON text of the result, where the job records it.
    pub result: Option<String>,
    /// Stage, message and backtrace of the failure.
    pub failure: Option<(String, String, Option<String>)>,
    /// The guest's log lines and output.
    pub logs: String,
    /// What went wrong beside the outcome, a line each.
    pub warnings: String,
    /// How long the attempt took.
    pub duration: Duration,
    /// Jobs that the attempt added; sent once this is stored.
    pub children: Vec<NewJob>,
    /// Send the job's message again from the outbox after the ending's wait, instead of
    /// relying on the message that the queue holds.
    pub is_parked: bool,
    /// Where the job's message is sent again: the queue's name, or its URL.
    pub address: String,
    /// The sender's message attributes: what is sent again carries them.
    pub attributes: Attributes,
    /// Whether the message's group has an order: the queue is FIFO.
    pub is_ordered: bool,
    /// Where a copy of a message goes whose job failed for good: the address of the queue's
    /// dead-letter queue.
    pub dead_letter_queue: Option<String>,
}

impl Store {
    /// Stores a group of outcomes in one transaction; tells for each whether it was stored.
    /// `false` means that another attempt owns the job. An outcome that was stored before, by a
    /// call whose answer was lost, is told as stored, and nothing of it is done twice.
    ///
    /// # Errors
    /// The database failed or refused a row; nothing of the group is stored.
    pub async fn finish(&self, requests: &[FinishRequest]) -> Result<Vec<bool>, StoreError> {
        self.within("store outcomes", self.finish_all(requests)).await
    }

    async fn finish_all(&self, requests: &[FinishRequest]) -> Result<Vec<bool>, sqlx::Error> {
        let mut write = self.begin_impatient().await?;
        let now: i64 =
            sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
        for request in requests.iter().filter(|request| !request.is_claimed) {
            self.adopt(&mut write, request, now).await?;
        }
        let stored = self.settle_rows(&mut write, requests, now).await?;
        let won: Vec<&FinishRequest> =
            requests.iter().filter(|request| stored.contains(&request.token)).collect();
        if !won.is_empty() {
            self.settle_attempts(&mut write, &won, now).await?;
        }
        for request in &won {
            if let Ending::Failure(dead) = &request.ending {
                self.insert_dead(&mut write, dead, now).await?;
                if let Some(queue) = &request.dead_letter_queue {
                    self.copy_to(&mut write, queue, request, dead).await?;
                }
            }
            for child in &request.children {
                // One whose unique key another job has taken since it was added is that job's.
                let added = self.insert_job(&mut write, child, now, now).await?;
                if added == Enqueued::Conflict {
                    self.insert_dead(&mut write, &conflicting(child), now).await?;
                }
            }
            if request.is_parked {
                let wait = match &request.ending {
                    Ending::Retry(wait) => *wait,
                    _ => Duration::ZERO,
                };
                self.park(&mut write, &request.parked(wait), now).await?;
            }
            failpoint::reach("outcome-written", &request.job.name);
        }
        let others: Vec<&FinishRequest> =
            requests.iter().filter(|request| !stored.contains(&request.token)).collect();
        let before = self.stored_before(&mut write, &others).await?;
        write.tx.commit().await?;
        let is_stored = |token| stored.contains(token) || before.contains(token);
        Ok(requests.iter().map(|request| is_stored(&request.token)).collect())
    }

    /// Writes the first row of a job that ran without one, owned by its attempt. When another
    /// delivery of the same message has written one, that stays and this attempt stores nothing.
    async fn adopt(
        &self,
        write: &mut Write,
        request: &FinishRequest,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let started_at = now.saturating_sub(millis(request.duration));
        let done = sqlx::query(self.sql(
            "INSERT INTO {p}jobs (id, name, queue, status, args, kwargs, fingerprint, \
             message_group, attempts, token, worker_id, module, module_version, module_digest, \
             created_at, enqueued_at, started_at, updated_at, sent_at) \
             VALUES ($1, $2, $3, 'RUNNING', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $17) \
             ON CONFLICT (id) DO NOTHING",
        ))
        .bind(&request.job.id)
        .bind(&request.job.name)
        .bind(&request.queue)
        .bind(&request.job.args)
        .bind(&request.job.kwargs)
        .bind(request.job.fingerprint())
        .bind(&request.group)
        .bind(i64::from(request.attempt))
        .bind(&request.token)
        .bind(&request.worker_id)
        .bind(&request.module.name)
        .bind(&request.module.version)
        .bind(&request.module.digest)
        .bind(started_at)
        .bind(request.job.enqueued_at.map_or(started_at, |time| time.0))
        .bind(started_at)
        .bind(now)
        .execute(&mut *write.tx)
        .await?;
        if done.rows_affected() > 0 {
            sqlx::query(self.sql(
                "INSERT INTO {p}attempts (job_id, number, token, worker_id, module, \
                 module_version, module_digest, started_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            ))
            .bind(&request.job.id)
            .bind(i64::from(request.attempt))
            .bind(&request.token)
            .bind(&request.worker_id)
            .bind(&request.module.name)
            .bind(&request.module.version)
            .bind(&request.module.digest)
            .bind(started_at)
            .execute(&mut *write.tx)
            .await?;
        }
        Ok(())
    }

    /// The tokens of those requests whose outcome was stored by an earlier call.
    async fn stored_before(
        &self,
        write: &mut Write,
        requests: &[&FinishRequest],
    ) -> Result<std::collections::HashSet<String>, sqlx::Error> {
        let mut found = std::collections::HashSet::new();
        for request in requests {
            let stored: Option<i64> = sqlx::query_scalar(self.sql(
                "SELECT number FROM {p}attempts WHERE job_id = $1 AND token = $2 AND outcome = $3",
            ))
            .bind(&request.job.id)
            .bind(&request.token)
            .bind(request.outcome)
            .fetch_optional(&mut *write.tx)
            .await?;
            if stored.is_some() {
                found.insert(request.token.clone());
            }
        }
        Ok(found)
    }

    /// Moves the jobs' rows to their endings; returns the tokens that owned theirs.
    async fn settle_rows(
        &self,
        write: &mut Write,
        requests: &[FinishRequest],
        now: i64,
    ) -> Result<std::collections::HashSet<String>, sqlx::Error> {
        let mut sorted: Vec<&FinishRequest> = requests.iter().collect();
        sorted.sort_by(|a, b| a.job.id.cmp(&b.job.id));
        let select = format!(
            "SELECT id, token FROM {{p}}jobs WHERE id IN {} AND status = 'RUNNING' ORDER BY id \
             {{for_update}}",
            placeholders(1, sorted.len())
        );
        let mut query = sqlx::query(self.sql(&select));
        for request in &sorted {
            query = query.bind(&request.job.id);
        }
        let rows = query.fetch_all(&mut *write.tx).await?;
        let owners = rows
            .iter()
            .map(|row| row.try_get("token"))
            .collect::<Result<std::collections::HashSet<String>, _>>()?;
        sorted.retain(|request| owners.contains(&request.token));
        if sorted.is_empty() {
            return Ok(std::collections::HashSet::new());
        }
        // One that was cancelled while it ran does not come again.
        let cancelled = "j.cancel_requested = 1 AND v.status IN ('RETRY', 'PENDING')";
        let update = format!(
            "WITH v (id, token, status, spent, result, error, error_kind, error_stage, backtrace, \
             retry_at, finished_at, duration_ms) AS (VALUES {}) \
             UPDATE {{p}}jobs AS j SET token = NULL, alone = 0, spent = j.spent + v.spent, \
             status = CASE WHEN {cancelled} THEN 'CANCELLED' ELSE v.status END, \
             result = v.result, error = v.error, error_kind = v.error_kind, \
             error_stage = v.error_stage, backtrace = v.backtrace, cancel_requested = 0, \
             retry_at = CASE WHEN {cancelled} THEN NULL ELSE v.retry_at END, \
             finished_at = CASE WHEN {cancelled} THEN {now} ELSE v.finished_at END, duration_ms = v.duration_ms, updated_at = {now} \
             FROM v WHERE j.id = v.id AND j.token = v.token",
            placeholders(sorted.len(), 12)
        );
        let mut query = sqlx::query(self.sql(&update));
        for request in &sorted {
            let failure = request.failure.as_ref();
            let retry_at = match &request.ending {
                Ending::Retry(wait) => Some(now.saturating_add(millis(*wait))),
                _ => None,
            };
            query = query
                .bind(&request.job.id)
                .bind(&request.token)
                .bind(request.ending.status())
                .bind(i64::from(request.is_spent))
                .bind(&request.result)
                .bind(failure.map(|failure| failure.1.clone()))
                .bind(failure.map(|_| request.outcome))
                .bind(failure.map(|failure| failure.0.clone()))
                .bind(failure.and_then(|failure| failure.2.clone()))
                .bind(retry_at)
                .bind(request.ending.is_final().then_some(now))
                .bind(millis(request.duration));
        }
        query.execute(&mut *write.tx).await?;
        Ok(sorted.iter().map(|request| request.token.clone()).collect())
    }

    async fn settle_attempts(
        &self,
        write: &mut Write,
        requests: &[&FinishRequest],
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let update = format!(
            "WITH v (job_id, token, outcome, stage, error, backtrace, logs, warnings, duration_ms) \
             AS (VALUES {}) \
             UPDATE {{p}}attempts AS a SET outcome = v.outcome, stage = v.stage, error = v.error, \
             backtrace = v.backtrace, logs = v.logs, warnings = v.warnings, \
             duration_ms = v.duration_ms, finished_at = {now} \
             FROM v WHERE a.job_id = v.job_id AND a.token = v.token",
            placeholders(requests.len(), 9)
        );
        let mut query = sqlx::query(self.sql(&update));
        for request in requests {
            let failure = request.failure.as_ref();
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            query = query
                .bind(&request.job.id)
                .bind(&request.token)
                .bind(request.outcome)
                .bind(failure.map(|failure| failure.0.clone()))
                .bind(failure.map(|failure| failure.1.clone()))
                .bind(failure.and_then(|failure| failure.2.clone()))
                .bind(some(&request.logs))
                .bind(some(&request.warnings))
                .bind(millis(request.duration));
        }
        query.execute(&mut *write.tx).await?;
        Ok(())
    }

    /// Notes how far a running attempt is. Told by one that lost its claim, it changes nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_progress(
        &self,
        job_id: &str,
        token: &str,
        share: f64,
        message: Option<&str>,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(self.sql(
            "UPDATE {p}jobs SET progress = $1, progress_message = $2, updated_at = {now} \
             WHERE id = $3 AND token = $4",
        ))
        .bind(share)
        .bind(message.map(str::to_owned))
        .bind(job_id.to_owned())
        .bind(token.to_owned());
        self.within("note a job's progress", query.execute(&self.inner.pool)).await.map(|_| ())
    }

    /// Puts a copy of a dead job's message, exactly as it was, into the outbox.
    async fn copy_to(
        &self,
        write: &mut Write,
        queue: &str,
        request: &FinishRequest,
        dead: &DeadMessage,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql(
            "INSERT INTO {p}outbox (job_id, job_name, queue, message_group, enqueued_at, \
             attributes, body) SELECT id, name, $1, $2, enqueued_at, $3, $4 FROM {p}jobs \
             WHERE id = $5",
        ))
        .bind(queue.to_owned())
        .bind(&dead.group)
        .bind(json_of(&payload::dead_copy_attributes(&request.attributes)))
        .bind(&dead.body)
        .bind(&request.job.id)
        .execute(&mut *write.tx)
        .await?;
        Ok(())
    }
}

impl FinishRequest {
    fn parked(&self, wait: Duration) -> ParkRequest {
        ParkRequest {
            job: self.job.clone(),
            queue: self.queue.clone(),
            address: self.address.clone(),
            group: self.group.clone(),
            attributes: self.attributes.clone(),
            wait,
            is_ordered: self.is_ordered,
        }
    }
}

/// A job that an attempt added under an id that belongs to another job: it can't be added, and is
/// kept where a person sees it.
fn conflicting(child: &NewJob) -> DeadMessage {
    let (body, attributes) = payload::outgoing(&child.job, &Attributes::new());
    DeadMessage {
        id: uuid::Uuid::new_v4().to_string(),
        kind: DeadKind::IdConflict,
        queue: child.queue.clone(),
        job: Some(child.job.name.clone()),
        job_id: Some(child.job.id.clone()),
        message_id: None,
        reason: format!(
            "added by job {} under an id that belongs to a job with another name or other arguments; an attempt must add its jobs in the same order each time",
            child.parent_id.as_deref().unwrap_or("unknown")
        ),
        body,
        attributes: json_of(&attributes),
        group: child.group.clone(),
    }
}

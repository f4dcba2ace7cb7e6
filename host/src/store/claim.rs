//! Claims: an attempt takes ownership of a job's row before it runs.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Store, StoreError, placeholders};
use crate::clock::Timestamp;
use crate::failpoint;
use crate::payload::Job;

/// Which version of which module runs an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleVersion {
    /// The module's name: its file name without `.wasm`.
    pub name: String,
    /// Its version, where the component's metadata tells one.
    pub version: Option<String>,
    /// SHA-256 of the module file, in hex.
    pub digest: String,
}

/// An attempt that wants to begin.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The job, as its message asks for it.
    pub job: Job,
    /// The queue its message came from.
    pub queue: String,
    /// The message's group.
    pub group: Option<String>,
    /// When the message was sent.
    pub sent_at: Option<Timestamp>,
    /// The broker's id of the message.
    pub message_id: String,
    /// The new attempt's token: differs for each attempt anywhere.
    pub token: String,
    /// The worker's row.
    pub worker_id: String,
    /// What will run.
    pub module: ModuleVersion,
    /// Whether no other attempt of the worker runs, nor will until this one has ended.
    pub is_alone: bool,
    /// Whether the message's group has an order: the queue is FIFO.
    pub is_ordered: bool,
}

/// An attempt that owns its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Number of this attempt, from 1: runs begun.
    pub attempt: u32,
    /// Attempts spent before this one.
    pub spent: u32,
    /// Runs begun before whose worker died.
    pub crashes: u32,
    /// When the job was first queued.
    pub enqueued_at: Timestamp,
    /// The periodic entry's name and the instant it meant.
    pub schedule: Option<(String, Timestamp)>,
    /// How many jobs stand between this one and the one that nobody's job added.
    pub generation: u32,
}

/// What a claim found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The job is ours to run.
    Begun(Begun),
    /// The job has its final status already: the message can go.
    Finished(String),
    /// The job can't run before this time has passed: another attempt runs, or the time of its
    /// retry has not come.
    Held(Duration),
    /// The id is known with another job name or other arguments.
    Conflict(String),
    /// The job has taken workers down and may only run alone: nothing was claimed.
    OnlyAlone,
    /// The job has taken a worker down although nothing else ran there. With the reason.
    Crashed(String),
    /// A job ahead of it in its message group waits to be sent again: this one goes behind it.
    Behind,
}

/// Runs begun whose worker died, after which a job runs alone in its worker: whatever ran beside
/// it is under suspicion as well.
pub const MAX_CRASHES: u32 = 2;

const COLUMNS: &str = "j.id, j.name, j.fingerprint, j.status, j.attempts, j.spent, j.crashes, \
    j.retry_at, j.enqueued_at, j.schedule, j.fire_time, j.generation, j.token, j.alone, \
    j.error_kind, j.group_position, j.cancel_requested, j.worker_id, j.revived_by";

impl Store {
    /// Claims a group of jobs in one transaction; the answers stand in the order of the requests.
    ///
    /// # Errors
    /// The database failed; nothing is claimed.
    pub async fn claim(&self, requests: &[ClaimRequest]) -> Result<Vec<Claim>, StoreError> {
        self.within("claim jobs", self.claim_all(requests)).await
    }

    async fn claim_all(&self, requests: &[ClaimRequest]) -> Result<Vec<Claim>, sqlx::Error> {
        let mut write = self.begin_impatient().await?;
        let now: i64 =
            sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;

        // Rows of jobs that foreign producers sent. In the order of their ids, as all locks are
        // taken, so that two groups never wait for each other in a circle.
        let mut sorted: Vec<&ClaimRequest> = requests.iter().collect();
        sorted.sort_by(|a, b| a.job.id.cmp(&b.job.id));
        sorted.dedup_by(|a, b| a.job.id == b.job.id);
        let insert = format!(
            "INSERT INTO {{p}}jobs (id, name, queue, args, kwargs, fingerprint, message_group, \
             sent_at, created_at, enqueued_at, updated_at) VALUES {} ON CONFLICT (id) DO NOTHING",
            placeholders(sorted.len(), 11)
        );
        let mut query = sqlx::query(self.sql(&insert));
        for request in &sorted {
            let job = &request.job;
            let enqueued_at = job.enqueued_at.or(request.sent_at).map_or(now, |time| time.0);
            query = query
                .bind(&job.id)
                .bind(&job.name)
                .bind(&request.queue)
                .bind(&job.args)
                .bind(&job.kwargs)
                .bind(job.fingerprint())
                .bind(&request.group)
                .bind(request.sent_at.map(|time| time.0))
                .bind(now)
                .bind(enqueued_at)
                .bind(now);
        }
        query.execute(&mut *write.tx).await?;

        let select = format!(
            "SELECT {COLUMNS} FROM {{p}}jobs j WHERE j.id IN {} ORDER BY j.id {{for_update}}",
            placeholders(1, sorted.len()),
        );
        let mut query = sqlx::query(self.sql(&select));
        for request in &sorted {
            query = query.bind(&request.job.id);
        }
        let rows = query.fetch_all(&mut *write.tx).await?;
        let mut known = std::collections::HashMap::with_capacity(rows.len());
        for row in &rows {
            let row = JobRow::read(row)?;
            known.insert(row.id.clone(), row);
        }
        self.read_claims(&mut write, known.values_mut(), now).await?;

        let mut answers = Vec::with_capacity(requests.len());
        let mut begun = Vec::new();
        for request in requests {
            let row = known.get_mut(&request.job.id).ok_or(sqlx::Error::RowNotFound)?;
            if row.is_owned_by(&request.token) {
                // Committed before, and the answer was lost.
                answers.push(Claim::Begun(row.begun()));
                continue;
            }
            if revives(row, request) {
                self.revive(&mut write, &row.id).await?;
                self.note_revival(&mut write, request).await?;
                row.revive();
            }
            let (mut claim, took_over) = decide(row, request, now);
            if took_over && row.is_cancelled {
                // Its worker died before it could stop the attempt.
                self.cancel_abandoned(&mut write, &row.id).await?;
                row.status = "CANCELLED".into();
                answers.push(Claim::Finished(row.status.clone()));
                continue;
            }
            if matches!(claim, Claim::Begun(_))
                && request.is_ordered
                && let Some(other) =
                    self.place_of(&mut write, request, row.group_position, now).await?
            {
                claim = other;
            }
            if let Claim::Begun(_) = claim {
                // The second request of one id in this group finds the first one's claim.
                row.status = "RUNNING".into();
                row.alive_until = Some(now + 30_000);
                begun.push((request, took_over));
            }
            answers.push(claim);
        }
        if !begun.is_empty() {
            self.take(&mut write, &begun, now).await?;
        }
        for (request, _) in &begun {
            failpoint::reach("claim-written", &request.job.name);
        }
        write.tx.commit().await?;
        Ok(answers)
    }

    /// Reads until when the claims of running jobs live. A statement of its own: one that waits for
    /// a job's row finds it as it is then, and rows that it joins as they were before.
    async fn read_claims(
        &self,
        write: &mut super::Write,
        rows: impl Iterator<Item = &mut JobRow>,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let mut running: Vec<&mut JobRow> =
            rows.filter(|row| row.status == "RUNNING" && row.worker_id.is_some()).collect();
        if running.is_empty() {
            return Ok(());
        }
        let statement = format!(
            "SELECT id, renewed_at, lease_ms FROM {{p}}workers WHERE id IN {}",
            placeholders(1, running.len())
        );
        let mut query = sqlx::query(self.sql(&statement));
        for row in &running {
            query = query.bind(row.worker_id.clone());
        }
        for worker in query.fetch_all(&mut *write.tx).await? {
            let id: String = worker.try_get("id")?;
            // A renewal of the future was written before the clock was set back: no claim holds
            // others off for longer than a lease.
            let renewed_at = worker.try_get::<i64, _>("renewed_at")?.min(now);
            let until = renewed_at.saturating_add(worker.try_get("lease_ms")?);
            for row in running.iter_mut().filter(|row| row.worker_id.as_deref() == Some(&id)) {
                row.alive_until = Some(until);
            }
        }
        Ok(())
    }

    /// Notes the message that has a job run again: each of them does so once.
    async fn note_revival(
        &self,
        write: &mut super::Write,
        request: &ClaimRequest,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql("UPDATE {p}jobs SET revived_by = $1 WHERE id = $2"))
            .bind(&request.message_id)
            .bind(&request.job.id)
            .execute(&mut *write.tx)
            .await
            .map(|_| ())
    }

    /// What a job of a FIFO queue gets instead of beginning, while another of its message group is
    /// ahead of it: one that was, or waits to be, sent again from here, and on the queue may
    /// stand behind this message all the same.
    async fn place_of(
        &self,
        write: &mut super::Write,
        request: &ClaimRequest,
        position: Option<i64>,
        now: i64,
    ) -> Result<Option<Claim>, sqlx::Error> {
        let Some(group) = &request.group else { return Ok(None) };
        loop {
            let ahead = sqlx::query(self.sql(
                "SELECT j.id, j.status, CAST(CASE WHEN j.sent_at >= coalesce((SELECT \
                 own.sent_at FROM {p}jobs own WHERE own.id = $4), 0) THEN 1 ELSE 0 END AS bigint) \
                 AS is_later, CAST(w.lease_ms + CASE WHEN w.renewed_at > {now} THEN {now} \
                 ELSE w.renewed_at END AS bigint) AS alive_until, \
                 (SELECT max(o.id) FROM {p}outbox o WHERE o.job_id = j.id AND o.body IS NULL) AS row \
                 FROM {p}jobs j LEFT JOIN {p}workers w ON w.id = j.worker_id \
                 WHERE j.queue = $1 AND j.message_group = $2 AND j.group_position < $3 \
                 AND j.status IN ('PENDING', 'RUNNING', 'RETRY') AND j.id <> $4 \
                 ORDER BY j.group_position LIMIT 1",
            ))
            .bind(&request.queue)
            .bind(group)
            .bind(position.unwrap_or(i64::MAX))
            .bind(&request.job.id)
            .fetch_optional(&mut *write.tx)
            .await?;
            let Some(ahead) = ahead else { return Ok(None) };
            let row: Option<i64> = ahead.try_get("row")?;
            if position.is_none() || row.is_some() {
                return Ok(Some(Claim::Behind));
            }
            let status: String = ahead.try_get("status")?;
            let alive_until: Option<i64> = ahead.try_get("alive_until")?;
            if let Some(until) = alive_until.filter(|until| status == "RUNNING" && *until > now) {
                return Ok(Some(Claim::Held(wait(until - now))));
            }
            if ahead.try_get::<i64, _>("is_later")? == 1 {
                // It went back and was sent once more, behind this message.
                return Ok(Some(Claim::Behind));
            }
            // This message was sent after the other one's, which the queue would have brought
            // first: that is gone, and must not hold its group up for ever.
            let id: String = ahead.try_get("id")?;
            let reason = "its message is gone: one that was sent after it in its message group has come. It was purged, taken by another program, or moved to a dead-letter queue by the queue itself";
            self.give_up_job(write, &id, reason, now).await?;
        }
    }

    /// Ends the claim of an attempt that stores nothing, since its lease was lost: the job waits
    /// again, and its next delivery need not wait for the end of this worker. The attempt is not
    /// counted; one that does not own the job changes nothing.
    ///
    /// # Errors
    /// The database failed: the claim lives until its worker ends.
    pub async fn let_go(&self, job_id: &str, token: &str) -> Result<(), StoreError> {
        self.within("let a job go", async {
            let mut write = self.begin().await?;
            for statement in [
                "UPDATE {p}attempts SET outcome = 'lease-lost', finished_at = {now} \
                 WHERE job_id = $1 AND token = $2 AND outcome = 'running'",
                "UPDATE {p}jobs SET token = NULL, alone = 0, updated_at = {now}, \
                 status = CASE WHEN cancel_requested = 1 THEN 'CANCELLED' ELSE 'PENDING' END, \
                 finished_at = CASE WHEN cancel_requested = 1 THEN {now} END, \
                 cancel_requested = 0 WHERE id = $1 AND token = $2",
            ] {
                let query = sqlx::query(self.sql(statement)).bind(job_id.to_owned());
                query.bind(token.to_owned()).execute(&mut *write.tx).await?;
            }
            write.tx.commit().await
        })
        .await
    }

    /// Cancels a job whose worker died after somebody had cancelled it.
    async fn cancel_abandoned(
        &self,
        write: &mut super::Write,
        id: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql(
            "UPDATE {p}jobs SET status = 'CANCELLED', token = NULL, alone = 0, \
             cancel_requested = 0, finished_at = {now}, updated_at = {now} WHERE id = $1",
        ))
        .bind(id.to_owned())
        .execute(&mut *write.tx)
        .await?;
        self.end_dead_attempts(write, id).await
    }

    /// Has a job that was given up wait again, as one that was never tried.
    pub(super) async fn revive(
        &self,
        write: &mut super::Write,
        id: &str,
    ) -> Result<(), sqlx::Error> {
        for statement in [
            "UPDATE {p}jobs SET status = 'PENDING', spent = 0, crashes = 0, alone = 0, \
             error = NULL, error_kind = NULL, error_stage = NULL, backtrace = NULL, \
             retry_at = NULL, unknown_since = NULL, finished_at = NULL, cancel_requested = 0, pruned = 0, \
             updated_at = {now} WHERE id = $1 AND status IN ('FAILURE', 'CANCELLED')",
            "DELETE FROM {p}dead WHERE job_id = $1 AND id = $1 \
             AND kind IN ('failed', 'crashed', 'lost', 'undeliverable', 'unknown-job')",
        ] {
            sqlx::query(self.sql(statement)).bind(id.to_owned()).execute(&mut *write.tx).await?;
        }
        Ok(())
    }

    /// Makes the requests' tokens the owners of their jobs.
    async fn take(
        &self,
        write: &mut super::Write,
        begun: &[(&ClaimRequest, bool)],
        now: i64,
    ) -> Result<(), sqlx::Error> {
        let crashed: Vec<&str> = begun
            .iter()
            .filter(|(_, took_over)| *took_over)
            .map(|(request, _)| request.job.id.as_str())
            .collect();
        if !crashed.is_empty() {
            let ids = placeholders(1, crashed.len());
            for statement in [
                format!(
                    "UPDATE {{p}}attempts SET outcome = 'crashed', finished_at = {{now}}, \
                     error = 'the worker died while the attempt ran' \
                     WHERE outcome = 'running' AND job_id IN {ids}"
                ),
                format!("UPDATE {{p}}jobs SET crashes = crashes + 1 WHERE id IN {ids}"),
            ] {
                let mut query = sqlx::query(self.sql(&statement));
                for id in &crashed {
                    query = query.bind(*id);
                }
                query.execute(&mut *write.tx).await?;
            }
        }
        let update = format!(
            "WITH v (id, token, worker_id, module, module_version, module_digest, alone) AS (VALUES {}) \
             UPDATE {{p}}jobs AS j SET status = 'RUNNING', token = v.token, worker_id = v.worker_id, \
             alone = v.alone, \
             module = v.module, module_version = v.module_version, \
             module_digest = v.module_digest, attempts = j.attempts + 1, started_at = {now}, \
             retry_at = NULL, unknown_since = NULL, progress = -1, progress_message = NULL, updated_at = {now} \
             FROM v WHERE j.id = v.id",
            placeholders(begun.len(), 7)
        );
        let mut query = sqlx::query(self.sql(&update));
        for (request, _) in begun {
            query = query
                .bind(&request.job.id)
                .bind(&request.token)
                .bind(&request.worker_id)
                .bind(&request.module.name)
                .bind(&request.module.version)
                .bind(&request.module.digest)
                .bind(i64::from(request.is_alone));
        }
        query.execute(&mut *write.tx).await?;
        let insert = format!(
            "INSERT INTO {{p}}attempts (job_id, number, token, worker_id, module, module_version, \
             module_digest, started_at) SELECT id, attempts, token, worker_id, module, \
             module_version, module_digest, started_at FROM {{p}}jobs WHERE id IN {}",
            placeholders(1, begun.len())
        );
        let mut query = sqlx::query(self.sql(&insert));
        for (request, _) in begun {
            query = query.bind(&request.job.id);
        }
        query.execute(&mut *write.tx).await?;
        Ok(())
    }
}

/// What a claim must know of a job.
struct JobRow {
    id: String,
    name: String,
    fingerprint: String,
    status: String,
    token: Option<String>,
    attempts: i64,
    spent: i64,
    crashes: i64,
    retry_at: Option<i64>,
    enqueued_at: i64,
    schedule: Option<String>,
    fire_time: Option<i64>,
    generation: i64,
    is_alone: bool,
    error_kind: Option<String>,
    group_position: Option<i64>,
    /// Somebody cancelled the job while an attempt ran.
    is_cancelled: bool,
    /// The worker that runs it, or ran it last.
    worker_id: Option<String>,
    /// The message that has revived it.
    revived_by: Option<String>,
    /// Until when the claim of the worker that runs it lives; `None` when that worker is gone.
    alive_until: Option<i64>,
}

impl JobRow {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            fingerprint: row.try_get("fingerprint")?,
            status: row.try_get("status")?,
            token: row.try_get("token")?,
            attempts: row.try_get("attempts")?,
            spent: row.try_get("spent")?,
            crashes: row.try_get("crashes")?,
            retry_at: row.try_get("retry_at")?,
            enqueued_at: row.try_get("enqueued_at")?,
            schedule: row.try_get("schedule")?,
            fire_time: row.try_get("fire_time")?,
            generation: row.try_get("generation")?,
            is_alone: row.try_get::<i64, _>("alone")? != 0,
            error_kind: row.try_get("error_kind")?,
            group_position: row.try_get("group_position")?,
            is_cancelled: row.try_get::<i64, _>("cancel_requested")? != 0,
            worker_id: row.try_get("worker_id")?,
            revived_by: row.try_get("revived_by")?,
            alive_until: None,
        })
    }
}

impl JobRow {
    fn is_owned_by(&self, token: &str) -> bool {
        self.status == "RUNNING" && self.token.as_deref() == Some(token)
    }

    /// The attempt that owns the row.
    fn begun(&self) -> Begun {
        Begun {
            attempt: count(self.attempts),
            spent: count(self.spent),
            crashes: count(self.crashes),
            enqueued_at: Timestamp(self.enqueued_at),
            schedule: self.schedule.clone().zip(self.fire_time.map(Timestamp)),
            generation: count(self.generation),
        }
    }

    /// As [`Store::revive`] has left it.
    fn revive(&mut self) {
        self.status = "PENDING".into();
        (self.spent, self.crashes, self.is_alone) = (0, 0, false);
        (self.retry_at, self.error_kind) = (None, None);
    }
}

/// Whether a job that was given up runs again: its message was taken for lost and is here, or a
/// person moved its copy back from the dead-letter queue.
fn revives(row: &JobRow, request: &ClaimRequest) -> bool {
    let is_same = row.name == request.job.name && row.fingerprint == request.job.fingerprint();
    let was_lost = row.error_kind.as_deref() == Some("lost");
    let is_moved_back =
        request.job.is_revived && row.revived_by.as_ref() != Some(&request.message_id);
    is_same && row.status == "FAILURE" && (was_lost || is_moved_back)
}

/// Decides a claim by the job's row; tells also whether it takes over from a worker that died.
fn decide(row: &JobRow, request: &ClaimRequest, now: i64) -> (Claim, bool) {
    if row.name != request.job.name {
        let reason = format!("the id belongs to a job `{}`", row.name);
        return (Claim::Conflict(reason), false);
    }
    if row.fingerprint != request.job.fingerprint() {
        let reason = "the id belongs to a job with other arguments".to_owned();
        return (Claim::Conflict(reason), false);
    }
    let took_over = match row.status.as_str() {
        "PENDING" => false,
        "RETRY" => match row.retry_at {
            Some(at) if at > now => return (Claim::Held(wait(at - now)), false),
            _ => false,
        },
        "RUNNING" => match row.alive_until {
            Some(until) if until > now => return (Claim::Held(wait(until - now)), false),
            _ => true,
        },
        _ => return (Claim::Finished(row.status.clone()), false),
    };
    let crashes = count(row.crashes).saturating_add(u32::from(took_over));
    if took_over && row.is_alone {
        let reason = format!(
            "its worker died while the job ran alone in it, after {} earlier attempts whose worker died; the attempts are in `status`",
            crashes.saturating_sub(1)
        );
        return (Claim::Crashed(reason), false);
    }
    if crashes >= MAX_CRASHES && !request.is_alone {
        return (Claim::OnlyAlone, false);
    }
    let attempt = count(row.attempts).saturating_add(1);
    (Claim::Begun(Begun { attempt, crashes, ..row.begun() }), took_over)
}

fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn wait(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

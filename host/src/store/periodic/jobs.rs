//! The jobs of ticks: written with their outbox rows, and cancelled where a later tick replaces
//! them.

use std::collections::HashSet;

use sqlx::Row as _;

use super::Entry;
use crate::beater::definition::job_id;
use crate::clock::Timestamp;
use crate::payload::Job;
use crate::store::{Store, Write, placeholders};

/// A job of a tick.
pub(super) struct PeriodicJob {
    pub(super) job: Job,
    /// Name or URL.
    pub(super) queue: String,
    pub(super) entry: String,
    pub(super) fire_time: Timestamp,
}

impl PeriodicJob {
    pub(super) fn new(entry: &Entry, fire_time: Timestamp, now: i64) -> Self {
        Self::with_id(job_id(&entry.name, fire_time), entry, fire_time, now)
    }

    pub(super) fn with_id(id: String, entry: &Entry, fire_time: Timestamp, now: i64) -> Self {
        let definition = &entry.definition;
        let job = Job {
            id,
            name: definition.job.clone().unwrap_or_default(),
            args: definition.args.clone().unwrap_or_else(|| "[]".into()),
            kwargs: definition.kwargs.clone().unwrap_or_else(|| "{}".into()),
            enqueued_at: Some(Timestamp(now)),
            is_tracked: true,
            is_revived: false,
        };
        let queue = entry.queue.clone().unwrap_or_default();
        Self { job, queue, entry: entry.name.clone(), fire_time }
    }
}

impl Store {
    /// Writes jobs and their outbox rows; a job that is there already is left alone. Tells how
    /// many are new.
    pub(super) async fn insert_periodic_jobs(
        &self,
        write: &mut Write,
        jobs: &[PeriodicJob],
        now: i64,
    ) -> Result<usize, sqlx::Error> {
        let insert = format!(
            "INSERT INTO {{p}}jobs (id, name, queue, args, kwargs, fingerprint, schedule, \
             fire_time, created_at, enqueued_at, updated_at) VALUES {} \
             ON CONFLICT (id) DO NOTHING RETURNING id",
            placeholders(jobs.len(), 11)
        );
        let mut query = sqlx::query(self.sql(&insert));
        for PeriodicJob { job, queue, entry, fire_time } in jobs {
            query = query
                .bind(&job.id)
                .bind(&job.name)
                .bind(queue.rsplit('/').next().unwrap_or(queue))
                .bind(&job.args)
                .bind(&job.kwargs)
                .bind(job.fingerprint())
                .bind(entry)
                .bind(fire_time.0)
                .bind(now)
                .bind(now)
                .bind(now);
        }
        let inserted = query.fetch_all(&mut *write.tx).await?;
        let new: HashSet<String> =
            inserted.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
        let jobs: Vec<_> = jobs.iter().filter(|job| new.contains(&job.job.id)).collect();
        if jobs.is_empty() {
            return Ok(0);
        }
        let insert = format!(
            "INSERT INTO {{p}}outbox (job_id, job_name, queue, args, kwargs, enqueued_at) VALUES {}",
            placeholders(jobs.len(), 6)
        );
        let mut query = sqlx::query(self.sql(&insert));
        for PeriodicJob { job, queue, .. } in &jobs {
            query = query
                .bind(&job.id)
                .bind(&job.name)
                .bind(queue)
                .bind(&job.args)
                .bind(&job.kwargs)
                .bind(now);
        }
        query.execute(&mut *write.tx).await?;
        Ok(jobs.len())
    }

    /// Cancels the jobs before, where the entry says so. A waiting one never runs; one that runs
    /// is stopped by its worker, as one that an operator cancels.
    pub(super) async fn cancel_replaced(
        &self,
        write: &mut Write,
        mut ids: Vec<String>,
    ) -> Result<(), sqlx::Error> {
        ids.sort();
        for chunk in ids.chunks(self.rows_at_once()) {
            let list = placeholders(1, chunk.len());
            // In the order of their ids, as all locks of jobs are taken.
            let lock =
                format!("SELECT id FROM {{p}}jobs WHERE id IN {list} ORDER BY id {{for_update}}");
            self.run_with_ids(write, &lock, chunk).await?;
            let cancelled = self.cancel_ids(write, chunk).await?;
            if !cancelled.done.is_empty() {
                let tell = format!(
                    "UPDATE {{p}}jobs SET error = 'replaced by a later tick of its schedule' \
                     WHERE id IN {}",
                    placeholders(1, cancelled.done.len())
                );
                self.run_with_ids(write, &tell, &cancelled.done).await?;
            }
        }
        Ok(())
    }

    async fn run_with_ids(
        &self,
        write: &mut Write,
        statement: &str,
        ids: &[String],
    ) -> Result<(), sqlx::Error> {
        let query = ids.iter().fold(sqlx::query(self.sql(statement)), |query, id| query.bind(id));
        query.execute(&mut *write.tx).await.map(|_| ())
    }
}

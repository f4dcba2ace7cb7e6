//! Periodic entries, their ticks, and the beaters that deal with them.
//!
//! An entry's row carries its next fire time, which guards every claim: whoever's update moved it
//! owns the tick (see `claim.rs`). Where an entry comes from is kept beside it (see `define.rs`); what
//! operators do with it is in `operate.rs`.

mod claim;
mod define;
mod jobs;
mod operate;

use sqlx::Row as _;
use sqlx::any::AnyRow;

pub use claim::{Beat, Claimed};
pub use define::{DefineError, Defined, Seen, Source};

use super::{Store, StoreError, placeholders};
use crate::beater::definition::{Definition, Settings};
use crate::clock::Timestamp;

/// A periodic entry, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The strongest source that defines it: `module`, `config` or `command`.
    pub source: String,
    /// What all sources together say.
    pub definition: Definition,
    /// The queue of its jobs: its own, else the one that the deployed job describes.
    pub queue: Option<String>,
    /// Whether it fires.
    pub is_enabled: bool,
    /// Why it can't fire.
    pub aside: Option<String>,
    /// The next tick; `None` when none will come.
    pub next_fire_at: Option<Timestamp>,
    /// When that is claimed: later by the entry's jitter.
    pub due_at: Option<Timestamp>,
    /// The last tick that was dealt with.
    pub last_fire_at: Option<Timestamp>,
    /// The job of the last tick that was queued.
    pub last_job_id: Option<String>,
    /// Its status.
    pub last_status: Option<String>,
    /// How late the last tick was claimed, in milliseconds.
    pub last_late_ms: Option<i64>,
    /// Whether the module of a live worker holds the job.
    pub is_held: bool,
    /// When it was first defined.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// What somebody wrote into its row by hand that can't be read.
    unreadable: Option<String>,
}

impl Entry {
    /// Its settings, checked: a row may have been edited by hand.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn settings(&self) -> Result<Settings, String> {
        match &self.unreadable {
            Some(fault) => Err(fault.clone()),
            None => self.definition.check(),
        }
    }

    /// Reads a row, whatever somebody has written into it by hand: SQLite keeps text where a
    /// number belongs. What can't be read is missing, and [`Self::settings`] says so.
    fn read(row: &AnyRow) -> Self {
        let mut cells = Cells { row, fault: None };
        let name = cells.text("name").unwrap_or_default();
        let definition = Definition {
            job: cells.text("job"),
            queue: cells.text("queue"),
            schedule: cells.text("schedule"),
            timezone: cells.text("timezone"),
            every_ms: cells.number("every_ms"),
            args: cells.text("args"),
            kwargs: cells.text("kwargs"),
            catch_up: cells.text("catch_up"),
            max_lateness_ms: cells.number("max_lateness_ms"),
            grace_ms: cells.number("grace_ms"),
            overlap: cells.text("overlap"),
            jitter_ms: cells.number("jitter_ms"),
            start_at: cells.number("start_at"),
            end_at: cells.number("end_at"),
        };
        Self {
            name,
            source: cells.text("source").unwrap_or_default(),
            definition,
            queue: cells.text("effective_queue"),
            is_enabled: cells.number("enabled").unwrap_or(0) != 0,
            aside: cells.text("aside"),
            next_fire_at: cells.time("next_fire_at"),
            due_at: cells.time("due_at"),
            last_fire_at: cells.time("last_fire_at"),
            last_job_id: cells.text("last_job_id"),
            last_status: cells.text("last_status"),
            // Of another row: it has no say in whether this one can fire.
            last_late_ms: row.try_get("last_late_ms").unwrap_or_default(),
            is_held: cells.number("is_held").unwrap_or(0) != 0,
            created_at: cells.time("created_at").unwrap_or_default(),
            updated_at: cells.time("updated_at").unwrap_or_default(),
            unreadable: cells.fault,
        }
    }
}

/// Reads a row cell by cell, and remembers the first that is not what it should be.
struct Cells<'a> {
    row: &'a AnyRow,
    fault: Option<String>,
}

impl Cells<'_> {
    fn text(&mut self, column: &str) -> Option<String> {
        let read = self.row.try_get(column);
        self.kept(column, "text", read)
    }

    fn number(&mut self, column: &str) -> Option<i64> {
        let read = self.row.try_get(column);
        self.kept(column, "a whole number", read)
    }

    fn time(&mut self, column: &str) -> Option<Timestamp> {
        self.number(column).map(Timestamp)
    }

    fn kept<T>(
        &mut self,
        column: &str,
        kind: &str,
        read: Result<Option<T>, sqlx::Error>,
    ) -> Option<T> {
        read.unwrap_or_else(|_| {
            let fault = || format!("its `{column}` in the database is not {kind}");
            self.fault.get_or_insert_with(fault);
            None
        })
    }
}

/// What [`Entry::read`] reads, with [`FOR_PEOPLE`] or [`NOT_ASKED`].
const COLUMNS: &str = "p.name, p.source, p.job, p.queue, p.schedule, p.timezone, p.every_ms, \
    p.args, p.kwargs, p.catch_up, p.max_lateness_ms, p.grace_ms, p.overlap, p.jitter_ms, \
    p.start_at, p.end_at, p.enabled, p.aside, p.next_fire_at, p.due_at, p.last_fire_at, \
    p.last_job_id, p.created_at, p.updated_at, coalesce(p.queue, d.queue) AS effective_queue, \
    j.status AS last_status";
const TABLES: &str = "{p}periodic p LEFT JOIN {p}deployed_jobs d ON d.name = p.job \
    LEFT JOIN {p}jobs j ON j.id = p.last_job_id";
const FOR_PEOPLE: &str = "CAST(CASE WHEN EXISTS (SELECT 1 FROM {p}worker_jobs s \
    JOIN {p}workers w ON w.id = s.worker_id \
    WHERE s.job = p.job AND w.renewed_at + w.lease_ms > {now}) THEN 1 ELSE 0 END AS bigint) AS is_held, \
    (SELECT t.late_ms FROM {p}periodic_ticks t WHERE t.schedule = p.name \
    ORDER BY t.fire_time DESC LIMIT 1) AS last_late_ms";
/// In their place, where nobody asks.
const NOT_ASKED: &str = "CAST(0 AS bigint) AS is_held, CAST(NULL AS bigint) AS last_late_ms";

/// What became of a tick, or of a run of ticks that were skipped for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TickRow {
    /// The instant that the schedule meant; of a run, the first.
    pub fire_time: Timestamp,
    /// The last of a run; else the same.
    pub last_time: Timestamp,
    /// How many ticks these are.
    pub ticks: i64,
    /// `queued` or `skipped`.
    pub outcome: String,
    /// Why it was skipped, or queued by hand.
    pub reason: Option<String>,
    /// The job.
    pub job_id: Option<String>,
    /// The job's status; `None` when it has no row any more.
    pub status: Option<String>,
    /// When a beater dealt with it, by the database's clock.
    pub claimed_at: Timestamp,
    /// How long after it was due, in milliseconds.
    pub late_ms: i64,
    /// Which beater.
    pub beater: String,
}

/// A beater, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeaterRow {
    /// Differs for each start of a beater anywhere.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The version of its time zone database.
    pub zones: String,
    /// The queues whose entries it serves, parted by commas; empty: all.
    pub queues: String,
    /// How far its clock is ahead of the database's, in milliseconds.
    pub clock_off_ms: i64,
}

impl Store {
    /// The names of the jobs that workers have served.
    ///
    /// # Errors
    /// The database failed.
    pub async fn deployed_names(&self) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query_scalar(self.sql("SELECT name FROM {p}deployed_jobs ORDER BY name"));
        self.within("list the deployed jobs", query.fetch_all(&self.inner.pool)).await
    }

    /// All entries, by name; or the one of this name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn periodic_entries(&self, name: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        let condition = if name.is_some() { "WHERE p.name = $1" } else { "" };
        let statement =
            format!("SELECT {COLUMNS}, {FOR_PEOPLE} FROM {TABLES} {condition} ORDER BY p.name");
        let mut query = sqlx::query(self.sql(&statement));
        if let Some(name) = name {
            query = query.bind(name.to_owned());
        }
        let action = "list periodic entries";
        let rows = self.within(action, query.fetch_all(&self.inner.pool)).await?;
        Ok(rows.iter().map(Entry::read).collect())
    }

    /// The last ticks of an entry, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn periodic_ticks(&self, name: &str, limit: u32) -> Result<Vec<TickRow>, StoreError> {
        let query = sqlx::query(self.sql(
            "SELECT t.fire_time, t.last_time, t.ticks, t.outcome, t.reason, t.job_id, j.status, \
             t.claimed_at, t.late_ms, t.beater FROM {p}periodic_ticks t \
             LEFT JOIN {p}jobs j ON j.id = t.job_id WHERE t.schedule = $1 \
             ORDER BY t.fire_time DESC LIMIT $2",
        ))
        .bind(name.to_owned())
        .bind(i64::from(limit));
        let action = "list an entry's ticks";
        let rows = self.within(action, query.fetch_all(&self.inner.pool)).await?;
        let read = |row: &AnyRow| -> Result<TickRow, sqlx::Error> {
            Ok(TickRow {
                fire_time: Timestamp(row.try_get("fire_time")?),
                last_time: Timestamp(row.try_get("last_time")?),
                ticks: row.try_get("ticks")?,
                outcome: row.try_get("outcome")?,
                reason: row.try_get("reason")?,
                job_id: row.try_get("job_id")?,
                status: row.try_get("status")?,
                claimed_at: Timestamp(row.try_get("claimed_at")?),
                late_ms: row.try_get("late_ms")?,
                beater: row.try_get("beater")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(self.failed(action))
    }

    /// Notes which jobs a worker's modules hold, in place of what was noted before, and forgets
    /// those of workers that are gone.
    ///
    /// # Errors
    /// The database failed.
    pub async fn worker_holds(&self, worker_id: &str, jobs: &[String]) -> Result<(), StoreError> {
        self.within("note the jobs of a worker", async {
            let mut write = self.begin().await?;
            sqlx::query(self.sql(
                "DELETE FROM {p}worker_jobs WHERE worker_id = $1 \
                 OR worker_id NOT IN (SELECT id FROM {p}workers)",
            ))
            .bind(worker_id)
            .execute(&mut *write.tx)
            .await?;
            for chunk in jobs.chunks(500) {
                let statement = format!(
                    "INSERT INTO {{p}}worker_jobs (worker_id, job) VALUES {} ON CONFLICT DO NOTHING",
                    placeholders(chunk.len(), 2)
                );
                let mut query = sqlx::query(self.sql(&statement));
                for job in chunk {
                    query = query.bind(worker_id).bind(job);
                }
                query.execute(&mut *write.tx).await?;
            }
            write.tx.commit().await
        })
        .await
    }

    /// Writes a beater's row, or renews it, by the database's clock, and removes those that have
    /// not been renewed for a day.
    ///
    /// # Errors
    /// The database failed.
    pub async fn renew_beater(&self, beater: &BeaterRow) -> Result<(), StoreError> {
        self.within("renew the beater's row", async {
            let mut write = self.begin().await?;
            sqlx::query(self.sql("DELETE FROM {p}beaters WHERE renewed_at + 86400000 < {now}"))
                .execute(&mut *write.tx)
                .await?;
            sqlx::query(self.sql(
                "INSERT INTO {p}beaters (id, host, pid, version, zones, queues, clock_off_ms, \
                 started_at, renewed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, {now}, {now}) \
                 ON CONFLICT (id) DO UPDATE SET renewed_at = excluded.renewed_at, \
                 clock_off_ms = excluded.clock_off_ms",
            ))
            .bind(&beater.id)
            .bind(&beater.host)
            .bind(i64::from(beater.pid))
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(&beater.zones)
            .bind(&beater.queues)
            .bind(beater.clock_off_ms)
            .execute(&mut *write.tx)
            .await?;
            write.tx.commit().await
        })
        .await
    }

    /// Removes a beater's row.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_beater(&self, id: &str) -> Result<(), StoreError> {
        let query = sqlx::query(self.sql("DELETE FROM {p}beaters WHERE id = $1")).bind(id);
        self.within("remove the beater's row", query.execute(&self.inner.pool)).await.map(|_| ())
    }

    /// Beaters whose row was renewed within the last minute.
    ///
    /// # Errors
    /// The database failed.
    pub async fn live_beaters(&self) -> Result<Vec<BeaterRow>, StoreError> {
        let query = sqlx::query(self.sql(
            "SELECT id, host, pid, zones, queues, clock_off_ms FROM {p}beaters \
             WHERE renewed_at + 60000 > {now} ORDER BY started_at, id",
        ));
        let action = "list beaters";
        let rows = self.within(action, query.fetch_all(&self.inner.pool)).await?;
        let read = |row: &AnyRow| -> Result<BeaterRow, sqlx::Error> {
            Ok(BeaterRow {
                id: row.try_get("id")?,
                host: row.try_get("host")?,
                pid: u32::try_from(row.try_get::<i64, _>("pid")?).unwrap_or(0),
                zones: row.try_get("zones")?,
                queues: row.try_get("queues")?,
                clock_off_ms: row.try_get("clock_off_ms")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(self.failed(action))
    }

    /// Forgets some ticks that were dealt with more than `days` days ago; tells whether there may
    /// be more of them.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prune_ticks(&self, days: i64) -> Result<bool, StoreError> {
        const AT_ONCE: u64 = 5000;
        let statement = format!(
            "DELETE FROM {{p}}periodic_ticks WHERE (schedule, fire_time) IN \
             (SELECT schedule, fire_time FROM {{p}}periodic_ticks \
             WHERE claimed_at < {{now}} - $1 ORDER BY claimed_at LIMIT {AT_ONCE})"
        );
        let query = sqlx::query(self.sql(&statement)).bind(days * 86_400_000);
        let done = self.within("prune old ticks", query.execute(&self.inner.pool)).await?;
        Ok(done.rows_affected() >= AT_ONCE)
    }
}

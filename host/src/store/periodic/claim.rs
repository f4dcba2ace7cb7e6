//! Path 3, step c: claims ticks that are due. Whoever's update moves an entry's next fire time
//! owns its ticks; their rows, jobs and outbox rows are written in the same transaction.
//!
//! Many due entries share one transaction. On PostgreSQL each beater takes rows that no other
//! holds, and its transaction ends by itself when it is silent for 5 s: a beater that is stopped
//! half-way holds nobody up for longer. No lock stands for leadership, so none can be lost
//! unnoticed: the guard is the fire time in the row.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::Row as _;

use super::jobs::PeriodicJob;
use super::{COLUMNS, Entry, NOT_ASKED, TABLES};
use crate::beater::definition::{Overlap, job_id};
use crate::beater::plan::{Plan, Tick, plan};
use crate::clock::{Timestamp, millis};
use crate::failpoint;
use crate::store::{Dialect, Store, StoreError, Write, placeholders};

/// Most rows of one statement on PostgreSQL: 11 values each stay below its limit of 65,535.
const ROWS_ON_POSTGRES: usize = 500;
/// On SQLite, which looks a parameter up by walking over all of its statement's: the time for a
/// row grows with the rows beside it, and 500 took longer than all the rest of a claim.
const ROWS_ON_SQLITE: usize = 40;
/// Before 2000 no entry was made: such a fire time was written by hand, as is one that is later
/// than the instant at which it is due.
const EARLIEST: i64 = 946_684_800_000;

const NO_QUEUE: &str = "no queue: neither the entry nor a deployed job names one";

/// Which ticks a beater claims.
#[derive(Debug, Clone)]
pub struct Beat {
    /// The beater, for the history.
    pub beater: String,
    /// Only entries of these queues; all when empty.
    pub queues: Vec<String>,
    /// Most entries in one transaction.
    pub limit: u32,
}

/// What a claim did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Entries that were due.
    pub entries: usize,
    /// Jobs that were queued.
    pub queued: usize,
    /// Ticks that were skipped.
    pub skipped: i64,
    /// Entries that were set aside, with the reason.
    pub aside: Vec<(String, String)>,
    /// Time until the next entry is due; `None` when there is none.
    pub next_due: Option<Duration>,
}

/// An entry that is due, with what becomes of it.
struct Decided {
    entry: Entry,
    fire: Timestamp,
    offset_ms: i64,
    plan: Plan,
}

impl Store {
    /// Claims what is due, in one transaction, by the database's clock.
    ///
    /// # Errors
    /// The database failed; nothing was claimed.
    pub async fn claim_ticks(&self, beat: &Beat) -> Result<Claimed, StoreError> {
        self.within("claim periodic ticks", self.claim_due(beat)).await
    }

    async fn claim_due(&self, beat: &Beat) -> Result<Claimed, sqlx::Error> {
        let queues = of_queues(beat, 3);
        let mut write = self.begin_claim().await?;
        let now: i64 =
            sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
        let lock = match self.dialect() {
            Dialect::Postgres => "FOR UPDATE OF p SKIP LOCKED",
            Dialect::Sqlite => "",
        };
        let statement = format!(
            "SELECT {COLUMNS}, {NOT_ASKED} FROM {TABLES} WHERE p.enabled = 1 \
             AND p.aside IS NULL AND p.due_at <= $1 {queues} ORDER BY p.due_at LIMIT $2 {lock}"
        );
        let mut query = sqlx::query(self.sql(&statement)).bind(now).bind(i64::from(beat.limit));
        for queue in &beat.queues {
            query = query.bind(queue);
        }
        let rows = query.fetch_all(&mut *write.tx).await?;
        let entries: Vec<Entry> = rows.iter().map(Entry::read).collect();
        let mut claimed = Claimed { entries: entries.len(), ..Claimed::default() };
        let is_any = !entries.is_empty();
        let is_full = entries.len() >= beat.limit as usize;
        if is_any {
            failpoint::reach("ticks-taken", "");
        }
        self.claim_entries(&mut write, entries, now, &beat.beater, &mut claimed).await?;
        if is_any {
            failpoint::reach("ticks-written", "");
        }
        let next = if is_full { Some(now) } else { self.next_due(&mut write, beat, now).await? };
        write.tx.commit().await?;
        if is_any {
            failpoint::reach("ticks-claimed", "");
        }
        claimed.next_due = next.map(|due| Timestamp(due).since(Timestamp(now)));
        Ok(claimed)
    }

    /// When the next entry is due.
    async fn next_due(
        &self,
        write: &mut Write,
        beat: &Beat,
        now: i64,
    ) -> Result<Option<i64>, sqlx::Error> {
        let queues = of_queues(beat, 2);
        let statement = format!(
            "SELECT CAST(min(p.due_at) AS bigint) FROM {{p}}periodic p \
             LEFT JOIN {{p}}deployed_jobs d ON d.name = p.job WHERE p.enabled = 1 \
             AND p.aside IS NULL AND p.due_at > $1 AND p.due_at <= {MAX_NUMBER} {queues}",
            MAX_NUMBER = i64::MAX
        );
        let mut query = sqlx::query_scalar::<_, Option<i64>>(self.sql(&statement)).bind(now);
        for queue in &beat.queues {
            query = query.bind(queue);
        }
        query.fetch_one(&mut *write.tx).await
    }

    /// Sets entries aside whose due time somebody has written so that it never comes: SQLite keeps
    /// text there, and takes it to be more than any number.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_unreadable_aside(&self) -> Result<(), StoreError> {
        if self.dialect() == Dialect::Postgres {
            return Ok(());
        }
        let statement = format!(
            "UPDATE {{p}}periodic SET updated_at = {{now}}, \
             aside = 'its `due_at` in the database is not a whole number' \
             WHERE enabled = 1 AND aside IS NULL AND due_at > {}",
            i64::MAX
        );
        let query = sqlx::query(self.sql(&statement));
        let done = query.execute(&self.inner.pool);
        self.within("set unreadable entries aside", done).await.map(|_| ())
    }

    /// Begins a transaction that the server ends by itself when we fall silent.
    pub(super) async fn begin_claim(&self) -> Result<Write, sqlx::Error> {
        let mut write = self.begin().await?;
        if self.dialect() == Dialect::Postgres {
            sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 5000")
                .execute(&mut *write.tx)
                .await?;
        }
        Ok(write)
    }

    /// Deals with all that is due of these entries.
    pub(super) async fn claim_entries(
        &self,
        write: &mut Write,
        entries: Vec<Entry>,
        now: i64,
        beater: &str,
        claimed: &mut Claimed,
    ) -> Result<(), sqlx::Error> {
        let mut decided = Vec::with_capacity(entries.len());
        for entry in entries {
            match decide(entry, now) {
                Ok(entry) => decided.push(entry),
                Err((name, reason)) => {
                    self.set_entry_aside(write, &name, &reason).await?;
                    claimed.aside.push((name, reason));
                }
            }
        }
        let mut owned = HashSet::new();
        for chunk in decided.chunks(self.rows_at_once()) {
            owned.extend(self.move_on(write, chunk).await?);
        }
        if !owned.is_empty() {
            failpoint::reach("ticks-moved", "");
        }
        decided.retain(|decided| owned.contains(&decided.entry.name));
        let replaced = decided.iter().filter(|decided| decided.plan.replaces);
        let replaced = replaced.filter_map(|decided| decided.entry.last_job_id.clone()).collect();
        self.cancel_replaced(write, replaced).await?;
        let mut rows = Vec::new();
        for decided in &decided {
            rows.extend(decided.plan.ticks.iter().map(|tick| (decided, tick)));
        }
        for chunk in rows.chunks(self.rows_at_once()) {
            self.insert_ticks(write, chunk, now, beater).await?;
        }
        rows.retain(|(_, tick)| tick.skipped.is_none());
        for chunk in rows.chunks(self.rows_at_once()) {
            claimed.queued += self.insert_jobs(write, chunk, now).await?;
        }
        let skipped = decided.iter().flat_map(|decided| &decided.plan.ticks);
        claimed.skipped +=
            skipped.filter(|tick| tick.skipped.is_some()).map(|tick| tick.count).sum::<i64>();
        Ok(())
    }

    /// How many rows one statement takes.
    pub(super) fn rows_at_once(&self) -> usize {
        match self.dialect() {
            Dialect::Sqlite => ROWS_ON_SQLITE,
            Dialect::Postgres => ROWS_ON_POSTGRES,
        }
    }

    async fn set_entry_aside(
        &self,
        write: &mut Write,
        name: &str,
        reason: &str,
    ) -> Result<(), sqlx::Error> {
        // On SQLite even the name may be no text; such a row can only be found so.
        let is_it = match self.dialect() {
            Dialect::Sqlite if name.is_empty() => "(name = $2 OR typeof(name) <> 'text')",
            _ => "name = $2",
        };
        let update =
            format!("UPDATE {{p}}periodic SET aside = $1, updated_at = {{now}} WHERE {is_it}");
        sqlx::query(self.sql(&update))
            .bind(crate::text::without_nul(reason.to_owned()))
            .bind(name)
            .execute(&mut *write.tx)
            .await
            .map(|_| ())
    }

    /// Moves the entries' next fire times; tells the names of those that were ours to move.
    async fn move_on(
        &self,
        write: &mut Write,
        decided: &[Decided],
    ) -> Result<Vec<String>, sqlx::Error> {
        let update = format!(
            "WITH v (entry, fire, next, due, last, job) AS (VALUES {}) \
             UPDATE {{p}}periodic AS p SET next_fire_at = v.next, due_at = v.due, \
             last_fire_at = v.last, last_job_id = coalesce(v.job, p.last_job_id), \
             updated_at = {{now}} FROM v WHERE p.name = v.entry AND p.next_fire_at = v.fire \
             RETURNING name",
            placeholders(decided.len(), 6)
        );
        let mut query = sqlx::query(self.sql(&update));
        for decided in decided {
            let name = &decided.entry.name;
            let ticks = &decided.plan.ticks;
            let last = ticks.last().map_or(decided.fire, |tick| tick.last_time);
            let job = ticks.iter().rfind(|tick| tick.skipped.is_none());
            query = query
                .bind(name)
                .bind(decided.fire.0)
                .bind(decided.plan.next.map(|next| next.0))
                .bind(decided.plan.next.map(|next| next.0.saturating_add(decided.offset_ms)))
                .bind(last.0)
                .bind(job.map(|tick| job_id(name, tick.fire_time)));
        }
        let rows = query.fetch_all(&mut *write.tx).await?;
        rows.iter().map(|row| row.try_get("name")).collect()
    }

    async fn insert_ticks(
        &self,
        write: &mut Write,
        rows: &[(&Decided, &Tick)],
        now: i64,
        beater: &str,
    ) -> Result<(), sqlx::Error> {
        let insert = format!(
            "INSERT INTO {{p}}periodic_ticks (schedule, fire_time, outcome, reason, job_id, \
             last_time, ticks, claimed_at, late_ms, beater) VALUES {} ON CONFLICT DO NOTHING",
            placeholders(rows.len(), 10)
        );
        let mut query = sqlx::query(self.sql(&insert));
        for (decided, tick) in rows {
            let name = &decided.entry.name;
            let is_queued = tick.skipped.is_none();
            query = query
                .bind(name)
                .bind(tick.fire_time.0)
                .bind(if is_queued { "queued" } else { "skipped" })
                .bind(tick.skipped)
                .bind(is_queued.then(|| job_id(name, tick.fire_time)))
                .bind(tick.last_time.0)
                .bind(tick.count)
                .bind(now)
                .bind((now - tick.last_time.0 - decided.offset_ms).max(0))
                .bind(beater);
        }
        query.execute(&mut *write.tx).await.map(|_| ())
    }

    /// Writes jobs and their outbox rows; a job that is there already is left alone.
    async fn insert_jobs(
        &self,
        write: &mut Write,
        rows: &[(&Decided, &Tick)],
        now: i64,
    ) -> Result<usize, sqlx::Error> {
        let jobs: Vec<PeriodicJob> = rows
            .iter()
            .map(|(decided, tick)| PeriodicJob::new(&decided.entry, tick.fire_time, now))
            .collect();
        self.insert_periodic_jobs(write, &jobs, now).await
    }
}

/// The condition that leaves the entries of the beater's queues; its parameters begin at `first`.
fn of_queues(beat: &Beat, first: usize) -> String {
    if beat.queues.is_empty() {
        return String::new();
    }
    let numbers: Vec<String> = (0..beat.queues.len()).map(|n| format!("${}", n + first)).collect();
    format!("AND coalesce(p.queue, d.queue) IN ({})", numbers.join(", "))
}

/// What becomes of an entry that is due; else its name and why it is set aside.
fn decide(entry: Entry, now: i64) -> Result<Decided, (String, String)> {
    let settings = match entry.settings() {
        Ok(settings) => settings,
        Err(reason) => return Err((entry.name, reason)),
    };
    let Some(fire) = entry.next_fire_at.filter(|fire| fire.0 >= EARLIEST) else {
        let reason = "its next fire time is before the year 2000; edit the entry to mend it";
        return Err((entry.name, reason.into()));
    };
    if fire.0 > now {
        let reason = "it was due before its next fire time; edit the entry to mend it";
        return Err((entry.name, reason.into()));
    }
    let offset = settings.offset(&entry.name);
    let is_open = matches!(entry.last_status.as_deref(), Some("PENDING" | "RUNNING" | "RETRY"));
    let mut plan = plan(&settings, fire, offset, Timestamp(now), is_open);
    if entry.queue.is_none() {
        for tick in plan.ticks.iter_mut().filter(|tick| tick.skipped.is_none()) {
            tick.skipped = Some(NO_QUEUE);
        }
        plan.replaces = false;
    }
    if settings.overlap != Overlap::Replace {
        plan.replaces = false;
    }
    Ok(Decided { entry, fire, offset_ms: millis(offset), plan })
}

//! The outbox as a door: another application adds a job by inserting a row in a transaction of its
//! own, and the job is sent once that commits (see `docs/database.md`).
//!
//! Such a row has no row in `jobs` yet. The sweep that takes it writes one, in the transaction
//! that takes it; what it can't send is set aside with the reason.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, Row as _};

use super::dead::{DeadKind, DeadMessage};
use super::outbox::OutboxRow;
use super::{Database, Store, StoreError, Write, placeholders, quote};
use crate::json;
use crate::payload::{self, MAX_ID_BYTES, MAX_NAME_BYTES, check_text};
use crate::text::without_nul;

/// May read the views.
pub const READER: &str = "sqjobs_reader";
/// May insert into the outbox, and nothing else.
pub const PRODUCER: &str = "sqjobs_producer";
/// The columns of the outbox that an application may fill.
const OPEN_COLUMNS: &str =
    "job_id, job_name, queue, args, kwargs, message_group, enqueued_at, not_before";

impl Store {
    /// Notes queues that are configured or served, to which other applications may add jobs.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note_queues(&self, names: &[String]) -> Result<(), StoreError> {
        self.within("note the queues that are served", async {
            let mut write = self.begin().await?;
            for name in names {
                sqlx::query(self.sql(
                    "INSERT INTO {p}served_queues (name, seen_at) VALUES ($1, {now}) \
                     ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at",
                ))
                .bind(name)
                .execute(&mut *write.tx)
                .await?;
            }
            write.tx.commit().await
        })
        .await
    }

    /// Makes the roles [`READER`] and [`PRODUCER`] on PostgreSQL, and gives them their rights in
    /// this schema; done again it changes nothing. `false` on SQLite, which has no roles.
    ///
    /// # Errors
    /// The user may not make roles, or the database failed.
    pub async fn grant_roles(&self) -> Result<bool, StoreError> {
        let Database::Postgres { schema, .. } = &self.inner.database else { return Ok(false) };
        let quoted = quote(schema);
        let name = schema.replace('\'', "''");
        let mut statements = String::new();
        for role in [READER, PRODUCER] {
            // Two hosts may do this at once.
            statements.push_str(&format!(
                "DO $$ BEGIN CREATE ROLE {role} NOLOGIN; \
                 EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$; \
                 GRANT USAGE ON SCHEMA {quoted} TO {role};"
            ));
        }
        statements.push_str(&format!(
            "GRANT INSERT ({OPEN_COLUMNS}) ON {quoted}.outbox TO {PRODUCER}; \
             DO $$ DECLARE v text; BEGIN \
             FOR v IN SELECT viewname FROM pg_catalog.pg_views WHERE schemaname = '{name}' LOOP \
             EXECUTE format('GRANT SELECT ON %I.%I TO {READER}', '{name}', v); \
             END LOOP; END $$"
        ));
        let statements = sqlx::raw_sql(AssertSqlSafe(statements));
        self.within("make its roles", statements.execute(&self.inner.pool)).await.map(|_| true)
    }

    /// Writes the job rows of rows that other applications inserted, among those that were just
    /// taken, and returns what is to be sent; what can't be is set aside.
    pub(super) async fn take_in(
        &self,
        write: &mut Write,
        rows: Vec<OutboxRow>,
    ) -> Result<Vec<OutboxRow>, sqlx::Error> {
        let is_first =
            |row: &OutboxRow| row.tries == 1 && row.send_number == 1 && row.body.is_none();
        let ids: Vec<&str> =
            rows.iter().filter(|row| is_first(row)).map(|row| row.job.id.as_str()).collect();
        if ids.is_empty() {
            return Ok(rows);
        }
        let statement =
            format!("SELECT id FROM {{p}}jobs WHERE id IN {}", placeholders(1, ids.len()));
        let mut query = sqlx::query(self.sql(&statement));
        for id in &ids {
            query = query.bind(*id);
        }
        let found = query.fetch_all(&mut *write.tx).await?;
        let known: HashSet<String> =
            found.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
        if ids.iter().all(|id| known.contains(*id)) {
            return Ok(rows);
        }
        let queues: Vec<String> = sqlx::query_scalar(self.sql("SELECT name FROM {p}served_queues"))
            .fetch_all(&mut *write.tx)
            .await?;
        let now: i64 =
            sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await?;
        let (foreign, mut kept): (Vec<OutboxRow>, Vec<OutboxRow>) =
            rows.into_iter().partition(|row| is_first(row) && !known.contains(&row.job.id));
        for row in foreign {
            let fault = fault(&row, &queues);
            self.insert_foreign(write, &row, now, fault.as_deref()).await?;
            match fault {
                None => kept.push(row),
                Some(reason) => self.set_aside(write, &row, reason, now).await?,
            }
        }
        Ok(kept)
    }

    /// The row by which the application can follow its job. One that can't be sent has failed.
    async fn insert_foreign(
        &self,
        write: &mut Write,
        row: &OutboxRow,
        now: i64,
        fault: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        let job = &row.job;
        sqlx::query(self.sql(
            "INSERT INTO {p}jobs (id, name, queue, args, kwargs, fingerprint, message_group, \
             created_at, enqueued_at, updated_at, status, error, error_kind, finished_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
             ON CONFLICT (id) DO NOTHING",
        ))
        .bind(&job.id)
        .bind(&job.name)
        .bind(row.queue.rsplit('/').next().unwrap_or(&row.queue))
        .bind(&job.args)
        .bind(&job.kwargs)
        .bind(job.fingerprint())
        .bind(&row.group)
        .bind(now)
        .bind(job.enqueued_at.map_or(now, |time| time.0).clamp(*ENQUEUED.start(), *ENQUEUED.end()))
        .bind(now)
        .bind(if fault.is_some() { "FAILURE" } else { "PENDING" })
        .bind(fault)
        .bind(fault.map(|_| "undeliverable"))
        .bind(fault.map(|_| now))
        .execute(&mut *write.tx)
        .await
        .map(|_| ())
    }

    async fn set_aside(
        &self,
        write: &mut Write,
        row: &OutboxRow,
        reason: String,
        now: i64,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql("DELETE FROM {p}outbox WHERE id = $1"))
            .bind(row.id)
            .execute(&mut *write.tx)
            .await?;
        let job = &row.job;
        let dead = DeadMessage {
            id: job.id.clone(),
            kind: DeadKind::Undeliverable,
            queue: row.queue.clone(),
            job: Some(job.name.clone()),
            job_id: Some(job.id.clone()),
            message_id: None,
            reason,
            body: format!(
                "{{\"id\": {}, \"name\": {}, \"args\": {}, \"kwargs\": {}}}",
                serde_json::Value::from(job.id.as_str()),
                serde_json::Value::from(job.name.as_str()),
                job.args,
                job.kwargs
            ),
            attributes: "{}".into(),
            group: row.group.clone(),
        };
        self.insert_dead(write, &dead, now).await
    }
}

/// Times that can be shown: milliseconds of the years 1970 to 9999.
const ENQUEUED: std::ops::RangeInclusive<i64> = 0..=253_402_300_799_999;

/// Why a row of another application can't be sent.
fn fault(row: &OutboxRow, queues: &[String]) -> Option<String> {
    let job = &row.job;
    let checked = check_text("id", &job.id, MAX_ID_BYTES)
        .and_then(|()| check_text("name", &job.name, MAX_NAME_BYTES))
        .map_err(|error: payload::Malformed| error.to_string())
        .and_then(|()| {
            if job.id.contains('#') {
                return Err("its id contains `#`".to_owned());
            }
            if job.enqueued_at.is_some_and(|time| !ENQUEUED.contains(&time.0)) {
                return Err("its enqueued_at is no time of the years 1970 to 9999 in milliseconds".to_owned());
            }
            json::check_array(&job.args).map_err(|error| format!("its args are no JSON array: {error}"))?;
            json::check_object(&job.kwargs)
                .map_err(|error| format!("its kwargs are no JSON object: {error}"))?;
            if queues.contains(&row.queue) {
                return Ok(());
            }
            Err(format!(
                "the queue `{}` is neither configured nor served by any worker; start a worker on it, or name it in sqjobs.toml as [queues.\"{}\"]",
                row.queue, row.queue
            ))
        });
    checked.err().map(without_nul)
}

//! Workers' rows: claims live and die with them.

use std::time::Duration;

use super::{Store, StoreError};
use crate::clock::millis;

/// A worker as the database knows it.
#[derive(Debug, Clone)]
pub struct WorkerRow {
    /// Differs for each start of a worker anywhere.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The queues it polls, parted by commas.
    pub queues: String,
    /// How long its claims live after each renewal.
    pub lease: Duration,
}

impl Store {
    /// Writes a worker's row, or renews it, by the database's clock.
    ///
    /// A renewal of the future was written before that clock was set back. Its worker renews it
    /// within a lease if it lives; if not, its claims must not live until the clock is there
    /// again, so they get one lease from now.
    ///
    /// # Errors
    /// The database failed: claims live until one lease after the last renewal.
    pub async fn renew_worker(&self, worker: &WorkerRow) -> Result<(), StoreError> {
        let query = sqlx::query(self.sql(
            "INSERT INTO {p}workers (id, host, pid, version, queues, started_at, renewed_at, \
             lease_ms) VALUES ($1, $2, $3, $4, $5, {now}, {now}, $6) \
             ON CONFLICT (id) DO UPDATE SET renewed_at = excluded.renewed_at",
        ))
        .bind(&worker.id)
        .bind(&worker.host)
        .bind(i64::from(worker.pid))
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&worker.queues)
        .bind(millis(worker.lease));
        let early = sqlx::query(
            self.sql("UPDATE {p}workers SET renewed_at = {now} WHERE renewed_at > {now} + 1000"),
        );
        self.within("renew the worker's row", async {
            query.execute(&self.inner.pool).await?;
            early.execute(&self.inner.pool).await
        })
        .await
        .map(|_| ())
    }

    /// Removes a worker's row, which ends all its claims, and rows of workers that are long gone
    /// and own nothing.
    ///
    /// # Errors
    /// The database failed: the claims end one lease after the last renewal.
    pub async fn remove_worker(&self, id: &str) -> Result<(), StoreError> {
        let query = sqlx::query(self.sql(
            "DELETE FROM {p}workers WHERE id = $1 OR (renewed_at + lease_ms + 86400000 < {now} \
             AND NOT EXISTS (SELECT 1 FROM {p}jobs j WHERE j.worker_id = {p}workers.id \
             AND j.status = 'RUNNING'))",
        ))
        .bind(id.to_owned());
        self.within("remove the worker's row", query.execute(&self.inner.pool)).await.map(|_| ())
    }
}

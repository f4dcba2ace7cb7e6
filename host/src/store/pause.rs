//! Queues that no worker receives from until somebody says so.

use std::collections::BTreeSet;

use super::{Store, StoreError};

impl Store {
    /// Pauses a queue, by its name; `false` when it was paused already.
    ///
    /// # Errors
    /// The database failed.
    pub async fn pause_queue(&self, queue: &str) -> Result<bool, StoreError> {
        let query = sqlx::query(self.sql(
            "INSERT INTO {p}paused_queues (queue, paused_at) VALUES ($1, {now}) \
             ON CONFLICT (queue) DO NOTHING",
        ))
        .bind(queue.to_owned());
        let done = self.within("pause a queue", query.execute(&self.inner.pool)).await?;
        Ok(done.rows_affected() > 0)
    }

    /// Ends a queue's pause; `false` when it was not paused.
    ///
    /// # Errors
    /// The database failed.
    pub async fn resume_queue(&self, queue: &str) -> Result<bool, StoreError> {
        let query = sqlx::query(self.sql("DELETE FROM {p}paused_queues WHERE queue = $1"))
            .bind(queue.to_owned());
        let done = self.within("resume a queue", query.execute(&self.inner.pool)).await?;
        Ok(done.rows_affected() > 0)
    }

    /// The queues that are paused, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn paused_queues(&self) -> Result<BTreeSet<String>, StoreError> {
        let query = sqlx::query_scalar::<_, String>(self.sql("SELECT queue FROM {p}paused_queues"));
        let names = self.within("list paused queues", query.fetch_all(&self.inner.pool)).await?;
        Ok(names.into_iter().collect())
    }

    /// The queues that workers poll or polled of late, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn polled_queues(&self) -> Result<BTreeSet<String>, StoreError> {
        let query = sqlx::query_scalar::<_, String>(self.sql("SELECT queues FROM {p}workers"));
        let lists = self.within("list workers", query.fetch_all(&self.inner.pool)).await?;
        let names = lists.iter().flat_map(|list| list.split(','));
        Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }
}

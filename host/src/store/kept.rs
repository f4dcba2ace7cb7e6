//! The versions of modules that hosts have seen, with the component bytes of those that are kept,
//! so that any host can fetch them.

use std::time::Duration;

use sqlx::Row as _;

use super::claim::ModuleVersion;
use super::{Store, StoreError, Write};
use crate::clock::millis;

/// Which versions' bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Most versions of one module.
    pub count: u32,
    /// Longest time since a version served.
    pub age: Duration,
    /// Most bytes of all versions of one module.
    pub bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { count: 10, age: Duration::from_secs(90 * 86_400), bytes: 256 << 20 }
    }
}

impl Store {
    /// Notes that a host took a version into service. `bytes` is the component, where it is at
    /// hand; what need not be kept any more is dropped.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note_serving(
        &self,
        module: &ModuleVersion,
        size: u64,
        bytes: Option<&[u8]>,
        host: &str,
        keep: Keep,
    ) -> Result<(), StoreError> {
        self.within("note a module's version", async {
            let mut write = self.begin().await?;
            self.see(&mut write, module, size, bytes).await?;
            let update = "UPDATE {p}module_versions SET served_at = {now} \
                          WHERE name = $1 AND digest = $2";
            let versions = sqlx::query(self.sql(update)).bind(&module.name).bind(&module.digest);
            versions.execute(&mut *write.tx).await?;
            let update = "UPDATE {p}modules SET serving = $2 WHERE name = $1 \
                          AND (serving IS NULL OR serving <> $2)";
            let changed = sqlx::query(self.sql(update)).bind(&module.name).bind(&module.digest);
            if changed.execute(&mut *write.tx).await?.rows_affected() > 0 {
                let name = &module.name;
                self.remember(&mut write, name, "serves", Some(&module.digest), host, None).await?;
            }
            self.forget_bytes(&mut write, &module.name, keep).await?;
            write.tx.commit().await
        })
        .await
    }

    /// Notes a version that does not serve yet, with its component.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note_version(
        &self,
        module: &ModuleVersion,
        size: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        self.within("note a module's version", async {
            let mut write = self.begin().await?;
            self.see(&mut write, module, size, Some(bytes)).await?;
            write.tx.commit().await
        })
        .await
    }

    async fn see(
        &self,
        write: &mut Write,
        module: &ModuleVersion,
        size: u64,
        bytes: Option<&[u8]>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql(
            "INSERT INTO {p}modules (name, since) VALUES ($1, {now}) ON CONFLICT (name) DO NOTHING",
        ))
        .bind(&module.name)
        .execute(&mut *write.tx)
        .await?;
        sqlx::query(self.sql(
            "INSERT INTO {p}module_versions AS v (name, digest, version, size, first_seen_at, bytes) \
             VALUES ($1, $2, $3, $4, {now}, $5) ON CONFLICT (name, digest) \
             DO UPDATE SET bytes = excluded.bytes \
             WHERE v.bytes IS NULL AND excluded.bytes IS NOT NULL",
        ))
        .bind(&module.name)
        .bind(&module.digest)
        .bind(&module.version)
        .bind(i64::try_from(size).unwrap_or(i64::MAX))
        .bind(bytes.map(<[u8]>::to_vec))
        .execute(&mut *write.tx)
        .await
        .map(|_| ())
    }

    /// Drops the bytes of versions that are too many, too old or too large together, but never
    /// of one that serves or may be about to.
    async fn forget_bytes(
        &self,
        write: &mut Write,
        name: &str,
        keep: Keep,
    ) -> Result<(), sqlx::Error> {
        let rows = sqlx::query(self.sql(
            "SELECT v.digest, v.size, coalesce(v.served_at, v.first_seen_at) AS used, \
             CAST({now} AS bigint) AS now, \
             CASE WHEN v.digest IN (m.serving, m.digest, m.canary_digest) THEN 1 ELSE 0 END AS is_used \
             FROM {p}module_versions v JOIN {p}modules m ON m.name = v.name \
             WHERE v.name = $1 AND v.bytes IS NOT NULL \
             ORDER BY is_used DESC, used DESC, v.digest",
        ))
        .bind(name)
        .fetch_all(&mut *write.tx)
        .await?;
        let (mut count, mut bytes) = (0u32, 0u64);
        for row in &rows {
            let (used, now): (i64, i64) = (row.try_get("used")?, row.try_get("now")?);
            count += 1;
            bytes += u64::try_from(row.try_get::<i64, _>("size")?).unwrap_or(0);
            let is_over = count > keep.count
                || bytes > keep.bytes
                || now.saturating_sub(used) > millis(keep.age);
            if row.try_get::<i64, _>("is_used")? != 0 || !is_over {
                continue;
            }
            let update =
                "UPDATE {p}module_versions SET bytes = NULL WHERE name = $1 AND digest = $2";
            let query = sqlx::query(self.sql(update)).bind(name);
            query.bind(row.try_get::<String, _>("digest")?).execute(&mut *write.tx).await?;
        }
        self.forget_rows(write, name, keep).await
    }

    /// Drops what is known of versions that are long gone. What was refused stays refused.
    async fn forget_rows(
        &self,
        write: &mut Write,
        name: &str,
        keep: Keep,
    ) -> Result<(), sqlx::Error> {
        for delete in [
            "DELETE FROM {p}module_versions AS v WHERE name = $1 AND bytes IS NULL \
             AND refused_at IS NULL AND coalesce(served_at, first_seen_at) < {now} - $2 \
             AND NOT EXISTS (SELECT 1 FROM {p}modules m WHERE m.name = $1 \
             AND v.digest IN (m.serving, m.digest, m.canary_digest))",
            "DELETE FROM {p}module_history WHERE name = $1 AND at < {now} - $2",
        ] {
            let query = sqlx::query(self.sql(delete)).bind(name).bind(millis(keep.age));
            query.execute(&mut *write.tx).await?;
        }
        Ok(())
    }

    /// Whether the component of a version is kept.
    ///
    /// # Errors
    /// The database failed.
    pub async fn keeps_module_bytes(&self, name: &str, digest: &str) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar::<_, i64>(self.sql(
            "SELECT count(*) FROM {p}module_versions \
             WHERE name = $1 AND digest = $2 AND bytes IS NOT NULL",
        ));
        let query = query.bind(name.to_owned()).bind(digest.to_owned());
        let action = "look whether a module's version is kept";
        Ok(self.within(action, query.fetch_one(&self.inner.pool)).await? > 0)
    }

    /// The component of a version; `None` when it is not kept.
    ///
    /// # Errors
    /// The database failed.
    pub async fn module_bytes(
        &self,
        name: &str,
        digest: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query_scalar::<_, Option<Vec<u8>>>(
            self.sql("SELECT bytes FROM {p}module_versions WHERE name = $1 AND digest = $2"),
        );
        let query = query.bind(name.to_owned()).bind(digest.to_owned());
        let action = "fetch a module's version";
        self.within(action, query.fetch_optional(&self.inner.pool)).await.map(Option::flatten)
    }
}

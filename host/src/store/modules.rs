//! What workers serve, for those who add jobs and have no modules at hand.

use sqlx::Row as _;

use super::claim::ModuleVersion;
use super::{Store, StoreError};

/// A job as a worker serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployedJob {
    /// The job's name.
    pub name: String,
    /// The module that holds it.
    pub module: ModuleVersion,
    /// The queue on which it is put by default.
    pub queue: Option<String>,
    /// Whether its outcome and result are kept.
    pub records_result: bool,
    /// What the module says of it, as JSON.
    pub description: String,
}

impl Store {
    /// Notes what a worker serves.
    ///
    /// # Errors
    /// The database failed.
    pub async fn register_jobs(&self, jobs: &[DeployedJob]) -> Result<(), StoreError> {
        self.within("note the deployed jobs", async {
            let mut write = self.begin().await?;
            for job in jobs {
                sqlx::query(self.sql(
                    "INSERT INTO {p}deployed_jobs (name, module, module_version, module_digest, \
                     queue, records_result, description, seen_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, {now}) \
                     ON CONFLICT (name) DO UPDATE SET module = excluded.module, \
                     module_version = excluded.module_version, \
                     module_digest = excluded.module_digest, queue = excluded.queue, \
                     records_result = excluded.records_result, \
                     description = excluded.description, seen_at = excluded.seen_at",
                ))
                .bind(&job.name)
                .bind(&job.module.name)
                .bind(&job.module.version)
                .bind(&job.module.digest)
                .bind(&job.queue)
                .bind(i64::from(job.records_result))
                .bind(&job.description)
                .execute(&mut *write.tx)
                .await?;
            }
            write.tx.commit().await
        })
        .await
    }

    /// What the last worker that served a job said of it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn deployed_job(&self, name: &str) -> Result<Option<DeployedJob>, StoreError> {
        let query = sqlx::query(self.sql(
            "SELECT name, module, module_version, module_digest, queue, records_result, \
             description FROM {p}deployed_jobs WHERE name = $1",
        ))
        .bind(name.to_owned());
        let action = "look up a deployed job";
        let Some(row) = self.within(action, query.fetch_optional(&self.inner.pool)).await? else {
            return Ok(None);
        };
        let read = || -> Result<DeployedJob, sqlx::Error> {
            Ok(DeployedJob {
                name: row.try_get("name")?,
                module: ModuleVersion {
                    name: row.try_get("module")?,
                    version: row.try_get("module_version")?,
                    digest: row.try_get("module_digest")?,
                },
                queue: row.try_get("queue")?,
                records_result: row.try_get::<i64, _>("records_result")? != 0,
                description: row.try_get("description")?,
            })
        };
        read().map(Some).map_err(self.failed(action))
    }
}

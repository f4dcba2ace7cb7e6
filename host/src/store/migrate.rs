//! The schema's versions, and how a database gets from one to the next.
//!
//! Ten hosts may start at once on an empty database: a lock makes one of them migrate while the
//! others wait. A host serves the schema one release older and newer than its own.

use std::path::{Path, PathBuf};

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Executor as _};

use super::{Database, Store, StoreError, quote};

static SQLITE: Migrator = sqlx::migrate!("../migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("../migrations/postgres");

/// Where applied migrations are listed; in PostgreSQL inside our schema.
const TABLE: &str = "sqjobs_migrations";

/// Oldest schema that this host serves: that of the release before. There is none yet, so all
/// statements may need the newest.
const OLDEST_SERVED: i64 = 7;

/// Key of the PostgreSQL advisory lock under which a migration runs: "sqjobs" in ASCII.
const ADVISORY_LOCK: i64 = 0x7371_6a6f_6273;

/// What a migration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The schema's version before; 0 for an empty database.
    pub from: i64,
    /// The schema's version now.
    pub to: i64,
}

impl Store {
    /// Brings the schema to this host's version. Waits for another process that does the same.
    ///
    /// # Errors
    /// A migration failed (the ones before it stand), or the database is newer than this host.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        match &self.inner.database {
            Database::Sqlite { path, .. } => {
                let lock = lock_file(path).await?;
                let migrated = self.run_migrations(&SQLITE, None).await;
                drop(lock);
                migrated
            }
            Database::Postgres { schema, .. } => self.run_migrations(&POSTGRES, Some(schema)).await,
        }
    }

    /// Says whether this host can serve the schema as it is.
    ///
    /// # Errors
    /// The schema is too old or too new, and what to do; or the database can't be asked.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let found = self.schema_version().await?;
        let needed = latest(self.migrations());
        let database = || self.inner.label.clone();
        if found < OLDEST_SERVED {
            return Err(StoreError::MigrationDue { database: database(), found, needed });
        }
        if found > needed + 1 {
            return Err(StoreError::TooNew { database: database(), found, most: needed + 1 });
        }
        Ok(())
    }

    fn migrations(&self) -> &'static Migrator {
        match &self.inner.database {
            Database::Sqlite { .. } => &SQLITE,
            Database::Postgres { .. } => &POSTGRES,
        }
    }

    /// The version of the database's schema; 0 when there is none.
    async fn schema_version(&self) -> Result<i64, StoreError> {
        let exists = match &self.inner.database {
            Database::Sqlite { .. } => {
                format!("SELECT CAST(count(*) AS bigint) FROM sqlite_master WHERE name = '{TABLE}'")
            }
            Database::Postgres { schema, .. } => format!(
                "SELECT CAST(count(*) AS bigint) FROM pg_catalog.pg_tables \
                 WHERE schemaname = '{}' AND tablename = '{TABLE}'",
                schema.replace('\'', "''")
            ),
        };
        let action = "tell its schema's version";
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(exists));
        if self.within(action, query.fetch_one(&self.inner.pool)).await? == 0 {
            return Ok(0);
        }
        let table = match &self.inner.database {
            Database::Sqlite { .. } => TABLE.to_owned(),
            Database::Postgres { schema, .. } => format!("{}.{TABLE}", quote(schema)),
        };
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!(
            "SELECT CAST(coalesce(max(version), 0) AS bigint) FROM {table} WHERE success"
        )));
        self.within(action, query.fetch_one(&self.inner.pool)).await
    }

    async fn run_migrations(
        &self,
        migrator: &Migrator,
        schema: Option<&str>,
    ) -> Result<Migrated, StoreError> {
        let mut connection =
            self.inner.pool.acquire().await.map_err(self.failed("lend a connection"))?.detach();
        let failed = |source: MigrateError| StoreError::Migrate {
            database: self.inner.label.clone(),
            source,
        };
        if let Some(schema) = schema {
            // Held until this connection closes. Taken before the schema is made, since two
            // `CREATE SCHEMA IF NOT EXISTS` at once can fail.
            let set_up = format!(
                "SET statement_timeout = 0; SELECT pg_advisory_lock({ADVISORY_LOCK}); \
                 CREATE SCHEMA IF NOT EXISTS {0}; SET search_path TO {0}",
                quote(schema)
            );
            let done = connection.execute(AssertSqlSafe(set_up)).await;
            done.map_err(self.failed("make its schema"))?;
        }
        let from = self.schema_version().await?;
        let needed = latest(migrator);
        if from > needed + 1 {
            let database = self.inner.label.clone();
            return Err(StoreError::TooNew { database, found: from, most: needed + 1 });
        }
        connection.ensure_migrations_table(TABLE).await.map_err(failed)?;
        if let Some(version) = connection.dirty_version(TABLE).await.map_err(failed)? {
            return Err(failed(MigrateError::Dirty(version)));
        }
        let applied = connection.list_applied_migrations(TABLE).await.map_err(failed)?;
        for migration in
            migrator.iter().filter(|migration| !migration.migration_type.is_down_migration())
        {
            match applied.iter().find(|applied| applied.version == migration.version) {
                Some(applied) if applied.checksum != migration.checksum => {
                    return Err(failed(MigrateError::VersionMismatch(migration.version)));
                }
                Some(_) => {}
                None => {
                    connection.apply(TABLE, migration).await.map_err(failed)?;
                }
            }
        }
        use sqlx::Connection as _;
        connection.close().await.map_err(self.failed("close the migrating connection"))?;
        Ok(Migrated { from, to: from.max(needed) })
    }
}

fn latest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Locks a file beside the database until the guard is dropped: sqlx's SQLite migrator takes no
/// lock, and two first starts would race.
async fn lock_file(database: &Path) -> Result<std::fs::File, StoreError> {
    let mut name = database.as_os_str().to_owned();
    name.push(".migrate.lock");
    let path = PathBuf::from(name);
    let lock = move || {
        let open = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        open.and_then(|file| file.lock().map(|()| file))
            .map_err(|source| StoreError::Lock { path, source })
    };
    tokio::task::spawn_blocking(lock).await.unwrap_or(Err(StoreError::Stopped))
}

//! Opens the embedded queue's database: folder, file, connections, schema.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::{LocalOptions, Synchronous};
use crate::broker::BrokerError;

/// How long a connection waits for the writer of another process. Transactions here take
/// milliseconds; a checkpoint on a slow disk may take seconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Where the queue's applied migrations are listed, apart from those of the outcomes' tables.
const MIGRATIONS_TABLE: &str = "sqjobs_queue_migrations";
/// The write-ahead log is cut back to this size after a checkpoint.
const JOURNAL_SIZE_LIMIT_BYTES: &str = "67108864";

/// Opens the database and brings its schema up to date, one process at a time.
pub(super) async fn open(path: &Path, options: &LocalOptions) -> Result<SqlitePool, BrokerError> {
    let io = |error: std::io::Error| {
        failed(path, "check its permissions, or choose another place with --data-dir", error)
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    }
    // Covers the switch to WAL too, which needs the file to itself for a moment, and sqlx's
    // migrator, which takes no lock on SQLite.
    let lock = lock(path).await.map_err(io)?;
    let pool = connect(path, options).await.map_err(|error| {
        let remedy = crate::store::sqlite_remedy(&error);
        failed(path, &format!("{remedy}, or choose another place with --data-dir"), error)
    })?;
    migrate(&pool).await.map_err(|error| {
        let remedy = match &error {
            MigrateError::Execute(error) => crate::store::known_sqlite_remedy(error),
            _ => None,
        };
        let remedy = remedy.unwrap_or("its schema can't be made; use the sqjobs-host that made it");
        failed(path, &format!("{remedy}, or choose another place with --data-dir"), error)
    })?;
    drop(lock);
    Ok(pool)
}

fn failed(
    path: &Path,
    remedy: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> BrokerError {
    let path = path.display().to_string();
    BrokerError::LocalOpen { path, remedy: remedy.to_owned(), source: source.into() }
}

async fn connect(path: &Path, options: &LocalOptions) -> Result<SqlitePool, sqlx::Error> {
    let synchronous = match options.synchronous {
        Synchronous::Normal => SqliteSynchronous::Normal,
        Synchronous::Full => SqliteSynchronous::Full,
    };
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT_BYTES)
        .pragma("cache_size", crate::store::SQLITE_CACHE);
    SqlitePoolOptions::new()
        .max_connections(4)
        // A ping before each use would double the cost of a receive; a file does not hang up.
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(10))
        .connect_with(options)
        .await
}

async fn migrate(pool: &SqlitePool) -> Result<(), sqlx::migrate::MigrateError> {
    let mut migrator: Migrator = sqlx::migrate!("../migrations/queue");
    // A host one release older serves the newer schema too: see docs, "Database".
    migrator.set_ignore_missing(true).dangerous_set_table_name(MIGRATIONS_TABLE);
    migrator.run(pool).await
}

/// Locks the file beside the database under which all its schemas are migrated, until dropped.
async fn lock(database: &Path) -> std::io::Result<File> {
    let mut name = database.as_os_str().to_owned();
    name.push(".migrate.lock");
    let path = PathBuf::from(name);
    let lock = move || {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        file.lock().map(|()| file)
    };
    tokio::task::spawn_blocking(lock)
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

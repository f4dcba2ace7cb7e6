//! Opens a database: one connection first, which says what is wrong, then the pool.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tokio::sync::Mutex;

use super::{Database, Dialect, Inner, SQLITE_CACHE, STATEMENT_TIMEOUT, Store, StoreError, quote};

/// How long a connection may take to be made, and a call may wait for one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the database, without looking at its schema (see [`Self::check_schema`]).
    ///
    /// # Errors
    /// It can't be opened, and what to do about it.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let (dialect, url, prefix) = match database {
            Database::Sqlite { path, .. } => {
                prepare_folder(path, database)?;
                (Dialect::Sqlite, sqlite_url(path), "sqjobs_".to_owned())
            }
            Database::Postgres { url, schema } => {
                (Dialect::Postgres, url.clone(), format!("{}.", quote(schema)))
            }
        };
        let label = database.label();
        let options = AnyConnectOptions::from_url(&url)
            .map_err(|error| StoreError::Url { url: label.clone(), reason: error.to_string() })?
            .disable_statement_logging();
        let set_up = session_statements(database);
        // The pool would try again and again for as long as it waits for a connection, and then
        // say that it waited: so one connection is made first, and says what is wrong.
        let first = try_once(&options, &set_up).await;
        if let Err(source) = first
            && !passes_by_itself(&source)
        {
            return Err(open_error(database, source));
        }
        let pool = AnyPoolOptions::new()
            .max_connections(if dialect == Dialect::Sqlite { 4 } else { 12 })
            .acquire_timeout(CONNECT_TIMEOUT)
            .idle_timeout(Duration::from_secs(300))
            .after_connect(move |connection, _| {
                let set_up = set_up.clone();
                Box::pin(async move { connection.execute(AssertSqlSafe(set_up)).await.map(|_| ()) })
            })
            .connect_with(options)
            .await
            .map_err(|source| open_error(database, source))?;
        let writer = Arc::new(Mutex::new(()));
        let database = database.clone();
        Ok(Self { inner: Arc::new(Inner { pool, dialect, database, label, prefix, writer }) })
    }
}

/// Makes one connection, as the pool will, and closes it.
async fn try_once(options: &AnyConnectOptions, set_up: &str) -> Result<(), sqlx::Error> {
    let connecting = async {
        let mut connection = options.connect().await?;
        connection.execute(AssertSqlSafe(set_up.to_owned())).await?;
        connection.close().await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
    })
}

/// Whether a connection could not be made for a reason that is soon gone: PostgreSQL starts up or
/// has no connection left, another process switches the SQLite file to WAL. The pool tries again.
fn passes_by_itself(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(found) = error else { return false };
    matches!(found.code().as_deref(), Some("57P03" | "53300"))
        || matches!(sqlite_code(error), Some(5 | 6))
}

/// The primary result code of SQLite. Source: sqlite.org/rescode.html.
fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let sqlx::Error::Database(error) = error else { return None };
    // A code of PostgreSQL has five characters, and some have digits only.
    error.code().filter(|code| code.len() < 5)?.parse::<i32>().ok().map(|code| code & 0xff)
}

/// What is wrong with an SQLite file that can't be opened, and what to do about it.
pub(crate) fn sqlite_remedy(error: &sqlx::Error) -> &'static str {
    match sqlite_code(error) {
        Some(8) => "it can't be written; check the permissions of the file and its folder",
        Some(11 | 26) => "it is damaged, or no SQLite database; move it away",
        Some(13) => "the disk is full; make room",
        Some(5 | 6) => "another program holds it; stop that",
        _ => "check that it is a file that can be read and written, in a folder that can be",
    }
}

/// [`sqlite_remedy`], where the code tells what is wrong.
pub(crate) fn known_sqlite_remedy(error: &sqlx::Error) -> Option<&'static str> {
    matches!(sqlite_code(error), Some(5 | 6 | 8 | 11 | 13 | 26)).then(|| sqlite_remedy(error))
}

/// What to do about a statement that failed, after a semicolon, where that is known.
pub(super) fn statement_remedy(error: &sqlx::Error) -> String {
    known_sqlite_remedy(error).map_or_else(String::new, |remedy| format!("; {remedy}"))
}

fn sqlite_url(path: &Path) -> url::Url {
    let mut url = url::Url::parse("sqlite:///").expect("a constant URL");
    url.set_path(&path.to_string_lossy());
    url.set_query(Some("mode=rwc"));
    url
}

/// What each connection is told when it is made.
fn session_statements(database: &Database) -> String {
    match database {
        Database::Sqlite { is_durable, .. } => {
            let synchronous = if *is_durable { "FULL" } else { "NORMAL" };
            format!(
                "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; \
                 PRAGMA synchronous = {synchronous}; PRAGMA foreign_keys = ON; \
                 PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = {SQLITE_CACHE}"
            )
        }
        Database::Postgres { .. } => format!(
            "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = 60000; \
             SET client_min_messages = warning",
            STATEMENT_TIMEOUT.as_millis()
        ),
    }
}

/// Makes the folder of a SQLite file, for its owner only.
fn prepare_folder(path: &Path, database: &Database) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        StoreError::Open {
            database: database.label(),
            remedy: format!(
                "its folder `{}` can't be made; check its permissions, or choose another with --data-dir",
                folder.display()
            ),
            source: sqlx::Error::Io(error),
        }
    })
}

fn open_error(database: &Database, source: sqlx::Error) -> StoreError {
    let remedy = match (database, &source) {
        (Database::Sqlite { .. }, error) => {
            format!("{}, or choose another with --database or --data-dir", sqlite_remedy(error))
        }
        (_, error) => postgres_remedy(error).to_owned(),
    };
    StoreError::Open { database: database.label(), remedy, source }
}

fn postgres_remedy(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("28P01" | "28000") => {
                "user or password were refused; set the password in the URL, in PGPASSWORD, or in a file named by SQJOBS_DATABASE_PASSWORD_FILE"
            }
            Some("3D000") => {
                "there is no database of this name; create it, or name another in --database"
            }
            Some("57P03") => "the server is starting or stopping; try again",
            Some("53300") => "the server has no connection left; raise its max_connections",
            _ => "the server refused the connection",
        },
        sqlx::Error::Tls(_) => "TLS could not be agreed on; check sslmode in --database",
        sqlx::Error::Configuration(_) => {
            "check --database and the PG* variables of the environment"
        }
        _ => "check host and port in --database, and that PostgreSQL runs there",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named_with_a_remedy_at_once() {
        let folder = std::env::temp_dir().join(format!("sqjobs-open-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder");
        let path = folder.join("x.db");
        std::fs::write(&path, "no database ".repeat(100)).expect("a file");
        let database = Database::Sqlite { path, is_durable: true };
        let error = Store::open(&database).await.expect_err("no database").to_string();
        let _ = std::fs::remove_dir_all(folder);
        assert!(error.contains("x.db") && error.contains("no SQLite database"), "{error}");
    }
}

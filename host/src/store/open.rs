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
    use super::super::tests::coded;
    use super::*;

    /// A folder that is removed in the end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("sqjobs-open-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    async fn refusal(path: &Path) -> String {
        let database = Database::Sqlite { path: path.to_owned(), is_durable: true };
        Store::open(&database).await.expect_err("no database").to_string()
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named_with_a_remedy_at_once() {
        let folder = Folder::new();
        let path = folder.0.join("x.db");
        std::fs::write(&path, "no database ".repeat(100)).expect("a file");
        let error = refusal(&path).await;
        assert!(error.contains("x.db") && error.contains("no SQLite database"), "{error}");
        assert!(error.contains("or choose another with --database or --data-dir"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_that_can_t_be_made_is_named_with_a_remedy() {
        let folder = Folder::new();
        let file = folder.0.join("file");
        std::fs::write(&file, "").expect("a file");
        let error = refusal(&file.join("x.db")).await;
        assert!(error.contains("/file` can't be made; check its permissions"), "{error}");
    }

    /// Extended codes hold the primary one in their last byte. 22021 and 53300 are PostgreSQL's.
    #[test]
    fn the_remedy_for_a_file_is_known_by_its_code() {
        let known = [
            ("8", "can't be written"),
            ("264", "can't be written"),
            ("11", "damaged"),
            ("26", "no SQLite database"),
            ("13", "disk is full"),
            ("5", "another program holds it"),
            ("6", "another program holds it"),
            ("517", "another program holds it"),
        ];
        for (code, remedy) in known {
            assert!(sqlite_remedy(&coded(code)).contains(remedy), "{code}");
            assert_eq!(known_sqlite_remedy(&coded(code)), Some(sqlite_remedy(&coded(code))));
            let told = statement_remedy(&coded(code));
            assert!(told.starts_with("; ") && told.contains(remedy), "{told}");
        }
        for unknown in [coded(""), coded("14"), coded("22021"), sqlx::Error::RowNotFound] {
            assert_eq!(known_sqlite_remedy(&unknown), None, "{unknown}");
            assert_eq!(statement_remedy(&unknown), "");
            assert!(sqlite_remedy(&unknown).contains("can be read and written"), "{unknown}");
        }
    }

    #[test]
    fn the_remedy_for_a_server_is_known_by_what_it_said() {
        let url: url::Url = "postgres://u:s3cret@h/d".parse().expect("a URL");
        let database = Database::Postgres { url, schema: "s".into() };
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for (source, remedy) in [
            (coded("28P01"), "password were refused"),
            (coded("28000"), "password were refused"),
            (coded("3D000"), "no database of this name"),
            (coded("57P03"), "starting or stopping"),
            (coded("53300"), "no connection left"),
            (coded("42501"), "the server refused the connection"),
            (sqlx::Error::Tls("no".into()), "check sslmode"),
            (sqlx::Error::Configuration("no".into()), "the PG* variables"),
            (sqlx::Error::Io(broken), "check host and port"),
        ] {
            let error = open_error(&database, source).to_string();
            assert!(error.contains(remedy) && error.contains("u@h/d"), "{error}");
            assert!(!error.contains("--data-dir") && !error.contains("s3cret"), "{error}");
        }
    }

    /// The pool tries again; anything else is told at once.
    #[test]
    fn a_server_that_starts_or_is_full_and_a_file_that_is_held_are_waited_for() {
        for code in ["57P03", "53300", "5", "6", "261", "262"] {
            assert!(passes_by_itself(&coded(code)), "{code}");
        }
        for code in ["", "28P01", "3D000", "8", "13", "22021", "22022"] {
            assert!(!passes_by_itself(&coded(code)), "{code}");
        }
        assert!(!passes_by_itself(&sqlx::Error::PoolTimedOut));
    }

    #[test]
    fn a_durable_file_waits_for_the_disk_at_each_commit() {
        let told =
            |is_durable| session_statements(&Database::Sqlite { path: "x".into(), is_durable });
        assert!(told(true).contains("synchronous = FULL"));
        assert!(told(false).contains("synchronous = NORMAL"));
    }
}

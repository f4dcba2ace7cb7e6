//! Path 1, step 9: what is known of jobs, kept in SQL.
//!
//! A job's row goes through these states; every arrow is one guarded update:
//!
//! ```text
//!             add, first receipt                claim
//!                  ──────────▶  PENDING  ─────────────────▶  RUNNING ──┐ claim died:
//!                                  ▲                          │  ▲  ▲  │ another attempt
//!        interrupted, lease lost   │                          │  │  └──┘ takes it over
//!                                  └──────────────────────────┤  │
//!                                                             │  │ claim
//!                          failed, comes again                ▼  │
//!                                        RETRY  ◀─────────────┤──┘
//!                                                             │
//!            SUCCESS  ◀───────────────────────────────────────┤ all stages went well
//!            FAILURE  ◀───────────────────────────────────────┤ failed for good (dead list)
//!            CANCELLED ◀──────────────────────────────────────┘
//!
//!            PENDING, RETRY  ──▶  CANCELLED   `cancel`
//!            PENDING, RETRY, RUNNING  ──▶  FAILURE   its message is gone (`lost`), can't be sent
//!                                  (`undeliverable`), or was put aside (`unknown-job`, `crashed`)
//!            FAILURE, CANCELLED  ──▶  PENDING   `dead retry`; a FAILURE also when its message came
//!                                  all the same, or was moved back from a dead-letter queue
//! ```
//!
//! `RUNNING` and only `RUNNING` has an owner (`token`); an outcome is stored only by a statement
//! that names the owner's token, so an attempt that lost its claim can't overwrite the one that
//! took over. Nothing leaves `SUCCESS`.
//!
//! SQLite and PostgreSQL run the same statements: text, 64-bit integers and doubles mean the same
//! in both, and [`Dialect`] holds the few words that differ (see `docs/decisions/0001`).

pub mod cancel;
pub mod claim;
pub mod dead;
pub mod door;
pub mod enqueue;
pub mod finish;
pub(crate) mod group;
pub mod kept;
pub mod list;
pub mod lost;
pub mod migrate;
pub mod modules;
mod open;
pub mod outbox;
pub mod park;
pub mod pause;
pub mod periodic;
pub mod prune;
pub mod read;
pub mod resend;
pub mod unique;
pub mod versions;
pub mod workers;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Any, AnyPool, AssertSqlSafe, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

pub(crate) use open::{known_sqlite_remedy, sqlite_remedy};

use crate::broker::Attributes;

/// How long a transaction of many jobs waits for a row that another session holds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a statement or a wait for a connection may take before the call is given up. A
/// database that stalls must not hold work for ever: the caller retries while it has its lease.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);
/// What each connection to SQLite keeps of the file's pages, in the words of `PRAGMA cache_size`:
/// 512 KiB, a quarter of the default. A worker has up to eight connections, and what one writes
/// empties the others' caches; the system has the file's pages in memory once for all of them.
pub(crate) const SQLITE_CACHE: &str = "-512";

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL is not one of a database that is supported.
    #[error(
        "`{url}` is not a database URL: {reason}; use sqlite:PATH or postgres://USER@HOST/DATABASE"
    )]
    Url {
        /// The URL, without its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection could be made.
    #[error("cannot open the database {database}: {remedy}")]
    Open {
        /// The database, without its password.
        database: String,
        /// What to do about it.
        remedy: String,
        /// What the driver said.
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("the database {database} failed to {action}{}", open::statement_remedy(source))]
    Statement {
        /// The database, without its password.
        database: String,
        /// What was attempted.
        action: &'static str,
        /// What the driver said.
        source: sqlx::Error,
    },
    /// A statement took too long.
    #[error("the database {database} did not {action} within {} s", STATEMENT_TIMEOUT.as_secs())]
    Timeout {
        /// The database, without its password.
        database: String,
        /// What was attempted.
        action: &'static str,
    },
    /// The migrations could not be run.
    #[error("cannot migrate the database {database}")]
    Migrate {
        /// The database, without its password.
        database: String,
        /// What the migrator said.
        source: sqlx::migrate::MigrateError,
    },
    /// The schema is older than this host needs.
    #[error(
        "the database {database} has schema version {found} and this host needs {needed}; run `sqjobs-host migrate`, or start the worker with --migrate"
    )]
    MigrationDue {
        /// The database, without its password.
        database: String,
        /// The schema's version; 0 for an empty database.
        found: i64,
        /// This host's version.
        needed: i64,
    },
    /// The schema is newer than this host can serve.
    #[error(
        "the database {database} has schema version {found} and this host serves at most {most}; use a newer sqjobs-host"
    )]
    TooNew {
        /// The database, without its password.
        database: String,
        /// The schema's version.
        found: i64,
        /// The newest version this host can serve.
        most: i64,
    },
    /// The migration lock could not be taken.
    #[error(
        "cannot lock `{}` for the migration; check that it and its folder can be written, or choose another place with --database or --data-dir",
        path.display()
    )]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The writer has ended, since the process is going down.
    #[error("the database writer has stopped")]
    Stopped,
}

impl StoreError {
    /// Whether the database will never take these values: they break a constraint, or can't be
    /// held. Anything else, a table or a right that is missing too, is somebody's to mend, and
    /// waits for that.
    ///
    /// Source: PostgreSQL documentation, "Error Codes", classes 22, 23 and 54; sqlite.org/rescode.html.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Statement { source: sqlx::Error::Database(error), .. } => {
                error.code().is_some_and(|code| match code.len() {
                    5 => ["22", "23", "54"].iter().any(|class| code.starts_with(class)),
                    _ => code.parse().is_ok_and(|code: u32| matches!(code & 0xff, 18..=20)),
                })
            }
            // A row that somebody edited to nonsense.
            Self::Statement { source, .. } => matches!(
                source,
                sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_)
            ),
            _ => false,
        }
    }

    /// Whether another session holds what the call needs: a part of it may work at once.
    pub(crate) fn is_stall(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Statement { source: sqlx::Error::Database(error), .. } => {
                matches!(error.code().as_deref(), Some("55P03" | "57014" | "40P01"))
            }
            _ => false,
        }
    }

    /// Whether the same call may work later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Statement { source, .. } | Self::Open { source, .. } => is_transient(source),
            _ => false,
        }
    }
}

/// Whether a database error is one of the connection or the moment, not of the statement.
#[must_use]
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => match error.code() {
            // PostgreSQL: connection, resources, operator intervention, serialization, lock,
            // read-only after a fail-over. SQLite (primary and extended): busy, locked, I/O, full.
            Some(code) => {
                ["08", "53", "57", "58"]
                    .iter()
                    .any(|class| code.len() == 5 && code.starts_with(class))
                    || matches!(code.as_ref(), "40001" | "40P01" | "55P03" | "25006" | "XX000")
                    || code.parse::<i32>().is_ok_and(|code| {
                        code.checked_rem(256)
                            .is_some_and(|primary| matches!(primary, 5 | 6 | 10 | 13 | 14))
                            && code < 10_000
                    })
            }
            None => false,
        },
        _ => false,
    }
}

/// Which database, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Whether every commit reaches the disk (`synchronous=FULL`). Needed wherever a message
        /// is deleted elsewhere once its outcome is committed: in WAL mode `NORMAL` may lose
        /// commits at a power cut.
        is_durable: bool,
    },
    /// A PostgreSQL database.
    Postgres {
        /// The URL, which may hold a password.
        url: url::Url,
        /// The schema in which all tables lie.
        schema: String,
    },
}

impl Database {
    /// The file of an SQLite database.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite { path, .. } => Some(path),
            Self::Postgres { .. } => None,
        }
    }

    /// The database as people may see it: never with a password.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Sqlite { path, .. } => format!("sqlite:{}", path.display()),
            Self::Postgres { url, schema } => {
                let mut shown = url.clone();
                // Only URLs that cannot have a password refuse to have it changed.
                let _ = shown.set_password(None);
                shown.set_query(None);
                format!("{shown} (schema {schema})")
            }
        }
    }
}

/// The words that differ between SQLite and PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite: one writer at a time, table names begin with `sqjobs_`.
    Sqlite,
    /// PostgreSQL: row locks, a schema of our own.
    Postgres,
}

/// The database of one installation. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: AnyPool,
    dialect: Dialect,
    database: Database,
    label: String,
    prefix: String,
    /// SQLite has one writer: queueing here is fair and quick, where its busy handler sleeps.
    writer: Arc<Mutex<()>>,
}

/// A transaction that writes. Rolled back when dropped.
pub(crate) struct Write {
    pub(crate) tx: Transaction<'static, Any>,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Store {
    /// The database as people may see it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Which dialect the database speaks.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.inner.dialect
    }

    /// A table or view of ours, as statements name it: `sqjobs_outbox`, or `"sqjobs".outbox`.
    #[must_use]
    pub fn table(&self, name: &str) -> String {
        format!("{}{name}", self.inner.prefix)
    }

    /// The turn at writing to an SQLite file, to be shared with whatever else in this process
    /// writes to the same one.
    #[must_use]
    pub fn writer(&self) -> Arc<Mutex<()>> {
        self.inner.writer.clone()
    }

    /// Closes all connections, waiting for the statements that run.
    pub async fn close(&self) {
        self.inner.pool.close().await;
    }

    /// A statement in the database's own words: `{p}` begins every table's name, `{now}` is the
    /// database's clock, `{for_update}` and `{skip_locked}` lock rows where there are row locks,
    /// `{json_array}` gathers values into the text of an array.
    fn sql(&self, text: &str) -> AssertSqlSafe<String> {
        let (now, for_update, skip_locked, json_array) = match self.inner.dialect {
            Dialect::Sqlite => {
                ("CAST(unixepoch('subsec') * 1000 AS INTEGER)", "", "", "json_group_array")
            }
            Dialect::Postgres => (
                "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
                "FOR UPDATE",
                "FOR UPDATE SKIP LOCKED",
                "json_agg",
            ),
        };
        AssertSqlSafe(
            text.replace("{p}", &self.inner.prefix)
                .replace("{now}", now)
                .replace("{for_update}", for_update)
                .replace("{skip_locked}", skip_locked)
                .replace("{json_array}", json_array),
        )
    }

    /// Begins a transaction that writes; on SQLite it holds the write lock from the start, so
    /// that it can't fail half-way for another writer.
    async fn begin(&self) -> Result<Write, sqlx::Error> {
        match self.inner.dialect {
            Dialect::Sqlite => {
                let turn = self.inner.writer.clone().lock_owned().await;
                let tx = self.inner.pool.begin_with("BEGIN IMMEDIATE").await?;
                Ok(Write { tx, _turn: Some(turn) })
            }
            Dialect::Postgres => Ok(Write { tx: self.inner.pool.begin().await?, _turn: None }),
        }
    }

    /// [`Self::begin`], for many jobs at once: gives up soon where another session holds one of
    /// their rows, so that it does not hold up the others.
    async fn begin_impatient(&self) -> Result<Write, sqlx::Error> {
        let mut write = self.begin().await?;
        if self.inner.dialect == Dialect::Postgres {
            let statement = format!("SET LOCAL lock_timeout = {}", LOCK_TIMEOUT.as_millis());
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *write.tx).await?;
        }
        Ok(write)
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError + '_ {
        move |source| StoreError::Statement { database: self.inner.label.clone(), action, source }
    }

    /// Runs a database call under the deadline for statements.
    async fn within<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(STATEMENT_TIMEOUT, call).await {
            Ok(result) => result.map_err(self.failed(action)),
            Err(_) => Err(StoreError::Timeout { database: self.inner.label.clone(), action }),
        }
    }

    /// Asks for the database's clock, which also shows that it answers.
    ///
    /// # Errors
    /// The database can't be reached.
    pub async fn now(&self) -> Result<crate::clock::Timestamp, StoreError> {
        let query = sqlx::query_scalar::<_, i64>(self.sql("SELECT {now}"));
        self.within("tell the time", query.fetch_one(&self.inner.pool))
            .await
            .map(crate::clock::Timestamp)
    }
}

/// `($1, $2), ($3, $4)`: placeholders for `rows` rows of `columns` values.
fn placeholders(rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 5);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            let comma = if column == 0 { "" } else { ", " };
            let _ = write!(text, "{comma}${}", row * columns + column + 1);
        }
        text.push(')');
    }
    text
}

/// Message attributes as rows keep them.
fn json_of(attributes: &Attributes) -> String {
    serde_json::to_string(attributes).unwrap_or_else(|_| "{}".to_owned())
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// What a driver tells: a code of PostgreSQL or SQLite.
    #[derive(Debug, thiserror::Error)]
    #[error("code {0}")]
    struct Coded(&'static str);

    impl DatabaseError for Coded {
        fn message(&self) -> &str {
            self.0
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            (!self.0.is_empty()).then(|| self.0.into())
        }
        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    pub(super) fn coded(code: &'static str) -> sqlx::Error {
        sqlx::Error::Database(Box::new(Coded(code)))
    }

    fn failed(code: &'static str) -> StoreError {
        StoreError::Statement { database: "d".into(), action: "write", source: coded(code) }
    }

    /// A group of writes that meets the first kind is tried again as it is, one that meets the
    /// second is split. 22021, a character that PostgreSQL does not take, is 5 modulo 256.
    #[test]
    fn what_the_connection_or_the_moment_does_may_pass_and_what_the_statement_does_may_not() {
        let postgres = ["08006", "53300", "57P01", "58030", "40001", "40P01", "55P03", "25006"];
        let sqlite = ["5", "6", "10", "13", "14", "261", "517"];
        for code in postgres.into_iter().chain(sqlite) {
            assert!(is_transient(&coded(code)), "{code}");
        }
        for code in ["", "1", "19", "2067", "08", "0A000", "22021", "23505", "42601"] {
            assert!(!is_transient(&coded(code)), "{code}");
        }
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(is_transient(&sqlx::Error::Io(closed)) && is_transient(&sqlx::Error::PoolTimedOut));
        assert!(!is_transient(&sqlx::Error::RowNotFound));

        assert!(failed("40001").is_transient() && !failed("23505").is_transient());
        let late = StoreError::Timeout { database: "d".into(), action: "write" };
        assert!(late.is_transient() && !StoreError::Stopped.is_transient());
    }

    /// What the database will never take ends its job; anything else waits for somebody to mend it.
    #[test]
    fn values_that_break_a_rule_are_refused_and_what_somebody_can_mend_is_not() {
        let values =
            ["22021", "22P05", "22001", "23502", "23505", "54000", "18", "19", "20", "2067"];
        for code in values {
            assert!(failed(code).is_refusal(), "{code}");
        }
        // Syntax, tables and rights, and whatever may pass; "1" is SQLite's missing table.
        let others =
            ["", "42P01", "42501", "40001", "55P03", "57014", "53100", "1", "5", "8", "17", "21"];
        for code in others {
            assert!(!failed(code).is_refusal(), "{code}");
        }
        let read = |source| StoreError::Statement { database: "d".into(), action: "read", source };
        let odd = || "not a number".to_owned().into();
        assert!(read(sqlx::Error::Decode(odd())).is_refusal());
        assert!(read(sqlx::Error::Encode(odd())).is_refusal());
        let column = sqlx::Error::ColumnDecode { index: "attempts".to_owned(), source: odd() };
        assert!(read(column).is_refusal() && !read(sqlx::Error::RowNotFound).is_refusal());
        assert!(!StoreError::Stopped.is_refusal());
    }

    /// A group of writes that meets a lock is split, so that the rest of it goes on.
    #[test]
    fn what_another_session_holds_stalls() {
        for code in ["55P03", "57014", "40P01"] {
            assert!(failed(code).is_stall(), "{code}");
        }
        for code in ["", "40001", "57P01", "23505", "5"] {
            assert!(!failed(code).is_stall(), "{code}");
        }
        let late = StoreError::Timeout { database: "d".into(), action: "write" };
        assert!(late.is_stall() && !StoreError::Stopped.is_stall());
    }

    #[test]
    fn only_a_database_that_is_a_file_has_a_path() {
        let file = Database::Sqlite { path: "a/b.db".into(), is_durable: false };
        assert_eq!(
            (file.path(), file.label()),
            (Some(Path::new("a/b.db")), "sqlite:a/b.db".into())
        );
        let url = "postgres://h/d".parse().expect("a URL");
        assert_eq!(Database::Postgres { url, schema: "s".into() }.path(), None);
    }

    #[test]
    fn a_password_is_never_part_of_the_label() {
        let url = "postgres://u:s3cret@h/d?password=s3cret".parse().expect("a URL");
        let label = Database::Postgres { url, schema: "sqjobs".into() }.label();
        assert_eq!(label, "postgres://u@h/d (schema sqjobs)");
    }

    #[test]
    fn placeholders_count_through_all_rows() {
        assert_eq!(placeholders(2, 2), "($1, $2), ($3, $4)");
    }

    #[test]
    fn an_identifier_is_quoted() {
        assert_eq!(quote(r#"a"b"#), r#""a""b""#);
    }
}

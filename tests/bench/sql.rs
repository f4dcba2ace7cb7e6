//! Rows written and read past the host, on the database that a measurement uses.

use sqlx::{AnyConnection, AssertSqlSafe, Connection as _};
use support::servers::RUNTIME;

/// A connection to the database of a measurement.
pub(crate) struct Sql {
    connection: AnyConnection,
    prefix: String,
    is_postgres: bool,
}

impl Sql {
    /// Connects to a PostgreSQL database, in which our tables lie in `schema`.
    pub(crate) fn postgres(url: &str, schema: &str) -> Self {
        Self::open(url, format!("\"{schema}\"."), true)
    }

    /// Connects to an SQLite file.
    pub(crate) fn sqlite(file: &std::path::Path) -> Self {
        Self::open(&format!("sqlite:{}", file.display()), "sqjobs_".to_owned(), false)
    }

    fn open(url: &str, prefix: String, is_postgres: bool) -> Self {
        sqlx::any::install_default_drivers();
        let connection = RUNTIME.block_on(AnyConnection::connect(url)).unwrap();
        Self { connection, prefix, is_postgres }
    }

    /// The statement in the database's own words: `{p}` begins each table's name, `{now}` is the
    /// database's clock, `{uuid}` a new id, and `{numbers}` stands for a table of the numbers `n`
    /// from 1 to `count`.
    fn words(&self, text: &str, count: usize) -> AssertSqlSafe<String> {
        let (now, uuid, numbers) = if self.is_postgres {
            (
                "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
                "CAST(gen_random_uuid() AS text)",
                format!(
                    "(SELECT CAST(n AS bigint) AS n FROM generate_series(1, {count}) AS g (n))"
                ),
            )
        } else {
            (
                "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
                "lower(hex(randomblob(16)))",
                format!(
                    "(WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < \
                     {count}) SELECT n FROM g)"
                ),
            )
        };
        AssertSqlSafe(
            text.replace("{p}", &self.prefix)
                .replace("{now}", now)
                .replace("{uuid}", uuid)
                .replace("{numbers}", &numbers),
        )
    }

    /// Runs statements.
    pub(crate) fn run(&mut self, statements: &str, count: usize) {
        let statements = self.words(statements, count);
        RUNTIME.block_on(sqlx::raw_sql(statements).execute(&mut self.connection)).unwrap();
    }

    /// The number that a query gives.
    pub(crate) fn count(&mut self, query: &str) -> i64 {
        let query = sqlx::query_scalar(self.words(query, 1));
        RUNTIME.block_on(query.fetch_one(&mut self.connection)).unwrap()
    }

    /// The numbers of a query's only column.
    pub(crate) fn numbers(&mut self, query: &str) -> Vec<i64> {
        let query = sqlx::query_scalar(self.words(query, 1));
        RUNTIME.block_on(query.fetch_all(&mut self.connection)).unwrap()
    }

    /// The text that a query gives, if it finds a row.
    pub(crate) fn text(&mut self, query: &str) -> Option<String> {
        let query = sqlx::query_scalar(self.words(query, 1));
        RUNTIME.block_on(query.fetch_optional(&mut self.connection)).unwrap()
    }

    /// Has the database look at its tables, as a server does by itself after a while.
    pub(crate) fn settle(&mut self) {
        if self.is_postgres {
            for table in ["jobs", "attempts", "outbox"] {
                self.run(&format!("VACUUM ANALYZE {{p}}{table}"), 1);
            }
        }
    }
}

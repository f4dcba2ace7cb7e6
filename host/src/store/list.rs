//! What `list` shows: jobs by filter, newest first in pages, or as they change.

use futures_util::TryStreamExt as _;

use super::read::{COLUMNS, JobStatus};
use super::{Dialect, Store, StoreError};
use crate::clock::Timestamp;

/// Which jobs are asked for; all conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only jobs of this name.
    pub job: Option<String>,
    /// Only jobs of this queue.
    pub queue: Option<String>,
    /// Only jobs of this status.
    pub status: Option<String>,
    /// Only jobs whose row was written at this instant or later.
    pub since: Option<Timestamp>,
    /// Only jobs whose row was written before this instant.
    pub until: Option<Timestamp>,
    /// Only jobs whose last error holds this text, in whatever case; letters beyond ASCII as
    /// written, where the database does not know their case.
    pub error: Option<String>,
    /// Only jobs behind this one in the list: when its row was written, and its id.
    pub after: Option<(Timestamp, String)>,
    /// At most so many.
    pub limit: u64,
}

/// A value to be bound.
enum Value {
    Text(String),
    Number(i64),
}

impl JobFilter {
    /// The words behind WHERE, and what is bound to them; the page's place apart.
    fn conditions(&self, dialect: Dialect) -> (Vec<String>, Vec<Value>) {
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        let mut add = |condition: &str, value: Value| {
            values.push(value);
            conditions.push(condition.replace('?', &format!("${}", values.len())));
        };
        // SQLite does not know which values are rare, and takes either index; a queue holds many
        // kinds of jobs, so that of the name finds more quickly what matches both.
        let of_queue = match (dialect, &self.job) {
            (Dialect::Sqlite, Some(_)) => "+queue = ?",
            _ => "queue = ?",
        };
        for (condition, value) in [("name = ?", &self.job), (of_queue, &self.queue)] {
            if let Some(value) = value {
                add(condition, Value::Text(value.clone()));
            }
        }
        for (condition, time) in [("created_at >= ?", self.since), ("created_at < ?", self.until)] {
            if let Some(time) = time {
                add(condition, Value::Number(time.0));
            }
        }
        if let Some(error) = &self.error {
            let mut text = error.clone();
            for special in ['\\', '%', '_'] {
                text = text.replace(special, &format!("\\{special}"));
            }
            // By one and the same `lower`: the database's may know the letters of ASCII only.
            let condition = "error IS NOT NULL AND lower(error) LIKE lower(?) ESCAPE '\\'";
            add(condition, Value::Text(format!("%{text}%")));
        }
        if let Some(status) = &self.status {
            add("status = ?", Value::Text(status.clone()));
            if status != "SUCCESS" {
                // In the words of the index.
                conditions.push("status <> 'SUCCESS'".to_owned());
            }
        }
        (conditions, values)
    }
}

impl Store {
    /// Calls `each` with the jobs that match, newest first, in bounded memory.
    ///
    /// # Errors
    /// The database failed, or `each` did.
    pub async fn each_job<E: From<StoreError>>(
        &self,
        filter: &JobFilter,
        each: impl FnMut(JobStatus) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut conditions, mut values) = filter.conditions(self.dialect());
        if let Some((created_at, id)) = &filter.after {
            values.extend([Value::Number(created_at.0), Value::Text(id.clone())]);
            let (first, second) = (values.len() - 1, values.len());
            conditions.push(format!("(created_at, id) < (${first}, ${second})"));
        }
        values.push(Value::Number(i64::try_from(filter.limit).unwrap_or(i64::MAX)));
        let place = if conditions.is_empty() { "" } else { "WHERE" };
        let statement = format!(
            "SELECT {COLUMNS} FROM {{p}}jobs j {place} {} ORDER BY created_at DESC, id DESC \
             LIMIT ${}",
            conditions.join(" AND "),
            values.len()
        );
        self.each_row(&statement, values, each).await
    }

    /// Calls `each` with the jobs that match and changed at `since` or later, by the database's
    /// clock, in the order of their changes.
    ///
    /// # Errors
    /// The database failed, or `each` did.
    pub async fn each_change<E: From<StoreError>>(
        &self,
        filter: &JobFilter,
        since: Timestamp,
        each: impl FnMut(JobStatus) -> Result<(), E>,
    ) -> Result<(), E> {
        let (conditions, mut values) = filter.conditions(self.dialect());
        values.push(Value::Number(since.0));
        let since = values.len();
        let also: String = conditions.iter().map(|condition| format!(" AND {condition}")).collect();
        let statement = format!(
            "SELECT {COLUMNS} FROM {{p}}jobs j WHERE status IN ('PENDING', 'RUNNING', 'RETRY') \
             AND updated_at >= ${since}{also} \
             UNION ALL SELECT {COLUMNS} FROM {{p}}jobs j WHERE finished_at IS NOT NULL \
             AND pruned = 0 AND finished_at >= ${since}{also} ORDER BY updated_at"
        );
        self.each_row(&statement, values, each).await
    }

    async fn each_row<E: From<StoreError>>(
        &self,
        statement: &str,
        values: Vec<Value>,
        mut each: impl FnMut(JobStatus) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut query = sqlx::query(self.sql(statement));
        for value in values {
            query = match value {
                Value::Text(text) => query.bind(text),
                Value::Number(number) => query.bind(number),
            };
        }
        let mut rows = query.fetch(&self.inner.pool);
        let action = "list jobs";
        while let Some(row) = rows.try_next().await.map_err(self.failed(action))? {
            each(JobStatus::read(&row).map_err(self.failed(action))?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_searched_for_is_no_pattern() {
        let filter = JobFilter { error: Some("50%_\\".into()), ..JobFilter::default() };
        let (_, values) = filter.conditions(Dialect::Sqlite);
        assert!(matches!(&values[0], Value::Text(text) if text == "%50\\%\\_\\\\%"));
    }
}

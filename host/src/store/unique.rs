//! Unique keys: of the jobs that share one, only one waits or runs at a time.
//!
//! A key is a row of its own, written in the transaction that writes the job's row and its outbox
//! row: a crash leaves all of them or none, so no key is ever held for a job that isn't sent.
//! Nothing has to give a key back: it is free once its job has a final status and its window has
//! ended, and the next add takes the row over.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Store, StoreError, Write};
use crate::clock::{MAX_AHEAD, millis};
use crate::payload::{Job, Malformed, check_text};

/// Longest key that may be named, in bytes.
pub const MAX_KEY_BYTES: usize = 256;

/// How long after its end a key's row stays, at least: longer than any transaction that has just
/// taken it over, in milliseconds.
const SWEEP_AFTER_MS: i64 = 3_600_000;
/// Most rows swept at once.
const SWEEP_BATCH: i64 = 500;

/// What makes two calls the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UniqueBy {
    /// The job's name alone.
    Name,
    /// Its name and its arguments, compared as text without the whitespace between their parts.
    Arguments,
    /// This key, shared with every job that names it; 1 to 256 bytes.
    Key(String),
}

/// Which calls count as the same, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueRule {
    /// What makes them the same.
    pub by: UniqueBy,
    /// How long after its adding a job keeps others out, even when it has finished.
    pub window: Duration,
}

/// The rules of deployed jobs by name; `None` for a job that has none.
pub type UniqueRules = BTreeMap<String, Option<UniqueRule>>;

impl UniqueRule {
    /// A rule by a named key.
    ///
    /// # Errors
    /// The key is empty, too long or has control characters.
    pub fn named(key: &str, window: Duration) -> Result<Self, Malformed> {
        check_text("unique key", key, MAX_KEY_BYTES)?;
        Ok(Self { by: UniqueBy::Key(key.to_owned()), window })
    }

    /// The key of a job, as rows keep it: the kinds never meet.
    #[must_use]
    pub fn key(&self, job: &Job) -> String {
        match &self.by {
            UniqueBy::Name => format!("name:{}", job.name),
            UniqueBy::Arguments => format!("arguments:{}", job.fingerprint()),
            UniqueBy::Key(key) => format!("key:{key}"),
        }
    }

    /// The rule as JSON, for commands and for the rows of deployed jobs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (by, key) = match &self.by {
            UniqueBy::Name => ("name", None),
            UniqueBy::Arguments => ("arguments", None),
            UniqueBy::Key(key) => ("key", Some(key)),
        };
        json!({ "by": by, "key": key, "window_ms": millis(self.window) })
    }

    /// The rule in the description of a deployed job; `None` where there is none that this host
    /// understands.
    #[must_use]
    pub fn of_description(description: &str) -> Option<Self> {
        let description: Value = serde_json::from_str(description).ok()?;
        let rule = description.get("unique")?;
        let by = match rule.get("by")?.as_str()? {
            "name" => UniqueBy::Name,
            "arguments" => UniqueBy::Arguments,
            "key" => UniqueBy::Key(rule.get("key")?.as_str()?.to_owned()),
            _ => return None,
        };
        let window = Duration::from_millis(rule.get("window_ms")?.as_u64()?).min(MAX_AHEAD);
        Some(Self { by, window })
    }
}

impl Store {
    /// The job that holds a key now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_holder(&self, key: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query_scalar(self.sql(
            "SELECT job_id FROM {p}unique_keys k WHERE key = $1 AND (held_until > {now} \
             OR EXISTS (SELECT 1 FROM {p}jobs j WHERE j.id = k.job_id \
             AND j.status IN ('PENDING', 'RUNNING', 'RETRY')))",
        ))
        .bind(key.to_owned());
        self.within("look up a unique key", query.fetch_optional(&self.inner.pool)).await
    }

    /// Takes a key for a job that is being added; returns the other job that holds it, if one
    /// does. The primary key decides between adders at the same time: the second one waits for
    /// the first one's transaction, then reads what that has written.
    pub(super) async fn take_key(
        &self,
        write: &mut Write,
        rule: &UniqueRule,
        job: &Job,
        now: i64,
    ) -> Result<Option<String>, sqlx::Error> {
        let key = rule.key(job);
        let held_until = now.saturating_add(millis(rule.window));
        loop {
            let inserted = sqlx::query(self.sql(
                "INSERT INTO {p}unique_keys (key, job_id, held_until) VALUES ($1, $2, $3) \
                 ON CONFLICT (key) DO NOTHING",
            ))
            .bind(&key)
            .bind(&job.id)
            .bind(held_until)
            .execute(&mut *write.tx)
            .await?;
            if inserted.rows_affected() > 0 {
                return Ok(None);
            }
            // Statements of their own: within one, PostgreSQL would not see the row of a job that
            // was committed while the statement waited for the key.
            let held: Option<(String, i64)> =
                sqlx::query_as(self.sql(
                    "SELECT job_id, held_until FROM {p}unique_keys WHERE key = $1 {for_update}",
                ))
                .bind(&key)
                .fetch_optional(&mut *write.tx)
                .await?;
            // Swept away meanwhile: it is free.
            let Some((holder, until)) = held else { continue };
            if holder == job.id {
                return Ok(None);
            }
            if until > now || self.is_open(write, &holder).await? {
                return Ok(Some(holder));
            }
            sqlx::query(
                self.sql("UPDATE {p}unique_keys SET job_id = $1, held_until = $2 WHERE key = $3"),
            )
            .bind(&job.id)
            .bind(held_until)
            .bind(&key)
            .execute(&mut *write.tx)
            .await?;
            return Ok(None);
        }
    }

    /// Whether a job has no final status yet.
    async fn is_open(&self, write: &mut Write, id: &str) -> Result<bool, sqlx::Error> {
        let open: Option<i64> = sqlx::query_scalar(self.sql(
            "SELECT attempts FROM {p}jobs WHERE id = $1 \
             AND status IN ('PENDING', 'RUNNING', 'RETRY')",
        ))
        .bind(id.to_owned())
        .fetch_optional(&mut *write.tx)
        .await?;
        Ok(open.is_some())
    }

    /// Gives back what a job holds that was never sent and never will be.
    pub(super) async fn free_keys(
        &self,
        write: &mut Write,
        job_id: Option<&String>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql("DELETE FROM {p}unique_keys WHERE job_id = $1"))
            .bind(job_id)
            .execute(&mut *write.tx)
            .await
            .map(|_| ())
    }

    /// Deletes the rows of some keys that nobody holds any more; they would be taken over by the
    /// next add, and only take space.
    ///
    /// # Errors
    /// The database failed.
    pub async fn sweep_keys(&self) -> Result<(), StoreError> {
        self.within("sweep unique keys", async {
            let mut write = self.begin().await?;
            // A key that was taken over after this statement has begun ends later than it asks
            // for, so it stays.
            let statement = format!(
                "DELETE FROM {{p}}unique_keys WHERE key IN (SELECT key FROM {{p}}unique_keys k \
                 WHERE held_until < {{now}} - {SWEEP_AFTER_MS} AND NOT EXISTS (SELECT 1 \
                 FROM {{p}}jobs j WHERE j.id = k.job_id \
                 AND j.status IN ('PENDING', 'RUNNING', 'RETRY')) \
                 ORDER BY held_until LIMIT {SWEEP_BATCH} {{skip_locked}})"
            );
            sqlx::query(self.sql(&statement)).execute(&mut *write.tx).await?;
            write.tx.commit().await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, args: &str) -> Job {
        Job {
            id: "a".into(),
            name: name.into(),
            args: args.into(),
            kwargs: "{}".into(),
            enqueued_at: None,
            is_tracked: true,
            is_revived: false,
        }
    }

    #[test]
    fn keys_of_different_kinds_never_meet() {
        let rule = |by| UniqueRule { by, window: Duration::ZERO };
        let job = job("a", "[1, 2]");
        let by_name = rule(UniqueBy::Name).key(&job);
        assert_ne!(by_name, rule(UniqueBy::Key("a".into())).key(&job));
        assert_ne!(by_name, rule(UniqueBy::Key(by_name.clone())).key(&job));
    }

    #[test]
    fn arguments_are_the_same_whatever_the_whitespace_between_their_parts() {
        let rule = UniqueRule { by: UniqueBy::Arguments, window: Duration::ZERO };
        assert_eq!(rule.key(&job("a", "[1, 2]")), rule.key(&job("a", "[1,2]")));
        assert_ne!(rule.key(&job("a", "[1, 2]")), rule.key(&job("b", "[1, 2]")));
        assert_ne!(rule.key(&job("a", "[1, 2]")), rule.key(&job("a", "[2, 1]")));
    }

    #[test]
    fn a_rule_is_read_back_from_the_description_of_a_deployed_job() {
        let rule = UniqueRule { by: UniqueBy::Key("k".into()), window: Duration::from_secs(60) };
        let description = json!({ "name": "a", "unique": rule.to_json() }).to_string();
        assert_eq!(UniqueRule::of_description(&description), Some(rule));
        assert_eq!(UniqueRule::of_description(r#"{"unique": null}"#), None);
        assert_eq!(UniqueRule::of_description("not JSON"), None);
    }

    #[test]
    fn a_key_has_1_to_256_bytes() {
        assert!(UniqueRule::named("", Duration::ZERO).is_err());
        assert!(UniqueRule::named(&"k".repeat(256), Duration::ZERO).is_ok());
        assert!(UniqueRule::named(&"k".repeat(257), Duration::ZERO).is_err());
    }
}

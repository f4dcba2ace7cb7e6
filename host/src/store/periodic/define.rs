//! Where entries come from: every definition that was ever seen, and what stands of them.
//!
//! Of each source the definition seen last stands: one that was seen before changes nothing, so
//! that an older host that starts again turns nothing back. A command stands over a configuration
//! file, that over a module.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{COLUMNS, Claimed, Entry, NOT_ASKED, TABLES};
use crate::beater::definition::{Definition, Settings};
use crate::clock::{Timestamp, millis};
use crate::store::{Dialect, Store, StoreError, Write};

/// Who defines an entry, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The job's module, by `describe`.
    Module,
    /// `sqjobs.toml`.
    Config,
    /// A command.
    Command,
}

impl Source {
    /// The word of the database.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Config => "config",
            Self::Command => "command",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Module, Self::Config, Self::Command].into_iter().find(|source| source.word() == word)
    }
}

/// A definition, as somebody has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The entry.
    pub name: String,
    /// Who defines it.
    pub source: Source,
    /// By which one knows whether it was seen before: the module's, or the definition's own.
    pub digest: String,
    /// What is said.
    pub definition: Definition,
}

/// What a definition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defined {
    /// There was none of this name: the entry is new.
    Added,
    /// The entry is as it says now.
    Changed,
    /// It was seen before, and nothing changed.
    Known,
}

/// Why an entry was not defined, changed or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefineError {
    /// What stands would be nonsense.
    #[error("the periodic entry `{name}` is rejected: {reason}")]
    Invalid {
        /// The entry.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such entry.
    #[error("there is no periodic entry `{0}`; see `periodic list`")]
    Unknown(String),
    /// There is one already.
    #[error("there is a periodic entry `{0}` already; change it by `periodic edit`")]
    Exists(String),
    /// Something else defines it, and would bring it back.
    #[error(
        "the periodic entry `{name}` is defined by {by}, which would bring it back; `periodic disable {name}` stops it"
    )]
    Held {
        /// The entry.
        name: String,
        /// A module, or a configuration file.
        by: String,
    },
    /// Nothing but commands defines it, so they can't be taken back.
    #[error(
        "the periodic entry `{0}` is defined by commands alone; `periodic remove {0}` removes it"
    )]
    OnlyCommands(String),
    /// It has no queue.
    #[error(
        "the periodic entry `{0}` has no queue, and no deployed job describes one; name it by `periodic edit {0} --queue QUEUE`"
    )]
    NoQueue(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A failure within a transaction: what is wrong, or the database.
pub(super) enum Fault {
    Define(DefineError),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<DefineError> for Fault {
    fn from(error: DefineError) -> Self {
        Self::Define(error)
    }
}

/// Binds `$1` to `$18`: an entry's columns, and its name.
macro_rules! bind_entry {
    ($query:expr, $source:expr, $settings:expr, $definition:expr, $next:expr, $name:expr) => {{
        let offset = millis($settings.offset($name));
        $query
            .bind($source.word())
            .bind(&$settings.job)
            .bind(&$settings.queue)
            .bind(&$definition.schedule)
            .bind(&$definition.timezone)
            .bind($definition.every_ms)
            .bind(&$settings.args)
            .bind(&$settings.kwargs)
            .bind($definition.catch_up.as_deref().unwrap_or("last"))
            .bind($definition.max_lateness_ms)
            .bind(millis($settings.grace))
            .bind($definition.overlap.as_deref().unwrap_or("allow"))
            .bind(millis($settings.jitter))
            .bind($definition.start_at)
            .bind($definition.end_at)
            .bind($next.map(|next| next.0))
            .bind($next.map(|next| next.0.saturating_add(offset)))
            .bind($name)
    }};
}

impl Store {
    /// Notes a definition; it stands if it has not been seen before.
    ///
    /// # Errors
    /// What would stand is nonsense, and nothing was changed; or the database failed.
    pub async fn define_periodic(&self, seen: &Seen) -> Result<Defined, DefineError> {
        self.settled("define a periodic entry", self.define(seen, false)).await
    }

    /// Defines an entry that is not there yet.
    ///
    /// # Errors
    /// As [`Self::define_periodic`]; or there is one of this name.
    pub async fn add_periodic(&self, seen: &Seen) -> Result<(), DefineError> {
        self.settled("add a periodic entry", self.define(seen, true)).await.map(|_| ())
    }

    async fn define(&self, seen: &Seen, must_be_new: bool) -> Result<Defined, Fault> {
        let mut write = self.begin_claim().await?;
        let now = self.time(&mut write).await?;
        if must_be_new && self.locked_entry(&mut write, &seen.name).await?.is_some() {
            return Err(DefineError::Exists(seen.name.clone()).into());
        }
        let inserted = sqlx::query(self.sql(
            "INSERT INTO {p}periodic_definitions (name, source, digest, definition, first_seen_at) \
             VALUES ($1, $2, $3, $4, (SELECT max(t) FROM (SELECT CAST($5 AS bigint) AS t UNION ALL \
             SELECT first_seen_at + 1 FROM {p}periodic_definitions WHERE name = $1 AND source = $2) x)) \
             ON CONFLICT DO NOTHING",
        ))
        .bind(&seen.name)
        .bind(seen.source.word())
        .bind(&seen.digest)
        .bind(seen.definition.to_json())
        .bind(now)
        .execute(&mut *write.tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(Defined::Known);
        }
        let defined = self.stand(&mut write, &seen.name, now).await?;
        write.tx.commit().await?;
        Ok(defined)
    }

    /// Changes an entry by a command: what `change` says stands over its other sources. `None`
    /// takes all that commands have said back.
    ///
    /// # Errors
    /// There is no such entry, nothing else defines it, what would stand is nonsense, or the database failed.
    pub async fn edit_periodic(
        &self,
        name: &str,
        change: Option<&Definition>,
    ) -> Result<(), DefineError> {
        self.settled("edit a periodic entry", async {
            let mut write = self.begin_claim().await?;
            let now = self.time(&mut write).await?;
            if self.locked_entry(&mut write, name).await?.is_none() {
                return Err(DefineError::Unknown(name.into()).into());
            }
            let said = self.standing(&mut write, name).await?;
            let said = said.into_iter().find(|(source, ..)| *source == Source::Command);
            sqlx::query(
                self.sql(
                    "DELETE FROM {p}periodic_definitions WHERE name = $1 AND source = 'command'",
                ),
            )
            .bind(name)
            .execute(&mut *write.tx)
            .await?;
            if let Some(change) = change {
                let before = said.map(|(_, definition, _)| definition).unwrap_or_default();
                sqlx::query(self.sql(
                    "INSERT INTO {p}periodic_definitions (name, source, digest, definition, \
                     first_seen_at) VALUES ($1, 'command', $2, $3, $4)",
                ))
                .bind(name)
                .bind(uuid::Uuid::new_v4().to_string())
                .bind(before.under(change.clone()).to_json())
                .bind(now)
                .execute(&mut *write.tx)
                .await?;
            }
            if change.is_none() && self.standing(&mut write, name).await?.is_empty() {
                return Err(DefineError::OnlyCommands(name.into()).into());
            }
            self.stand(&mut write, name, now).await?;
            write.tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// Makes what a module of this digest describes stand again: a rollback by command counts as
    /// seen later. Tells the entries that it describes.
    ///
    /// # Errors
    /// What would stand is nonsense, or the database failed.
    pub async fn module_seen_again(&self, digest: &str) -> Result<Vec<String>, DefineError> {
        self.settled("put a module's schedules back", async {
            let mut write = self.begin_claim().await?;
            let now = self.time(&mut write).await?;
            let rows = sqlx::query(self.sql(
                "UPDATE {p}periodic_definitions SET first_seen_at = $1 \
                 WHERE source = 'module' AND digest = $2 RETURNING name",
            ))
            .bind(now)
            .bind(digest)
            .fetch_all(&mut *write.tx)
            .await?;
            let names =
                rows.iter().map(|row| row.try_get("name")).collect::<Result<Vec<String>, _>>()?;
            for name in &names {
                self.stand(&mut write, name, now).await?;
            }
            write.tx.commit().await?;
            Ok(names)
        })
        .await
    }

    pub(super) async fn time(&self, write: &mut Write) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(self.sql("SELECT {now}")).fetch_one(&mut *write.tx).await
    }

    pub(super) async fn locked_entry(
        &self,
        write: &mut Write,
        name: &str,
    ) -> Result<Option<Entry>, sqlx::Error> {
        let lock = if self.dialect() == Dialect::Postgres { "FOR UPDATE OF p" } else { "" };
        let statement =
            format!("SELECT {COLUMNS}, {NOT_ASKED} FROM {TABLES} WHERE p.name = $1 {lock}");
        let row = sqlx::query(self.sql(&statement)).bind(name).fetch_optional(&mut *write.tx);
        Ok(row.await?.as_ref().map(Entry::read))
    }

    /// The definition of each source that stands, from the weakest.
    pub(super) async fn standing(
        &self,
        write: &mut Write,
        name: &str,
    ) -> Result<Vec<(Source, Definition, i64)>, sqlx::Error> {
        let rows = sqlx::query(self.sql(
            "SELECT source, definition, first_seen_at FROM {p}periodic_definitions \
             WHERE name = $1 ORDER BY first_seen_at, digest",
        ))
        .bind(name)
        .fetch_all(&mut *write.tx)
        .await?;
        let mut standing: std::collections::BTreeMap<Source, (Definition, i64)> =
            std::collections::BTreeMap::new();
        for row in &rows {
            // A row that somebody edited to nonsense says nothing.
            if let Some((source, definition, seen)) = read_definition(row) {
                standing.insert(source, (definition, seen));
            }
        }
        Ok(standing.into_iter().map(|(source, (said, seen))| (source, said, seen)).collect())
    }

    /// Makes the entry's row say what stands.
    async fn stand(&self, write: &mut Write, name: &str, now: i64) -> Result<Defined, Fault> {
        let standing = self.standing(write, name).await?;
        let Some(source) = standing.last().map(|(source, ..)| *source) else {
            return Err(DefineError::Unknown(name.into()).into());
        };
        // A configuration file replaces what the module says; a command changes what it names.
        let has_config = standing.iter().any(|(source, ..)| *source == Source::Config);
        let definition = standing
            .into_iter()
            .filter(|(source, ..)| !(has_config && *source == Source::Module))
            .fold(Definition::default(), |weaker, (_, stronger, _)| weaker.under(stronger));
        let settings = checked(name, &definition)?;
        let mut entry = self.locked_entry(write, name).await?;
        if entry.is_none() {
            let next = settings.first_after(Timestamp(now), None);
            if self.insert_entry(write, name, source, &settings, &definition, next, now).await? {
                return Ok(Defined::Added);
            }
            // Another host has just added it.
            entry = self.locked_entry(write, name).await?;
        }
        let Some(entry) = entry else { return Err(DefineError::Unknown(name.into()).into()) };
        let next = self.next_of_changed(write, &entry, &settings, now).await?;
        self.update_entry(write, name, source, &settings, &definition, next).await?;
        Ok(Defined::Changed)
    }

    /// The next fire time of an entry that is changed. What is due by the schedule before is
    /// claimed first; a change that leaves schedule and zone alone leaves it alone.
    async fn next_of_changed(
        &self,
        write: &mut Write,
        entry: &Entry,
        settings: &Settings,
        now: i64,
    ) -> Result<Option<Timestamp>, sqlx::Error> {
        let before = entry.settings().ok().filter(|_| entry.aside.is_none());
        let is_same = before.as_ref().is_some_and(|before| {
            (&before.schedule, before.start, before.end)
                == (&settings.schedule, settings.start, settings.end)
        });
        if is_same {
            return Ok(entry.next_fire_at);
        }
        let is_due = entry.is_enabled && entry.due_at.is_some_and(|due| due.0 <= now);
        let mut last = entry.last_fire_at;
        if before.is_some() && is_due {
            let mut claimed = Claimed::default();
            let due = vec![entry.clone()];
            self.claim_entries(write, due, now, "edit", &mut claimed).await?;
            last = last.max(entry.next_fire_at);
        }
        Ok(settings.first_after(Timestamp(now), last))
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of one row")]
    async fn insert_entry(
        &self,
        write: &mut Write,
        name: &str,
        source: Source,
        settings: &Settings,
        definition: &Definition,
        next: Option<Timestamp>,
        now: i64,
    ) -> Result<bool, sqlx::Error> {
        let insert = "INSERT INTO {p}periodic (source, job, queue, schedule, timezone, every_ms, \
             args, kwargs, catch_up, max_lateness_ms, grace_ms, overlap, jitter_ms, start_at, \
             end_at, next_fire_at, due_at, name, created_at, updated_at) VALUES ($1, $2, $3, $4, \
             $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $19) \
             ON CONFLICT (name) DO NOTHING";
        let query =
            bind_entry!(sqlx::query(self.sql(insert)), source, settings, definition, next, name);
        let done = query.bind(now).execute(&mut *write.tx).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn update_entry(
        &self,
        write: &mut Write,
        name: &str,
        source: Source,
        settings: &Settings,
        definition: &Definition,
        next: Option<Timestamp>,
    ) -> Result<(), sqlx::Error> {
        let update = "UPDATE {p}periodic SET source = $1, job = $2, queue = $3, schedule = $4, \
             timezone = $5, every_ms = $6, args = $7, kwargs = $8, catch_up = $9, \
             max_lateness_ms = $10, grace_ms = $11, overlap = $12, jitter_ms = $13, \
             start_at = $14, end_at = $15, next_fire_at = $16, due_at = $17, aside = NULL, \
             updated_at = {now} WHERE name = $18";
        let query =
            bind_entry!(sqlx::query(self.sql(update)), source, settings, definition, next, name);
        query.execute(&mut *write.tx).await.map(|_| ())
    }

    /// Runs a transaction under the deadline for statements.
    pub(super) async fn settled<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, DefineError> {
        let settled = self.within(action, async {
            match call.await {
                Ok(value) => Ok(Ok(value)),
                Err(Fault::Define(error)) => Ok(Err(error)),
                Err(Fault::Database(error)) => Err(error),
            }
        });
        settled.await?
    }
}

fn read_definition(row: &AnyRow) -> Option<(Source, Definition, i64)> {
    let source = Source::of(row.try_get("source").ok()?)?;
    let definition = serde_json::from_str(row.try_get("definition").ok()?).ok()?;
    Some((source, definition, row.try_get("first_seen_at").ok()?))
}

fn checked(name: &str, definition: &Definition) -> Result<Settings, DefineError> {
    definition.check().map_err(|reason| DefineError::Invalid { name: name.to_owned(), reason })
}

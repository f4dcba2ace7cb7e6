//! Which version of a module serves, for all hosts that share the database.
//!
//! A module follows its file until somebody decides otherwise. `held`: one version serves until
//! a file with another one appears (after a rollback, or a promoted canary). `pinned`: one
//! version serves, whatever appears. A refused version never serves, wherever its file lies.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row as _;

use super::{Store, StoreError, Write};
use crate::clock::Timestamp;
use crate::text::without_nul;

/// What decides which version of a module serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Choice {
    /// The file in the jobs folder.
    #[default]
    Follow,
    /// This version, until a file with another one appears.
    Held(String),
    /// This version.
    Pinned(String),
}

impl Choice {
    /// The word that rows and commands use.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Held(_) => "held",
            Self::Pinned(_) => "pinned",
        }
    }

    /// The chosen version.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Follow => None,
            Self::Held(digest) | Self::Pinned(digest) => Some(digest),
        }
    }
}

/// A version that some attempts take, to see whether it is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// Its digest.
    pub digest: String,
    /// How many of 10,000 attempts take it.
    pub share: u32,
    /// When it began.
    pub since: Timestamp,
}

/// What is decided of a module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleState {
    /// What serves.
    pub choice: Choice,
    /// When that was decided.
    pub since: Timestamp,
    /// What a host took into service last.
    pub serving: Option<String>,
    /// The version that some attempts take.
    pub canary: Option<Canary>,
    /// Versions that must not serve.
    pub refused: BTreeSet<String>,
    /// Versions that any host has seen; told only of a module that is held, where it matters.
    pub known: BTreeSet<String>,
}

/// A version, as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// The digest.
    pub digest: String,
    /// The version that the component's metadata tells.
    pub version: Option<String>,
    /// Bytes of the file.
    pub size: i64,
    /// When any host saw it first.
    pub first_seen_at: Timestamp,
    /// When a host took it into service last.
    pub served_at: Option<Timestamp>,
    /// Why it must not serve.
    pub refused: Option<String>,
    /// Whether its bytes are kept.
    pub is_kept: bool,
    /// Attempts that ended since the canary began.
    pub runs: i64,
    /// Those of them that failed.
    pub failures: i64,
}

/// One event in a module's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// When.
    pub at: Timestamp,
    /// `serves`, `rolled-back`, `pinned`, `unpinned`, `canary`, `canary-failed`, `canary-ended`
    /// or `promoted`.
    pub event: String,
    /// The version that it is about.
    pub digest: Option<String>,
    /// Its version by the component's metadata.
    pub version: Option<String>,
    /// The machine.
    pub host: String,
    /// Why.
    pub reason: Option<String>,
}

/// A decision about a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Refuse what serves, and serve this version until a file with another one appears.
    RollBack {
        /// What must not serve any more.
        from: String,
        /// What serves instead.
        to: String,
        /// Why.
        reason: String,
    },
    /// Serve this version whatever appears.
    Pin(String),
    /// Follow the file again.
    Unpin,
    /// Have a share of attempts (of 10,000) take this version.
    Canary(String, u32),
    /// Serve the canary until a file with another version appears.
    Promote(String),
    /// End the canary, for this reason when it failed.
    EndCanary(String, Option<String>),
}

impl Store {
    /// What is decided of each module.
    ///
    /// # Errors
    /// The database failed.
    pub async fn module_states(&self) -> Result<BTreeMap<String, ModuleState>, StoreError> {
        self.within("read the modules", async {
            let mut states: BTreeMap<String, ModuleState> = BTreeMap::new();
            let rows = sqlx::query(self.sql(
                "SELECT name, mode, digest, since, serving, canary_digest, canary_share, \
                 canary_since FROM {p}modules",
            ))
            .fetch_all(&self.inner.pool)
            .await?;
            for row in &rows {
                let (mode, digest): (String, Option<String>) =
                    (row.try_get("mode")?, row.try_get("digest")?);
                let choice = match (mode.as_str(), digest) {
                    ("held", Some(digest)) => Choice::Held(digest),
                    ("pinned", Some(digest)) => Choice::Pinned(digest),
                    _ => Choice::Follow,
                };
                let canary = row.try_get::<Option<String>, _>("canary_digest")?;
                let (share, began): (i64, Option<i64>) =
                    (row.try_get("canary_share")?, row.try_get("canary_since")?);
                let state = ModuleState {
                    choice,
                    since: Timestamp(row.try_get("since")?),
                    serving: row.try_get("serving")?,
                    canary: canary.map(|digest| Canary {
                        digest,
                        share: u32::try_from(share).unwrap_or(0),
                        since: Timestamp(began.unwrap_or(0)),
                    }),
                    ..ModuleState::default()
                };
                states.insert(row.try_get("name")?, state);
            }
            let rows = sqlx::query(self.sql(
                "SELECT v.name AS name, v.digest AS digest, v.refused_at AS refused_at \
                 FROM {p}module_versions v JOIN {p}modules m ON m.name = v.name \
                 WHERE v.refused_at IS NOT NULL OR m.mode = 'held'",
            ))
            .fetch_all(&self.inner.pool)
            .await?;
            for row in &rows {
                let (name, digest): (String, String) =
                    (row.try_get("name")?, row.try_get("digest")?);
                let Some(state) = states.get_mut(&name) else { continue };
                if row.try_get::<Option<i64>, _>("refused_at")?.is_some() {
                    state.refused.insert(digest.clone());
                }
                state.known.insert(digest);
            }
            Ok(states)
        })
        .await
    }

    pub(super) async fn remember(
        &self,
        write: &mut Write,
        name: &str,
        event: &str,
        digest: Option<&str>,
        host: &str,
        reason: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql(
            "INSERT INTO {p}module_history (name, at, event, digest, version, host, reason) \
             VALUES ($1, {now}, $2, $3, (SELECT version FROM {p}module_versions \
             WHERE name = $1 AND digest = $3), $4, $5)",
        ))
        .bind(name)
        .bind(event)
        .bind(digest)
        .bind(host)
        .bind(reason.map(|reason| without_nul(reason.to_owned())))
        .execute(&mut *write.tx)
        .await
        .map(|_| ())
    }

    /// Ends `held` for a module of which a file with another version appeared. What was decided
    /// after `since` stays.
    ///
    /// # Errors
    /// The database failed.
    pub async fn follow_file(&self, name: &str, since: Timestamp) -> Result<(), StoreError> {
        let query = sqlx::query(self.sql(
            "UPDATE {p}modules SET mode = 'follow', digest = NULL, since = {now} \
             WHERE name = $1 AND mode = 'held' AND since = $2",
        ));
        let query = query.bind(name.to_owned()).bind(since.0);
        self.within("follow a module's file", query.execute(&self.inner.pool)).await.map(|_| ())
    }

    /// Writes a decision down, for all hosts; tells whether it was still to be taken. One that
    /// comes too late changes nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn decide(
        &self,
        name: &str,
        decision: &Decision,
        host: &str,
    ) -> Result<bool, StoreError> {
        self.within("decide which version of a module serves", async {
            let mut write = self.begin().await?;
            let is_taken = self.carry_out(&mut write, name, decision, host).await?;
            if is_taken {
                write.tx.commit().await?;
            }
            Ok(is_taken)
        })
        .await
    }

    async fn carry_out(
        &self,
        write: &mut Write,
        name: &str,
        decision: &Decision,
        host: &str,
    ) -> Result<bool, sqlx::Error> {
        const NO_CANARY: &str = "canary_digest = NULL, canary_share = 0, canary_since = NULL";
        let mut reason = None;
        let (event, digest, set, guard) = match decision {
            Decision::RollBack { from, to, reason: why } => {
                self.set_refused(write, name, from, Some(why)).await?;
                self.set_refused(write, name, to, None).await?;
                reason = Some(why.as_str());
                ("rolled-back", Some(to), "mode = 'held', digest = $2, since = {now}", "")
            }
            Decision::Pin(digest) => {
                self.set_refused(write, name, digest, None).await?;
                ("pinned", Some(digest), "mode = 'pinned', digest = $2, since = {now}", "")
            }
            Decision::Unpin => (
                "unpinned",
                None,
                "mode = 'follow', digest = NULL, since = {now}",
                " AND mode <> 'follow'",
            ),
            Decision::Canary(digest, _) => {
                self.set_refused(write, name, digest, None).await?;
                let reset = "UPDATE {p}module_versions SET runs = 0, failures = 0 WHERE name = $1";
                sqlx::query(self.sql(reset)).bind(name).execute(&mut *write.tx).await?;
                let set = "canary_digest = $2, canary_share = $3, canary_since = {now}";
                ("canary", Some(digest), set, "")
            }
            Decision::Promote(digest) => {
                let set = "mode = 'held', digest = $2, since = {now}, ";
                ("promoted", Some(digest), set, " AND canary_digest = $2")
            }
            Decision::EndCanary(digest, why) => {
                if let Some(why) = why {
                    self.set_refused(write, name, digest, Some(why)).await?;
                }
                reason = why.as_deref();
                let event = if why.is_some() { "canary-failed" } else { "canary-ended" };
                (event, Some(digest), "", " AND canary_digest = $2")
            }
        };
        let ends_canary = matches!(decision, Decision::Promote(_) | Decision::EndCanary(..));
        let set = if ends_canary { format!("{set}{NO_CANARY}") } else { set.to_owned() };
        // Every parameter stands in the statement: PostgreSQL must know the type of each.
        let update = format!(
            "UPDATE {{p}}modules SET {set} WHERE name = $1{guard} \
             AND (CAST($2 AS text) IS NULL OR CAST($3 AS bigint) >= 0)"
        );
        let share = match decision {
            Decision::Canary(_, share) => *share,
            _ => 0,
        };
        let query = sqlx::query(self.sql(&update)).bind(name).bind(digest).bind(i64::from(share));
        if query.execute(&mut *write.tx).await?.rows_affected() == 0 {
            return Ok(false);
        }
        self.remember(write, name, event, digest.map(String::as_str), host, reason).await?;
        Ok(true)
    }

    async fn set_refused(
        &self,
        write: &mut Write,
        name: &str,
        digest: &str,
        reason: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(self.sql(
            "UPDATE {p}module_versions SET refused_reason = $3, \
             refused_at = CASE WHEN CAST($3 AS text) IS NULL THEN NULL ELSE {now} END \
             WHERE name = $1 AND digest = $2",
        ))
        .bind(name)
        .bind(digest)
        .bind(reason.map(|reason| without_nul(reason.to_owned())))
        .execute(&mut *write.tx)
        .await
        .map(|_| ())
    }

    /// Adds what this host counted of a module's attempts: digest, runs, failures.
    ///
    /// # Errors
    /// The database failed; nothing is added.
    pub async fn count_runs(
        &self,
        name: &str,
        counts: &[(String, u64, u64)],
    ) -> Result<(), StoreError> {
        self.within("count a module's runs", async {
            let mut write = self.begin().await?;
            for (digest, runs, failures) in counts {
                let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
                sqlx::query(self.sql(
                    "UPDATE {p}module_versions SET runs = runs + $3, failures = failures + $4 \
                     WHERE name = $1 AND digest = $2",
                ))
                .bind(name)
                .bind(digest)
                .bind(count(*runs))
                .bind(count(*failures))
                .execute(&mut *write.tx)
                .await?;
            }
            write.tx.commit().await
        })
        .await
    }

    /// The versions of a module, the one that served last first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn module_versions(&self, name: &str) -> Result<Vec<VersionRow>, StoreError> {
        self.within("read a module's versions", async {
            let rows = sqlx::query(self.sql(
                "SELECT digest, version, size, first_seen_at, served_at, refused_at, \
                 refused_reason, runs, failures, \
                 CASE WHEN bytes IS NULL THEN 0 ELSE 1 END AS is_kept \
                 FROM {p}module_versions WHERE name = $1 \
                 ORDER BY coalesce(served_at, 0) DESC, first_seen_at DESC, digest",
            ))
            .bind(name.to_owned())
            .fetch_all(&self.inner.pool)
            .await?;
            let read = |row: &sqlx::any::AnyRow| -> Result<VersionRow, sqlx::Error> {
                let refused_at: Option<i64> = row.try_get("refused_at")?;
                let reason: Option<String> = row.try_get("refused_reason")?;
                Ok(VersionRow {
                    digest: row.try_get("digest")?,
                    version: row.try_get("version")?,
                    size: row.try_get("size")?,
                    first_seen_at: Timestamp(row.try_get("first_seen_at")?),
                    served_at: row.try_get::<Option<i64>, _>("served_at")?.map(Timestamp),
                    refused: refused_at.map(|_| reason.unwrap_or_default()),
                    is_kept: row.try_get::<i64, _>("is_kept")? != 0,
                    runs: row.try_get("runs")?,
                    failures: row.try_get("failures")?,
                })
            };
            rows.iter().map(read).collect()
        })
        .await
    }

    /// What happened to a module, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn module_history(&self, name: &str) -> Result<Vec<HistoryRow>, StoreError> {
        self.within("read a module's history", async {
            let rows = sqlx::query(self.sql(
                "SELECT at, event, digest, version, host, reason FROM {p}module_history \
                 WHERE name = $1 ORDER BY id DESC",
            ))
            .bind(name.to_owned())
            .fetch_all(&self.inner.pool)
            .await?;
            let read = |row: &sqlx::any::AnyRow| -> Result<HistoryRow, sqlx::Error> {
                Ok(HistoryRow {
                    at: Timestamp(row.try_get("at")?),
                    event: row.try_get("event")?,
                    digest: row.try_get("digest")?,
                    version: row.try_get("version")?,
                    host: row.try_get("host")?,
                    reason: row.try_get("reason")?,
                })
            };
            rows.iter().map(read).collect()
        })
        .await
    }

    /// Who holds which job name: job to module.
    ///
    /// # Errors
    /// The database failed.
    pub async fn job_owners(&self) -> Result<BTreeMap<String, String>, StoreError> {
        self.within("read who holds which job", async {
            let rows = sqlx::query(self.sql("SELECT job, module FROM {p}job_owners"))
                .fetch_all(&self.inner.pool)
                .await?;
            rows.iter().map(|row| Ok((row.try_get("job")?, row.try_get("module")?))).collect()
        })
        .await
    }

    /// Notes who holds these job names from now on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_job_owners(
        &self,
        owners: &BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        self.within("note who holds which job", async {
            let mut write = self.begin().await?;
            for (job, module) in owners {
                sqlx::query(self.sql(
                    "INSERT INTO {p}job_owners AS o (job, module, since) VALUES ($1, $2, {now}) \
                     ON CONFLICT (job) DO UPDATE SET module = excluded.module, \
                     since = excluded.since WHERE o.module <> excluded.module",
                ))
                .bind(job)
                .bind(module)
                .execute(&mut *write.tx)
                .await?;
            }
            write.tx.commit().await
        })
        .await
    }
}

//! What operators do with an entry: let it fire or not, remove it, run its job now.

use super::Entry;
use super::define::{DefineError, Source};
use super::jobs::PeriodicJob;
use crate::beater::definition::Settings;
use crate::clock::{Timestamp, millis};
use crate::store::Store;

impl Store {
    /// Lets an entry fire, from now on, or no more. One that is set aside fires again where its
    /// row was mended.
    ///
    /// # Errors
    /// There is no such entry, it can't fire, or the database failed.
    pub async fn enable_periodic(&self, name: &str, is_enabled: bool) -> Result<(), DefineError> {
        self.settled("enable or disable a periodic entry", async {
            let mut write = self.begin_claim().await?;
            let now = self.time(&mut write).await?;
            let Some(entry) = self.locked_entry(&mut write, name).await? else {
                return Err(DefineError::Unknown(name.into()).into());
            };
            if !is_enabled {
                // It keeps its next fire time for those who look, and whatever is wrong with it.
                let update =
                    "UPDATE {p}periodic SET enabled = 0, updated_at = {now} WHERE name = $1";
                sqlx::query(self.sql(update)).bind(name).execute(&mut *write.tx).await?;
                write.tx.commit().await?;
                return Ok(());
            }
            if entry.is_enabled && entry.aside.is_none() {
                return Ok(());
            }
            let settings = sound(&entry)?;
            let next = settings.first_after(Timestamp(now), entry.last_fire_at);
            let offset = millis(settings.offset(name));
            sqlx::query(self.sql(
                "UPDATE {p}periodic SET enabled = 1, next_fire_at = $1, due_at = $2, \
                 aside = NULL, updated_at = {now} WHERE name = $3",
            ))
            .bind(next.map(|next| next.0))
            .bind(next.map(|next| next.0.saturating_add(offset)))
            .bind(name)
            .execute(&mut *write.tx)
            .await?;
            write.tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// Removes an entry that nothing would bring back. Its history stays. `is_held` tells whether
    /// a live worker's module holds its job, `is_in_file` whether the configuration file has it.
    ///
    /// # Errors
    /// There is no such entry, something else defines it, or the database failed.
    pub async fn remove_periodic(
        &self,
        name: &str,
        is_held: bool,
        is_in_file: bool,
    ) -> Result<(), DefineError> {
        self.settled("remove a periodic entry", async {
            let mut write = self.begin_claim().await?;
            if self.locked_entry(&mut write, name).await?.is_none() {
                return Err(DefineError::Unknown(name.into()).into());
            }
            let standing = self.standing(&mut write, name).await?;
            let held = standing.iter().find_map(|(source, ..)| match source {
                Source::Module if is_held => Some("the module of its job"),
                Source::Config if is_in_file => Some("the configuration file"),
                _ => None,
            });
            if let Some(by) = held {
                return Err(DefineError::Held { name: name.into(), by: by.into() }.into());
            }
            for statement in [
                "DELETE FROM {p}periodic_definitions WHERE name = $1",
                "DELETE FROM {p}periodic WHERE name = $1",
            ] {
                sqlx::query(self.sql(statement)).bind(name).execute(&mut *write.tx).await?;
            }
            write.tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// Queues the job of an entry now, beside its schedule; tells the job's id.
    ///
    /// # Errors
    /// There is no such entry, it has no queue or is nonsense, or the database failed.
    pub async fn run_periodic_now(&self, name: &str) -> Result<String, DefineError> {
        self.settled("queue the job of a periodic entry", async {
            let mut write = self.begin_claim().await?;
            let now = self.time(&mut write).await?;
            let Some(entry) = self.locked_entry(&mut write, name).await? else {
                return Err(DefineError::Unknown(name.into()).into());
            };
            sound(&entry)?;
            if entry.queue.is_none() {
                return Err(DefineError::NoQueue(name.into()).into());
            }
            let id = uuid::Uuid::new_v4().to_string();
            // Never on a whole second, where the row of a tick would stand.
            let fire = if now % 1000 == 0 { now + 1 } else { now };
            let job = PeriodicJob::with_id(id.clone(), &entry, Timestamp(fire), now);
            self.insert_periodic_jobs(&mut write, &[job], now).await?;
            sqlx::query(self.sql(
                "INSERT INTO {p}periodic_ticks (schedule, fire_time, outcome, reason, job_id, \
                 last_time, claimed_at, late_ms, beater) \
                 VALUES ($1, $2, 'queued', 'by hand', $3, $2, $2, 0, '') ON CONFLICT DO NOTHING",
            ))
            .bind(name)
            .bind(fire)
            .bind(&id)
            .execute(&mut *write.tx)
            .await?;
            write.tx.commit().await?;
            Ok(id)
        })
        .await
    }
}

/// An entry's settings, unless its row is nonsense.
fn sound(entry: &Entry) -> Result<Settings, DefineError> {
    entry.settings().map_err(|reason| DefineError::Invalid { name: entry.name.clone(), reason })
}

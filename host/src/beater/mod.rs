//! Path 3, step a: periodic jobs. The tick loop.
//!
//! Any number of beaters run anywhere, and none of them leads. Each claims what is due by the
//! database's clock ([`crate::store::periodic`]): one transaction moves the entry's next fire
//! time, and writes the tick's row, its job and its outbox row. Then any beater or worker sends
//! it ([`crate::sender`]).
//!
//! - b. [`schedule`]: schedule and time zone to fire times.
//! - c. [`plan`]: what becomes of each tick that is due.
//! - [`definition`]: what defines an entry.

pub mod crontab;
pub mod definition;
pub mod plan;
pub mod register;
pub mod schedule;
pub mod zone;

#[cfg(test)]
mod walk_tests;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{Clock, millis};
use crate::outage::{Backoff, Outage};
use crate::sender::Sender;
use crate::store::periodic::{Beat, BeaterRow, Claimed};
use crate::store::{Store, StoreError};
use crate::text::printable;

/// How long the last sends may take at the stop.
const LAST_SENDS: Duration = Duration::from_secs(5);

/// How often a beater looks, at least: entries may have been added or enabled, and a beater that
/// held some may be gone.
const PAUSE: Duration = Duration::from_secs(1);
/// Most entries in one transaction.
const LIMIT: u32 = 500;
/// How often a beater renews its row and compares clocks.
const RENEW: Duration = Duration::from_secs(10);
/// How far its clock may be off from the database's before it says so.
const CLOCK_BOUND: Duration = Duration::from_secs(2);
/// How long the history of ticks is kept, in days.
const KEEP_TICKS_DAYS: i64 = 30;

/// Queues periodic jobs until it is told to stop.
pub struct Beater {
    store: Store,
    sender: Sender,
    row: BeaterRow,
    beat: Beat,
    stopping: CancellationToken,
}

impl Beater {
    /// A beater of the entries of these queues; of all entries when there are none.
    #[must_use]
    pub fn new(
        store: Store,
        sender: Sender,
        queues: Vec<String>,
        stopping: CancellationToken,
    ) -> Self {
        let row = BeaterRow {
            id: uuid::Uuid::new_v4().to_string(),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            zones: zone::VERSION.to_owned(),
            queues: queues.join(","),
            clock_off_ms: 0,
        };
        let beat = Beat { beater: row.id.clone(), queues, limit: LIMIT };
        Self { store, sender, row, beat, stopping }
    }

    /// Claims what is due and has it sent, until it is told to stop.
    pub async fn run(mut self) {
        let stop = CancellationToken::new();
        let sweep = tokio::spawn(self.sender.clone().sweep_until(stop.clone()));
        let outage = Outage::new("claim periodic ticks");
        let mut backoff = Backoff::default();
        let mut renewed: Option<Instant> = None;
        let mut is_off = false;
        while !self.stopping.is_cancelled() {
            let round = async {
                if renewed.is_none_or(|renewed| renewed.elapsed() >= RENEW) {
                    let has_more = self.renew(&mut is_off).await?;
                    // Old ticks are pruned at the pace at which they come.
                    renewed = (!has_more).then(Instant::now);
                }
                self.store.claim_ticks(&self.beat).await
            };
            let wait = match round.await {
                Ok(claimed) => {
                    outage.over();
                    backoff = Backoff::default();
                    self.tell(&claimed)
                }
                Err(error) => {
                    outage.note(&error);
                    backoff.next()
                }
            };
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        stop.cancel();
        // What it has taken is sent; a queue that does not answer is not waited for.
        let _ = tokio::time::timeout(LAST_SENDS, sweep).await;
        if let Err(error) = self.store.remove_beater(&self.row.id).await {
            debug!("the beater's row stays: {error}");
        }
    }

    /// Has what was claimed sent, logs it, and tells how long to wait.
    fn tell(&self, claimed: &Claimed) -> Duration {
        if claimed.queued > 0 {
            self.sender.wake();
        }
        for (name, reason) in &claimed.aside {
            warn!("the periodic entry `{}` is set aside: {}", printable(name), printable(reason));
        }
        if claimed.entries > 0 {
            info!(
                "periodic: {} job(s) queued, {} tick(s) skipped, of {} entries",
                claimed.queued, claimed.skipped, claimed.entries
            );
        }
        if claimed.entries >= LIMIT as usize {
            return Duration::ZERO;
        }
        claimed.next_due.unwrap_or(PAUSE).min(PAUSE)
    }

    /// Renews the beater's row, and says when the clock is off or right again. Ticks go by the
    /// database's clock in any case. Tells whether more old ticks are to be pruned.
    async fn renew(&mut self, is_off: &mut bool) -> Result<bool, StoreError> {
        let clock = Clock::system();
        let before = clock.now();
        let now = self.store.now().await?;
        let after = clock.now();
        // Half of what the question took may be its way there.
        let way = millis(after.since(before)) / 2;
        let off = before.0 + way - now.0;
        self.row.clock_off_ms = off;
        let bound = millis(CLOCK_BOUND) + way;
        match (off.abs() > bound, *is_off) {
            (true, false) => warn!(
                "this machine's clock is {} ms {} the database's; periodic ticks go by the database's clock",
                off.abs(),
                if off > 0 { "ahead of" } else { "behind" }
            ),
            (false, true) => info!("this machine's clock agrees with the database's again"),
            _ => {}
        }
        *is_off = off.abs() > bound;
        self.store.renew_beater(&self.row).await?;
        self.store.set_unreadable_aside().await?;
        self.store.prune_ticks(KEEP_TICKS_DAYS).await
    }
}

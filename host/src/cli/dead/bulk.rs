//! `dead retry` and `dead discard`: entries by id or by filter, batch by batch.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::Context as _;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::filter::FilterArguments;
use crate::cli::{Usage, is_json, open_store_to_read, print};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::store::dead::DeadFilter;
use crate::store::resend::{DeadBatch, DeadPlace};
use crate::store::{Store, StoreError};
use crate::text::printable;

/// Most ids in one statement.
const IDS_AT_ONCE: usize = 500;

#[derive(Args)]
pub(in crate::cli) struct BulkArguments {
    /// The entries' ids; without, those that match the filter
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    ids: Vec<String>,
    #[command(flatten)]
    filter: FilterArguments,
    /// All entries
    #[arg(long)]
    all: bool,
    /// Do not ask, however many match
    #[arg(long)]
    yes: bool,
}

/// What is done to the entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Retry,
    Discard,
}

impl Work {
    /// What is done, as in "is to be …".
    const fn done(self) -> &'static str {
        match self {
            Self::Retry => "sent again",
            Self::Discard => "discarded",
        }
    }

    async fn batch(
        self,
        store: &Store,
        filter: &DeadFilter,
        after: Option<&DeadPlace>,
    ) -> Result<DeadBatch, StoreError> {
        match self {
            Self::Retry => store.retry_dead(filter, after).await,
            Self::Discard => store.discard_dead(filter, after).await,
        }
    }
}

pub(super) async fn retry(config: &Config, arguments: &BulkArguments) -> anyhow::Result<()> {
    run(config, arguments, Work::Retry).await
}

pub(super) async fn discard(config: &Config, arguments: &BulkArguments) -> anyhow::Result<()> {
    run(config, arguments, Work::Discard).await
}

async fn run(config: &Config, arguments: &BulkArguments, work: Work) -> anyhow::Result<()> {
    let has_ids = !arguments.ids.is_empty();
    let ways = [has_ids, arguments.filter.is_given(), arguments.all];
    if ways.iter().filter(|is_given| **is_given).count() != 1 {
        let reason = "name the entries' IDs, or a filter, or --all; see `dead list`";
        return Err(Usage(reason.to_owned()).into());
    }
    arguments.filter.check()?;
    let store = open_store_to_read(config).await?;
    let now = store.now().await?;
    let mut filter = arguments.filter.filter(now)?;
    // What fails once more meanwhile is a new entry, and not meant.
    let end = Timestamp(now.0.saturating_add(1));
    filter.until = Some(filter.until.map_or(end, |until| until.min(end)));
    let mut done = DeadBatch::default();
    if has_ids {
        let missing = by_ids(&store, &filter, &arguments.ids, work, &mut done).await?;
        if done.entries > 0 {
            tell(config, work, &done)?;
        }
        anyhow::ensure!(missing.is_empty(), missing_text(&store, &missing));
        return Ok(());
    }
    let count = store.count_dead(&filter).await?;
    if count == 0 {
        print::note("nothing matches in the dead list");
    } else if arguments.yes || confirmed(count, work)? {
        let bar = print::bar(count);
        by_filter(&store, &filter, work, &mut done, &bar).await?;
        bar.finish_and_clear();
    } else {
        print::note("nothing was changed");
        return Ok(());
    }
    if count == 0 && !is_json(config) {
        return Ok(());
    }
    tell(config, work, &done)
}

/// Works through all that matches.
async fn by_filter(
    store: &Store,
    filter: &DeadFilter,
    work: Work,
    done: &mut DeadBatch,
    bar: &indicatif::ProgressBar,
) -> Result<(), StoreError> {
    let mut place = None;
    loop {
        let batch = work.batch(store, filter, place.as_ref()).await?;
        done.entries += batch.entries;
        done.sent += batch.sent;
        bar.inc(batch.entries);
        place = match batch.next {
            Some(next) => Some(next),
            None => return Ok(()),
        };
    }
}

/// Works through these entries; returns the ids of those that there are not.
async fn by_ids(
    store: &Store,
    filter: &DeadFilter,
    ids: &[String],
    work: Work,
    done: &mut DeadBatch,
) -> Result<Vec<String>, StoreError> {
    let mut missing = Vec::new();
    for ids in ids.chunks(IDS_AT_ONCE) {
        let filter = DeadFilter { ids: ids.to_vec(), ..filter.clone() };
        let mut known = std::collections::HashSet::new();
        store
            .each_dead(&filter, None, |entry| {
                known.insert(entry.id);
                Ok::<(), StoreError>(())
            })
            .await?;
        missing.extend(ids.iter().filter(|id| !known.contains(*id)).cloned());
        by_filter(store, &filter, work, done, &indicatif::ProgressBar::hidden()).await?;
    }
    Ok(missing)
}

fn missing_text(store: &Store, missing: &[String]) -> String {
    let ids: Vec<String> = missing.iter().map(|id| format!("`{}`", printable(id))).collect();
    format!("nothing of id {} was put aside in {}; see `dead list`", ids.join(", "), store.label())
}

/// Asks on a terminal whether so many entries are meant.
fn confirmed(count: u64, work: Work) -> anyhow::Result<bool> {
    let entries =
        if count == 1 { "1 entry matches".to_owned() } else { format!("{count} entries match") };
    let stdin = std::io::stdin();
    if !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        let reason = format!("{entries} and would be {}; say --yes if that is meant", work.done());
        return Err(Usage(reason).into());
    }
    print::ask(format_args!("{entries}. Shall what matches be {}? [y/N] ", work.done()));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn tell(config: &Config, work: Work, done: &DeadBatch) -> anyhow::Result<()> {
    if is_json(config) {
        let counts = match work {
            Work::Retry => serde_json::json!({
                "entries": done.entries,
                "sent": done.sent,
                "not_needed": done.entries.saturating_sub(done.sent),
            }),
            Work::Discard => serde_json::json!({ "entries": done.entries }),
        };
        return print::json(&counts.to_string());
    }
    match work {
        Work::Discard => print::line(&format!("{} discarded", done.entries)),
        Work::Retry => {
            print::line(&format!("{} sent again", done.sent))?;
            match done.entries.saturating_sub(done.sent) {
                0 => Ok(()),
                rest => print::line(&format!(
                    "{rest} not sent: their jobs wait, run or have succeeded meanwhile"
                )),
            }
        }
    }
}

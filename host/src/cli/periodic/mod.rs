//! `periodic`: entries that the beater queues, and when.

mod edit;
mod list;
mod next;

use clap::Subcommand;

use crate::config::Config;
use crate::store::Store;
use crate::store::periodic::{DefineError, Entry};

#[derive(Subcommand)]
pub(super) enum PeriodicCommand {
    /// List the entries: last tick, next tick, and what is wrong
    List,
    /// Show one entry: its settings, next ticks and history
    Show(list::ShowArguments),
    /// Add an entry
    Add(edit::AddArguments),
    /// Change an entry; what is not named stays
    Edit(edit::EditArguments),
    /// Remove an entry that no module and no configuration file defines
    Remove(Named),
    /// Let an entry fire again, from now on
    Enable(Named),
    /// Let an entry fire no more
    Disable(Named),
    /// Queue an entry's job now, beside its schedule, and print the job's id
    RunNow(Named),
    /// Print the coming ticks of a schedule; needs no database
    Next(next::NextArguments),
}

#[derive(clap::Args)]
pub(super) struct Named {
    /// The entry's name
    name: String,
}

/// `grace` is what the flag `--grace` says, which workers have as well.
pub(super) async fn periodic(
    config: &Config,
    command: &PeriodicCommand,
    grace: Option<&str>,
) -> anyhow::Result<()> {
    match command {
        PeriodicCommand::List => list::list(config).await,
        PeriodicCommand::Show(arguments) => list::show(config, arguments).await,
        PeriodicCommand::Add(arguments) => edit::add(config, arguments, grace).await,
        PeriodicCommand::Edit(arguments) => edit::edit(config, arguments, grace).await,
        PeriodicCommand::Remove(named) => edit::remove(config, &named.name).await,
        PeriodicCommand::Enable(named) => edit::enable(config, &named.name, true).await,
        PeriodicCommand::Disable(named) => edit::enable(config, &named.name, false).await,
        PeriodicCommand::RunNow(named) => edit::run_now(config, &named.name).await,
        PeriodicCommand::Next(arguments) => next::next(config, arguments),
    }
}

/// The entry of this name, which must be there.
async fn entry(store: &Store, name: &str) -> anyhow::Result<Entry> {
    let mut entries = store.periodic_entries(Some(name)).await?;
    match entries.pop() {
        Some(entry) => Ok(entry),
        None => Err(unknown(store, name).await?),
    }
}

/// There is no entry of this name; was another one meant?
async fn unknown(store: &Store, name: &str) -> anyhow::Result<anyhow::Error> {
    let entries = store.periodic_entries(None).await?;
    let names = entries.iter().map(|entry| entry.name.as_str());
    let error = DefineError::Unknown(name.to_owned());
    Ok(match crate::text::nearest(name, names) {
        Some(nearest) => anyhow::anyhow!("{error}; did you mean `{nearest}`?"),
        None => error.into(),
    })
}

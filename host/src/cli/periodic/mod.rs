//! `periodic`: entries that the beater queues, and when.

mod next;

use clap::Subcommand;

use crate::config::Config;

#[derive(Subcommand)]
pub(super) enum PeriodicCommand {
    /// Print the coming ticks of a schedule; needs no database
    Next(next::NextArguments),
}

pub(super) async fn periodic(config: &Config, command: &PeriodicCommand) -> anyhow::Result<()> {
    match command {
        PeriodicCommand::Next(arguments) => next::next(config, arguments),
    }
}

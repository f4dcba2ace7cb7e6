//! `queues`: how full they are; creating, pausing, resuming and emptying them.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::confirm::confirm;
use super::enqueue::check_queue;
use super::{is_json, open_broker, open_store, print};
use crate::broker::{Broker, BrokerError, Depth, NewQueue, Queue};
use crate::config::Config;
use crate::store::Store;
use crate::store::cancel::CancelFilter;
use crate::text::printable;

/// Receipts after which a queue that we create moves a message to its dead-letter queue: twice
/// the attempts that a job has by default, so that our own count decides and not the queue's.
const MAX_RECEIVE_COUNT: u32 = 10;
/// How long the queues that we create keep messages: as long as SQS can.
const RETENTION: Duration = Duration::from_secs(14 * 86_400);
/// Visibility timeout for receivers that name none; ours always do.
const VISIBILITY: Duration = Duration::from_secs(30);

#[derive(Subcommand)]
pub(super) enum QueuesCommand {
    /// Show how full queues are
    List(ListArguments),
    /// Create a queue and its dead-letter queue, NAME-dead
    Create(CreateArguments),
    /// Have no worker receive from a queue, on any host; what runs goes on
    Pause(NameArguments),
    /// Have workers receive from a paused queue again
    Resume(NameArguments),
    /// Delete all messages of a queue, and cancel its jobs that wait
    Purge(PurgeArguments),
}

#[derive(Args)]
pub(super) struct ListArguments {
    /// Only these [default: all that can be seen]
    #[arg(value_name = "QUEUE")]
    queues: Vec<String>,
}

#[derive(Args)]
pub(super) struct CreateArguments {
    /// Its name
    #[arg(value_name = "NAME")]
    name: String,
    /// Keep the order within message groups; the name gets `.fifo` at its end
    #[arg(long)]
    fifo: bool,
}

#[derive(Args)]
pub(super) struct NameArguments {
    /// Its name; on SQS also its URL
    #[arg(value_name = "QUEUE")]
    queue: String,
}

#[derive(Args)]
pub(super) struct PurgeArguments {
    /// Its name; on SQS also its URL
    #[arg(value_name = "QUEUE")]
    queue: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl QueuesCommand {
    /// The queues that it is about; none are all of them.
    pub(super) fn queues(&self) -> &[String] {
        match self {
            Self::List(arguments) => &arguments.queues,
            Self::Create(arguments) => std::slice::from_ref(&arguments.name),
            Self::Pause(arguments) | Self::Resume(arguments) => {
                std::slice::from_ref(&arguments.queue)
            }
            Self::Purge(arguments) => std::slice::from_ref(&arguments.queue),
        }
    }
}

pub(super) async fn queues(config: &Config, command: &QueuesCommand) -> anyhow::Result<()> {
    let kind = config.broker(command.queues())?;
    let store = open_store(config, kind).await?;
    match command {
        QueuesCommand::Pause(arguments) => return pause(config, &store, &arguments.queue).await,
        QueuesCommand::Resume(arguments) => return resume(config, &store, &arguments.queue).await,
        _ => {}
    }
    let broker = open_broker(config, kind, &store).await?;
    match command {
        QueuesCommand::List(arguments) => list(config, &store, &*broker, &arguments.queues).await,
        QueuesCommand::Create(arguments) => create(config, &*broker, arguments).await,
        QueuesCommand::Purge(arguments) => purge(config, &store, &*broker, arguments).await,
        QueuesCommand::Pause(_) | QueuesCommand::Resume(_) => Ok(()),
    }
}

/// The name by which rows know a queue that was given by name or URL.
fn name_of(queue: &str) -> &str {
    queue.rsplit('/').next().unwrap_or(queue)
}

async fn list(
    config: &Config,
    store: &Store,
    broker: &dyn Broker,
    named: &[String],
) -> anyhow::Result<()> {
    let paused = store.paused_queues().await?;
    let names = match named {
        [] => visible(store, broker, &paused).await?,
        named => named.to_vec(),
    };
    let header =
        ["queue", "visible", "in flight", "delayed", "oldest", "state", "dead-letter queue"];
    let mut grid = print::Grid::new(&header);
    let mut missing = None;
    for name in &names {
        let Some(queue) = broker.find(name).await? else {
            missing.get_or_insert_with(|| BrokerError::NoSuchQueue {
                queue: name.clone(),
                broker: broker.label(),
            });
            continue;
        };
        let depth = broker.depth(&queue).await?;
        let oldest = broker.oldest(&queue).await?;
        let is_paused = paused.contains(&queue.name);
        if is_json(config) {
            print::json(&row_json(&queue, depth, oldest, is_paused).to_string())?;
        } else {
            let age = oldest.map(|age| humantime::format_duration(rounded(age)).to_string());
            grid.row(&[
                &queue.name,
                &depth.visible.to_string(),
                &depth.in_flight.to_string(),
                &depth.delayed.to_string(),
                &age.unwrap_or_default(),
                if is_paused { "paused" } else { "open" },
                queue.dead_letter_queue.as_deref().map_or("", name_of),
            ]);
        }
    }
    if !is_json(config) {
        match names.is_empty() {
            true => print::note("no queue is known"),
            false => grid.print()?,
        }
    }
    match missing {
        // One that was named must be there; of the others some may have gone meanwhile.
        Some(error) if !named.is_empty() => Err(error.into()),
        _ => Ok(()),
    }
}

fn row_json(
    queue: &Queue,
    depth: Depth,
    oldest: Option<Duration>,
    is_paused: bool,
) -> serde_json::Value {
    serde_json::json!({
        "name": queue.name,
        "visible": depth.visible,
        "in_flight": depth.in_flight,
        "delayed": depth.delayed,
        "oldest_secs": oldest.map(|age| age.as_secs()),
        "paused": is_paused,
        "fifo": queue.is_fifo,
        "dead_letter_queue": queue.dead_letter_queue.as_deref().map(name_of),
        "max_receive_count": queue.max_receive_count,
        "retention_secs": queue.retention.as_secs(),
    })
}

/// The queues that the broker shows, or, where it may not be asked, those that are known of here.
async fn visible(
    store: &Store,
    broker: &dyn Broker,
    paused: &BTreeSet<String>,
) -> anyhow::Result<Vec<String>> {
    match broker.list().await {
        Ok(names) => Ok(names),
        Err(error @ BrokerError::Denied { .. }) => {
            print::note(format_args!(
                "{}; shown are the queues that workers poll and those that are paused",
                printable(&error.to_string())
            ));
            let polled = store.polled_queues().await?;
            Ok(polled.union(paused).cloned().collect())
        }
        Err(error) => Err(error.into()),
    }
}

fn rounded(age: Duration) -> Duration {
    Duration::from_secs(age.as_secs())
}

async fn create(
    config: &Config,
    broker: &dyn Broker,
    arguments: &CreateArguments,
) -> anyhow::Result<()> {
    let given = arguments.name.as_str();
    let stem = given.strip_suffix(".fifo").unwrap_or(given);
    let suffix = if arguments.fifo || given.ends_with(".fifo") { ".fifo" } else { "" };
    let (name, dead) = (format!("{stem}{suffix}"), format!("{stem}-dead{suffix}"));
    for name in [&name, &dead] {
        check_queue("NAME", name)?;
    }
    let wanted = [
        NewQueue {
            name: dead.clone(),
            redrive: None,
            retention: RETENTION,
            visibility: VISIBILITY,
        },
        NewQueue {
            name,
            redrive: Some((MAX_RECEIVE_COUNT, dead)),
            retention: RETENTION,
            visibility: VISIBILITY,
        },
    ];
    // Both are looked at before anything is made.
    let mut missing = Vec::new();
    let mut differences = Vec::new();
    for new in &wanted {
        match broker.find(&new.name).await? {
            Some(queue) => differences.extend(differences_of(&queue, new)),
            None => missing.push(new),
        }
    }
    if !differences.is_empty() {
        differences.iter().for_each(print::note);
        anyhow::bail!(
            "a queue of this name exists with other attributes, and nothing was changed; change them by the tools of your broker, or take another name"
        );
    }
    if missing.is_empty() {
        print::note("the queue and its dead-letter queue exist as they would be created");
    }
    for new in missing {
        let queue = broker.create(new).await?;
        if is_json(config) {
            let row = serde_json::json!({ "name": queue.name, "address": queue.address });
            print::json(&row.to_string())?;
        } else {
            print::text(&queue.address)?;
        }
    }
    Ok(())
}

/// In what a queue differs from the one that would be created, a line each.
fn differences_of(queue: &Queue, new: &NewQueue) -> Vec<String> {
    let (count, dead) = new.redrive.clone().unzip();
    let none = || "none".to_owned();
    let found_dead = queue.dead_letter_queue.as_deref().map(|address| name_of(address).to_owned());
    let secs = |time: Duration| format!("{} s", time.as_secs());
    [
        (
            "maxReceiveCount",
            queue.max_receive_count.map_or_else(none, |count| count.to_string()),
            count.map_or_else(none, |count| count.to_string()),
        ),
        ("dead-letter queue", found_dead.unwrap_or_else(none), dead.unwrap_or_else(none)),
        ("retention", secs(queue.retention), secs(new.retention)),
    ]
    .into_iter()
    .filter(|(_, found, wanted)| found != wanted)
    .map(|(what, found, wanted)| {
        format!("queue {}: {what} is {found}, and would be {wanted}", printable(&queue.name))
    })
    .collect()
}

async fn pause(config: &Config, store: &Store, queue: &str) -> anyhow::Result<()> {
    let name = name_of(queue);
    let is_new = store.pause_queue(name).await?;
    if !is_new {
        print::note(format_args!("queue {name} was paused already"));
    }
    tell(config, name, true)
}

async fn resume(config: &Config, store: &Store, queue: &str) -> anyhow::Result<()> {
    let name = name_of(queue);
    if !store.resume_queue(name).await? {
        print::note(format_args!("queue {name} was not paused"));
    }
    tell(config, name, false)
}

fn tell(config: &Config, name: &str, is_paused: bool) -> anyhow::Result<()> {
    if is_json(config) {
        let row = serde_json::json!({ "name": name, "paused": is_paused });
        return print::json(&row.to_string());
    }
    print::text(&format!("{name} {}", if is_paused { "paused" } else { "open" }))
}

/// Cancels the jobs first: a message that comes in between finds its job cancelled, while one
/// whose job still waits would be given up as lost.
async fn purge(
    config: &Config,
    store: &Store,
    broker: &dyn Broker,
    arguments: &PurgeArguments,
) -> anyhow::Result<()> {
    let Some(queue) = broker.find(&arguments.queue).await? else {
        return Err(BrokerError::NoSuchQueue {
            queue: arguments.queue.clone(),
            broker: broker.label(),
        }
        .into());
    };
    let filter = CancelFilter {
        queue: Some(queue.name.clone()),
        only_waiting: true,
        ..CancelFilter::default()
    };
    let depth = broker.depth(&queue).await?;
    let messages = depth.visible + depth.in_flight + depth.delayed;
    let jobs = store.count_to_cancel(&filter).await?;
    let do_this = format!(
        "delete all messages of queue {} (about {messages}) and cancel its {jobs} job(s) that wait",
        printable(&queue.name)
    );
    confirm(&do_this, arguments.yes)?;
    let until = store.now().await?.0;
    let mut cancelled = 0;
    let mut next = Some(String::new());
    while let Some(after) = next {
        let batch = store.cancel_some(&filter, until, &after).await?;
        cancelled += batch.done.len();
        next = batch.next;
    }
    broker.purge(&queue).await?;
    if is_json(config) {
        let row = serde_json::json!({
            "name": queue.name, "messages": messages, "cancelled": cancelled,
        });
        return print::json(&row.to_string());
    }
    print::text(&format!(
        "{}: about {messages} message(s) deleted, {cancelled} job(s) cancelled",
        queue.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_with_both_values() {
        let new = NewQueue {
            name: "q".into(),
            redrive: Some((10, "q-dead".into())),
            retention: RETENTION,
            visibility: VISIBILITY,
        };
        let queue = Queue {
            name: "q".into(),
            address: "http://h/1/q".into(),
            is_fifo: false,
            max_receive_count: Some(10),
            dead_letter_queue: Some("http://h/1/q-dead".into()),
            retention: RETENTION,
            max_message_bytes: 1,
        };
        assert!(differences_of(&queue, &new).is_empty());
        let other = Queue { max_receive_count: Some(3), retention: VISIBILITY, ..queue };
        let told = differences_of(&other, &new).join("\n");
        assert!(told.contains("maxReceiveCount is 3, and would be 10"), "{told}");
        assert!(told.contains("retention is 30 s, and would be 1209600 s"), "{told}");
    }
}

//! sqjobs runs background jobs from Amazon SQS, each in a fresh, sandboxed WebAssembly component,
//! and keeps their results in SQL. This crate is the binary `sqjobs-host` and the library behind
//! it: a [`client::Client`] that adds jobs, and a [`worker::Worker`] that runs them.
//!
//! # A message, from receipt to settlement
//!
//! 1. `worker/poll.rs`: takes free slots (`worker/slots.rs`) and receives at most that many messages.
//! 2. `worker/process.rs`: one message from receipt to settlement; the page to read first.
//! 3. `worker/lease.rs`: keeps the message invisible meanwhile, and tells when that fails.
//! 4. [`payload`]: body and attributes to a job.
//! 5. [`registry`]: the job's name to the module that serves it.
//! 6. [`sandbox`] and `sandbox/attempt.rs`: a fresh instance; set-up, run, tear-down, on-success or on-failure.
//! 7. [`outcome`]: how the attempt ended, and at which stage.
//! 8. [`retry`]: outcome, attempt and policy to what becomes of the message.
//! 9. [`store`]: claims before, outcomes after (`worker/record.rs`); the job states as a diagram.
//! 10. `worker/settle.rs`: deletes and returns, in batches. [`metrics`]: what is counted.
//!
//! Beside the path: `worker/message.rs`, the ways in which a message leaves the worker's hands;
//! `worker/lost.rs`, jobs whose message is gone; `worker/control.rs`, cancelled jobs and paused
//! queues; `worker/prune.rs`, what is kept of jobs that are done; `worker/pulse.rs`, whether the
//! worker lives and can work, told by [`listen`] and [`exporter`].
//!
//! # A module file
//!
//! - A. [`registry::watch`]: file events to settled paths; [`registry::deploy`] carries each through B to D.
//! - B. [`registry::load`]: read, digest, check against the world, compile, ask what it holds.
//! - C. [`registry::cache`]: compiled code on disk.
//! - D. [`registry`]: one atomic store makes it current.
//! - E. [`store::versions`]: what was decided for all hosts, read by `registry/sync.rs`; `registry/choice.rs` says what
//!   it means here, [`registry::canary`] who takes a canary.
//!
//! # An added job
//!
//! - a. [`client`]: checks it; row and outbox row in one transaction ([`store::enqueue`]).
//! - b. [`sender`]: outbox to broker, then marked as sent; swept by every worker.
//!
//! # A tick of the beater
//!
//! - a. [`beater`]: the loop; any number of beaters, none of which leads.
//! - b. [`beater::schedule`]: schedule and time zone to fire times.
//! - c. [`beater::plan`] decides, [`store::periodic`] claims: tick, job and outbox row in one
//!   transaction.
//! - d. [`sender`]: outbox to broker.
//!
//! # An example
//!
//! ```no_run
//! use std::sync::Arc;
//! use sqjobs::broker::sqs::SqsBroker;
//! use sqjobs::client::{Client, JobRequest};
//! use sqjobs::store::{Database, Store};
//!
//! # async fn add() -> Result<(), Box<dyn std::error::Error>> {
//! let url = "postgres://app@db.internal/jobs".parse()?;
//! let store = Store::open(&Database::Postgres { url, schema: "sqjobs".into() }).await?;
//! let client = Client::new(store, Arc::new(SqsBroker::connect().await?));
//! let added = client.add(JobRequest::new("adder_job").args(&[1, 2, 3, 4])?).await?;
//! println!("{}", added.id);
//! # Ok(())
//! # }
//! ```

pub mod beater;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod eager;
pub mod exporter;
pub mod failpoint;
pub mod json;
pub mod listen;
pub mod metrics;
mod outage;
pub mod outcome;
pub mod payload;
pub mod registry;
pub mod retry;
pub mod sandbox;
pub mod sender;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod worker;

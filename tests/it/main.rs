//! Tests of the whole: the real binary against real servers. One file per behaviour; `scripts/test`
//! starts the servers and says where they are.
#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

/// Makes of each function a test per pair of database and broker: `rule::embedded`,
/// `rule::sqlite_and_sqs` and `rule::postgres_and_sqs`. The function is told the pair.
macro_rules! on_every_pair {
    ($($(#[doc = $doc:literal])* fn $rule:ident($pair:ident) $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $rule {
            #[allow(unused_imports, reason = "not every rule needs all of the file's imports")]
            use super::*;

            fn holds($pair: support::Pair) $body

            #[test]
            fn embedded() {
                holds(support::Pair::Embedded);
            }

            #[test]
            fn sqlite_and_sqs() {
                holds(support::Pair::SqliteSqs);
            }

            #[test]
            fn postgres_and_sqs() {
                holds(support::Pair::PostgresSqs);
            }
        }
    )+};
}

mod beater;
mod broker_contract;
mod cancel;
mod children;
mod cli;
mod clock_jumps;
mod compiling;
mod config;
mod crash;
mod database_outages;
mod dead;
mod delays;
mod dev;
mod fifo;
mod grants;
mod guarantees;
mod hostile_jobs;
mod hostile_modules;
mod hot_reload;
mod http_grants;
mod leases;
mod lifecycle;
mod limits;
mod listen;
mod lists;
mod message_path;
mod migrate;
mod model;
mod modules;
mod old_producers;
mod operations_page;
mod outages;
mod outbox_door;
mod outbox_snippets;
mod output;
mod periodic;
mod periodic_next;
mod periodic_store;
mod queues;
mod retention;
mod shutdown;
mod slots;
mod store_beaters;
mod store_cancel;
mod store_claims;
mod store_dead;
mod store_door;
mod store_entries;
mod store_fixtures;
mod store_groups;
mod store_lists;
mod store_modules;
mod store_outbox;
mod store_prune;
mod store_queues;
mod store_schema;
mod store_unique;
mod store_versions;
mod swaps;
mod unique;
mod unusable;
mod versions;

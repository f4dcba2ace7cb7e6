//! Fixtures of the tests: the real binary, real servers, and folders of their own.
//!
//! - [`servers`]: where `scripts/test` has put PostgreSQL, the SQS server, the guests and the host.
//! - [`project`]: a temporary folder with a jobs folder in it, and the host run there.
//! - [`host`]: what one run of the binary said, and its JSON lines.
//! - [`http`]: an HTTP server for guests to be let to, or kept from.
//! - [`worker`]: a worker process, its log lines and its signals.
//! - [`setup`]: the pairs of database and broker that everything has to work on.
//! - [`sqs`]: the SQS server spoken to directly, past the host.
//! - [`versions`]: versions of one module, made without a compiler.
//! - [`swaps`]: many versions deployed one after the other while jobs run.
//! - [`gate`]: a database server that goes away.
//! - [`proxy`]: an SQS server that misbehaves by a seed.
//! - [`mod@side_by_side`]: many small scenarios within one test.
//! - [`wait`]: conditions awaited with a deadline, so that no test sleeps.
//!
//! A fixture that can't do its work panics, which fails the test that asked for it.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a fixture that fails fails its test"
)]

pub mod gate;
pub mod host;
pub mod http;
pub mod project;
pub mod proxy;
pub mod servers;
pub mod setup;
pub mod side_by_side;
pub mod sqs;
pub mod swaps;
pub mod versions;
pub mod wait;
pub mod worker;

pub use host::{Json, Output};
pub use project::Project;
pub use setup::{Pair, Setup};
pub use side_by_side::side_by_side;
pub use worker::WorkerProcess;

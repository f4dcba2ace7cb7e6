//! Write background jobs for sqjobs.
//!
//! A job is a type with a name and a [`run`](Job::run); [`export!`] makes a module of one or more
//! of them. Compiled for `wasm32-wasip2` and copied into the jobs folder of a host, it runs there,
//! each attempt in a fresh sandbox.
//!
//! ```
//! use sqjobs_sdk::prelude::*;
//!
//! #[derive(Default)]
//! struct Adder;
//!
//! impl Job for Adder {
//!     const NAME: &str = "adder_job";
//!
//!     fn run(&mut self, call: &Call) -> Result<impl Serialize> {
//!         let numbers: Vec<i64> = call.args()?;
//!         Ok(numbers.iter().sum::<i64>())
//!     }
//! }
//!
//! export!(Adder);
//!
//! # fn main() {
//! // No sandbox, no host: this is a plain unit test.
//! let outcome = testing::attempt::<Adder>().args([1, 2, 3, 4]).run();
//! assert_eq!(outcome.result::<i64>(), 10);
//! # }
//! ```
//!
//! # In the order in which one needs it
//! - [`Job`]: the work, its stages, and what a job may say about itself.
//! - [`Call`]: the arguments, and which attempt of which job this is.
//! - [`Failure`]: why a stage failed, and whether it may be run again. `?` works on every error.
//! - [`log`]: lines for the operator, by `info!` and its sisters. [`progress`]: how far the job is.
//! - [`NewJob`] and [`add_job`]: further jobs from within a job.
//! - [`Options`]: results, timeout, retries, schedule, uniqueness.
//! - [`testing`]: runs a job in a unit test.
//!
//! Jobs are run at least once: a job whose host was lost runs again from its beginning. Its
//! [`id`](Call::id) stays the same, so that effects can be made under it.

mod add_job;
#[doc(hidden)]
#[rustfmt::skip]
pub mod bindings;
mod call;
#[doc(hidden)]
pub mod export;
mod failure;
mod host;
mod job;
pub mod log;
mod options;
mod progress;
mod report;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use crate::add_job::{NewJob, add_job};
pub use crate::call::Call;
pub use crate::failure::{Failure, FailureKind, OrFail, Result};
pub use crate::job::Job;
pub use crate::options::{CatchUp, Options, Overlap, Periodic, Unique};
pub use crate::progress::progress;
pub use crate::report::{FailureCause, FailureReport, Stage};

/// What nearly every job uses: `use sqjobs_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::log::{debug, error, info, trace, warn};
    #[cfg(not(target_arch = "wasm32"))]
    pub use crate::testing;
    pub use crate::{
        Call, Failure, FailureReport, Job, NewJob, Options, OrFail, Periodic, Result, add_job,
        export, progress,
    };
    pub use serde::{Deserialize, Serialize};
    pub use serde_json::value::RawValue;
}

pub use serde;
pub use serde_json;

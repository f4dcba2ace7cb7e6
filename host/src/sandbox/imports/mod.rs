//! What guests are offered, a file for each capability.

mod add_job;
mod http;
mod log;
mod progress;

use super::bindings::sqjobs::job::types;
use super::context::AttemptContext;

pub(super) use http::Outgoing;

impl types::Host for AttemptContext {}

//! What guests are offered, a file for each capability.

mod add_job;
mod log;
mod progress;

use super::bindings::sqjobs::job::types;
use super::context::AttemptContext;

impl types::Host for AttemptContext {}

//! The sample jobs of the first sqjobs, and one that echoes its call: several jobs in one module,
//! a file each.

mod dummy_periodic;
mod dummy_result;
mod echo;
mod logger;
mod timed;

use dummy_periodic::DummyPeriodic;
use dummy_result::DummyResult;
use echo::Echo;
use logger::Logger;
use timed::Timed;

sqjobs_sdk::export!(DummyPeriodic, DummyResult, Echo, Logger, Timed);

//! The host's imports, as the rest of the SDK calls them: in a component the real ones, natively
//! those of the unit test that runs on this thread.

use crate::bindings::sqjobs::job::add_job::{Error, Request};
use crate::bindings::sqjobs::job::log::Level;

#[cfg(target_arch = "wasm32")]
mod imports {
    use super::{Error, Level, Request};
    use crate::bindings::sqjobs::job;

    pub(crate) fn write_log(
        level: Level,
        target: &str,
        message: &str,
        fields: Vec<(String, String)>,
    ) {
        job::log::write(level, target, message, &fields);
    }

    pub(crate) fn set_progress(fraction: f64, message: Option<&str>) {
        job::progress::set(fraction, message);
    }

    pub(crate) fn add_job(request: Request) -> Result<String, Error> {
        job::add_job::add(&request)
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod imports {
    use super::{Error, Level, Request};
    use crate::testing::recorder;

    pub(crate) fn write_log(
        level: Level,
        target: &str,
        message: &str,
        fields: Vec<(String, String)>,
    ) {
        eprintln!("{level:?} {target}: {message}");
        recorder::write_log(level, target, message, fields);
    }

    pub(crate) fn set_progress(fraction: f64, message: Option<&str>) {
        recorder::set_progress(fraction, message);
    }

    pub(crate) fn add_job(request: Request) -> Result<String, Error> {
        recorder::add_job(request)
    }
}

pub(crate) use imports::{add_job, set_progress, write_log};

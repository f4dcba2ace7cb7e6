//! Lines for the operator's log: the `log` crate, whose macros the prelude brings
//! (`info!("sent {count} mails")`), tied to the host's log.
//!
//! Keys and values (`info!(count = 3; "sent")`) become fields to search by. In unit tests the lines
//! go to standard error and into the test's [`Outcome`](crate::testing::Outcome).

use std::sync::Once;

pub use ::log::*;

use crate::bindings::sqjobs::job::log::Level as HostLevel;
use crate::host;

/// Ties the `log` crate, and in a component panics too, to the host's log. Called before every
/// stage that comes first; a job's own logger, set before, is left alone.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if set_logger(&HostLogger).is_ok() {
            set_max_level(LevelFilter::Trace);
        }
        if cfg!(target_arch = "wasm32") {
            log_panics();
        }
    });
}

/// Sends where and why the code panicked to the host's log, before the trap ends the instance and
/// leaves nothing but "unreachable executed". What was printed before is printed still.
fn log_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        host::write_log(HostLevel::Error, "panic", &info.to_string(), Vec::new());
        print(info);
    }));
}

struct HostLogger;

impl Log for HostLogger {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Error => HostLevel::Error,
            Level::Warn => HostLevel::Warn,
            Level::Info => HostLevel::Info,
            Level::Debug => HostLevel::Debug,
            Level::Trace => HostLevel::Trace,
        };
        let mut fields = Fields(Vec::new());
        // Visiting fails only where the visitor does, and this one does not.
        let _ = record.key_values().visit(&mut fields);
        host::write_log(level, record.target(), &record.args().to_string(), fields.0);
    }

    fn flush(&self) {}
}

struct Fields(Vec<(String, String)>);

impl<'a> kv::VisitSource<'a> for Fields {
    fn visit_pair(&mut self, key: kv::Key<'a>, value: kv::Value<'a>) -> Result<(), kv::Error> {
        self.0.push((key.to_string(), value.to_string()));
        Ok(())
    }
}

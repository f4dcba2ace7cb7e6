//! `progress`: how far a running attempt is.

use crate::sandbox::bindings::sqjobs::job::progress::Host;
use crate::sandbox::context::AttemptContext;
use crate::text::{cut, without_nul};

/// Longest message that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

impl Host for AttemptContext {
    fn set(&mut self, fraction: f64, message: Option<String>) -> wasmtime::Result<()> {
        if !fraction.is_nan() {
            let message =
                message.map(|text| without_nul(cut(self.grants.redacted(text), MAX_MESSAGE_BYTES)));
            self.progress.send_replace(Some((fraction.clamp(0.0, 1.0), message)));
        }
        Ok(())
    }
}

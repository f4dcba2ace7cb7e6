//! How far a running attempt is.

use crate::host;

/// Tells the share that is done, from 0.0 to 1.0, and what goes on: `progress(0.5, "half")`, or
/// `progress(0.5, None)`.
///
/// A share outside is brought to the nearer end, one that is no number is ignored. Frequent calls
/// are cheap: only the latest is kept.
pub fn progress<'a>(fraction: f64, message: impl Into<Option<&'a str>>) {
    host::set_progress(fraction, message.into());
}

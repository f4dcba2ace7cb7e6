//! Conditions awaited with a deadline, so that no test sleeps through time.

use std::time::{Duration, Instant};

/// How long a condition is awaited. Far longer than any takes: it ends a test that hangs, and
/// says nothing about speed.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// How long to pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until there is something to see, and returns it.
///
/// # Panics
/// The deadline has passed; the message names `what`.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match within(DEADLINE, look) {
        Some(seen) => seen,
        None => panic!("waited {} s in vain for {what}", DEADLINE.as_secs()),
    }
}

/// Like [`until`], for a condition without a value.
///
/// # Panics
/// The deadline has passed.
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}

/// Looks until there is something to see or the time is over.
pub fn within<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Some(seen);
        }
        if begun.elapsed() > time {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

//! How figures are printed.

use std::time::Duration;

/// The time that so many of a thousand do not exceed.
pub(crate) fn at(times: &mut [Duration], share: usize) -> Duration {
    times.sort();
    times[(times.len() * share / 1000).min(times.len() - 1)]
}

/// Prints the middle, the 99th of a hundred and the longest of some times.
pub(crate) fn tell(what: &str, mut times: Vec<Duration>) {
    println!(
        "{what}: p50 {:?}, p99 {:?}, maximum {:?} ({} runs)",
        at(&mut times, 500),
        at(&mut times, 990),
        at(&mut times, 1000),
        times.len()
    );
}

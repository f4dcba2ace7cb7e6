//! How figures are printed.

use std::time::Duration;

/// Prints the middle, the 99th of a hundred and the longest of some times.
pub(crate) fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 1000).min(times.len() - 1)];
    println!(
        "{what}: p50 {:?}, p99 {:?}, maximum {:?} ({} runs)",
        at(500),
        at(990),
        times[times.len() - 1],
        times.len()
    );
}

//! How figures are printed.

use std::time::Duration;

/// Prints the middle, the 99th of a hundred and the longest of some times.
pub(crate) fn tell(what: &str, times: Vec<Duration>) {
    tell_share(what, 99, times);
}

/// The same with the 95th of a hundred, for what is run twenty times.
pub(crate) fn tell_by_95(what: &str, times: Vec<Duration>) {
    tell_share(what, 95, times);
}

fn tell_share(what: &str, share: usize, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() * share).div_ceil(100).max(1) - 1];
    println!(
        "{what}: p50 {:?}, p{share} {:?}, maximum {:?} ({} runs)",
        at(50),
        at(share),
        times[times.len() - 1],
        times.len()
    );
}

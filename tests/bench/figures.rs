//! How figures are printed.

use std::time::Duration;

/// The time that so many of a thousand do not exceed.
pub(crate) fn at(times: &mut [Duration], share: usize) -> Duration {
    times.sort();
    times[(times.len() * share).div_ceil(1000).max(1) - 1]
}

/// Prints the middle, the 99th of a hundred and the longest of some times.
pub(crate) fn tell(what: &str, times: Vec<Duration>) {
    tell_share(what, 99, times);
}

/// The same with the 95th of a hundred, for what is run twenty times.
pub(crate) fn tell_by_95(what: &str, times: Vec<Duration>) {
    tell_share(what, 95, times);
}

fn tell_share(what: &str, share: usize, mut times: Vec<Duration>) {
    println!(
        "{what}: p50 {:?}, p{share} {:?}, maximum {:?} ({} runs)",
        at(&mut times, 500),
        at(&mut times, share * 10),
        at(&mut times, 1000),
        times.len()
    );
}

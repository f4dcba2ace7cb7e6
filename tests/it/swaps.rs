//! Many swaps under load.
//!
//! `SQJOBS_TEST_SWAPS` says how many, 40 by default. The full run is 1,000, after 1,000 others to
//! warm up, and takes about eight minutes with a development build; only then is memory compared.

use support::swaps::swap_under_load;

/// From this many on, memory is compared.
const FULL: usize = 1000;
const WARM_UP: usize = 1000;

#[test]
fn no_job_fails_for_a_swap_and_none_runs_mixed_code() {
    let count = std::env::var("SQJOBS_TEST_SWAPS").map_or(40, |count| count.parse().unwrap());
    let swaps = swap_under_load(if count >= FULL { WARM_UP } else { 0 }, count);
    let mut visible_after = swaps.visible_after.clone();
    visible_after.sort();
    println!(
        "{count} swaps, {} jobs by {} versions; visible after {:?} (middle), {:?} (longest); memory {} KiB before, {} KiB after",
        swaps.jobs,
        swaps.versions,
        visible_after[visible_after.len() / 2],
        visible_after[visible_after.len() - 1],
        swaps.at_start_kib,
        swaps.at_end_kib,
    );
    if count >= FULL {
        assert!(swaps.at_end_kib * 100 <= swaps.at_start_kib * 105, "{swaps:?}");
    }
}

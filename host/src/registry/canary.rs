//! Which attempts take a canary, and when it has failed. Pure.

use sha2::{Digest as _, Sha256};

/// A share of 10,000 is every attempt.
pub const WHOLE: u32 = 10_000;

/// Fewest runs of the canary that say anything.
const ENOUGH_RUNS: u64 = 20;
/// How much larger its share of failures may be than the old version's, whatever the numbers.
const MARGIN: f64 = 0.10;
/// How many standard errors it must be larger by: the counts are looked at every second, and
/// with less some look would see what is not there.
const STANDARD_ERRORS: f64 = 3.0;

/// Runs that ended, and those that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Failures among them.
    pub failures: u64,
}

/// Whether the attempts of a job take the canary: the same on every host and for every attempt,
/// and drawn anew for each canary.
#[must_use]
pub fn takes(job_id: &str, digest: &str, share: u32) -> bool {
    let hash = Sha256::new().chain_update(digest).chain_update([0]).chain_update(job_id).finalize();
    let number = hash.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    number % u64::from(WHOLE) < u64::from(share)
}

/// Why the canary has failed; `None` while it does as well as the old version, or too little is
/// known. Of an old version without runs nothing is known: one that failed half of the time is
/// assumed.
#[must_use]
pub fn verdict(old: Counts, canary: Counts) -> Option<String> {
    if canary.runs < ENOUGH_RUNS {
        return None;
    }
    // Counts are far below 2^52.
    #[allow(clippy::cast_precision_loss)]
    let number = |count: u64| count as f64;
    let (old_runs, old_failures) = (number(old.runs) + 2.0, number(old.failures) + 1.0);
    let (runs, failures) = (number(canary.runs), number(canary.failures));
    let pooled = (old_failures + failures) / (old_runs + runs);
    let error = (pooled * (1.0 - pooled) * (1.0 / old_runs + 1.0 / runs)).sqrt();
    let excess = failures / runs - old_failures / old_runs;
    (excess > MARGIN.max(STANDARD_ERRORS * error)).then(|| {
        format!(
            "{} of {} attempts of the canary failed, and {} of {} of the old version",
            canary.failures, canary.runs, old.failures, old.runs
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(runs: u64, failures: u64) -> Counts {
        Counts { runs, failures }
    }

    #[test]
    fn the_share_of_jobs_that_take_the_canary_is_as_asked() {
        let count = |share| (0..10_000).filter(|id| takes(&id.to_string(), "d", share)).count();
        assert_eq!((count(0), count(WHOLE)), (0, 10_000));
        assert!((850..1150).contains(&count(1000)), "{}", count(1000));
    }

    #[test]
    fn a_job_takes_the_same_side_each_time_and_a_larger_share_holds_the_smaller() {
        for id in (0..1000).map(|id| id.to_string()) {
            assert_eq!(takes(&id, "d", 1000), takes(&id, "d", 1000));
            assert!(!takes(&id, "d", 1000) || takes(&id, "d", 2000));
        }
    }

    #[test]
    fn a_canary_that_fails_as_often_as_the_old_version_goes_on() {
        assert_eq!(verdict(counts(1000, 0), counts(100, 0)), None);
        assert_eq!(verdict(counts(1000, 500), counts(100, 50)), None);
        assert_eq!(verdict(counts(1000, 10), counts(1000, 60)), None, "within the margin");
        assert_eq!(verdict(counts(1000, 300), counts(20, 9)), None, "it may be chance");
    }

    #[test]
    fn a_canary_is_not_judged_by_too_few_runs() {
        assert_eq!(verdict(counts(1000, 0), counts(19, 19)), None);
    }

    #[test]
    fn a_canary_that_fails_more_often_has_failed() {
        assert!(verdict(counts(1000, 0), counts(20, 20)).is_some());
        assert!(verdict(counts(1000, 10), counts(200, 40)).is_some());
        assert!(verdict(counts(0, 0), counts(30, 30)).is_some());
        let reason = verdict(counts(180, 1), counts(20, 15)).unwrap();
        assert_eq!(
            reason,
            "15 of 20 attempts of the canary failed, and 1 of 180 of the old version"
        );
    }
}

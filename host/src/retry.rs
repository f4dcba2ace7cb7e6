//! Path 1, step 8: outcome, attempt and policy to [`Settlement`]. Pure.

use std::time::Duration;

use crate::outcome::{Cause, Failure, Outcome};

/// How often, and after how long, a failed job is run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first one included; at least 1.
    pub max_attempts: u32,
    /// Upper bound of the wait after the first failure.
    pub initial_backoff: Duration,
    /// Ceiling of the wait.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    /// Five attempts; waits of up to 5 s, 10 s, 20 s, 40 s, never over 15 min.
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_backoff: Duration::from_secs(5),
            max_backoff: Duration::from_secs(900),
        }
    }
}

impl RetryPolicy {
    /// The longest that the wait after `failures` failures can be.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.initial_backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }

    /// The wait after `failures` failures, drawn evenly from zero to [`Self::ceiling`] by
    /// `random`, a number from 0.0 to 1.0 (full jitter: the clients of a service that failed
    /// together do not come back together).
    #[must_use]
    pub fn backoff(&self, failures: u32, random: f64) -> Duration {
        self.ceiling(failures).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// What becomes of the message, and of the job's row with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The job is done: store the result, delete the message.
    Delete,
    /// The job runs again after this time: its message returns, or is parked and sent again.
    RetryIn(Duration),
    /// The job failed for good: into the dead list, then delete the message.
    DeadLetter,
    /// The job was cancelled: delete the message.
    Cancel,
    /// The attempt did not count: give the message back at once.
    Release,
    /// Another attempt owns the job: touch nothing.
    Abandon,
}

impl Settlement {
    /// How long the message stays away before it comes again, if it comes again.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::RetryIn(wait) => Some(*wait),
            Self::Release => Some(Duration::ZERO),
            Self::Delete | Self::DeadLetter | Self::Cancel | Self::Abandon => None,
        }
    }
}

/// Decides what becomes of a message.
///
/// `spent` is how many attempts the job has spent before this one; `random`, from 0.0 to 1.0,
/// draws the jitter.
#[must_use]
pub fn settle(outcome: &Outcome, spent: u32, policy: &RetryPolicy, random: f64) -> Settlement {
    match outcome {
        Outcome::Success(_) => Settlement::Delete,
        Outcome::Failed(failure) => settle_failure(failure, spent, policy, random),
        Outcome::Interrupted => Settlement::Release,
        Outcome::Cancelled => Settlement::Cancel,
        Outcome::LeaseLost => Settlement::Abandon,
    }
}

/// What becomes of the message of an attempt that failed.
#[must_use]
pub fn settle_failure(
    failure: &Failure,
    spent: u32,
    policy: &RetryPolicy,
    random: f64,
) -> Settlement {
    match failure.cause {
        Cause::RetryAfter(wait) => Settlement::RetryIn(wait),
        Cause::Permanent => Settlement::DeadLetter,
        Cause::Transient | Cause::Trap | Cause::Timeout | Cause::OutOfMemory => {
            let failures = spent.saturating_add(1);
            if failures >= policy.max_attempts {
                Settlement::DeadLetter
            } else {
                Settlement::RetryIn(policy.backoff(failures, random))
            }
        }
    }
}

/// Whether an attempt that ended so counts against the policy's `max_attempts`.
#[must_use]
pub const fn spends_attempt(outcome: &Outcome) -> bool {
    !matches!(
        outcome,
        Outcome::Failed(Failure { cause: Cause::RetryAfter(_), .. })
            | Outcome::Interrupted
            | Outcome::LeaseLost
    )
}

/// How long a malformed message for which there is no space stays away before it is looked at
/// again: 5 s, then twice as long with each receipt, up to 5 minutes.
#[must_use]
pub fn malformed_delay(receive_count: u32) -> Duration {
    let doublings = receive_count.saturating_sub(1).min(6);
    Duration::from_secs((5u64 << doublings).min(300))
}

/// How long a message whose job nobody has held for `age` stays away before it is looked at
/// again: as long again, from 5 s up to 5 minutes, so that a deploy can catch up. Its receipts
/// tell nothing of that: it may have had some for other reasons, and they begin anew when it is
/// sent again.
#[must_use]
pub fn unknown_job_delay(age: Duration) -> Duration {
    age.clamp(Duration::from_secs(5), Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Stage;

    fn failed(cause: Cause) -> Outcome {
        Outcome::Failed(Failure {
            cause,
            stage: Stage::Run,
            message: String::new(),
            backtrace: None,
        })
    }

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        initial_backoff: Duration::from_secs(4),
        max_backoff: Duration::from_secs(6),
    };

    #[test]
    fn a_success_deletes_the_message() {
        assert_eq!(settle(&Outcome::Success(None), 0, &POLICY, 1.0), Settlement::Delete);
    }

    #[test]
    fn a_failure_that_may_pass_comes_again_after_the_backoff() {
        for cause in [Cause::Transient, Cause::Trap, Cause::Timeout, Cause::OutOfMemory] {
            let outcome = failed(cause);
            let settled = |spent| settle(&outcome, spent, &POLICY, 0.5);
            assert_eq!(settled(0), Settlement::RetryIn(Duration::from_secs(2)), "{cause:?}");
            assert_eq!(settled(1), Settlement::RetryIn(Duration::from_secs(3)), "{cause:?}");
            assert!(spends_attempt(&outcome));
        }
    }

    #[test]
    fn the_last_attempt_goes_to_the_dead_letter_queue() {
        assert_eq!(settle(&failed(Cause::Transient), 2, &POLICY, 0.5), Settlement::DeadLetter);
        let once = RetryPolicy { max_attempts: 1, ..POLICY };
        for spent in [0, 7] {
            assert_eq!(settle(&failed(Cause::Trap), spent, &once, 0.5), Settlement::DeadLetter);
        }
    }

    #[test]
    fn a_permanent_failure_is_not_tried_again() {
        assert_eq!(settle(&failed(Cause::Permanent), 0, &POLICY, 0.5), Settlement::DeadLetter);
    }

    #[test]
    fn retry_after_spends_no_attempt_even_when_none_is_left() {
        let wait = Duration::from_secs(77);
        let outcome = failed(Cause::RetryAfter(wait));
        assert_eq!(settle(&outcome, 99, &POLICY, 0.5), Settlement::RetryIn(wait));
        assert!(!spends_attempt(&outcome));
    }

    #[test]
    fn an_interrupted_attempt_does_not_count() {
        assert!(!spends_attempt(&Outcome::Interrupted));
        assert_eq!(settle(&Outcome::Interrupted, 0, &POLICY, 0.5), Settlement::Release);
        assert_eq!(settle(&Outcome::LeaseLost, 0, &POLICY, 0.5), Settlement::Abandon);
    }

    #[test]
    fn a_cancelled_attempt_counts_and_its_message_goes() {
        assert!(spends_attempt(&Outcome::Cancelled));
        assert_eq!(settle(&Outcome::Cancelled, 0, &POLICY, 0.5), Settlement::Cancel);
    }

    #[test]
    fn only_a_message_that_comes_again_has_a_wait() {
        let wait = Duration::from_secs(77);
        assert_eq!(Settlement::RetryIn(wait).wait(), Some(wait));
        assert_eq!(Settlement::Release.wait(), Some(Duration::ZERO));
        for gone in
            [Settlement::Delete, Settlement::DeadLetter, Settlement::Cancel, Settlement::Abandon]
        {
            assert_eq!(gone.wait(), None, "{gone:?}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_the_ceiling_and_never_overflows() {
        let policy = RetryPolicy::default();
        let seconds: Vec<u64> = (1..=9).map(|n| policy.ceiling(n).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 320, 640, 900]);
        assert_eq!(policy.ceiling(u32::MAX), Duration::from_secs(900));
        assert_eq!(policy.backoff(1, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_delays_of_unknown_jobs_and_of_malformed_messages_grow() {
        let seconds: Vec<u64> = (0..=8).map(|n| malformed_delay(n).as_secs()).collect();
        assert_eq!(seconds, [5, 5, 10, 20, 40, 80, 160, 300, 300]);
        let of_age = |secs| unknown_job_delay(Duration::from_secs(secs)).as_secs();
        assert_eq!([0, 77, 3600].map(of_age), [5, 77, 300]);
    }
}

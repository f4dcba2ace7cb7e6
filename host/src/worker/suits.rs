//! Whether a queue's own limits suit the jobs that come from it. Pure.

use std::time::Duration;

use crate::broker::Queue;

/// What a worker's jobs ask of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demands {
    /// Most attempts that a job of the queue may have.
    pub(super) max_attempts: u32,
    /// Longest wait before a retry.
    pub(super) max_backoff: Duration,
    /// How long a message is held at a time.
    pub(super) lease: Duration,
}

/// Message size that SQS has allowed for long; less hinders producers for no gain.
const USUAL_MESSAGE_BYTES: usize = 262_144;
/// A retention below this leaves little time to mend what is broken.
const SHORT_RETENTION: Duration = Duration::from_secs(86_400);

/// What does not suit, a sentence each, with what follows from it.
pub(super) fn misfits(queue: &Queue, demands: &Demands) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(most) = queue.max_receive_count
        && most <= demands.max_attempts
    {
        found.push(format!(
            "its maxReceiveCount is {most} and jobs may have {} attempts: retries beyond it wait in SQL instead of on the queue; set it to {} or more",
            demands.max_attempts,
            demands.max_attempts.saturating_mul(2).max(10)
        ));
    }
    if queue.max_receive_count.is_some_and(|most| most < 3) {
        found.push(
            "with so low a maxReceiveCount a host that dies twice can make SQS dead-letter a job that never failed"
                .to_owned(),
        );
    }
    let needed = demands.max_backoff.saturating_add(demands.lease).max(SHORT_RETENTION);
    if queue.retention < needed {
        found.push(format!(
            "it keeps messages for {} only: a job that waits longer is lost while no worker runs; set MessageRetentionPeriod to 1209600 (14 days)",
            humantime::format_duration(queue.retention)
        ));
    }
    if queue.max_message_bytes < USUAL_MESSAGE_BYTES {
        found.push(format!(
            "it takes messages of {} bytes at most; set MaximumMessageSize to 1048576",
            queue.max_message_bytes
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMANDS: Demands = Demands {
        max_attempts: 5,
        max_backoff: Duration::from_secs(900),
        lease: Duration::from_secs(30),
    };

    fn queue() -> Queue {
        Queue {
            name: "q".into(),
            address: "q".into(),
            is_fifo: false,
            max_receive_count: None,
            dead_letter_queue: None,
            retention: Duration::from_secs(345_600),
            max_message_bytes: 1_048_576,
        }
    }

    #[test]
    fn a_queue_as_sqs_makes_it_suits() {
        assert!(misfits(&queue(), &DEMANDS).is_empty());
        let redriven = Queue { max_receive_count: Some(6), ..queue() };
        assert!(misfits(&redriven, &DEMANDS).is_empty());
    }

    #[test]
    fn each_limit_that_does_not_suit_is_told_with_its_number() {
        for (queue, number) in [
            (Queue { max_receive_count: Some(5), ..queue() }, "maxReceiveCount is 5"),
            (Queue { retention: Duration::from_secs(600), ..queue() }, "10m"),
            (Queue { max_message_bytes: 1024, ..queue() }, "1024 bytes"),
        ] {
            let found = misfits(&queue, &DEMANDS);
            assert!(found.len() == 1 && found[0].contains(number), "{number}: {found:?}");
        }
    }
}

//! Processor time of an attempt. A busy guest yields at every epoch tick, so its time is known,
//! and the limit is checked, at least that often.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Processor time that an attempt has used so far.
#[derive(Debug, Default)]
pub(super) struct CpuTime(AtomicU64);

impl CpuTime {
    pub(super) fn used(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// The attempt used more processor time than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfCpu;

/// A future whose processor time is measured and limited.
pub(super) struct Metered<'a, F> {
    future: Pin<Box<F>>,
    limit: Duration,
    time: &'a CpuTime,
}

impl<'a, F: Future> Metered<'a, F> {
    pub(super) fn new(future: F, limit: Option<Duration>, time: &'a CpuTime) -> Self {
        Self { future: Box::pin(future), limit: limit.unwrap_or(Duration::MAX), time }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = Result<F::Output, OutOfCpu>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let begun = thread_time();
        let polled = self.future.as_mut().poll(context);
        self.time.add(thread_time().saturating_sub(begun));
        match polled {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending if self.time.used() > self.limit => Poll::Ready(Err(OutOfCpu)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Processor time of this thread: one poll runs on one thread from its beginning to its end.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn busy_turns(turns: u32) {
        for _ in 0..turns {
            let begun = thread_time();
            while thread_time().saturating_sub(begun) < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_busy_future_ends_at_its_limit_and_an_idle_one_does_not() {
        let time = CpuTime::default();
        let limit = Some(Duration::from_millis(10));
        assert_eq!(Metered::new(busy_turns(1000), limit, &time).await, Err(OutOfCpu));
        assert!(time.used() > Duration::from_millis(10));

        let time = CpuTime::default();
        assert_eq!(Metered::new(busy_turns(1), limit, &time).await, Ok(()));
        let idle = tokio::time::sleep(Duration::from_millis(30));
        assert_eq!(Metered::new(idle, limit, &time).await, Ok(()));
    }
}

//! Fresh sandboxed attempts, one after the other.

use std::time::Instant;

use sqjobs::outcome::Outcome;
use sqjobs::sandbox::limits::Limits;

use crate::figures::tell;
use crate::sandboxed::{Sandboxed, call};

/// Every stage of the adder, each attempt in a fresh instance, one after the other.
pub(crate) fn attempt(module: &str, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandboxed = Sandboxed::load(module).await;
        let call = call("adder_job", "[1, 2, 3, 4]", Limits::default());
        let mut times = Vec::with_capacity(count);
        for turn in 0..count + count / 10 {
            let begun = Instant::now();
            let execution = sandboxed.attempt(&call).await;
            assert_eq!(execution.outcome, Outcome::Success(Some("10".into())));
            if turn >= count / 10 {
                times.push(begun.elapsed());
            }
        }
        tell("fresh attempt, all stages", times);
    });
}

//! Fresh sandboxed attempts, one after the other.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sqjobs::outcome::Outcome;
use sqjobs::registry::cache::Cache;
use sqjobs::registry::load::Loader;
use sqjobs::retry::RetryPolicy;
use sqjobs::sandbox::limits::Limits;
use sqjobs::sandbox::{Call, Sandbox, Watch};

use crate::figures::tell;

/// Every stage of the adder, each attempt in a fresh instance, one after the other.
pub(crate) fn attempt(module: &str, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = Arc::new(Sandbox::new(64).unwrap());
        let loader = Loader::new(sandbox.clone(), Cache::new(None));
        let module = loader.load(Path::new(module)).await.unwrap();
        let call = Call {
            job_id: "00000000-0000-4000-8000-000000000001".into(),
            job: "adder_job".into(),
            module: "adder".into(),
            queue: String::new(),
            address: String::new(),
            attempt: 1,
            spent: 0,
            enqueued_at: None,
            schedule: None,
            generation: 0,
            args: "[1, 2, 3, 4]".into(),
            kwargs: "{}".into(),
            limits: Limits::default(),
            grants: Arc::default(),
            policy: RetryPolicy::default(),
            unique: Arc::default(),
        };
        let mut times = Vec::with_capacity(count);
        for turn in 0..count + count / 10 {
            let begun = Instant::now();
            let execution = sandbox.execute(&module.prepared, &call, None, Watch::none()).await;
            assert_eq!(execution.outcome, Outcome::Success(Some("10".into())));
            if turn >= count / 10 {
                times.push(begun.elapsed());
            }
        }
        tell("fresh attempt, all stages", times);
    });
}

//! A sandbox in this process, as a worker has one, for measurements of single attempts.

use std::path::Path;
use std::sync::Arc;

use sqjobs::registry::cache::Cache;
use sqjobs::registry::load::{Loader, Module};
use sqjobs::retry::RetryPolicy;
use sqjobs::sandbox::limits::Limits;
use sqjobs::sandbox::{Call, Execution, Sandbox, Watch};

/// A sandbox and one module.
pub(crate) struct Sandboxed {
    sandbox: Sandbox,
    module: Module,
}

impl Sandboxed {
    pub(crate) async fn load(module: &str) -> Self {
        let sandbox = Arc::new(Sandbox::new(64).unwrap());
        let loader = Loader::new(sandbox.clone(), Cache::new(None));
        let module = loader.load(Path::new(module)).await.unwrap();
        drop(loader);
        let sandbox = Arc::into_inner(sandbox).unwrap();
        Self { sandbox, module }
    }

    /// Runs one attempt of a job in a fresh instance, all its stages.
    pub(crate) async fn attempt(&self, call: &Call) -> Execution {
        self.sandbox.execute(&self.module.prepared, call, None, Watch::none()).await
    }
}

/// A first attempt of a job, with nothing granted.
pub(crate) fn call(job: &str, args: &str, limits: Limits) -> Call {
    Call {
        job_id: "00000000-0000-4000-8000-000000000001".into(),
        job: job.into(),
        module: "module".into(),
        queue: String::new(),
        address: String::new(),
        attempt: 1,
        spent: 0,
        enqueued_at: None,
        schedule: None,
        generation: 0,
        args: args.into(),
        kwargs: "{}".into(),
        limits,
        grants: Arc::default(),
        policy: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() },
        unique: Arc::default(),
    }
}

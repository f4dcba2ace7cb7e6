//! `add-job`: further jobs from within a job.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::MAX_AHEAD;
use crate::json;
use crate::payload::{Job, MAX_ID_BYTES, MAX_NAME_BYTES, check_group, check_text};
use crate::sandbox::bindings::sqjobs::job::add_job::{Error, Host, Request};
use crate::sandbox::context::AttemptContext;
use crate::store::enqueue::{Enqueued, NewJob};

impl Host for AttemptContext {
    async fn add(&mut self, request: Request) -> wasmtime::Result<Result<String, Error>> {
        Ok(self.add_child(request).await)
    }
}

impl AttemptContext {
    async fn add_child(&mut self, request: Request) -> Result<String, Error> {
        let ordinal = self.adds;
        if ordinal >= self.limits.added_jobs {
            let limit = self.limits.added_jobs;
            return Err(Error::Limit(format!("an attempt may add {limit} jobs")));
        }
        let is_at_once = request.at_once;
        let child = self.child(request, ordinal)?;
        let id = child.job.id.clone();
        self.adds += 1;
        match &self.outlet {
            Some(outlet) if is_at_once => match outlet.add(&child).await {
                Ok(Enqueued::Added { .. } | Enqueued::Existing) => {}
                Ok(Enqueued::Conflict) => {
                    let reason = "the derived id belongs to a job with other arguments: an \
                                  attempt must add its jobs in the same order each time";
                    return Err(Error::Invalid(reason.into()));
                }
                Err(error) => return Err(Error::Unavailable(error.to_string())),
            },
            _ => self.added.push(child),
        }
        Ok(id)
    }

    /// The job that a request asks for, with an id that derives from the parent's and the number
    /// of the call, so that an attempt that is repeated doubles nothing.
    fn child(&self, request: Request, ordinal: usize) -> Result<NewJob, Error> {
        let invalid = |reason: String| Error::Invalid(reason);
        check_text("name", &request.name, MAX_NAME_BYTES).map_err(|e| invalid(e.to_string()))?;
        let args = json::check_array(&request.args).map_err(|e| invalid(format!("args: {e}")))?;
        let kwargs =
            json::check_object(&request.kwargs).map_err(|e| invalid(format!("kwargs: {e}")))?;
        if let Some(group) = &request.group {
            check_group(group).map_err(|e| invalid(e.to_string()))?;
        }
        if request.unique_key.is_some() || request.unique_for_ms.is_some() {
            return Err(invalid("this host does not know unique keys".into()));
        }
        let delay = request.delay_ms.map(Duration::from_millis);
        if delay.is_some_and(|delay| delay > MAX_AHEAD) {
            let days = MAX_AHEAD.as_secs() / 86_400;
            return Err(invalid(format!("the delay is over the limit of {days} days")));
        }
        let queue = request.queue.unwrap_or_else(|| self.label.queue.clone());
        if queue != self.label.queue && !self.grants.allows_add(&queue, &request.name) {
            return Err(Error::Denied(format!(
                "queue `{queue}` is not the job's own (`{}`); to grant it, add `{queue}` to `add-job-queues`, or `{}` to `add-job-names`, in {}",
                self.label.queue, request.name, self.grants.place
            )));
        }
        let generation = self.label.generation.saturating_add(1);
        if generation > self.max_generation {
            let most = self.max_generation;
            return Err(Error::Limit(format!("a chain of added jobs ends after {most} of them")));
        }
        let parent = &self.label.job_id;
        debug_assert!(parent.len() <= MAX_ID_BYTES);
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{parent}#{ordinal}").as_bytes());
        let now = crate::clock::Clock::system().now();
        Ok(NewJob {
            job: Job {
                id: id.to_string(),
                name: request.name,
                args: args.to_owned(),
                kwargs: kwargs.to_owned(),
                enqueued_at: Some(now),
                is_tracked: true,
                is_revived: false,
            },
            queue,
            queue_url: Some(self.label.address.clone()).filter(|url| url.contains("://")),
            group: request.group,
            not_before: delay.map(|delay| now.after(delay)),
            parent_id: Some(parent.clone()),
            generation,
        })
    }
}

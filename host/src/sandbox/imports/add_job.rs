//! `add-job`: further jobs from within a job.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::MAX_AHEAD;
use crate::json;
use crate::payload::{Job, MAX_ID_BYTES, MAX_NAME_BYTES, check_group, check_text};
use crate::sandbox::bindings::sqjobs::job::add_job::{Error, Host, Request};
use crate::sandbox::context::AttemptContext;
use crate::store::enqueue::{Enqueued, NewJob, Start};
use crate::store::unique::UniqueRule;

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
        let mut child = self.child(request, ordinal)?;
        let id = child.job.id.clone();
        // Counted also when another job holds its key, so that the next one's id is the same in
        // each attempt.
        self.adds += 1;
        if child.unique.is_none() {
            child.unique = self.described(&child.job.name).await?;
        }
        if let Some(rule) = &child.unique
            && let Some(holder) = self.holder(rule, &child.job).await?
        {
            return Ok(holder);
        }
        match &self.outlet {
            Some(outlet) if is_at_once => match outlet.add(&child).await {
                Ok(Enqueued::Added { .. } | Enqueued::Existing) => {}
                Ok(Enqueued::Held(holder)) => return Ok(holder),
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

    /// What a job describes as unique: by this host's modules, or by those of the workers that
    /// serve it. Both take `&mut self` since a context can't be shared between threads.
    async fn described(&mut self, name: &str) -> Result<Option<UniqueRule>, Error> {
        if let Some(rule) = self.unique.get(name) {
            return Ok(rule.clone());
        }
        let Some(outlet) = &self.outlet else { return Ok(None) };
        let described = outlet.described_unique(name).await;
        described.map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// The other job that holds a child's key: one that this attempt has added, or one that is
    /// in the database. The transaction that stores the outcome decides once more.
    async fn holder(&mut self, rule: &UniqueRule, job: &Job) -> Result<Option<String>, Error> {
        let key = rule.key(job);
        let is_holder =
            |added: &&NewJob| added.unique.as_ref().is_some_and(|rule| rule.key(&added.job) == key);
        if let Some(added) = self.added.iter().find(is_holder) {
            return Ok(Some(added.job.id.clone()));
        }
        let Some(outlet) = &self.outlet else { return Ok(None) };
        let holder = outlet.key_holder(&key).await;
        let holder = holder.map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(holder.filter(|id| *id != job.id))
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
        let window = Duration::from_millis(request.unique_for_ms.unwrap_or(0));
        if window > MAX_AHEAD {
            let days = MAX_AHEAD.as_secs() / 86_400;
            return Err(invalid(format!("the unique window is over the limit of {days} days")));
        }
        let unique = match &request.unique_key {
            Some(key) => Some(UniqueRule::named(key, window).map_err(|e| invalid(e.to_string()))?),
            None if request.unique_for_ms.is_some() => {
                return Err(invalid("a unique window needs a unique key".into()));
            }
            None => None,
        };
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
        if generation > self.limits.generations {
            let most = self.limits.generations;
            return Err(Error::Limit(format!(
                "a chain of added jobs ends after {most} generations; the operator's \
                 `max-generations` allows more"
            )));
        }
        let parent = &self.label.job_id;
        debug_assert!(parent.len() <= MAX_ID_BYTES);
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{parent}#{ordinal}").as_bytes());
        let now = crate::clock::Clock::system().now();
        let (queue, queue_url) = match queue.rsplit_once('/') {
            _ if queue == self.label.queue => (queue, Some(self.label.address.clone())),
            Some((_, name)) if queue.contains("://") => (name.to_owned(), Some(queue.clone())),
            _ => (queue, None),
        };
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
            queue_url: queue_url.filter(|url| url.contains("://")),
            group: request.group,
            start: delay.map_or(Start::Now, Start::After),
            parent_id: Some(parent.clone()),
            generation,
            unique,
        })
    }
}

//! Adding jobs: the [`Client`] behind `sqjobs-host add`, for Rust programs too.

mod request;
mod within;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Attributes, Broker, BrokerError, EntryError, message_bytes};
use crate::clock::{Clock, MAX_AHEAD};
use crate::eager::{Eager, EagerError};
use crate::failpoint;
use crate::json::JsonError;
use crate::payload::{self, Job, MAX_NAME_BYTES};
use crate::sender::Sender;
use crate::store::enqueue::{Enqueued, NewJob, Start};
use crate::store::modules::DeployedJob;
use crate::store::outbox::OutboxRow;
use crate::store::unique::UniqueRule;
use crate::store::{Store, StoreError};

pub use request::JobRequest;

/// Why a job was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Name, id or group is not well formed.
    #[error("cannot add the job: {0}")]
    Invalid(#[from] payload::Malformed),
    /// The arguments are not JSON of the right kind.
    #[error("cannot add the job: {what}: {source}")]
    Arguments {
        /// `args` or `kwargs`.
        what: &'static str,
        /// What is wrong with them.
        source: JsonError,
    },
    /// No queue was named, and none is known for the job.
    #[error(
        "no deployed job is called `{job}`, so its queue is not known; name one with --queue, or deploy the job first"
    )]
    NoQueue {
        /// The job's name.
        job: String,
    },
    /// The job's module names no queue, and neither did the caller.
    #[error("the job `{job}` describes no queue; name one with --queue")]
    NoDefaultQueue {
        /// The job's name.
        job: String,
    },
    /// The id is known with another job or other arguments.
    #[error("the id `{id}` belongs to another job, or to the same with other arguments")]
    IdConflict {
        /// The id.
        id: String,
    },
    /// The message would be larger than the queue takes.
    #[error(
        "the message has {size} bytes and queue `{queue}` takes {limit}; store the data elsewhere and pass where it is"
    )]
    TooLarge {
        /// Bytes of the message.
        size: usize,
        /// The queue's limit in bytes.
        limit: usize,
        /// The queue.
        queue: String,
    },
    /// The delay or the unique window is longer than can be planned.
    #[error(
        "cannot add the job: its delay or unique window is over the limit of {} days", MAX_AHEAD.as_secs() / 86_400
    )]
    TooFarAhead,
    /// The queue will never take the message.
    #[error(
        "job `{id}` can't be sent to queue `{queue}`: {error}; it is in the dead list, see `sqjobs-host dead show {id}`"
    )]
    Undeliverable {
        /// The job's id.
        id: String,
        /// The queue.
        queue: String,
        /// What the queue said.
        error: EntryError,
    },
    /// An eager client has no database, so there is no transaction to add a job in.
    #[error("an eager client can't add a job within a transaction: it has no database")]
    NoTransaction,
    /// The broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The eager run could not begin.
    #[error(transparent)]
    Eager(#[from] EagerError),
}

/// What is known of a job when it is added.
#[derive(Debug, Clone, Default)]
pub struct KnownJob {
    /// The queue that it describes.
    pub queue: Option<String>,
    /// Whether it records its result.
    pub records_result: bool,
    /// Which calls of it count as the same.
    pub unique: Option<UniqueRule>,
}

impl From<DeployedJob> for KnownJob {
    fn from(job: DeployedJob) -> Self {
        let unique = UniqueRule::of_description(&job.description);
        Self { queue: job.queue, records_result: job.records_result, unique }
    }
}

/// What became of an added job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The job's id; that of another one which holds its unique key, if one does.
    pub id: String,
    /// Whether the job was there already, so that nothing was added.
    pub is_existing: bool,
    /// Whether the job records its result, so that it can be waited for.
    pub records_result: bool,
    /// The JSON text of the result, where the job has run already (eager).
    pub result: Option<String>,
    /// Why its message could not be sent at once: it waits in the database until a worker can
    /// send it.
    pub unsent: Option<String>,
}

/// Adds jobs.
#[derive(Clone)]
pub struct Client {
    door: Door,
}

#[derive(Clone)]
enum Door {
    Queue { store: Store, sender: Sender },
    Eager(Arc<Eager>),
}

impl Client {
    /// A client that keeps its jobs in `store` and sends them by `broker`.
    #[must_use]
    pub fn new(store: Store, broker: Arc<dyn Broker>) -> Self {
        let sender = Sender::new(store.clone(), broker);
        Self { door: Door::Queue { store, sender } }
    }

    /// A client that runs each job at once in this process, with neither queue nor database: for
    /// tests and small tools. The same `add`, the same life cycle.
    #[must_use]
    pub fn eager(eager: Eager) -> Self {
        Self { door: Door::Eager(Arc::new(eager)) }
    }

    /// Adds a job and tells its id. What is known of deployed jobs comes from the database.
    ///
    /// # Errors
    /// The request is not well formed, no queue is known, or queue or database failed. When the
    /// queue can't be reached for the moment the job is added all the same, and sent by the
    /// sweep of any worker.
    pub async fn add(&self, request: JobRequest) -> Result<Added, AddError> {
        let known = match &self.door {
            Door::Queue { store, .. } => {
                store.deployed_job(&request.name).await?.map(KnownJob::from)
            }
            Door::Eager(_) => None,
        };
        self.add_known(request, known).await
    }

    /// Adds a job of which this is known, as [`Self::add`].
    ///
    /// # Errors
    /// As [`Self::add`].
    pub async fn add_known(
        &self,
        request: JobRequest,
        known: Option<KnownJob>,
    ) -> Result<Added, AddError> {
        let id = match request.id {
            Some(id) => {
                payload::check_id(&id)?;
                id
            }
            None => uuid::Uuid::new_v4().to_string(),
        };
        payload::check_text("name", &request.name, MAX_NAME_BYTES)?;
        if let Some(group) = &request.group {
            payload::check_group(group)?;
        }
        let now = Clock::system().now();
        let mut job = Job {
            id,
            name: request.name,
            args: request.args,
            kwargs: request.kwargs,
            enqueued_at: Some(now),
            is_tracked: false,
            is_revived: false,
        };
        let (store, sender) = match &self.door {
            Door::Eager(eager) => return run_eagerly(eager, &job).await,
            Door::Queue { store, sender } => (store, sender),
        };
        let queue = match (request.queue, &known) {
            (Some(queue), _) => queue,
            (None, Some(known)) => match &known.queue {
                Some(queue) => queue.clone(),
                None => return Err(AddError::NoDefaultQueue { job: job.name }),
            },
            (None, None) => return Err(AddError::NoQueue { job: job.name }),
        };
        let delay = request.at.map_or(request.delay, |instant| instant.since(now));
        let unique = request.unique.or(known.as_ref().and_then(|known| known.unique.clone()));
        let window = unique.as_ref().map_or(Duration::ZERO, |rule| rule.window);
        if delay > MAX_AHEAD || window > MAX_AHEAD {
            return Err(AddError::TooFarAhead);
        }
        let start = match request.at {
            _ if delay.is_zero() => Start::Now,
            Some(instant) => Start::At(instant),
            None => Start::After(delay),
        };
        // Whatever we add has a row, by which it is known and sent: `record = false` drops only
        // the result.
        job.is_tracked = true;
        let records_result = known.is_none_or(|known| known.records_result);
        let (queue, queue_url) = match queue.rsplit_once('/') {
            Some((_, name)) if queue.contains("://") => (name.to_owned(), Some(queue.clone())),
            _ => (queue, None),
        };
        let new = NewJob {
            job,
            queue,
            queue_url,
            group: request.group,
            start,
            parent_id: None,
            generation: 0,
            unique,
        };
        let is_sent_by_sweep = check_queue(sender, &new, delay).await?;
        let door = (store, sender);
        enqueue(door, new, delay, records_result, is_sent_by_sweep).await
    }
}

/// What the broker knows the queue by.
fn address(new: &NewJob) -> &str {
    new.queue_url.as_ref().unwrap_or(&new.queue)
}

/// Refuses what the queue would refuse, before anything is written, and tells whether the job is
/// left to the sweep. A queue that can't be asked now is no reason to refuse a job.
async fn check_queue(sender: &Sender, new: &NewJob, delay: Duration) -> Result<bool, AddError> {
    let queue = match sender.queue(address(new)).await {
        Ok(queue) => queue,
        Err(error) if error.is_transient() => return Ok(!delay.is_zero()),
        Err(error) => return Err(error.into()),
    };
    let (body, attributes) = payload::outgoing(&new.job, &Attributes::new());
    let size = message_bytes(&body, &attributes);
    if size > queue.max_message_bytes {
        let limit = queue.max_message_bytes;
        return Err(AddError::TooLarge { size, limit, queue: queue.name });
    }
    Ok(!queue.can_hold_back(delay))
}

/// Writes the job's row and its outbox row, then sends it at once, unless it has to wait there.
/// If the sending fails or this process dies, the sweep of any worker sends it.
async fn enqueue(
    (store, sender): (&Store, &Sender),
    new: NewJob,
    delay: Duration,
    records_result: bool,
    is_sent_by_sweep: bool,
) -> Result<Added, AddError> {
    let added = |id: &str, is_existing| Added {
        id: id.to_owned(),
        is_existing,
        records_result,
        result: None,
        unsent: None,
    };
    let id = new.job.id.as_str();
    let due = Instant::now().checked_add(delay).filter(|_| !delay.is_zero());
    let enqueued = match is_sent_by_sweep {
        true => store.enqueue_for_sweep(&new).await?,
        false => store.enqueue(&new).await?,
    };
    let outbox_id = match enqueued {
        Enqueued::Existing => return Ok(added(id, true)),
        Enqueued::Held(holder) => return Ok(added(&holder, true)),
        Enqueued::Conflict => return Err(AddError::IdConflict { id: new.job.id }),
        Enqueued::Added { is_next: false, .. } => return Ok(added(id, false)),
        Enqueued::Added { outbox_id, is_next: true } => outbox_id,
    };
    failpoint::reach("outbox-added", &new.job.name);
    if is_sent_by_sweep {
        return Ok(added(id, false));
    }
    let row = OutboxRow {
        id: outbox_id,
        job: new.job.clone(),
        queue: address(&new).to_owned(),
        group: new.group.clone(),
        due,
        send_number: 1,
        attributes: Attributes::new(),
        body: None,
        aside: None,
        tries: 0,
    };
    let refused = sender.send_rows(address(&new), std::slice::from_ref(&row)).await?;
    if let Some((_, error)) = refused.into_iter().next() {
        return Err(AddError::Undeliverable { id: new.job.id, queue: new.queue, error });
    }
    let unsent = sender.why_unsent(address(&new));
    Ok(Added { unsent, ..added(id, false) })
}

async fn run_eagerly(eager: &Eager, job: &Job) -> Result<Added, AddError> {
    let execution = eager.run(job).await?;
    match execution.outcome {
        crate::outcome::Outcome::Success(result) => Ok(Added {
            id: job.id.clone(),
            is_existing: false,
            records_result: true,
            result,
            unsent: None,
        }),
        crate::outcome::Outcome::Failed(failure) => Err(EagerError::Failed(failure).into()),
        _ => Err(EagerError::Stopped.into()),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::broker::{
        Delivery, Depth, EntryResults, NewQueue, OutgoingMessage, Queue, Receipt, ReceiveOptions,
    };
    use crate::store::Database;

    /// A broker that knows each queue and takes no message.
    struct Refusing;

    #[async_trait]
    impl Broker for Refusing {
        fn can_drop_receives(&self) -> bool {
            true
        }

        fn label(&self) -> String {
            "a broker that refuses".into()
        }
        fn shares_file_with(&self, _: &str) -> bool {
            false
        }
        async fn queue(&self, name: &str) -> Result<Queue, BrokerError> {
            Ok(Queue {
                name: name.into(),
                address: name.into(),
                is_fifo: false,
                max_receive_count: None,
                dead_letter_queue: None,
                retention: Duration::from_secs(60),
                max_message_bytes: 1024,
            })
        }
        async fn send(
            &self,
            _: &Queue,
            messages: &[OutgoingMessage],
        ) -> Result<EntryResults<String>, BrokerError> {
            Ok(messages.iter().map(|_| Err(EntryError::Refused("not this one".into()))).collect())
        }
        async fn receive(
            &self,
            _: &Queue,
            _: ReceiveOptions,
        ) -> Result<Vec<Delivery>, BrokerError> {
            unreachable!("an adder receives nothing")
        }
        async fn delete(&self, _: &Queue, _: &[Receipt]) -> Result<EntryResults<()>, BrokerError> {
            unreachable!("an adder deletes nothing")
        }
        async fn set_visibility(
            &self,
            _: &Queue,
            _: &[(Receipt, u32)],
        ) -> Result<EntryResults<()>, BrokerError> {
            unreachable!("an adder holds nothing")
        }
        async fn depth(&self, _: &Queue) -> Result<Depth, BrokerError> {
            unreachable!("an adder counts nothing")
        }
        async fn create(&self, _: &NewQueue) -> Result<Queue, BrokerError> {
            unreachable!("an adder creates nothing")
        }
        async fn list(&self) -> Result<Vec<String>, BrokerError> {
            unreachable!("an adder lists nothing")
        }
        async fn purge(&self, _: &Queue) -> Result<(), BrokerError> {
            unreachable!("an adder purges nothing")
        }
    }

    #[tokio::test]
    async fn a_job_that_the_queue_refuses_for_good_is_an_error_and_in_the_dead_list() {
        let folder = std::env::temp_dir().join(format!("sqjobs-client-{}", uuid::Uuid::new_v4()));
        let path = folder.join("x.db");
        let store = Store::open(&Database::Sqlite { path, is_durable: false }).await.expect("open");
        store.migrate().await.expect("a schema");
        let client = Client::new(store.clone(), Arc::new(Refusing));
        let request = JobRequest::new("adder_job").queue("q").id("refused");
        let error = client.add(request).await.expect_err("refused").to_string();
        assert!(error.contains("not this one") && error.contains("dead list"), "{error}");
        let dead = store.dead("refused").await.expect("a call").expect("an entry");
        assert_eq!(dead.kind, "undeliverable");
        store.close().await;
        let _ = std::fs::remove_dir_all(folder);
    }
}

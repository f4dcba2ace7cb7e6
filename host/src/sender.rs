//! Sends what the outbox holds, from every worker: each row once it is due, again until the
//! broker has taken it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{
    Attributes, Broker, BrokerError, EntryError, EntryResults, MAX_BATCH, MAX_DELAY_SECS,
    OutgoingMessage, Queue, is_message_group, message_bytes,
};
use crate::failpoint;
use crate::outage::{Backoff, Outage, chain};
use crate::payload;
use crate::store::dead::{DeadKind, DeadMessage};
use crate::store::enqueue::{Enqueued, NewJob};
use crate::store::outbox::OutboxRow;
use crate::store::unique::UniqueRule;
use crate::store::{Store, StoreError};
use crate::text::printable;

/// Rows taken at once.
const TAKE: u32 = 100;
/// How often the outbox is looked at when nobody says that there is something in it.
const PAUSE: Duration = Duration::from_secs(1);

/// Sends rows of the outbox. Clones share what is known of queues.
#[derive(Clone)]
pub struct Sender {
    store: Store,
    broker: Arc<dyn Broker>,
    queues: Arc<Mutex<BTreeMap<String, Queue>>>,
    wake: Arc<Notify>,
    closed: Arc<std::sync::Mutex<BTreeMap<String, Closed>>>,
}

/// A queue to which a whole call has failed. Nothing is taken for it before it is tried again, so
/// that its rows, however many, do not stand before those of other queues.
#[derive(Debug, Default)]
struct Closed {
    until: Option<Instant>,
    reason: String,
    backoff: Backoff,
}

impl Sender {
    /// A sender from this database to this broker.
    #[must_use]
    pub fn new(store: Store, broker: Arc<dyn Broker>) -> Self {
        let (queues, wake, closed) = (Arc::default(), Arc::default(), Arc::default());
        Self { store, broker, queues, wake, closed }
    }

    /// Says that there is something to send.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Adds a job that is to be sent by the sweep, now.
    ///
    /// # Errors
    /// The database failed; nothing was added.
    pub async fn add(&self, new: &NewJob) -> Result<Enqueued, StoreError> {
        let enqueued = self.store.enqueue_for_sweep(new).await?;
        self.wake();
        Ok(enqueued)
    }

    /// The job that holds a unique key now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn key_holder(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.key_holder(key).await
    }

    /// Which calls of a job count as the same, as the workers that serve it know.
    ///
    /// # Errors
    /// The database failed.
    pub async fn described_unique(&self, job: &str) -> Result<Option<UniqueRule>, StoreError> {
        let deployed = self.store.deployed_job(job).await?;
        Ok(deployed.and_then(|job| UniqueRule::of_description(&job.description)))
    }

    /// Sends what is due until told to stop; then once more, what the last attempts have left.
    /// What was taken is sent and noted before the end, or nobody would send it for a while.
    pub async fn sweep_until(self, stop: CancellationToken) {
        let sweep = self.clone().sweep(stop);
        sweep.await;
        if let Err(error) = self.send_due().await {
            warn!("what the outbox holds is left to other workers: {}", chain(&error));
        }
    }

    async fn sweep(self, stop: CancellationToken) {
        let outage = Outage::new("send what the outbox holds");
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            match self.send_due().await {
                Ok(sent) => {
                    outage.over();
                    backoff = Backoff::default();
                    // What was sent may have held back others of its message group.
                    if sent == 0 {
                        // Woken or not, the outbox is looked at.
                        tokio::select! {
                            () = stop.cancelled() => {}
                            _ = tokio::time::timeout(PAUSE, self.wake.notified()) => {}
                        }
                    }
                }
                Err(error) => {
                    outage.note(&error);
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }

    /// Takes rows that are due and sends them; tells how many were taken.
    async fn send_due(&self) -> Result<usize, StoreError> {
        let rows = self.store.take_outbox_but(TAKE, 0, &self.closed_queues()).await?;
        let taken = rows.len();
        for row in &rows {
            failpoint::reach("outbox-taken", &row.job.name);
        }
        let mut by_queue: BTreeMap<String, Vec<OutboxRow>> = BTreeMap::new();
        for row in rows {
            by_queue.entry(row.queue.clone()).or_default().push(row);
        }
        // Side by side: a queue that answers slowly does not hold the others up.
        let sends = by_queue.iter().map(|(queue, rows)| self.send_to(queue, rows));
        futures_util::future::join_all(sends).await.into_iter().collect::<Result<(), _>>()?;
        Ok(taken)
    }

    async fn send_to(&self, queue: &str, rows: &[OutboxRow]) -> Result<(), StoreError> {
        for (number, batch) in rows.chunks(MAX_BATCH).enumerate() {
            for (row, error) in self.send_rows(queue, batch).await? {
                warn!(
                    queue, job.id = %printable(&row.job.id),
                    "job {} can't be sent and is in the dead list: {error}",
                    printable(&row.job.name)
                );
            }
            if self.closed_queues().iter().any(|closed| closed == queue) {
                let rest = rows.iter().skip((number + 1) * MAX_BATCH);
                let rest: Vec<i64> = rest.map(|row| row.id).collect();
                return self.store.outbox_released(&rest).await;
            }
        }
        Ok(())
    }

    /// The queues for which nothing is taken now.
    fn closed_queues(&self) -> Vec<String> {
        let now = Instant::now();
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_closed = |found: &Closed| found.until.is_some_and(|until| until > now);
        closed.iter().filter(|(_, found)| is_closed(found)).map(|(name, _)| name.clone()).collect()
    }

    /// Why the last call to a queue failed as a whole, if it did.
    pub fn why_unsent(&self, queue: &str) -> Option<String> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.get(queue).map(|found| found.reason.clone())
    }

    /// Notes the failure of a whole call to a queue, or that none failed.
    fn note_call(&self, queue: &str, failure: Option<String>) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            None => drop(closed.remove(queue)),
            Some(reason) => {
                let found = closed.entry(queue.to_owned()).or_default();
                found.until = Some(Instant::now() + found.backoff.next());
                found.reason = reason;
            }
        }
    }

    /// Sends up to ten rows to one queue, and notes for each what became of it. Returns the rows
    /// whose jobs the queue will never take, and why: they are in the dead list now.
    ///
    /// # Errors
    /// The database failed; what was sent will be sent once more, and run once.
    pub async fn send_rows<'a>(
        &self,
        queue: &str,
        rows: &'a [OutboxRow],
    ) -> Result<Vec<(&'a OutboxRow, EntryError)>, StoreError> {
        for row in rows {
            failpoint::reach("outbox-sending", &row.job.name);
        }
        let found = self.queue(queue).await;
        let can_go = |row: &&OutboxRow| match &found {
            Ok(found) => found.can_hold_back(row.delay()),
            Err(_) => true,
        };
        let (rows, waiting): (Vec<_>, Vec<_>) = rows.iter().partition(can_go);
        for row in waiting {
            self.store.outbox_waits(row.id).await?;
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let sent = match found {
            Ok(found) => {
                let messages: Vec<_> = rows.iter().map(|row| message(row, &found)).collect();
                self.send_messages(&found, &messages).await
            }
            Err(error) => Err(error),
        };
        let failure =
            sent.as_ref().err().filter(|error| matches!(of_call(error), EntryError::Transient(_)));
        self.note_call(queue, failure.map(|error| chain(error)));
        let results = match sent {
            Ok(results) => results.into_iter().map(|result| result.map(|_| ())).collect(),
            Err(error) => rows.iter().map(|_| Err(of_call(&error))).collect::<Vec<_>>(),
        };
        let mut done = Vec::with_capacity(rows.len());
        let mut refused = Vec::new();
        for (&row, result) in rows.iter().zip(results) {
            failpoint::reach("outbox-sent", &row.job.name);
            match result {
                Ok(()) => done.push(row.id),
                Err(EntryError::Transient(reason)) => {
                    let wait_ms = (1000i64 << row.tries.clamp(0, 6)).min(60_000);
                    self.store.outbox_failed(row.id, &reason, wait_ms).await?;
                }
                Err(error) if row.body.is_some() && row.aside.is_none() => {
                    // The job is in the dead list already; only its copy is given up.
                    warn!(queue, job.id = %printable(&row.job.id), "no copy of a dead job: {error}");
                    done.push(row.id);
                }
                Err(error) => {
                    failpoint::reach("outbox-refused", &row.job.name);
                    self.store.outbox_undeliverable(row.id, &undeliverable(row, &error)).await?;
                    refused.push((row, error));
                }
            }
        }
        self.store.outbox_sent(&done).await?;
        for &row in &rows {
            failpoint::reach("outbox-noted", &row.job.name);
        }
        Ok(refused)
    }

    /// Sends a batch. Where the queue refuses it as a whole, each message is sent by itself, so
    /// that one which it will never take harms none of the others.
    async fn send_messages(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
    ) -> Result<EntryResults<String>, BrokerError> {
        match self.broker.send(queue, messages).await {
            Err(BrokerError::Refused { .. }) if messages.len() > 1 => {}
            sent => return sent,
        }
        let mut results = Vec::with_capacity(messages.len());
        for message in messages {
            match self.broker.send(queue, std::slice::from_ref(message)).await {
                Ok(mut sent) => results.append(&mut sent),
                Err(error) => results.push(Err(of_call(&error))),
            }
        }
        Ok(results)
    }

    /// Looks a queue up, once.
    ///
    /// # Errors
    /// It does not exist, or the broker can't be asked.
    pub async fn queue(&self, name: &str) -> Result<Queue, BrokerError> {
        if let Some(queue) = self.queues.lock().await.get(name) {
            return Ok(queue.clone());
        }
        // Not under the lock: a queue that does not answer must not hold the others up.
        let queue = self.broker.queue(name).await?;
        self.queues.lock().await.insert(name.to_owned(), queue.clone());
        Ok(queue)
    }
}

/// A row as the message that it is sent as.
fn message(row: &OutboxRow, queue: &Queue) -> OutgoingMessage {
    let delay = row.delay();
    let delay_secs = u32::try_from(delay.as_millis().div_ceil(1000)).unwrap_or(MAX_DELAY_SECS);
    let group = match (&row.group, queue.is_fifo) {
        (Some(group), _) => Some(group.clone()),
        // Each job without a group is a group of its own. Ids may hold what groups may not.
        (None, true) if is_message_group(&row.job.id) => Some(row.job.id.clone()),
        (None, true) => Some(payload::hex(&Sha256::digest(&row.job.id))),
        (None, false) => None,
    };
    let (mut body, attributes) = content(row);
    if row.body.is_none() && message_bytes(&body, &attributes) > queue.max_message_bytes {
        // A producer that sent it without base64 had room for a third more.
        body = payload::without_base64(&body);
    }
    OutgoingMessage {
        body,
        attributes,
        delay_secs: if queue.is_fifo { 0 } else { delay_secs.min(MAX_DELAY_SECS) },
        group,
        deduplication_id: queue.is_fifo.then(|| deduplication_id(row)),
    }
}

/// Body and attributes of a row: what is of the dead list goes exactly as it was.
fn content(row: &OutboxRow) -> (String, Attributes) {
    match &row.body {
        Some(body) => (body.clone(), row.attributes.clone()),
        None => payload::outgoing(&row.job, &row.attributes),
    }
}

/// The deduplication id of a row: a repeated send of it keeps it, so that FIFO queues drop the
/// second; a new send of the same job is a new row, and never taken for the one before, also when
/// that was sent and nobody could note it.
fn deduplication_id(row: &OutboxRow) -> String {
    payload::hex(&Sha256::digest(format!("{}#{}", row.job.id, row.id)))
}

/// What the failure of a whole call means for each of its rows.
fn of_call(error: &BrokerError) -> EntryError {
    match error {
        BrokerError::NoSuchQueue { .. }
        | BrokerError::InvalidQueue { .. }
        | BrokerError::Refused { .. } => EntryError::Refused(error.to_string()),
        // Credentials and permissions are somebody's to mend: the row waits for that.
        _ => EntryError::Transient(error.to_string()),
    }
}

fn undeliverable(row: &OutboxRow, error: &EntryError) -> DeadMessage {
    let (body, attributes) = content(row);
    let reason = match row.aside {
        Some(_) => format!("it was sent again, and refused: {error}"),
        None => error.to_string(),
    };
    // The row of an unknown job's id may be another's: it must not fail for this message.
    let is_job = row.aside.is_none_or(|kind| kind.is_of_job() && kind != DeadKind::UnknownJob);
    DeadMessage {
        id: row.job.id.clone(),
        kind: row.aside.unwrap_or(DeadKind::Undeliverable),
        queue: row.queue.clone(),
        job: Some(row.job.name.clone()).filter(|name| !name.is_empty()),
        job_id: Some(row.job.id.clone()).filter(|_| is_job),
        message_id: None,
        reason,
        body,
        attributes: serde_json::to_string(&attributes).unwrap_or_default(),
        group: row.group.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::payload::Job;

    fn row(id: i64, job_id: &str) -> OutboxRow {
        OutboxRow {
            id,
            job: Job {
                id: job_id.into(),
                name: "a".into(),
                args: r#"["ab"]"#.into(),
                kwargs: "{}".into(),
                enqueued_at: None,
                is_tracked: true,
                is_revived: false,
            },
            queue: "q.fifo".into(),
            group: None,
            due: None,
            send_number: 1,
            attributes: Attributes::new(),
            body: None,
            aside: None,
            tries: 0,
        }
    }

    #[test]
    fn a_repeated_send_keeps_its_deduplication_id_and_a_new_one_changes_it() {
        let id = |row_id| deduplication_id(&row(row_id, "a"));
        assert_eq!(id(1), id(1));
        assert_ne!(id(1), id(2));
        assert_ne!(id(1), deduplication_id(&row(1, "b")));
        assert_eq!(id(1).len(), 64);
    }

    #[test]
    fn the_queue_is_asked_for_what_is_left_of_a_delay_and_never_for_less() {
        let queue = Queue {
            name: "q".into(),
            address: "q".into(),
            is_fifo: false,
            max_receive_count: None,
            dead_letter_queue: None,
            retention: Duration::from_secs(345_600),
            max_message_bytes: 1000,
        };
        let due = Instant::now().checked_add(Duration::from_millis(60_500));
        let delay = message(&OutboxRow { due, ..row(1, "a") }, &queue).delay_secs;
        assert_eq!(delay, 61);
        let passed = Some(Instant::now());
        assert_eq!(message(&OutboxRow { due: passed, ..row(1, "a") }, &queue).delay_secs, 0);
    }

    #[test]
    fn a_job_that_fits_only_without_base64_is_sent_without() {
        let mut queue = Queue {
            name: "q".into(),
            address: "q".into(),
            is_fifo: false,
            max_receive_count: None,
            dead_letter_queue: None,
            retention: Duration::from_secs(345_600),
            max_message_bytes: 1000,
        };
        let row = row(1, "a");
        assert_eq!(message(&row, &queue).body, payload::encode(&row.job));
        queue.max_message_bytes = payload::encode(&row.job).len() - 1;
        let body = message(&row, &queue).body;
        assert!(body.starts_with('{'), "{body}");
        let read = payload::decode(&body, &Attributes::new(), "m").expect("well formed");
        assert_eq!((read.id, read.args), (row.job.id, row.job.args));
    }

    #[test]
    fn an_entry_that_is_refused_when_it_is_sent_again_keeps_its_kind() {
        let malformed = OutboxRow {
            aside: Some(DeadKind::Malformed),
            body: Some("no job".into()),
            ..row(1, "a")
        };
        let dead = undeliverable(&malformed, &EntryError::Refused("too large".into()));
        assert_eq!((dead.kind, dead.body.as_str()), (DeadKind::Malformed, "no job"));
        assert_eq!(dead.job_id, None, "no job's row fails for it");
    }
}

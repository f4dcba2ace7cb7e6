//! The queue as the worker and the sender see it: [`Broker`], [`Delivery`], and what is sent.
//!
//! Two implementations keep one contract (`tests/it/broker_contract.rs` runs on both):
//! [`sqs`] speaks to Amazon SQS, [`local`] keeps the same rules on SQLite for one machine.

mod attribute;
mod error;
mod limits;
pub mod local;
pub mod sqs;

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::clock::Timestamp;

pub use attribute::{Attribute, AttributeValue, Attributes};
pub use error::{BrokerError, EntryError};
pub use limits::{MAX_ATTRIBUTES, is_message_group, message_bytes};

/// Longest time a message can stay invisible, counted from its receipt.
/// Source: Amazon SQS API reference, `ChangeMessageVisibility` (12 hours).
pub const MAX_VISIBILITY_TIMEOUT_SECS: u32 = 43_200;
/// Longest delay of a single message. Source: Amazon SQS API reference, `SendMessage`.
pub const MAX_DELAY_SECS: u32 = 900;
/// Most entries in one batch call. Source: Amazon SQS API reference, `SendMessageBatch`.
pub const MAX_BATCH: usize = 10;
/// Longest long poll. Source: Amazon SQS API reference, `ReceiveMessage`.
pub const MAX_WAIT_SECS: u32 = 20;

/// Checks that this can be a queue: a name, or for SQS a URL. Nothing is asked.
///
/// # Errors
/// [`BrokerError::InvalidQueue`], which tells what was expected.
pub fn check_queue(queue: &str) -> Result<(), BrokerError> {
    if queue.contains("://") { sqs::check_url(queue) } else { limits::check_queue_name(queue) }
}

/// A queue that has been looked up: how it is called, where it is, and its own limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The name by which people and rows know it; for an SQS queue given by URL, the last part.
    pub name: String,
    /// Where the broker finds it: the queue URL on SQS, the name on the local broker.
    pub address: String,
    /// Whether order within message groups holds.
    pub is_fifo: bool,
    /// Receipts of one message after which the queue itself moves it to its dead-letter queue.
    pub max_receive_count: Option<u32>,
    /// The dead-letter queue's address, where there is one.
    pub dead_letter_queue: Option<String>,
    /// How long the queue keeps a message, counted from its sending.
    pub retention: Duration,
    /// Most bytes of one message, body and attributes together.
    pub max_message_bytes: usize,
}

/// Names one receipt of one message. Valid until its visibility timeout runs out.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

impl fmt::Debug for Receipt {
    /// Whoever holds the handle can delete the message, so it is never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receipt(..)")
    }
}

/// One receipt of one message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Name of the queue it came from.
    pub queue: String,
    /// The broker's id of the message; stays the same over deliveries.
    pub message_id: String,
    /// What settles this delivery.
    pub receipt: Receipt,
    /// The body as it was sent.
    pub body: String,
    /// Message attributes, by name.
    pub attributes: Attributes,
    /// How often the message has been received, this time included.
    pub receive_count: u32,
    /// When the message was sent, by the broker's clock.
    pub sent_at: Option<Timestamp>,
    /// Message group: order on a FIFO queue, tenant on a standard one.
    pub group: Option<String>,
    /// When the receive call was begun: the visibility timeout cannot have started before.
    pub received_at: Instant,
}

/// How much to receive, and how.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveOptions {
    /// Most messages, 1 to 10.
    pub max_messages: usize,
    /// How long to wait for the first one, 0 to 20 s in whole seconds.
    pub wait: Duration,
    /// How long what comes stays invisible, 0 to 43,200 s in whole seconds.
    pub visibility: Duration,
}

/// A message to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// The body, at most the queue's `max_message_bytes` with the attributes.
    pub body: String,
    /// Message attributes; at most [`MAX_ATTRIBUTES`].
    pub attributes: Attributes,
    /// Seconds before it can be received, 0 to 900; must be 0 on a FIFO queue.
    pub delay_secs: u32,
    /// Message group. A FIFO queue needs one; there a message without gets its deduplication id.
    pub group: Option<String>,
    /// FIFO only: sends with the same id within 5 minutes are one message. Without, none is
    /// another's repetition.
    pub deduplication_id: Option<String>,
}

/// What became of each entry of a batch call, in the order of the call.
pub type EntryResults<T> = Vec<Result<T, EntryError>>;

/// Attributes of a queue to be created.
#[derive(Debug, Clone)]
pub struct NewQueue {
    /// Its name; ends in `.fifo` for a FIFO queue.
    pub name: String,
    /// Receipts after which a message goes to the dead-letter queue, and that queue's name.
    pub redrive: Option<(u32, String)>,
    /// How long a message is kept: 60 s to 14 days.
    pub retention: Duration,
    /// Visibility timeout of receives that name none.
    pub visibility: Duration,
}

/// How full a queue is; approximate on SQS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Messages that can be received.
    pub visible: u64,
    /// Messages received and not settled.
    pub in_flight: u64,
    /// Messages whose delay has not passed.
    pub delayed: u64,
}

/// A queue service.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Which broker this is, for log lines and errors: kind and place, never a secret.
    fn label(&self) -> String;

    /// Whether outcomes kept in `database` share one file, hence one power cut, with the messages.
    fn shares_file_with(&self, database: &str) -> bool;

    /// Whether a receive that waits can be dropped for good: no message is handed to it then.
    fn can_drop_receives(&self) -> bool;

    /// Looks a queue up by name (on SQS also by URL) and reads its limits. The local broker
    /// makes a queue that does not exist.
    ///
    /// # Errors
    /// The queue does not exist, or the broker can't be asked.
    async fn queue(&self, name: &str) -> Result<Queue, BrokerError>;

    /// Receives up to `options.max_messages`, waiting for the first one up to `options.wait`.
    /// May be dropped at any time: what was received by then becomes visible again in time.
    ///
    /// # Errors
    /// The broker can't be asked.
    async fn receive(
        &self,
        queue: &Queue,
        options: ReceiveOptions,
    ) -> Result<Vec<Delivery>, BrokerError>;

    /// Sends up to 10 messages, and tells the message id of each. What the queue would never take
    /// (too large, delayed too long) fails as an entry, before anything is sent.
    ///
    /// # Errors
    /// The whole call failed: any of the messages may still have been sent.
    async fn send(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
    ) -> Result<EntryResults<String>, BrokerError>;

    /// Deletes up to 10 received messages. Deleting what is gone, or with a stale receipt, deletes
    /// nothing, which a broker may tell by [`EntryError::ReceiptExpired`] or not at all: the fence
    /// in SQL decides, never this answer.
    ///
    /// # Errors
    /// The whole call failed.
    async fn delete(
        &self,
        queue: &Queue,
        receipts: &[Receipt],
    ) -> Result<EntryResults<()>, BrokerError>;

    /// Sets, for up to 10 received messages, how long from now they stay invisible, in seconds
    /// from 0 to [`MAX_VISIBILITY_TIMEOUT_SECS`].
    ///
    /// # Errors
    /// The whole call failed.
    async fn set_visibility(
        &self,
        queue: &Queue,
        changes: &[(Receipt, u32)],
    ) -> Result<EntryResults<()>, BrokerError>;

    /// How full the queue is.
    ///
    /// # Errors
    /// The broker can't be asked.
    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError>;

    /// Creates a queue; one that exists with the same attributes is left as it is.
    ///
    /// # Errors
    /// A queue of this name exists with other attributes, or the broker can't be asked.
    async fn create(&self, queue: &NewQueue) -> Result<Queue, BrokerError>;

    /// Looks a queue up without making it.
    ///
    /// # Errors
    /// The broker can't be asked.
    async fn find(&self, name: &str) -> Result<Option<Queue>, BrokerError> {
        match self.queue(name).await {
            Ok(queue) => Ok(Some(queue)),
            Err(BrokerError::NoSuchQueue { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How long the oldest message has been in the queue; `None` where the broker does not tell,
    /// or the queue is empty.
    ///
    /// # Errors
    /// The broker can't be asked.
    async fn oldest(&self, _queue: &Queue) -> Result<Option<Duration>, BrokerError> {
        Ok(None)
    }

    /// Whether a worker may do with the queue's messages what it must, found by calls that do
    /// nothing. Where that can't be found out, all is well.
    ///
    /// # Errors
    /// [`BrokerError::Denied`], which names what is missing.
    async fn check_permissions(&self, _queue: &Queue) -> Result<(), BrokerError> {
        Ok(())
    }

    /// Names of the queues that can be seen.
    ///
    /// # Errors
    /// The broker can't be asked, or listing is not allowed.
    async fn list(&self) -> Result<Vec<String>, BrokerError>;

    /// Deletes all messages of the queue.
    ///
    /// # Errors
    /// The broker can't be asked.
    async fn purge(&self, queue: &Queue) -> Result<(), BrokerError>;
}

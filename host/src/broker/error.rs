//! Why the queue did not do what it was asked: one entry of a batch, or a whole call.

/// Why one entry of a batch call was not done; the others may have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The receipt is no longer valid: the message is visible again, received by another, or gone.
    #[error("the receipt has expired")]
    ReceiptExpired,
    /// The message is larger than the queue takes.
    #[error("the message has {size} bytes and the queue takes {limit}")]
    TooLarge {
        /// Bytes of body and attributes.
        size: usize,
        /// Most bytes the queue takes.
        limit: usize,
    },
    /// The broker will never take this entry.
    #[error("the queue refused it: {0}")]
    Refused(String),
    /// The broker could not do it now; worth another try.
    #[error("the queue could not do it now: {0}")]
    Transient(String),
}

/// Why a call to the broker failed as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// There is no such queue, or it may not be seen.
    #[error(
        "queue `{queue}` does not exist on {broker}; create it, or check its name, region and account"
    )]
    NoSuchQueue {
        /// The name that was asked for.
        queue: String,
        /// Which broker was asked.
        broker: String,
    },
    /// The queue's name or URL is not well formed.
    #[error("`{queue}` is not a queue: {reason}")]
    InvalidQueue {
        /// What was given.
        queue: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No AWS credentials were found, or they were refused.
    #[error(
        "no usable AWS credentials for {action}: {reason}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run with a role"
    )]
    Credentials {
        /// The call that needed them.
        action: &'static str,
        /// What the credentials' provider or SQS said.
        reason: String,
    },
    /// No AWS region is configured.
    #[error("no AWS region is configured for {action}; set AWS_REGION or a region in the profile")]
    NoRegion {
        /// The call that needed it.
        action: &'static str,
    },
    /// The credentials do not allow the call.
    #[error("not allowed to call {action} on `{queue}`: {reason}; add it to the IAM policy")]
    Denied {
        /// The call.
        action: &'static str,
        /// The queue.
        queue: String,
        /// What SQS said.
        reason: String,
    },
    /// The broker cannot be reached or answers with faults of its own; worth another try.
    #[error("cannot reach {broker} for {action}: {reason}; {remedy}")]
    Unavailable {
        /// Which broker.
        broker: String,
        /// The call.
        action: &'static str,
        /// What happened.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The call was refused and will be again.
    #[error("{action} on `{queue}` was refused: {reason}")]
    Refused {
        /// The call.
        action: &'static str,
        /// The queue.
        queue: String,
        /// Why.
        reason: String,
    },
    /// The endpoint that is configured is no URL to send requests to.
    #[error(
        "`{endpoint}` is not an endpoint: {reason}; set AWS_ENDPOINT_URL to http(s)://HOST[:PORT]"
    )]
    InvalidEndpoint {
        /// What was given, without a password.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The embedded queue's database can't be opened or made ready.
    #[error("cannot open the embedded queue in `{path}`: {remedy}")]
    LocalOpen {
        /// The database file.
        path: String,
        /// What to do about it.
        remedy: String,
        /// What the system, SQLite or the migrator said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The embedded queue's database failed.
    #[error("the embedded queue in `{path}` failed at {action}")]
    Local {
        /// The database file.
        path: String,
        /// What was attempted.
        action: &'static str,
        /// What SQLite said.
        source: sqlx::Error,
    },
}

impl BrokerError {
    /// Whether the same call may work later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Local { source, .. } => crate::store::is_transient(source),
            _ => false,
        }
    }
}

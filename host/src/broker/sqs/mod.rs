//! Amazon SQS. This folder is the only place that names the AWS SDK.
//!
//! `queues` finds a queue and reads its limits, `permissions` finds out what is not allowed, `messages` carries messages, `error` turns
//! what the SDK says into what a person can act on. Nothing needs `ListQueues` but listing.
//!
//! The SDK repeats a call that failed for the moment a few times, quickly: that covers a
//! connection that the server closed while it was idle. Longer outages are the caller's.

mod error;
mod messages;
mod permissions;
mod queues;

use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{Builder, Credentials, Region, StalledStreamProtectionConfig};
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use url::Url;

use super::{
    Broker, BrokerError, Delivery, Depth, EntryResults, NewQueue, OutgoingMessage, Queue, Receipt,
    ReceiveOptions,
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one try of a call may take, the long poll of a receive apart.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call may take with all its tries.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Tries of one call.
const ATTEMPTS: u32 = 3;
/// First pause between two tries; a closed connection needs none.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Longest pause between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// What to use instead of what the SDK's standard chain finds. By default nothing.
#[derive(Clone, Default)]
pub struct SqsOptions {
    /// Where calls go: `http(s)://HOST[:PORT]`.
    pub endpoint: Option<String>,
    /// The AWS region.
    pub region: Option<String>,
    /// Access key id and secret access key.
    pub access_key: Option<(String, String)>,
}

impl fmt::Debug for SqsOptions {
    /// Without the secret, and without the endpoint, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsOptions").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Amazon SQS, or a server that speaks its protocol.
#[derive(Debug)]
pub struct SqsBroker {
    client: Client,
    region: Option<String>,
    /// Where calls go instead of to AWS, if they do.
    endpoint: Option<Url>,
    /// Queues whose attributes may not be read, and that this was said of.
    warned: Mutex<HashSet<String>>,
}

impl SqsBroker {
    /// Reads the AWS configuration by the SDK's standard chain: environment (`AWS_ENDPOINT_URL`
    /// and `AWS_ENDPOINT_URL_SQS` among it), profiles, single sign-on, roles of pods and machines.
    /// SQS is not called, and missing credentials show at the first call only. Where no
    /// region is configured, the machine's metadata service is asked for it, for a few seconds
    /// at most.
    ///
    /// # Errors
    /// [`BrokerError::InvalidEndpoint`]: the configured endpoint is no HTTP URL.
    pub async fn connect() -> Result<Self, BrokerError> {
        Self::connect_with(SqsOptions::default()).await
    }

    /// As [`Self::connect`], with some of the configuration given.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_with(options: SqsOptions) -> Result<Self, BrokerError> {
        let mut loader = aws_config::from_env();
        if let Some((id, secret)) = options.access_key {
            loader =
                loader.credentials_provider(Credentials::new(id, secret, None, None, "sqjobs"));
        }
        if let Some(region) = options.region {
            loader = loader.region(Region::new(region));
        }
        let shared = loader.load().await;
        let variable = |name| std::env::var(name).ok().filter(|url| !url.is_empty());
        let (for_sqs, for_all) = (variable("AWS_ENDPOINT_URL_SQS"), variable("AWS_ENDPOINT_URL"));
        if let Some(endpoint) = for_sqs.as_ref().or(for_all.as_ref()) {
            // The SDK ignores one that it can't read, and would call AWS instead.
            parse_endpoint(endpoint)?;
        }
        let configured = || for_sqs.or_else(|| shared.endpoint_url().map(str::to_owned));
        let is_given = options.endpoint.is_some();
        let endpoint = options.endpoint.or_else(configured);
        let endpoint = endpoint.as_deref().map(parse_endpoint).transpose()?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS)
            .with_initial_backoff(FIRST_BACKOFF)
            .with_max_backoff(MAX_BACKOFF);
        let mut config = Builder::from(&shared);
        if let Some(endpoint) = endpoint.as_ref().filter(|_| is_given) {
            config = config.endpoint_url(endpoint.as_str());
        }
        let config = config
            .timeout_config(timeouts)
            .retry_config(retries)
            // A long poll is a stalled stream on purpose; the timeouts above guard each call.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Ok(Self {
            client: Client::from_conf(config),
            region: shared.region().map(ToString::to_string),
            endpoint,
            warned: Mutex::default(),
        })
    }

    fn check_region(&self, action: &'static str) -> Result<(), BrokerError> {
        match self.region {
            Some(_) => Ok(()),
            None => Err(BrokerError::NoRegion { action }),
        }
    }

    fn failed<'a, E>(
        &'a self,
        action: &'static str,
        queue: &'a str,
    ) -> impl FnOnce(SdkError<E>) -> BrokerError + 'a
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        move |error| error::whole_call(&self.place(), action, queue, &error)
    }

    /// Where calls go, for people.
    fn place(&self) -> String {
        match (&self.endpoint, &self.region) {
            (Some(endpoint), _) => {
                let mut shown = endpoint.clone();
                // Only URLs that can't have either refuse to have them removed.
                let _ = shown.set_password(None);
                let _ = shown.set_username("");
                format!("SQS at {}", shown.as_str().trim_end_matches('/'))
            }
            (None, Some(region)) => format!("Amazon SQS in {region}"),
            (None, None) => "Amazon SQS".to_owned(),
        }
    }
}

/// Checks that this can be the URL of a queue.
pub(super) fn check_url(url: &str) -> Result<(), BrokerError> {
    queues::parse_url(url).map(|_| ())
}

fn parse_endpoint(text: &str) -> Result<Url, BrokerError> {
    let invalid = |reason: String| {
        // A password stands before an `@`; what does not parse can't have it removed otherwise.
        let endpoint = text.rsplit('@').next().unwrap_or(text).escape_debug().to_string();
        BrokerError::InvalidEndpoint { endpoint, reason }
    };
    let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        scheme => Err(invalid(format!("its scheme is `{scheme}`"))),
    }
}

#[async_trait]
impl Broker for SqsBroker {
    fn label(&self) -> String {
        self.place()
    }

    fn shares_file_with(&self, _database: &str) -> bool {
        false
    }

    fn can_drop_receives(&self) -> bool {
        // The call goes on at the other end of a connection that is closed here.
        false
    }

    async fn queue(&self, name: &str) -> Result<Queue, BrokerError> {
        self.find(name).await
    }

    async fn receive(
        &self,
        queue: &Queue,
        options: ReceiveOptions,
    ) -> Result<Vec<Delivery>, BrokerError> {
        self.receive_messages(queue, options).await
    }

    async fn send(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
    ) -> Result<EntryResults<String>, BrokerError> {
        self.send_messages(queue, messages).await
    }

    async fn delete(
        &self,
        queue: &Queue,
        receipts: &[Receipt],
    ) -> Result<EntryResults<()>, BrokerError> {
        self.delete_messages(queue, receipts).await
    }

    async fn set_visibility(
        &self,
        queue: &Queue,
        changes: &[(Receipt, u32)],
    ) -> Result<EntryResults<()>, BrokerError> {
        self.change_visibility(queue, changes).await
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        self.count(queue).await
    }

    async fn create(&self, queue: &NewQueue) -> Result<Queue, BrokerError> {
        self.create_queue(queue).await
    }

    async fn check_permissions(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.try_permissions(queue).await
    }

    async fn list(&self) -> Result<Vec<String>, BrokerError> {
        self.list_queues().await
    }

    async fn purge(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.purge_queue(queue).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_http_url_and_its_password_is_not_shown() {
        assert!(parse_endpoint("http://127.0.0.1:9324").is_ok());
        for wrong in ["127.0.0.1:9324", "localhost", "ftp://u:s3cret@host/", "http://u:s3cret@:1"] {
            let error = parse_endpoint(wrong).expect_err("no endpoint").to_string();
            assert!(error.contains("AWS_ENDPOINT_URL"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}

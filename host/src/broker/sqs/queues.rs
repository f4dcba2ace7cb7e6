//! Finds a queue and reads its limits; creates, lists, counts, empties.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde::Deserialize;
use tracing::warn;
use url::Url;

use super::SqsBroker;
use crate::broker::limits::{check_new_queue, check_queue_name};
use crate::broker::{BrokerError, Depth, NewQueue, Queue};

/// Retention of a queue that says nothing else.
/// Source: Amazon SQS API reference, `CreateQueue`, `MessageRetentionPeriod`.
const DEFAULT_RETENTION: Duration = Duration::from_secs(345_600);
/// Message size where the server does not tell: what queues took before 1 MiB was allowed.
const DEFAULT_MESSAGE_BYTES: usize = 262_144;

type Attributes = HashMap<Name, String>;

/// The redrive policy, as SQS writes it. The count comes as a number or as a text.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedrivePolicy {
    dead_letter_target_arn: String,
    max_receive_count: serde_json::Value,
}

impl SqsBroker {
    /// The queue by name or URL, with its limits.
    pub(super) async fn find(&self, name: &str) -> Result<Queue, BrokerError> {
        if name.contains("://") {
            let (name, url) = (parse_url(name)?, name);
            self.check_place(url)?;
            return self.with_limits(name, url.to_owned()).await;
        }
        check_queue_name(name)?;
        let action = "GetQueueUrl";
        self.check_region(action)?;
        let call = self.client.get_queue_url().queue_name(name).send();
        let url = call.await.map_err(self.failed(action, name))?.queue_url;
        match url {
            Some(url) => self.with_limits(name.to_owned(), url).await,
            None => Err(BrokerError::NoSuchQueue { queue: name.to_owned(), broker: self.place() }),
        }
    }

    /// A queue of AWS is asked at its own region only: elsewhere it seems not to exist.
    fn check_place(&self, url: &str) -> Result<(), BrokerError> {
        let lies_in = region_of(url);
        match (&self.endpoint, lies_in, &self.region) {
            (None, Some(lies_in), Some(region)) if lies_in != *region => {
                Err(BrokerError::InvalidQueue {
                    queue: url.to_owned(),
                    reason: format!(
                        "it lies in region {lies_in} and the configured region is {region}; set AWS_REGION={lies_in}"
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    async fn with_limits(&self, name: String, address: String) -> Result<Queue, BrokerError> {
        let attributes = [
            Name::RedrivePolicy,
            Name::MessageRetentionPeriod,
            Name::MaximumMessageSize,
            Name::FifoQueue,
        ];
        let found = match self.attributes(&name, &address, &attributes).await {
            Ok(found) => found,
            // A server that knows no FIFO queues may refuse to be asked whether this is one.
            Err(BrokerError::Refused { reason, .. }) if reason.contains("InvalidAttributeName") => {
                self.attributes(&name, &address, &attributes[..3]).await?
            }
            Err(BrokerError::Denied { reason, .. }) => {
                self.warn_of_unknown_limits(&name, &reason);
                Attributes::new()
            }
            Err(error) => return Err(error),
        };
        Ok(queue_of(name, address, &found))
    }

    fn warn_of_unknown_limits(&self, queue: &str, reason: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert(queue.to_owned()) {
            warn!(
                queue,
                "not allowed to call GetQueueAttributes on `{queue}`, so its limits are taken to be those that SQS documents (no redrive policy, retention 4 days, messages up to {DEFAULT_MESSAGE_BYTES} bytes): {reason}"
            );
        }
    }

    async fn attributes(
        &self,
        name: &str,
        address: &str,
        names: &[Name],
    ) -> Result<Attributes, BrokerError> {
        let action = "GetQueueAttributes";
        self.check_region(action)?;
        let call = self.client.get_queue_attributes().queue_url(address);
        let call = call.set_attribute_names(Some(names.to_vec())).send();
        let found = call.await.map_err(self.failed(action, name))?;
        Ok(found.attributes.unwrap_or_default())
    }

    pub(super) async fn count(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        let names = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let found = self.attributes(&queue.name, &queue.address, &names).await?;
        let [visible, in_flight, delayed] = names.map(|name| number(&found, &name).unwrap_or(0));
        Ok(Depth { visible, in_flight, delayed })
    }

    pub(super) async fn create_queue(&self, new: &NewQueue) -> Result<Queue, BrokerError> {
        check_new_queue(new)?;
        let action = "CreateQueue";
        self.check_region(action)?;
        let mut call = self
            .client
            .create_queue()
            .queue_name(&new.name)
            .attributes(Name::VisibilityTimeout, new.visibility.as_secs().to_string())
            .attributes(Name::MessageRetentionPeriod, new.retention.as_secs().to_string());
        if new.name.ends_with(".fifo") {
            call = call.attributes(Name::FifoQueue, "true");
        }
        if let Some((count, dead_letter_queue)) = &new.redrive {
            let arn = self.arn(dead_letter_queue).await?;
            let policy =
                serde_json::json!({ "deadLetterTargetArn": arn, "maxReceiveCount": count });
            call = call.attributes(Name::RedrivePolicy, policy.to_string());
        }
        let created = call.send().await.map_err(self.failed(action, &new.name))?;
        match created.queue_url {
            Some(url) => self.with_limits(new.name.clone(), url).await,
            None => self.find(&new.name).await,
        }
    }

    async fn arn(&self, name: &str) -> Result<String, BrokerError> {
        let queue = self.find(name).await?;
        let found = self.attributes(name, &queue.address, &[Name::QueueArn]).await?;
        found.get(&Name::QueueArn).cloned().ok_or_else(|| BrokerError::Refused {
            action: "GetQueueAttributes",
            queue: name.to_owned(),
            reason: "the answer has no QueueArn".to_owned(),
        })
    }

    pub(super) async fn list_queues(&self) -> Result<Vec<String>, BrokerError> {
        let action = "ListQueues";
        self.check_region(action)?;
        let mut pages = self.client.list_queues().max_results(1000).into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(self.failed(action, "*"))?;
            let urls = page.queue_urls.unwrap_or_default();
            names.extend(urls.iter().filter_map(|url| url.rsplit('/').next()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    pub(super) async fn purge_queue(&self, queue: &Queue) -> Result<(), BrokerError> {
        let action = "PurgeQueue";
        self.check_region(action)?;
        let call = self.client.purge_queue().queue_url(&queue.address).send();
        call.await.map_err(self.failed(action, &queue.name))?;
        Ok(())
    }
}

/// The queue's name out of its URL: `https://HOST/ACCOUNT/NAME`, or more before the name, as some
/// servers have it.
pub(super) fn parse_url(text: &str) -> Result<String, BrokerError> {
    let invalid = |reason: &str| BrokerError::InvalidQueue {
        // Without what could be a password.
        queue: text.rsplit('@').next().unwrap_or(text).escape_debug().to_string(),
        reason: format!("{reason}; a queue URL reads https://HOST/ACCOUNT/NAME"),
    };
    let url = Url::parse(text).map_err(|_| invalid("it is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("its scheme is neither http nor https"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(invalid("it has a query, a fragment or a user"));
    }
    let parts: Vec<_> = url.path_segments().into_iter().flatten().collect();
    match parts.as_slice() {
        [.., account, name] if !account.is_empty() && check_queue_name(name).is_ok() => {
            Ok((*name).to_owned())
        }
        _ => Err(invalid("its path is not account and name")),
    }
}

/// The region that a queue URL of AWS names: `sqs.REGION.amazonaws.com`, `REGION.queue.…` before.
fn region_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    let stem = host.strip_suffix(".amazonaws.com").or(host.strip_suffix(".amazonaws.com.cn"))?;
    let region = stem.strip_prefix("sqs.").or(stem.strip_suffix(".queue"))?;
    Some(region.to_owned())
}

fn queue_of(name: String, address: String, found: &Attributes) -> Queue {
    let policy = found.get(&Name::RedrivePolicy);
    let policy: Option<RedrivePolicy> = policy.and_then(|text| serde_json::from_str(text).ok());
    let max_receive_count = policy.as_ref().and_then(|policy| match &policy.max_receive_count {
        serde_json::Value::String(text) => text.parse().ok(),
        number => number.as_u64().and_then(|count| u32::try_from(count).ok()),
    });
    let dead_letter_queue =
        policy.and_then(|policy| url_of_arn(&policy.dead_letter_target_arn, &address));
    let retention = number(found, &Name::MessageRetentionPeriod);
    let size = number(found, &Name::MaximumMessageSize);
    Queue {
        is_fifo: name.ends_with(".fifo"),
        name,
        address,
        max_receive_count,
        dead_letter_queue,
        retention: retention.map_or(DEFAULT_RETENTION, Duration::from_secs),
        max_message_bytes: size
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(DEFAULT_MESSAGE_BYTES),
    }
}

fn number(found: &Attributes, name: &Name) -> Option<u64> {
    found.get(name)?.parse().ok()
}

/// The URL of a dead-letter queue, which lies where its source queue lies:
/// `arn:aws:sqs:REGION:ACCOUNT:NAME` and the source's URL.
fn url_of_arn(arn: &str, source: &str) -> Option<String> {
    let mut parts = arn.rsplit(':');
    let (name, account) = (parts.next()?, parts.next()?);
    let (head, _) = source.rsplit_once('/')?;
    let (head, _) = head.rsplit_once('/')?;
    Some(format!("{head}/{account}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_queue_url_is_its_last_part() {
        for (url, name) in [
            ("https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "orders"),
            ("http://127.0.0.1:9324/000000000000/orders.fifo", "orders.fifo"),
            ("http://localhost:4566/queue/eu-west-1/000000000000/orders", "orders"),
        ] {
            assert_eq!(parse_url(url).expect("a queue URL"), name);
        }
    }

    #[test]
    fn a_url_of_another_shape_is_no_queue() {
        for url in [
            "https://",
            "https://host",
            "https://host/orders",
            "https://host/1/",
            "https://host/1/a b",
            "https://host/1/orders?x=1",
            "ftp://host/1/orders",
            "postgres://u:s3cret@host/1/orders",
            "https://u:s3cret@host/1/orders",
        ] {
            let error = parse_url(url).expect_err(url).to_string();
            assert!(error.contains("https://HOST/ACCOUNT/NAME"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_region_is_read_from_urls_of_aws_only() {
        let region = |url| region_of(url);
        assert_eq!(region("https://sqs.eu-west-1.amazonaws.com/1/q").as_deref(), Some("eu-west-1"));
        assert_eq!(
            region("https://eu-west-1.queue.amazonaws.com/1/q").as_deref(),
            Some("eu-west-1")
        );
        assert_eq!(region("http://127.0.0.1:9324/1/q"), None);
    }

    #[test]
    fn limits_come_from_the_attributes_and_else_from_the_documentation() {
        let url = "http://127.0.0.1:9324/000000000000/orders";
        let queue = queue_of("orders".into(), url.into(), &Attributes::new());
        assert_eq!((queue.max_message_bytes, queue.retention.as_secs()), (262_144, 345_600));
        assert_eq!(queue.max_receive_count, None);
        for count in ["3", "\"3\""] {
            let policy = format!(
                r#"{{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:000000000000:dead","maxReceiveCount":{count}}}"#
            );
            let found = [
                (Name::RedrivePolicy, policy),
                (Name::MessageRetentionPeriod, "60".to_owned()),
                (Name::MaximumMessageSize, "1048576".to_owned()),
            ];
            let queue = queue_of("orders".into(), url.into(), &found.into());
            assert_eq!(queue.max_receive_count, Some(3));
            assert_eq!(
                queue.dead_letter_queue.as_deref(),
                Some("http://127.0.0.1:9324/000000000000/dead")
            );
            assert_eq!((queue.max_message_bytes, queue.retention.as_secs()), (1_048_576, 60));
        }
    }
}

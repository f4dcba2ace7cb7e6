//! The SQS server spoken to directly, past the host.

use std::collections::HashMap;
use std::sync::LazyLock;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{
    Message, MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry,
};

use crate::servers::{self, RUNTIME};

/// Access key, secret and region that the tests use everywhere. The server takes any.
pub const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")];

static CLIENT: LazyLock<Client> = LazyLock::new(|| client(&servers::sqs_url()));

/// A client of the SQS server at `endpoint`.
#[must_use]
pub fn client(endpoint: &str) -> Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
        .endpoint_url(endpoint)
        .build();
    Client::from_conf(config)
}

/// A queue on the SQS server.
#[derive(Debug, Clone)]
pub struct SqsQueue {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
}

impl SqsQueue {
    /// Makes a queue with these attributes, such as `VisibilityTimeout`.
    ///
    /// # Panics
    /// The server refuses.
    #[must_use]
    pub fn create(name: &str, attributes: &[(&str, &str)]) -> Self {
        let attributes: HashMap<_, _> = attributes
            .iter()
            .map(|(name, value)| (QueueAttributeName::from(*name), (*value).to_owned()))
            .collect();
        let call = CLIENT.create_queue().queue_name(name).set_attributes(Some(attributes)).send();
        let created = RUNTIME.block_on(call).unwrap();
        Self { name: name.to_owned(), url: created.queue_url.unwrap() }
    }

    /// Makes a queue without attributes of its own, under a name that no other test uses.
    #[must_use]
    pub fn unique() -> Self {
        Self::create(&servers::unique("queue"), &[])
    }

    /// A queue that exists.
    ///
    /// # Panics
    /// It does not.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        let call = CLIENT.get_queue_url().queue_name(name).send();
        Self { name: name.to_owned(), url: RUNTIME.block_on(call).unwrap().queue_url.unwrap() }
    }

    /// Sends a body as it is, and returns the message's id.
    ///
    /// # Panics
    /// The server refuses.
    pub fn send(&self, body: &str) -> String {
        let call = CLIENT.send_message().queue_url(&self.url).message_body(body).send();
        RUNTIME.block_on(call).unwrap().message_id.unwrap()
    }

    /// Sends a body with message attributes: name, type and value of each.
    ///
    /// # Panics
    /// The server refuses.
    pub fn send_with(&self, body: &str, attributes: &[(&str, &str, &str)]) {
        let mut call = CLIENT.send_message().queue_url(&self.url).message_body(body);
        for (name, data_type, value) in attributes {
            let value = MessageAttributeValue::builder().data_type(*data_type).string_value(*value);
            call = call.message_attributes(*name, value.build().unwrap());
        }
        RUNTIME.block_on(call.send()).unwrap();
    }

    /// Deletes all its messages.
    ///
    /// # Panics
    /// The server refuses.
    pub fn purge(&self) {
        RUNTIME.block_on(CLIENT.purge_queue().queue_url(&self.url).send()).unwrap();
    }

    /// Deletes the queue itself.
    ///
    /// # Panics
    /// The server refuses.
    pub fn delete(&self) {
        RUNTIME.block_on(CLIENT.delete_queue().queue_url(&self.url).send()).unwrap();
    }

    /// Sends a body so many times, in batches of ten.
    ///
    /// # Panics
    /// The server refuses.
    pub fn send_many(&self, body: &str, count: usize) {
        for begin in (0..count).step_by(10) {
            let entries = (begin..count.min(begin + 10)).map(|id| {
                let entry = SendMessageBatchRequestEntry::builder().id(id.to_string());
                entry.message_body(body).build().unwrap()
            });
            let call = CLIENT.send_message_batch().queue_url(&self.url);
            let call = call.set_entries(Some(entries.collect())).send();
            let sent = RUNTIME.block_on(call).unwrap();
            assert!(sent.failed.is_empty(), "{:?}", sent.failed);
        }
    }

    /// Sends bodies to one message group of a FIFO queue, at most ten, in one call.
    ///
    /// # Panics
    /// The server refuses.
    pub fn send_group(&self, group: &str, bodies: &[String]) {
        let entries = bodies.iter().enumerate().map(|(number, body)| {
            let entry = SendMessageBatchRequestEntry::builder().id(number.to_string());
            let entry = entry.message_body(body).message_group_id(group);
            entry.message_deduplication_id(servers::unique("message")).build().unwrap()
        });
        let call = CLIENT.send_message_batch().queue_url(&self.url);
        let sent = RUNTIME.block_on(call.set_entries(Some(entries.collect())).send()).unwrap();
        assert!(sent.failed.is_empty(), "{:?}", sent.failed);
    }

    /// Receives up to ten messages without waiting, and hides them for `visibility_secs`.
    ///
    /// # Panics
    /// The server refuses.
    #[must_use]
    pub fn receive(&self, visibility_secs: i32) -> Vec<Message> {
        let call = CLIENT
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(10)
            .visibility_timeout(visibility_secs)
            .message_attribute_names("All")
            .message_system_attribute_names("All".into())
            .send();
        RUNTIME.block_on(call).unwrap().messages.unwrap_or_default()
    }

    /// An attribute of the queue that is a number.
    ///
    /// # Panics
    /// The server refuses, or it is none.
    #[must_use]
    pub fn count(&self, attribute: &str) -> u64 {
        let attribute = QueueAttributeName::from(attribute);
        let call = CLIENT
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::All)
            .send();
        let attributes = RUNTIME.block_on(call).unwrap().attributes.unwrap();
        attributes[&attribute].parse().unwrap()
    }

    /// Messages in it: those that can be received, those in flight, and those delayed.
    #[must_use]
    pub fn depth(&self) -> [u64; 3] {
        ["", "NotVisible", "Delayed"]
            .map(|part| self.count(&format!("ApproximateNumberOfMessages{part}")))
    }
}

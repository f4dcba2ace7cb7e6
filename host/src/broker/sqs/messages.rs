//! Receives, sends, deletes, and changes visibility.

use std::time::{Duration, Instant};

use aws_sdk_sqs::Config;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, Message, MessageAttributeValue,
    MessageSystemAttributeName as SystemAttribute, SendMessageBatchRequestEntry,
};
use uuid::Uuid;

use super::{SqsBroker, error};
use crate::broker::limits::{
    check_batch, check_message, check_receive, check_visibility, message_bytes,
};
use crate::broker::{
    Attribute, AttributeValue, Attributes, BrokerError, Delivery, EntryError, EntryResults,
    OutgoingMessage, Queue, Receipt, ReceiveOptions,
};
use crate::clock::Timestamp;

/// How much longer than its long poll a receive may take.
const RECEIVE_MARGIN: Duration = Duration::from_secs(10);

/// Most bytes of one batch. Source: Amazon SQS developer guide, "Message quotas".
const MAX_BATCH_BYTES: usize = 1_048_576;
/// The same where messages of 1 MiB are not allowed yet.
const MAX_BATCH_BYTES_BEFORE: usize = 262_144;

impl SqsBroker {
    pub(super) async fn receive_messages(
        &self,
        queue: &Queue,
        options: ReceiveOptions,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let action = "ReceiveMessage";
        check_receive(queue, &options)?;
        self.check_region(action)?;
        let attempt = options.wait + RECEIVE_MARGIN;
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(attempt)
            // Room for one whole second try: one cut short would lose what it received until
            // that is visible again.
            .operation_timeout(attempt * 2)
            .build();
        let call = self
            .client
            .receive_message()
            .queue_url(&queue.address)
            .max_number_of_messages(whole(options.max_messages))
            .wait_time_seconds(whole(options.wait.as_secs()))
            .visibility_timeout(whole(options.visibility.as_millis().div_ceil(1000)))
            .message_system_attribute_names(SystemAttribute::ApproximateReceiveCount)
            .message_system_attribute_names(SystemAttribute::SentTimestamp)
            .message_system_attribute_names(SystemAttribute::MessageGroupId)
            .message_attribute_names("All")
            .customize()
            .config_override(Config::builder().timeout_config(timeouts));
        let received_at = Instant::now();
        let received = call.send().await.map_err(self.failed(action, &queue.name))?;
        let messages = received.messages.unwrap_or_default();
        Ok(messages
            .into_iter()
            .filter_map(|message| delivery(queue, message, received_at))
            .collect())
    }

    pub(super) async fn send_messages(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
    ) -> Result<EntryResults<String>, BrokerError> {
        let action = "SendMessageBatch";
        check_batch(action, queue, messages.len())?;
        let checked: Vec<_> =
            messages.iter().map(|message| check_message(queue, message)).collect();
        let good = checked.iter().enumerate().filter(|(_, checked)| checked.is_ok());
        let sizes: Vec<_> = good.map(|(index, _)| (index, size(&messages[index]))).collect();
        let mut results = Answers::new(checked);
        for (number, part) in split(&sizes, max_batch_bytes(queue)).into_iter().enumerate() {
            match self.send_part(queue, messages, &part, &mut results).await {
                Ok(()) => {}
                // What was sent before must be told, so the failure is that of the rest.
                Err(error) if number > 0 && error.is_transient() => {
                    for index in part {
                        results.set(index, Err(EntryError::Transient(error.to_string())));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(results.into_entries())
    }

    /// Sends some of the messages, by index, in one call.
    async fn send_part(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
        part: &[usize],
        results: &mut Answers<String>,
    ) -> Result<(), BrokerError> {
        let action = "SendMessageBatch";
        self.check_region(action)?;
        let entries = part.iter().map(|&index| send_entry(queue, index, &messages[index]));
        let entries = entries.collect::<Result<_, _>>().map_err(invalid(action, queue))?;
        let call = self.client.send_message_batch().queue_url(&queue.address);
        let call = call.set_entries(Some(entries)).send();
        let answer = call.await.map_err(self.failed(action, &queue.name))?;
        results.failed(&answer.failed);
        for done in answer.successful {
            results.done(&done.id, done.message_id);
        }
        Ok(())
    }

    pub(super) async fn delete_messages(
        &self,
        queue: &Queue,
        receipts: &[Receipt],
    ) -> Result<EntryResults<()>, BrokerError> {
        let action = "DeleteMessageBatch";
        check_batch(action, queue, receipts.len())?;
        if receipts.is_empty() {
            return Ok(Vec::new());
        }
        self.check_region(action)?;
        let entries = receipts.iter().enumerate().map(|(index, receipt)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string());
            entry.receipt_handle(&receipt.0).build()
        });
        let entries = entries.collect::<Result<_, _>>().map_err(invalid(action, queue))?;
        let call = self.client.delete_message_batch().queue_url(&queue.address);
        let call = call.set_entries(Some(entries)).send();
        let answer = call.await.map_err(self.failed(action, &queue.name))?;
        let mut results = Answers::new(vec![Ok(()); receipts.len()]);
        results.failed(&answer.failed);
        answer.successful.iter().for_each(|done| results.done(&done.id, ()));
        Ok(results.into_entries())
    }

    pub(super) async fn change_visibility(
        &self,
        queue: &Queue,
        changes: &[(Receipt, u32)],
    ) -> Result<EntryResults<()>, BrokerError> {
        let action = "ChangeMessageVisibilityBatch";
        check_batch(action, queue, changes.len())?;
        let checked: Vec<_> =
            changes.iter().map(|(_, seconds)| check_visibility(*seconds)).collect();
        let good = changes.iter().enumerate().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let entries = good.map(|((index, (receipt, seconds)), _)| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(index.to_string());
            entry.receipt_handle(&receipt.0).visibility_timeout(whole(*seconds)).build()
        });
        let entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(invalid(action, queue))?;
        let mut results = Answers::new(checked);
        if entries.is_empty() {
            return Ok(results.into_entries());
        }
        self.check_region(action)?;
        let call = self.client.change_message_visibility_batch().queue_url(&queue.address);
        let call = call.set_entries(Some(entries)).send();
        let answer = call.await.map_err(self.failed(action, &queue.name))?;
        results.failed(&answer.failed);
        answer.successful.iter().for_each(|done| results.done(&done.id, ()));
        Ok(results.into_entries())
    }
}

/// Gathers what became of each entry; ids are indexes into the batch.
struct Answers<T>(Vec<Option<Result<T, EntryError>>>);

impl<T> Answers<T> {
    /// Entries that failed a check have their answer already.
    fn new(checked: Vec<Result<(), EntryError>>) -> Self {
        Self(checked.into_iter().map(|checked| checked.err().map(Err)).collect())
    }

    fn set(&mut self, index: usize, answer: Result<T, EntryError>) {
        if let Some(place) = self.0.get_mut(index) {
            *place = Some(answer);
        }
    }

    fn done(&mut self, id: &str, value: T) {
        if let Ok(index) = id.parse() {
            self.set(index, Ok(value));
        }
    }

    fn failed(&mut self, entries: &[BatchResultErrorEntry]) {
        for failed in entries {
            if let Ok(index) = failed.id.parse() {
                self.set(index, Err(error::entry(failed)));
            }
        }
    }

    fn into_entries(self) -> EntryResults<T> {
        let unanswered = || Err(EntryError::Transient("the answer leaves it out".to_owned()));
        self.0.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }
}

/// A number that was checked against a limit of SQS, as the SDK wants it.
fn whole(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

fn invalid<E: std::fmt::Display>(
    action: &'static str,
    queue: &Queue,
) -> impl FnOnce(E) -> BrokerError {
    let queue = queue.name.clone();
    move |error| BrokerError::Refused { action, queue, reason: error.to_string() }
}

fn max_batch_bytes(queue: &Queue) -> usize {
    match queue.max_message_bytes > MAX_BATCH_BYTES_BEFORE {
        true => MAX_BATCH_BYTES,
        false => MAX_BATCH_BYTES_BEFORE,
    }
}

/// Cuts indexes with sizes into runs whose sizes add up to at most `limit`, in their order.
fn split(sizes: &[(usize, usize)], limit: usize) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    for &(index, size) in sizes {
        match parts.last_mut() {
            Some(part) if filled + size <= limit => {
                part.push(index);
                filled += size;
            }
            _ => {
                parts.push(vec![index]);
                filled = size;
            }
        }
    }
    parts
}

fn send_entry(
    queue: &Queue,
    index: usize,
    message: &OutgoingMessage,
) -> Result<SendMessageBatchRequestEntry, aws_sdk_sqs::error::BuildError> {
    let mut entry = SendMessageBatchRequestEntry::builder();
    for (name, attribute) in &message.attributes {
        let value = MessageAttributeValue::builder().data_type(&attribute.data_type);
        let value = match &attribute.value {
            AttributeValue::Text(text) => value.string_value(text),
            AttributeValue::Binary(bytes) => value.binary_value(Blob::new(bytes.clone())),
        };
        entry = entry.message_attributes(name, value.build()?);
    }
    if message.delay_secs > 0 {
        entry = entry.delay_seconds(whole(message.delay_secs));
    }
    if queue.is_fifo {
        // A message that names no deduplication id is not deduplicated: a fresh one sees to it
        // on a queue that demands one, and where deduplication by content is on.
        let fresh = || Uuid::new_v4().to_string();
        let deduplication_id = message.deduplication_id.clone().unwrap_or_else(fresh);
        let group = message.group.clone().unwrap_or_else(|| deduplication_id.clone());
        entry = entry.message_group_id(group).message_deduplication_id(deduplication_id);
    } else {
        entry = entry.set_message_group_id(message.group.clone());
    }
    entry.id(index.to_string()).message_body(&message.body).build()
}

fn size(message: &OutgoingMessage) -> usize {
    message_bytes(&message.body, &message.attributes)
}

fn attribute(told: MessageAttributeValue) -> Option<Attribute> {
    let value = match (told.string_value, told.binary_value) {
        (Some(text), _) => AttributeValue::Text(text),
        (None, Some(bytes)) => AttributeValue::Binary(bytes.into_inner()),
        (None, None) => return None,
    };
    Some(Attribute { data_type: told.data_type, value })
}

/// The delivery of a received message; none without a receipt handle, as nothing could be done
/// with it.
fn delivery(queue: &Queue, message: Message, received_at: Instant) -> Option<Delivery> {
    let system = message.attributes.unwrap_or_default();
    let number = |name| system.get(&name).and_then(|text| text.parse::<i64>().ok());
    let receive_count = number(SystemAttribute::ApproximateReceiveCount).unwrap_or(1);
    let attributes = message.message_attributes.unwrap_or_default().into_iter();
    let attributes: Attributes =
        attributes.filter_map(|(name, value)| Some((name, attribute(value)?))).collect();
    Some(Delivery {
        queue: queue.name.clone(),
        message_id: message.message_id.unwrap_or_default(),
        receipt: Receipt(message.receipt_handle?),
        body: message.body.unwrap_or_default(),
        attributes,
        receive_count: u32::try_from(receive_count).unwrap_or(1),
        sent_at: number(SystemAttribute::SentTimestamp).map(Timestamp),
        group: system.get(&SystemAttribute::MessageGroupId).cloned(),
        received_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_where_its_total_would_pass_the_limit() {
        let sizes: Vec<_> = [4, 4, 4, 10, 1].into_iter().enumerate().collect();
        assert_eq!(split(&sizes, 10), [vec![0, 1], vec![2], vec![3], vec![4]]);
        assert!(split(&[], 10).is_empty());
    }

    #[test]
    fn an_entry_that_the_answer_leaves_out_is_worth_another_try() {
        let mut answers = Answers::<()>::new(vec![Ok(()), Err(EntryError::ReceiptExpired), Ok(())]);
        answers.done("2", ());
        answers.done("9", ());
        let entries = answers.into_entries();
        assert!(matches!(entries[0], Err(EntryError::Transient(_))));
        assert_eq!(entries[1], Err(EntryError::ReceiptExpired));
        assert_eq!(entries[2], Ok(()));
    }
}

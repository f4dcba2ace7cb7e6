//! The rules of SQS that can be checked before a call: whatever is over a limit is refused here
//! with the limit's name, on both brokers alike, and never clamped. Pure.
//!
//! A fault of one entry is that entry's [`EntryError`], so that a message that can't be sent does
//! not hold up the others of its batch; a fault of the call is a [`BrokerError::Refused`].

use std::time::Duration;

use super::{
    Attribute, AttributeValue, Attributes, BrokerError, EntryError, MAX_BATCH, MAX_DELAY_SECS,
    MAX_VISIBILITY_TIMEOUT_SECS, MAX_WAIT_SECS, NewQueue, OutgoingMessage, Queue, ReceiveOptions,
};

/// Most message attributes. Source: Amazon SQS developer guide, "Message metadata".
pub const MAX_ATTRIBUTES: usize = 10;
/// Longest name of a message attribute, in characters. Source: the same page.
const MAX_ATTRIBUTE_NAME: usize = 256;
/// Longest message group and deduplication id. Source: API reference, `SendMessageBatchRequestEntry`.
const MAX_GROUP: usize = 128;
/// Longest queue name, `.fifo` included. Source: API reference, `CreateQueue`.
const MAX_QUEUE_NAME: usize = 80;
/// Bounds of a queue's retention. Source: API reference, `CreateQueue`, `MessageRetentionPeriod`.
const RETENTION: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(1_209_600);
/// Bounds of `maxReceiveCount`. Source: developer guide, "Dead-letter queues".
const RECEIVE_COUNTS: std::ops::RangeInclusive<u32> = 1..=1000;

/// How long before its queue would drop it a delayed message must be visible; else its job waits
/// in the database.
const RETENTION_MARGIN: Duration = Duration::from_secs(3600);

impl Queue {
    /// Whether the queue can keep a message back so long: 15 minutes at most, no time at all on a
    /// FIFO queue, which takes no delay for one message, and not so long that it would drop the
    /// message soon after.
    #[must_use]
    pub fn can_hold_back(&self, delay: Duration) -> bool {
        delay.is_zero()
            || !self.is_fifo
                && delay <= Duration::from_secs(u64::from(MAX_DELAY_SECS))
                && delay.saturating_add(RETENTION_MARGIN) <= self.retention
    }
}

/// What SQS counts against a queue's message size: the body, and name, type and value of each
/// message attribute, in bytes of UTF-8.
#[must_use]
pub fn message_bytes(body: &str, attributes: &Attributes) -> usize {
    body.len()
        + attributes.iter().map(|(name, attribute)| name.len() + attribute.bytes()).sum::<usize>()
}

/// A batch holds at most 10 entries.
pub(crate) fn check_batch(
    action: &'static str,
    queue: &Queue,
    entries: usize,
) -> Result<(), BrokerError> {
    if entries <= MAX_BATCH {
        return Ok(());
    }
    let reason = format!("{entries} entries are over the limit of {MAX_BATCH} in one batch");
    Err(BrokerError::Refused { action, queue: queue.name.clone(), reason })
}

/// What a receive may ask for.
pub(crate) fn check_receive(queue: &Queue, options: &ReceiveOptions) -> Result<(), BrokerError> {
    let ReceiveOptions { max_messages, wait, visibility } = *options;
    let reason = if !(1..=MAX_BATCH).contains(&max_messages) {
        format!("{max_messages} messages asked for, and the limit is 1 to {MAX_BATCH}")
    } else if wait > Duration::from_secs(MAX_WAIT_SECS.into()) {
        format!("a wait of {} s is over the limit of {MAX_WAIT_SECS} s", wait.as_secs_f64())
    } else if visibility > Duration::from_secs(MAX_VISIBILITY_TIMEOUT_SECS.into()) {
        over_visibility(visibility.as_secs_f64())
    } else {
        return Ok(());
    };
    Err(BrokerError::Refused { action: "ReceiveMessage", queue: queue.name.clone(), reason })
}

/// A visibility timeout is at most 12 hours.
pub(crate) fn check_visibility(seconds: u32) -> Result<(), EntryError> {
    if seconds <= MAX_VISIBILITY_TIMEOUT_SECS {
        return Ok(());
    }
    Err(EntryError::Refused(over_visibility(seconds.into())))
}

fn over_visibility(seconds: f64) -> String {
    format!(
        "a visibility timeout of {seconds} s is over the limit of {MAX_VISIBILITY_TIMEOUT_SECS} s (12 hours)"
    )
}

/// Whether the queue can take the message.
pub(crate) fn check_message(queue: &Queue, message: &OutgoingMessage) -> Result<(), EntryError> {
    let size = message_bytes(&message.body, &message.attributes);
    if size > queue.max_message_bytes {
        return Err(EntryError::TooLarge { size, limit: queue.max_message_bytes });
    }
    let delay = message.delay_secs;
    if message.body.is_empty() {
        return refuse("the body is empty".to_owned());
    }
    if !message.body.chars().all(is_allowed) {
        return refuse("the body holds a control character that SQS does not take".to_owned());
    }
    if delay > MAX_DELAY_SECS {
        return refuse(format!("a delay of {delay} s is over the limit of {MAX_DELAY_SECS} s"));
    }
    if delay > 0 && queue.is_fifo {
        return refuse(format!("a delay of {delay} s: a FIFO queue takes no delay of one message"));
    }
    if message.attributes.len() > MAX_ATTRIBUTES {
        let count = message.attributes.len();
        return refuse(format!(
            "{count} message attributes are over the limit of {MAX_ATTRIBUTES}"
        ));
    }
    for (name, attribute) in &message.attributes {
        check_attribute(name, attribute)?;
    }
    check_group("message group", message.group.as_deref())?;
    check_group("deduplication id", message.deduplication_id.as_deref())
}

fn check_attribute(name: &str, attribute: &Attribute) -> Result<(), EntryError> {
    let lower = name.to_ascii_lowercase();
    let is_named_well = !name.is_empty()
        && name.len() <= MAX_ATTRIBUTE_NAME
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !lower.starts_with("aws.")
        && !lower.starts_with("amazon.");
    if !is_named_well {
        return refuse(format!(
            "`{}` is no name of a message attribute: 1 to {MAX_ATTRIBUTE_NAME} letters, digits, `_`, `-` or single inner `.`, not beginning with `AWS.` or `Amazon.`",
            name.escape_debug()
        ));
    }
    let is_good = match &attribute.value {
        AttributeValue::Text(text) => !text.is_empty() && text.chars().all(is_allowed),
        AttributeValue::Binary(bytes) => !bytes.is_empty(),
    };
    if !is_good {
        return refuse(format!("message attribute `{name}` is empty or holds a control character"));
    }
    Ok(())
}

fn check_group(what: &str, value: Option<&str>) -> Result<(), EntryError> {
    let Some(value) = value else { return Ok(()) };
    if is_message_group(value) {
        return Ok(());
    }
    refuse(format!("the {what} is not 1 to {MAX_GROUP} ASCII letters, digits or punctuation"))
}

/// Whether a message can have this group: 1 to 128 ASCII letters, digits or punctuation.
#[must_use]
pub fn is_message_group(value: &str) -> bool {
    (1..=MAX_GROUP).contains(&value.len()) && value.chars().all(|c| c.is_ascii_graphic())
}

fn refuse(reason: String) -> Result<(), EntryError> {
    Err(EntryError::Refused(reason))
}

/// Characters that a message may hold. Source: Amazon SQS API reference, `SendMessage`.
fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether this can be the name of a queue.
pub(crate) fn check_queue_name(name: &str) -> Result<(), BrokerError> {
    let stem = name.strip_suffix(".fifo").unwrap_or(name);
    let is_named_well = !stem.is_empty()
        && name.len() <= MAX_QUEUE_NAME
        && stem.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_named_well {
        return Ok(());
    }
    Err(BrokerError::InvalidQueue {
        queue: name.escape_debug().to_string(),
        reason: format!(
            "a name is 1 to {MAX_QUEUE_NAME} letters, digits, `-` or `_`, with `.fifo` at the end for a FIFO queue"
        ),
    })
}

/// Whether a queue can have these attributes.
pub(crate) fn check_new_queue(queue: &NewQueue) -> Result<(), BrokerError> {
    check_queue_name(&queue.name)?;
    let reason = if !RETENTION.contains(&queue.retention) {
        format!("a retention of {} s is not within 60 s and 14 days", queue.retention.as_secs_f64())
    } else if queue.visibility > Duration::from_secs(MAX_VISIBILITY_TIMEOUT_SECS.into()) {
        over_visibility(queue.visibility.as_secs_f64())
    } else {
        let Some((count, dead_letter_queue)) = &queue.redrive else { return Ok(()) };
        check_queue_name(dead_letter_queue)?;
        if !RECEIVE_COUNTS.contains(count) {
            format!("a receive count of {count} is not within 1 and 1000")
        } else if dead_letter_queue.ends_with(".fifo") != queue.name.ends_with(".fifo") {
            format!(
                "`{dead_letter_queue}` can't be its dead-letter queue: both must be FIFO, or neither"
            )
        } else {
            return Ok(());
        }
    };
    Err(BrokerError::Refused { action: "CreateQueue", queue: queue.name.clone(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> Queue {
        Queue {
            name: name.to_owned(),
            address: name.to_owned(),
            is_fifo: name.ends_with(".fifo"),
            max_receive_count: None,
            dead_letter_queue: None,
            retention: Duration::from_secs(345_600),
            max_message_bytes: 100,
        }
    }

    fn message(body: &str) -> OutgoingMessage {
        OutgoingMessage {
            body: body.to_owned(),
            attributes: [("tenant".to_owned(), "acme".into())].into(),
            delay_secs: 0,
            group: None,
            deduplication_id: None,
        }
    }

    #[test]
    fn attributes_count_towards_the_size_with_name_and_type() {
        assert_eq!(
            message_bytes("é", &message("é").attributes),
            2 + "tenant".len() + "String".len() + "acme".len()
        );
    }

    #[test]
    fn a_message_over_the_limit_is_told_its_size_and_the_limit() {
        assert_eq!(check_message(&queue("q"), &message(&"x".repeat(84))), Ok(()));
        let too_large = EntryError::TooLarge { size: 101, limit: 100 };
        assert_eq!(check_message(&queue("q"), &message(&"x".repeat(85))), Err(too_large));
    }

    #[test]
    fn delays_over_the_limit_and_on_fifo_are_refused_and_not_clamped() {
        let delayed = |delay_secs| OutgoingMessage { delay_secs, ..message("x") };
        assert_eq!(check_message(&queue("q"), &delayed(900)), Ok(()));
        let refused = check_message(&queue("q"), &delayed(901)).expect_err("over the limit");
        assert!(refused.to_string().contains("limit of 900 s"), "{refused}");
        assert!(check_message(&queue("q.fifo"), &delayed(1)).is_err());
    }

    #[test]
    fn a_queue_holds_back_for_minutes_unless_it_is_fifo_or_would_drop_the_message() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert!(queue("q").can_hold_back(minutes(15)));
        assert!(!queue("q").can_hold_back(minutes(15) + Duration::from_millis(1)));
        assert!(queue("q.fifo").can_hold_back(Duration::ZERO));
        assert!(!queue("q.fifo").can_hold_back(Duration::from_millis(1)));
        let short = Queue { retention: minutes(70), ..queue("q") };
        assert!(short.can_hold_back(minutes(10)) && !short.can_hold_back(minutes(11)));
        assert!(Queue { retention: minutes(1), ..queue("q") }.can_hold_back(Duration::ZERO));
    }

    #[test]
    fn characters_and_names_that_sqs_does_not_take_are_refused() {
        for body in ["", "\0", "a\u{b}", "\u{ffff}"] {
            assert!(check_message(&queue("q"), &message(body)).is_err(), "{body:?}");
        }
        for name in ["", "AWS.x", "a b", ".a", "a..b"] {
            let attributes = [(name.to_owned(), "x".into())].into();
            let message = OutgoingMessage { attributes, ..message("x") };
            assert!(check_message(&queue("q"), &message).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_visibility_timeout_ends_at_twelve_hours() {
        assert_eq!(check_visibility(43_200), Ok(()));
        let refused = check_visibility(43_201).expect_err("over the limit");
        assert!(refused.to_string().contains("43200"), "{refused}");
    }

    #[test]
    fn queue_names_follow_sqs() {
        for name in ["q", "a-b_C9", "orders.fifo"] {
            assert!(check_queue_name(name).is_ok(), "{name}");
        }
        for name in ["", ".fifo", "a b", "a.b", "../x", &"q".repeat(81)] {
            assert!(check_queue_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_fifo_queue_needs_a_fifo_dead_letter_queue() {
        let new = |name: &str, dead: &str| NewQueue {
            name: name.to_owned(),
            redrive: Some((3, dead.to_owned())),
            retention: Duration::from_secs(60),
            visibility: Duration::from_secs(30),
        };
        assert!(check_new_queue(&new("a.fifo", "d.fifo")).is_ok());
        assert!(check_new_queue(&new("a.fifo", "d")).is_err());
    }
}

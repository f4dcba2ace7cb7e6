//! What the SDK and SQS say, as what a person can act on.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;

use crate::broker::{BrokerError, EntryError};

/// What an error code of SQS amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NoSuchQueue,
    Denied,
    Credentials,
    Transient,
    Refused,
}

/// Sorts an error by code and HTTP status. The codes come in two dialects, the names of the JSON
/// protocol and those of the older query protocol, which the SDK prefers when it gets both.
fn fault(code: Option<&str>, status: Option<u16>) -> Fault {
    let code = code.unwrap_or_default();
    let last = code.rsplit(['.', '#']).next().unwrap_or_default();
    match last {
        "QueueDoesNotExist" | "NonExistentQueue" => Fault::NoSuchQueue,
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "InvalidAccessKeyId"
        | "InvalidSecurity"
        | "AuthFailure"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "RequestExpired" => Fault::Credentials,
        _ if last.starts_with("AccessDenied") || last == "KmsAccessDenied" => Fault::Denied,
        "UnauthorizedOperation" | "NotAuthorized" => Fault::Denied,
        // In flight about 120,000: deletes and expiries make room again.
        "OverLimit" | "RequestTimeout" | "RequestTimeoutException" | "KmsThrottled" => {
            Fault::Transient
        }
        _ if last.contains("Throttl") || last.contains("TooManyRequests") => Fault::Transient,
        _ if last.starts_with("Internal") || last.starts_with("ServiceUnavailable") => {
            Fault::Transient
        }
        _ => match status {
            Some(408 | 429 | 500..) => Fault::Transient,
            Some(401 | 403) if code.is_empty() => Fault::Denied,
            _ => Fault::Refused,
        },
    }
}

/// What to do when SQS answered that it can't now.
const REMEDY_OF_A_FAULT: &str =
    "try again later; if it stays so, look at the state of SQS and at the quotas of the account";

/// What to do when nothing answers at the broker's place, as [`super::SqsBroker`] names it.
fn remedy_of_silence(place: &str) -> &'static str {
    if place.starts_with("SQS at ") {
        "check AWS_ENDPOINT_URL, and that the server runs there"
    } else {
        "check the network and the region (AWS_REGION), and set AWS_ENDPOINT_URL for a server that is not Amazon's"
    }
}

/// Why a whole call failed. `place` is the broker as people may see it.
pub(super) fn whole_call<E>(
    place: &str,
    action: &'static str,
    queue: &str,
    error: &SdkError<E>,
) -> BrokerError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(credentials) = find_source::<CredentialsError>(error) {
        return credentials_error(place, action, credentials);
    }
    let unavailable = |reason, remedy| BrokerError::Unavailable {
        broker: place.to_owned(),
        action,
        reason,
        remedy,
    };
    let refused = |reason| BrokerError::Refused { action, queue: queue.to_owned(), reason };
    let status = error.raw_response().map(|response| response.status().as_u16());
    match error {
        SdkError::TimeoutError(_) => {
            unavailable("no answer in time".to_owned(), remedy_of_silence(place))
        }
        SdkError::DispatchFailure(_) => unavailable(innermost(error), remedy_of_silence(place)),
        SdkError::ServiceError(_) => {
            let code = error.code();
            if code.is_none() {
                // SQS gives a code with every refusal: this was another's answer.
                let reason = match (error.message(), status) {
                    (Some(message), _) => message.to_owned(),
                    (None, Some(status)) => {
                        format!("HTTP status {status}, and no reason that SQS would give")
                    }
                    (None, None) => innermost(error),
                };
                return match fault(code, status) {
                    Fault::Denied => {
                        BrokerError::Denied { action, queue: queue.to_owned(), reason }
                    }
                    _ => unavailable(reason, remedy_of_silence(place)),
                };
            }
            let reason = match (error.message(), code) {
                (Some(message), Some(code)) => format!("{message} ({code})"),
                (Some(text), None) | (None, Some(text)) => text.to_owned(),
                (None, None) => innermost(error),
            };
            match fault(code, status) {
                Fault::NoSuchQueue => {
                    BrokerError::NoSuchQueue { queue: queue.to_owned(), broker: place.to_owned() }
                }
                Fault::Denied => BrokerError::Denied { action, queue: queue.to_owned(), reason },
                Fault::Credentials => BrokerError::Credentials { action, reason },
                Fault::Transient => unavailable(reason, REMEDY_OF_A_FAULT),
                Fault::Refused => refused(reason),
            }
        }
        SdkError::ResponseError(_) if fault(None, status) == Fault::Transient => {
            unavailable(innermost(error), REMEDY_OF_A_FAULT)
        }
        // Cut short on the way, most likely: the status said that all was well.
        SdkError::ResponseError(_) if status == Some(200) => {
            unavailable(innermost(error), remedy_of_silence(place))
        }
        SdkError::ResponseError(_) => unavailable(
            format!("the answer is none of SQS ({})", innermost(error)),
            remedy_of_silence(place),
        ),
        _ => refused(innermost(error)),
    }
}

fn credentials_error(place: &str, action: &'static str, error: &CredentialsError) -> BrokerError {
    match error {
        // The place that gives them is slow, not empty: it may answer the next time.
        CredentialsError::ProviderTimedOut(_) => BrokerError::Unavailable {
            broker: place.to_owned(),
            action,
            reason: error.to_string(),
            remedy: "check whatever gives the AWS credentials (the role's metadata service, AWS_PROFILE)",
        },
        CredentialsError::CredentialsNotLoaded(_) => {
            BrokerError::Credentials { action, reason: "none are configured".to_owned() }
        }
        _ => BrokerError::Credentials { action, reason: format!("{error}: {}", innermost(error)) },
    }
}

fn find_source<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// The error, what caused it, what caused that, and so on.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn Error + 'static) = *error;
        error.source()
    })
}

/// The text of the cause that has no other: what the system or the server said.
fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// Why one entry of a batch failed.
pub(super) fn entry(failed: &BatchResultErrorEntry) -> EntryError {
    let message = failed.message.as_deref();
    entry_fault(&failed.code, message, failed.sender_fault)
}

fn entry_fault(code: &str, message: Option<&str>, is_sender_fault: bool) -> EntryError {
    let text = message.unwrap_or(code);
    let last = code.rsplit(['.', '#']).next().unwrap_or(code);
    let lower = text.to_ascii_lowercase();
    // SQS has no code of its own for a receipt that expired on a FIFO queue, or for a message
    // that is gone: the text of an invalid parameter tells.
    let is_expired = match last {
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => true,
        "InvalidParameterValue" | "InvalidParameterValueException" => {
            lower.contains("expired")
                || lower.contains("receipt handle")
                || lower.contains("does not exist")
                || lower.contains("not available for visibility timeout change")
        }
        _ => false,
    };
    if is_expired {
        return EntryError::ReceiptExpired;
    }
    let reason = match message {
        Some(message) => format!("{message} ({last})"),
        None => last.to_owned(),
    };
    match fault(Some(code), None) {
        Fault::Transient => EntryError::Transient(reason),
        _ if !is_sender_fault => EntryError::Transient(reason),
        _ => EntryError::Refused(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_protocols_are_sorted_alike() {
        for code in
            ["AWS.SimpleQueueService.NonExistentQueue", "com.amazonaws.sqs#QueueDoesNotExist"]
        {
            assert_eq!(fault(Some(code), Some(400)), Fault::NoSuchQueue, "{code}");
        }
        for code in ["AccessDenied", "AccessDeniedException", "KMS.AccessDeniedException"] {
            assert_eq!(fault(Some(code), Some(403)), Fault::Denied, "{code}");
        }
        for code in ["InvalidClientTokenId", "ExpiredToken", "SignatureDoesNotMatch"] {
            assert_eq!(fault(Some(code), Some(403)), Fault::Credentials, "{code}");
        }
        for code in ["ThrottlingException", "RequestThrottled", "OverLimit", "InternalFailure"] {
            assert_eq!(fault(Some(code), Some(400)), Fault::Transient, "{code}");
        }
        assert_eq!(fault(Some("InvalidParameterValue"), Some(400)), Fault::Refused);
    }

    #[test]
    fn without_a_code_the_http_status_decides() {
        assert_eq!(fault(None, Some(503)), Fault::Transient);
        assert_eq!(fault(None, Some(429)), Fault::Transient);
        assert_eq!(fault(None, Some(403)), Fault::Denied);
        assert_eq!(fault(None, Some(404)), Fault::Refused);
    }

    #[test]
    fn an_expired_receipt_is_known_by_code_or_text() {
        for (code, message) in [
            ("ReceiptHandleIsInvalid", "The input receipt handle is invalid."),
            ("AWS.SimpleQueueService.MessageNotInflight", "x"),
            ("InvalidParameterValue", "Reason: The receipt handle has expired."),
            (
                "InvalidParameterValue",
                "Reason: Message does not exist or is not available for visibility timeout change.",
            ),
        ] {
            assert_eq!(
                entry_fault(code, Some(message), true),
                EntryError::ReceiptExpired,
                "{message}"
            );
        }
    }

    #[test]
    fn an_entry_that_passes_the_total_visibility_is_refused_and_not_expired() {
        let text = "Value 43200 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond the limit [43200 seconds].";
        let refused = entry_fault("InvalidParameterValue", Some(text), true);
        assert!(matches!(refused, EntryError::Refused(_)), "{refused:?}");
    }

    #[test]
    fn what_is_not_the_senders_fault_is_worth_another_try() {
        for (code, is_sender_fault) in
            [("InternalError", false), ("Whatever", false), ("RequestThrottled", true)]
        {
            let error = entry_fault(code, None, is_sender_fault);
            assert!(matches!(error, EntryError::Transient(_)), "{code}");
        }
    }
}

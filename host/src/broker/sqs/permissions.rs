//! Finds out at the start what a worker is not allowed to do, by calls that do nothing: a receipt
//! that nobody was given settles no message, and SQS looks at permissions first. A server that
//! looks at none says nothing about them.

use super::SqsBroker;
use crate::broker::{BrokerError, Queue};

/// A receipt handle that was never given out.
const NO_RECEIPT: &str = "sqjobs-looks-for-missing-permissions";

impl SqsBroker {
    /// Tries what a worker does with messages; without these permissions, jobs would run and
    /// their messages stay.
    pub(super) async fn try_permissions(&self, queue: &Queue) -> Result<(), BrokerError> {
        let delete = self
            .client
            .delete_message()
            .queue_url(&queue.address)
            .receipt_handle(NO_RECEIPT)
            .send();
        let hide = self
            .client
            .change_message_visibility()
            .queue_url(&queue.address)
            .receipt_handle(NO_RECEIPT)
            .visibility_timeout(0)
            .send();
        let (deleted, hidden) = tokio::join!(delete, hide);
        let deleted = deleted.map(drop).map_err(self.failed("DeleteMessage", &queue.name));
        let hidden = hidden.map(drop).map_err(self.failed("ChangeMessageVisibility", &queue.name));
        match (deleted, hidden) {
            (Err(BrokerError::Denied { queue, reason, .. }), Err(BrokerError::Denied { .. })) => {
                let action = "DeleteMessage and ChangeMessageVisibility";
                Err(BrokerError::Denied { action, queue, reason })
            }
            (Err(denied @ BrokerError::Denied { .. }), _)
            | (_, Err(denied @ BrokerError::Denied { .. })) => Err(denied),
            // That the receipt is none, or whatever else it was.
            _ => Ok(()),
        }
    }
}

//! An SQS server that misbehaves by a seed: a proxy in front of the real one.
//!
//! The real server neither throttles nor loses calls nor delivers a message twice; Amazon's does
//! all of it. Each call is one fate drawn from the seed: see [`Faults`].

mod answers;
mod http;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::servers::{self, RUNTIME};
use answers::{LeftOut, change_messages, forward_without_an_entry, refusal};
use http::{Reply, Request, forward, read_request};

/// How often a call meets which fate: probabilities from 0.0 to 1.0 that add up to 1.0 at most.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The connection closes before the call reaches the server.
    pub lost_request: f64,
    /// The server acts, but its answer is lost.
    pub lost_reply: f64,
    /// The call is refused with HTTP 503.
    pub unavailable: f64,
    /// The call is refused as throttled.
    pub throttled: f64,
    /// A batch call leaves out one of its entries and says so, with HTTP 200.
    pub failed_entry: f64,
    /// A receive also brings a message that an earlier one has brought, as the same receipt.
    pub duplicate_delivery: f64,
    /// A batch call leaves out one of its entries, whose receipt has expired: a visibility change
    /// says so, a delete says that all is well.
    pub expired_receipt: f64,
    /// A receive loses one of the messages that it brings.
    pub lost_message: f64,
    /// A receive brings its messages in another order.
    pub reordered: f64,
    /// A send of several messages is refused as a whole.
    pub refused_batch: f64,
    /// Longest time by which a call is held up; each is by some part of it.
    pub delay: Duration,
}

/// A running proxy. Dropping it closes all connections through it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    faults: Faults,
    rng: Rng,
    /// Calls that arrived, by action, such as `ReceiveMessage`.
    calls: BTreeMap<String, u64>,
    /// The last message received from each queue, to be delivered again.
    delivered: BTreeMap<String, Value>,
    /// Actions that nobody is allowed to call.
    denied: Vec<&'static str>,
    denied_queue: Option<String>,
    upstream: String,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    LostRequest,
    LostReply,
    Unavailable,
    Denied,
    Throttled,
    FailedEntry,
    DuplicateDelivery,
    ExpiredReceipt,
    LostMessage,
    Reordered,
    RefusedBatch,
}

impl Proxy {
    /// Starts a proxy in front of the tests' SQS server.
    ///
    /// # Panics
    /// There is no free port, or no server.
    #[must_use]
    pub fn start(seed: u64, faults: Faults) -> Self {
        let upstream =
            servers::sqs_url().trim_start_matches("http://").trim_end_matches('/').to_owned();
        let shared = Arc::new(Mutex::new(Shared {
            faults,
            rng: Rng::with_seed(seed),
            calls: BTreeMap::new(),
            delivered: BTreeMap::new(),
            denied: Vec::new(),
            denied_queue: None,
            upstream,
        }));
        let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let task = RUNTIME.spawn(accept(listener, shared.clone()));
        Self { address, shared, task }
    }

    /// The endpoint to give to clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how it misbehaves from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.lock().unwrap().faults = faults;
    }

    /// Has these actions, such as `DeleteMessage`, be refused from now on as ones that the
    /// credentials do not allow.
    pub fn deny(&self, actions: &[&'static str]) {
        self.shared.lock().unwrap().denied = actions.to_vec();
    }

    /// Has all calls about this queue be refused like that.
    pub fn deny_queue(&self, name: &str) {
        self.shared.lock().unwrap().denied_queue = Some(name.to_owned());
    }

    /// How many calls of an action, such as `ReceiveMessage`, have arrived.
    #[must_use]
    pub fn calls(&self, action: &str) -> u64 {
        self.shared.lock().unwrap().calls.get(action).copied().unwrap_or(0)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Mutex<Shared>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            // A client that hangs up ends its own connection only.
            let _ = serve(client, &shared).await;
        });
    }
}

/// Serves the calls of one connection, one after the other.
async fn serve(client: TcpStream, shared: &Mutex<Shared>) -> io::Result<()> {
    let mut client = BufReader::new(client);
    while let Some(request) = read_request(&mut client).await? {
        let (fate, delay, upstream) = {
            let mut shared = shared.lock().unwrap();
            *shared.calls.entry(request.action.clone()).or_default() += 1;
            let fate = shared.draw(&request);
            let delay = shared.faults.delay.mul_f64(shared.rng.f64());
            (fate, delay, shared.upstream.clone())
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let reply = match fate {
            Fate::LostRequest => return Ok(()),
            Fate::Unavailable => refusal("503 Service Unavailable", "ServiceUnavailable"),
            Fate::Denied => refusal("403 Forbidden", "AccessDeniedException"),
            Fate::RefusedBatch => refusal("400 Bad Request", "InvalidParameterValue"),
            Fate::Throttled => refusal("400 Bad Request", "RequestThrottled"),
            Fate::LostReply => {
                forward(&upstream, &request, &request.body).await?;
                return Ok(());
            }
            Fate::FailedEntry => {
                forward_without_an_entry(&upstream, &request, LeftOut::Failed).await?
            }
            Fate::ExpiredReceipt => {
                forward_without_an_entry(&upstream, &request, LeftOut::Expired).await?
            }
            Fate::Pass | Fate::DuplicateDelivery | Fate::LostMessage | Fate::Reordered => {
                let mut reply = forward(&upstream, &request, &request.body).await?;
                if request.action == "ReceiveMessage" {
                    shared.lock().unwrap().deliver(&request, &mut reply, fate);
                }
                reply
            }
        };
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
            reply.status,
            reply.body.len()
        );
        client.write_all(head.as_bytes()).await?;
        client.write_all(&reply.body).await?;
        client.flush().await?;
    }
    Ok(())
}

impl Shared {
    fn draw(&mut self, request: &Request) -> Fate {
        let action = request.action.as_str();
        let is_of_denied_queue =
            self.denied_queue.as_ref().is_some_and(|name| request.is_of_queue(name));
        if is_of_denied_queue || self.denied.contains(&action) {
            return Fate::Denied;
        }
        let faults = self.faults;
        let mut drawn = self.rng.f64();
        for (probability, fate) in [
            (faults.lost_request, Fate::LostRequest),
            (faults.lost_reply, Fate::LostReply),
            (faults.unavailable, Fate::Unavailable),
            (faults.throttled, Fate::Throttled),
            (faults.failed_entry, Fate::FailedEntry),
            (faults.duplicate_delivery, Fate::DuplicateDelivery),
            (faults.expired_receipt, Fate::ExpiredReceipt),
            (faults.lost_message, Fate::LostMessage),
            (faults.reordered, Fate::Reordered),
            (faults.refused_batch, Fate::RefusedBatch),
        ] {
            if drawn < probability {
                let fits = match fate {
                    Fate::FailedEntry => action.ends_with("Batch"),
                    Fate::ExpiredReceipt => {
                        ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"].contains(&action)
                    }
                    // A FIFO queue does neither.
                    Fate::DuplicateDelivery | Fate::Reordered => {
                        action == "ReceiveMessage" && !request.is_of_fifo_queue()
                    }
                    Fate::RefusedBatch => action == "SendMessageBatch" && request.entries() > 1,
                    Fate::LostMessage => action == "ReceiveMessage",
                    _ => true,
                };
                return if fits { fate } else { Fate::Pass };
            }
            drawn -= probability;
        }
        Fate::Pass
    }

    /// Has a receive bring what its fate says, and remembers what it brought.
    fn deliver(&mut self, request: &Request, reply: &mut Reply, fate: Fate) {
        match fate {
            Fate::LostMessage => {
                change_messages(reply, |messages| answers::lose_one(messages, &mut self.rng));
            }
            Fate::Reordered => {
                change_messages(reply, |messages| answers::reorder(messages, &mut self.rng));
            }
            _ => self.repeat(request, reply, fate == Fate::DuplicateDelivery),
        }
    }

    /// Remembers what a receive brings, and may add what an earlier one has brought. Only a
    /// receive that asked for more than it got has room for it.
    fn repeat(&mut self, request: &Request, reply: &mut Reply, is_repeated: bool) {
        let Ok(asked) = serde_json::from_slice::<Value>(&request.body) else { return };
        let queue = asked["QueueUrl"].as_str().unwrap_or_default().to_owned();
        let most = asked["MaxNumberOfMessages"].as_u64().unwrap_or(1);
        change_messages(reply, |messages| {
            let fresh = messages.last().cloned();
            if is_repeated
                && most > messages.len() as u64
                && let Some(earlier) = self.delivered.get(&queue)
            {
                messages.push(earlier.clone());
            }
            if let Some(fresh) = fresh {
                self.delivered.insert(queue, fresh);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_sqs::error::ProvideErrorMetadata as _;

    use super::*;
    use crate::sqs::{SqsQueue, client};

    fn send(proxy: &Proxy, queue: &SqsQueue) -> Result<String, String> {
        let call =
            client(&proxy.url()).send_message().queue_url(&queue.url).message_body("x").send();
        RUNTIME
            .block_on(call)
            .map(|sent| sent.message_id.unwrap())
            .map_err(|error| error.code().unwrap_or("none").to_owned())
    }

    #[test]
    fn without_faults_calls_pass_and_are_counted() {
        let (proxy, queue) = (Proxy::start(1, Faults::default()), SqsQueue::unique());
        assert!(send(&proxy, &queue).is_ok());
        assert_eq!(queue.depth(), [1, 0, 0]);
        assert_eq!((proxy.calls("SendMessage"), proxy.calls("ReceiveMessage")), (1, 0));
    }

    #[test]
    fn a_lost_request_does_not_reach_the_server_and_a_lost_reply_does() {
        let queue = SqsQueue::unique();
        let proxy = Proxy::start(1, Faults { lost_request: 1.0, ..Faults::default() });
        assert!(send(&proxy, &queue).is_err());
        assert_eq!(queue.depth(), [0, 0, 0]);
        proxy.set_faults(Faults { lost_reply: 1.0, ..Faults::default() });
        assert!(send(&proxy, &queue).is_err());
        // The client tried more than once, and each try was taken.
        assert!(queue.depth()[0] >= 1);
    }

    #[test]
    fn a_refused_call_tells_why() {
        let (proxy, queue) =
            (Proxy::start(1, Faults { throttled: 1.0, ..Faults::default() }), SqsQueue::unique());
        assert_eq!(send(&proxy, &queue).unwrap_err(), "RequestThrottled");
        proxy.set_faults(Faults { unavailable: 1.0, ..Faults::default() });
        assert_eq!(send(&proxy, &queue).unwrap_err(), "ServiceUnavailable");
        assert_eq!(queue.depth(), [0, 0, 0]);
    }

    #[test]
    fn a_message_is_delivered_again_as_the_same_receipt() {
        let (proxy, queue) = (Proxy::start(1, Faults::default()), SqsQueue::unique());
        queue.send("x");
        let client = client(&proxy.url());
        let receive = || {
            let call =
                client.receive_message().queue_url(&queue.url).max_number_of_messages(10).send();
            RUNTIME.block_on(call).unwrap().messages.unwrap_or_default()
        };
        let first = receive();
        proxy.set_faults(Faults { duplicate_delivery: 1.0, ..Faults::default() });
        assert_eq!(receive(), first);
        assert_eq!(first.len(), 1);
    }

    #[test]
    fn an_expired_receipt_deletes_nothing_and_changes_nothing() {
        let faults = Faults { expired_receipt: 1.0, ..Faults::default() };
        let (proxy, queue) = (Proxy::start(1, faults), SqsQueue::unique());
        queue.send("x");
        let receipt = queue.receive(0)[0].receipt_handle.clone().unwrap();
        let client = client(&proxy.url());
        let entry = aws_sdk_sqs::types::DeleteMessageBatchRequestEntry::builder().id("a");
        let call = client.delete_message_batch().queue_url(&queue.url);
        let call = call.entries(entry.receipt_handle(&receipt).build().unwrap()).send();
        assert_eq!(RUNTIME.block_on(call).unwrap().successful()[0].id(), "a");
        let entry = aws_sdk_sqs::types::ChangeMessageVisibilityBatchRequestEntry::builder().id("a");
        let entry = entry.receipt_handle(&receipt).visibility_timeout(60).build().unwrap();
        let call = client.change_message_visibility_batch().queue_url(&queue.url);
        let changed = RUNTIME.block_on(call.entries(entry).send()).unwrap();
        assert_eq!(changed.failed()[0].code(), "ReceiptHandleIsInvalid");
        assert_eq!(queue.depth(), [1, 0, 0]);
    }

    #[test]
    fn a_message_that_is_lost_on_the_way_stays_in_flight() {
        let faults = Faults { lost_message: 1.0, ..Faults::default() };
        let (proxy, queue) = (Proxy::start(1, faults), SqsQueue::unique());
        queue.send_many("x", 3);
        let call = client(&proxy.url()).receive_message().queue_url(&queue.url);
        let received = RUNTIME.block_on(call.max_number_of_messages(10).send()).unwrap();
        assert_eq!((received.messages().len(), queue.depth()), (2, [0, 3, 0]));
    }

    #[test]
    fn a_failed_entry_is_told_beside_those_that_were_done() {
        use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
        let (proxy, queue) = (
            Proxy::start(1, Faults { failed_entry: 1.0, ..Faults::default() }),
            SqsQueue::unique(),
        );
        let entry = |id: &str| Entry::builder().id(id).message_body("x").build().unwrap();
        let entries = Some(vec![entry("a"), entry("b")]);
        let call = client(&proxy.url())
            .send_message_batch()
            .queue_url(&queue.url)
            .set_entries(entries)
            .send();
        let sent = RUNTIME.block_on(call).unwrap();
        assert_eq!(sent.failed()[0].id(), "a");
        assert_eq!(sent.successful()[0].id(), "b");
        assert_eq!(queue.depth(), [1, 0, 0]);
    }
}

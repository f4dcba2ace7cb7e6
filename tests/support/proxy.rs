//! An SQS server that misbehaves by a seed: a proxy in front of the real one.
//!
//! The real server neither throttles nor loses calls nor delivers a message twice; Amazon's does
//! all of it. Each call is one fate drawn from the seed: see [`Faults`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::servers::{self, RUNTIME};

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
    upstream: String,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    LostRequest,
    LostReply,
    Unavailable,
    Throttled,
    FailedEntry,
    DuplicateDelivery,
}

struct Request {
    head: String,
    action: String,
    body: Vec<u8>,
}

struct Reply {
    status: String,
    body: Vec<u8>,
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
            let fate = shared.draw(&request.action);
            let delay = shared.faults.delay.mul_f64(shared.rng.f64());
            (fate, delay, shared.upstream.clone())
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let reply = match fate {
            Fate::LostRequest => return Ok(()),
            Fate::Unavailable => refusal("503 Service Unavailable", "ServiceUnavailable"),
            Fate::Throttled => refusal("400 Bad Request", "RequestThrottled"),
            Fate::LostReply => {
                forward(&upstream, &request, &request.body).await?;
                return Ok(());
            }
            Fate::FailedEntry => forward_without_an_entry(&upstream, &request).await?,
            Fate::Pass | Fate::DuplicateDelivery => {
                let mut reply = forward(&upstream, &request, &request.body).await?;
                if request.action == "ReceiveMessage" {
                    let is_repeated = fate == Fate::DuplicateDelivery;
                    shared.lock().unwrap().repeat(&request, &mut reply, is_repeated);
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
    fn draw(&mut self, action: &str) -> Fate {
        let faults = self.faults;
        let mut drawn = self.rng.f64();
        for (probability, fate) in [
            (faults.lost_request, Fate::LostRequest),
            (faults.lost_reply, Fate::LostReply),
            (faults.unavailable, Fate::Unavailable),
            (faults.throttled, Fate::Throttled),
            (faults.failed_entry, Fate::FailedEntry),
            (faults.duplicate_delivery, Fate::DuplicateDelivery),
        ] {
            if drawn < probability {
                let fits = match fate {
                    Fate::FailedEntry => action.ends_with("Batch"),
                    Fate::DuplicateDelivery => action == "ReceiveMessage",
                    _ => true,
                };
                return if fits { fate } else { Fate::Pass };
            }
            drawn -= probability;
        }
        Fate::Pass
    }

    /// Remembers what a receive brings, and may add what an earlier one has brought. Only a
    /// receive that asked for more than it got has room for it.
    fn repeat(&mut self, request: &Request, reply: &mut Reply, is_repeated: bool) {
        let Ok(asked) = serde_json::from_slice::<Value>(&request.body) else { return };
        let Ok(mut answer) = serde_json::from_slice::<Value>(&reply.body) else { return };
        let queue = asked["QueueUrl"].as_str().unwrap_or_default().to_owned();
        let mut messages = answer["Messages"].as_array().cloned().unwrap_or_default();
        let fresh = messages.last().cloned();
        let room = asked["MaxNumberOfMessages"].as_u64().unwrap_or(1) > messages.len() as u64;
        if is_repeated
            && room
            && let Some(earlier) = self.delivered.get(&queue)
        {
            messages.push(earlier.clone());
            answer["Messages"] = messages.into();
            reply.body = answer.to_string().into_bytes();
        }
        if let Some(fresh) = fresh {
            self.delivered.insert(queue, fresh);
        }
    }
}

fn refusal(status: &str, kind: &str) -> Reply {
    let body =
        json!({"__type": format!("com.amazonaws.sqs#{kind}"), "message": "by the tests' proxy"});
    Reply { status: status.into(), body: body.to_string().into_bytes() }
}

/// Forwards a batch without its first entry, and tells that this one failed.
async fn forward_without_an_entry(upstream: &str, request: &Request) -> io::Result<Reply> {
    let mut asked: Value = serde_json::from_slice(&request.body)?;
    let left_out = asked["Entries"].as_array_mut().map(|entries| entries.remove(0));
    let Some(left_out) = left_out else { return forward(upstream, request, &request.body).await };
    let mut answer = json!({"Successful": [], "Failed": []});
    if !asked["Entries"].as_array().is_some_and(Vec::is_empty) {
        let reply = forward(upstream, request, asked.to_string().as_bytes()).await?;
        answer = serde_json::from_slice(&reply.body)?;
    }
    let failed = json!({"Id": left_out["Id"], "SenderFault": false, "Code": "InternalError", "Message": "by the tests' proxy"});
    match answer["Failed"].as_array_mut() {
        Some(entries) => entries.push(failed),
        None => answer["Failed"] = json!([failed]),
    }
    Ok(Reply { status: "200 OK".into(), body: answer.to_string().into_bytes() })
}

/// Makes one call on a connection of its own.
async fn forward(upstream: &str, request: &Request, body: &[u8]) -> io::Result<Reply> {
    let mut server = BufReader::new(TcpStream::connect(upstream).await?);
    let mut head = String::new();
    for line in request.head.lines() {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !["connection", "content-length"].contains(&name.as_str()) {
            head.push_str(line);
            head.push_str("\r\n");
        }
    }
    head.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()));
    server.write_all(head.as_bytes()).await?;
    server.write_all(body).await?;
    server.flush().await?;

    let head = read_head(&mut server).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head
        .lines()
        .next()
        .and_then(|line| line.split_once(' '))
        .map_or("502 Bad Gateway", |(_, rest)| rest);
    let body = read_body(&mut server, &head).await?;
    Ok(Reply { status: status.to_owned(), body })
}

async fn read_request(client: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let Some(head) = read_head(client).await? else { return Ok(None) };
    let action = header(&head, "x-amz-target")
        .and_then(|target| target.rsplit('.').next())
        .unwrap_or_default();
    let action = action.to_owned();
    let body = read_body(client, &head).await?;
    Ok(Some(Request { head, action, body }))
}

/// Reads up to the empty line; `None` at the end of the connection.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line == "\r\n" {
            return Ok(Some(head));
        }
        head.push_str(&line);
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then(|| value.trim()))
}

async fn read_body(stream: &mut BufReader<TcpStream>, head: &str) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if header(head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length: usize =
        header(head, "content-length").unwrap_or("0").parse().map_err(io::Error::other)?;
    body.resize(length, 0);
    stream.read_exact(&mut body).await?;
    Ok(body)
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

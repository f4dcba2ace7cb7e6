//! What both brokers promise. Each rule runs unchanged on the embedded queue and on a real
//! SQS-compatible server; each test has queues of its own, and the embedded one a file of its own.
//!
//! A visibility timeout is waited for by a long poll, which ends when the message comes back.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqjobs::broker::local::LocalBroker;
use sqjobs::broker::sqs::{SqsBroker, SqsOptions};
use sqjobs::broker::{
    Attribute, AttributeValue, Attributes, Broker, BrokerError, Delivery, Depth, EntryError,
    NewQueue, OutgoingMessage, Queue, Receipt, ReceiveOptions,
};
use support::servers::unique;

/// A broker under test.
struct Bench {
    broker: Arc<dyn Broker>,
    folder: Option<Folder>,
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(unique("sqjobs-contract")))
    }

    fn file(&self) -> PathBuf {
        self.0.join("sqjobs.db")
    }
}

impl Bench {
    async fn local() -> Self {
        let folder = Folder::new();
        let broker = Arc::new(LocalBroker::open(&folder.file()).await.unwrap());
        Self { broker, folder: Some(folder) }
    }

    async fn sqs() -> Self {
        Self { broker: Arc::new(sqs_at(&support::servers::sqs_url()).await), folder: None }
    }

    fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    async fn queue(&self) -> Queue {
        self.create(&unique("contract"), None).await
    }

    async fn fifo(&self) -> Queue {
        self.create(&format!("{}.fifo", unique("contract")), None).await
    }

    async fn create(&self, name: &str, redrive: Option<(u32, String)>) -> Queue {
        let queue = NewQueue {
            name: name.to_owned(),
            redrive,
            retention: Duration::from_secs(3600),
            visibility: Duration::from_secs(30),
        };
        self.broker.create(&queue).await.unwrap()
    }

    async fn send(&self, queue: &Queue, messages: &[OutgoingMessage]) -> Vec<String> {
        let sent = self.broker.send(queue, messages).await.unwrap();
        sent.into_iter().map(Result::unwrap).collect()
    }

    /// Receives up to `most`, invisible for `visibility` seconds, waiting up to `wait` seconds.
    async fn receive(
        &self,
        queue: &Queue,
        most: usize,
        visibility: u64,
        wait: u64,
    ) -> Vec<Delivery> {
        self.broker.receive(queue, asking(most, visibility, wait)).await.unwrap()
    }

    async fn receive_one(&self, queue: &Queue, visibility: u64, wait: u64) -> Delivery {
        let mut received = self.receive(queue, 1, visibility, wait).await;
        assert_eq!(received.len(), 1, "one message was to come");
        received.remove(0)
    }

    async fn delete(&self, queue: &Queue, delivery: &Delivery) {
        let deleted = self.broker.delete(queue, std::slice::from_ref(&delivery.receipt)).await;
        assert_eq!(deleted.unwrap(), [Ok(())]);
    }

    async fn set_visibility(
        &self,
        queue: &Queue,
        receipt: &Receipt,
        seconds: u32,
    ) -> Result<(), EntryError> {
        let changes = [(receipt.clone(), seconds)];
        self.broker.set_visibility(queue, &changes).await.unwrap().remove(0)
    }
}

async fn sqs_at(endpoint: &str) -> SqsBroker {
    let options = SqsOptions {
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        access_key: Some(("test".to_owned(), "test".to_owned())),
    };
    SqsBroker::connect_with(options).await.unwrap()
}

fn asking(max_messages: usize, visibility: u64, wait: u64) -> ReceiveOptions {
    ReceiveOptions {
        max_messages,
        wait: Duration::from_secs(wait),
        visibility: Duration::from_secs(visibility),
    }
}

fn message(body: &str) -> OutgoingMessage {
    OutgoingMessage {
        body: body.to_owned(),
        attributes: Attributes::new(),
        delay_secs: 0,
        group: None,
        deduplication_id: None,
    }
}

fn in_group(body: &str, group: &str) -> OutgoingMessage {
    let deduplication_id = Some(unique("send"));
    OutgoingMessage { group: Some(group.to_owned()), deduplication_id, ..message(body) }
}

fn bodies(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.body.as_str()).collect()
}

/// Makes two tests of each rule: one on the embedded queue, one on the SQS server.
macro_rules! on_both_brokers {
    ($(async fn $rule:ident($bench:ident: &Bench) $body:block)+) => {$(
        mod $rule {
            use super::*;

            async fn holds($bench: &Bench) $body

            #[tokio::test]
            async fn local() {
                holds(&Bench::local().await).await;
            }

            #[tokio::test]
            async fn sqs() {
                holds(&Bench::sqs().await).await;
            }
        }
    )+};
}

on_both_brokers! {
    async fn a_message_arrives_as_it_was_sent(bench: &Bench) {
        let queue = bench.queue().await;
        let of = |data_type: &str, value| Attribute { data_type: data_type.to_owned(), value };
        let attributes = Attributes::from([
            ("trace".to_owned(), "00-ab".into()),
            ("tenant".to_owned(), "Zoë \"x\"\n".into()),
            ("count".to_owned(), of("Number", AttributeValue::Text("1.50".to_owned()))),
            ("blob".to_owned(), of("Binary.png", AttributeValue::Binary(vec![0, 159, 255]))),
        ]);
        let body = "{\"id\": \"é\u{1f980}\", \"name\": \"a\\u0000b\"}\n\t";
        let ids = bench.send(&queue, &[OutgoingMessage { attributes: attributes.clone(), ..message(body) }]).await;
        let delivery = bench.receive_one(&queue, 30, 5).await;
        assert_eq!(delivery.message_id, ids[0]);
        assert_eq!(delivery.body, body);
        assert_eq!(delivery.attributes, attributes);
        assert_eq!(delivery.receive_count, 1);
        assert_eq!(delivery.queue, queue.name);
        assert_eq!(delivery.group, None);
        assert!(delivery.sent_at.is_some());
        bench.delete(&queue, &delivery).await;
        assert_eq!(bench.broker.depth(&queue).await.unwrap(), Depth::default());
    }

    async fn a_received_message_is_invisible_until_its_timeout(bench: &Bench) {
        let queue = bench.queue().await;
        bench.send(&queue, &[message("x")]).await;
        let first = bench.receive_one(&queue, 1, 5).await;
        let since = Instant::now();
        assert!(bench.receive(&queue, 10, 1, 0).await.is_empty());
        let second = bench.receive_one(&queue, 30, 10).await;
        assert!(since.elapsed() > Duration::from_millis(500), "came back too soon");
        assert_eq!(second.message_id, first.message_id);
        assert_eq!(second.receive_count, 2);
        assert_ne!(second.receipt, first.receipt);
        assert_eq!(second.sent_at, first.sent_at);
    }

    async fn an_extension_counts_from_now_and_zero_returns_at_once(bench: &Bench) {
        let queue = bench.queue().await;
        bench.send(&queue, &[message("x")]).await;
        let first = bench.receive_one(&queue, 1, 5).await;
        assert_eq!(bench.set_visibility(&queue, &first.receipt, 600).await, Ok(()));
        assert!(bench.receive(&queue, 1, 1, 2).await.is_empty(), "it was extended");
        assert_eq!(bench.set_visibility(&queue, &first.receipt, 0).await, Ok(()));
        assert_eq!(bench.receive_one(&queue, 30, 0).await.receive_count, 2);
    }

    async fn a_delayed_message_comes_when_it_is_due(bench: &Bench) {
        let queue = bench.queue().await;
        let since = Instant::now();
        bench.send(&queue, &[OutgoingMessage { delay_secs: 1, ..message("x") }]).await;
        assert!(bench.receive(&queue, 1, 30, 0).await.is_empty());
        assert_eq!(bench.broker.depth(&queue).await.unwrap().delayed, 1);
        bench.receive_one(&queue, 30, 10).await;
        let passed = since.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&passed), "{passed:?}");
    }

    async fn ten_travel_in_one_batch_and_eleven_do_not(bench: &Bench) {
        let queue = bench.queue().await;
        let ten: Vec<_> = (0..10).map(|number| message(&number.to_string())).collect();
        bench.send(&queue, &ten).await;
        let mut received = Vec::new();
        while received.len() < 10 {
            let more = bench.receive(&queue, 10, 30, 1).await;
            assert!(!more.is_empty(), "{} of 10 came", received.len());
            received.extend(more);
        }
        let mut numbers = bodies(&received);
        numbers.sort_unstable();
        assert_eq!(numbers, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!(bench.broker.depth(&queue).await.unwrap().in_flight, 10);
        let changes: Vec<_> = received.iter().map(|d| (d.receipt.clone(), 60)).collect();
        assert_eq!(bench.broker.set_visibility(&queue, &changes).await.unwrap(), vec![Ok(()); 10]);
        let receipts: Vec<_> = received.iter().map(|d| d.receipt.clone()).collect();
        assert_eq!(bench.broker.delete(&queue, &receipts).await.unwrap(), vec![Ok(()); 10]);
        assert_eq!(bench.broker.depth(&queue).await.unwrap(), Depth::default());
        let eleven = [ten.clone(), vec![message("x")]].concat();
        let refused = bench.broker.send(&queue, &eleven).await.unwrap_err();
        assert!(matches!(refused, BrokerError::Refused { .. }), "{refused}");
        assert_eq!(bench.broker.send(&queue, &[]).await.unwrap(), []);
    }

    async fn a_fault_of_one_entry_leaves_the_others_alone(bench: &Bench) {
        let queue = bench.queue().await;
        let results = bench.broker.send(&queue, &[
            message("good"),
            message(&"x".repeat(queue.max_message_bytes + 1)),
            OutgoingMessage { delay_secs: 901, ..message("late") },
            message("a\0b"),
            message("too"),
        ]).await.unwrap();
        assert!(results[0].is_ok() && results[4].is_ok(), "{results:?}");
        let limit = queue.max_message_bytes;
        assert_eq!(results[1], Err(EntryError::TooLarge { size: limit + 1, limit }));
        assert!(matches!(&results[2], Err(EntryError::Refused(reason)) if reason.contains("900")));
        assert!(matches!(&results[3], Err(EntryError::Refused(_))));
        let received = bench.receive(&queue, 10, 30, 1).await;
        assert_eq!(bodies(&received), ["good", "too"]);
        let changes = [
            (received[0].receipt.clone(), 43_201),
            (Receipt("nonsense".to_owned()), 60),
            (received[1].receipt.clone(), 60),
        ];
        let results = bench.broker.set_visibility(&queue, &changes).await.unwrap();
        assert!(matches!(&results[0], Err(EntryError::Refused(reason)) if reason.contains("43200")));
        assert_eq!(results[1], Err(EntryError::ReceiptExpired));
        assert_eq!(results[2], Ok(()));
    }

    async fn a_batch_larger_than_one_call_allows_is_sent_all_the_same(bench: &Bench) {
        let queue = bench.queue().await;
        let body = "x".repeat(queue.max_message_bytes / 3);
        bench.send(&queue, &vec![message(&body); 5]).await;
        assert_eq!(bench.broker.depth(&queue).await.unwrap().visible, 5);
    }

    async fn asking_for_too_much_is_refused_with_the_limit(bench: &Bench) {
        let queue = bench.queue().await;
        for (options, limit) in [
            (asking(11, 30, 0), "10"),
            (asking(0, 30, 0), "10"),
            (asking(1, 43_201, 0), "43200"),
            (asking(1, 30, 21), "20"),
        ] {
            let error = bench.broker.receive(&queue, options).await.unwrap_err();
            assert!(!error.is_transient() && error.to_string().contains(limit), "{error}");
        }
    }

    async fn a_stale_receipt_touches_nothing(bench: &Bench) {
        let queue = bench.queue().await;
        bench.send(&queue, &[message("x")]).await;
        let stale = bench.receive_one(&queue, 1, 5).await;
        let current = bench.receive_one(&queue, 600, 10).await;
        let deleted = bench.broker.delete(&queue, std::slice::from_ref(&stale.receipt)).await.unwrap();
        assert!(matches!(deleted[0], Ok(()) | Err(EntryError::ReceiptExpired)), "{deleted:?}");
        let changed = bench.set_visibility(&queue, &stale.receipt, 0).await;
        assert_eq!(changed, Err(EntryError::ReceiptExpired));
        assert_eq!(bench.broker.depth(&queue).await.unwrap().in_flight, 1);
        bench.delete(&queue, &current).await;
        let again = bench.broker.delete(&queue, std::slice::from_ref(&current.receipt)).await.unwrap();
        assert!(matches!(again[0], Ok(()) | Err(EntryError::ReceiptExpired)), "{again:?}");
        assert_eq!(bench.broker.depth(&queue).await.unwrap(), Depth::default());
    }

    async fn a_group_keeps_its_order_and_blocks_only_itself(bench: &Bench) {
        let queue = bench.fifo().await;
        assert!(queue.is_fifo);
        for (body, group) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            bench.send(&queue, &[in_group(body, group)]).await;
        }
        let first = bench.receive_one(&queue, 600, 5).await;
        assert_eq!((first.body.as_str(), first.group.as_deref()), ("a1", Some("a")));
        let other = bench.receive(&queue, 1, 600, 1).await;
        assert_eq!(bodies(&other), ["b1"], "group a is blocked, and b is not");
        assert!(bench.receive(&queue, 1, 600, 0).await.is_empty());
        assert_eq!(bench.set_visibility(&queue, &first.receipt, 0).await, Ok(()));
        let again = bench.receive_one(&queue, 600, 5).await;
        assert_eq!(again.body, "a1", "what failed stays in front");
        bench.delete(&queue, &again).await;
        assert_eq!(bench.receive_one(&queue, 600, 5).await.body, "a2");
    }

    async fn a_deduplication_id_makes_two_sends_one_message(bench: &Bench) {
        let queue = bench.fifo().await;
        let once = in_group("x", "a");
        let first = bench.send(&queue, std::slice::from_ref(&once)).await;
        let second = bench.send(&queue, std::slice::from_ref(&once)).await;
        assert_eq!(first, second);
        let delivery = bench.receive_one(&queue, 600, 5).await;
        bench.delete(&queue, &delivery).await;
        bench.send(&queue, &[once]).await;
        assert!(bench.receive(&queue, 1, 600, 0).await.is_empty(), "after deletion too");
        bench.send(&queue, &[message("free"), message("free")]).await;
        assert_eq!(bench.broker.depth(&queue).await.unwrap().visible, 2, "no id, no deduplication");
        let delayed = OutgoingMessage { delay_secs: 1, ..in_group("x", "a") };
        let refused = bench.broker.send(&queue, &[delayed]).await.unwrap();
        assert!(matches!(refused[0], Err(EntryError::Refused(_))), "{refused:?}");
    }

    async fn a_group_on_a_standard_queue_names_a_tenant_and_orders_nothing(bench: &Bench) {
        let queue = bench.queue().await;
        let of_tenant = OutgoingMessage { group: Some("acme".to_owned()), ..message("x") };
        bench.send(&queue, &[of_tenant.clone(), of_tenant]).await;
        let first = bench.receive_one(&queue, 600, 5).await;
        assert_eq!(first.group.as_deref(), Some("acme"));
        bench.receive_one(&queue, 600, 5).await;
    }

    async fn a_message_received_too_often_goes_to_the_dead_letter_queue(bench: &Bench) {
        let dead = bench.queue().await;
        let queue = bench.create(&unique("contract"), Some((2, dead.name.clone()))).await;
        assert_eq!(queue.max_receive_count, Some(2));
        assert_eq!(queue.dead_letter_queue.as_deref(), Some(dead.address.as_str()));
        let ids = bench.send(&queue, &[message("x")]).await;
        for count in [1, 2] {
            let delivery = bench.receive_one(&queue, 600, 5).await;
            assert_eq!(delivery.receive_count, count);
            assert_eq!(bench.set_visibility(&queue, &delivery.receipt, 0).await, Ok(()));
        }
        assert!(bench.receive(&queue, 1, 600, 0).await.is_empty());
        let delivery = bench.receive_one(&dead, 600, 5).await;
        assert_eq!((delivery.message_id, delivery.body), (ids[0].clone(), "x".to_owned()));
    }

    async fn a_long_poll_ends_when_a_message_arrives(bench: &Bench) {
        let queue = bench.queue().await;
        let polling = bench.receive(&queue, 10, 30, 15);
        let sending = async {
            // The poll has to be under way at the server; there is no sign of that to wait for.
            tokio::time::sleep(Duration::from_millis(300)).await;
            bench.send(&queue, &[message("x")]).await;
            Instant::now()
        };
        let (received, sent) = tokio::join!(polling, sending);
        assert_eq!(received.len(), 1);
        assert!(sent.elapsed() < Duration::from_secs(2), "{:?} after the sending", sent.elapsed());
        let since = Instant::now();
        assert!(bench.receive(&queue, 10, 30, 1).await.is_empty());
        assert!(since.elapsed() >= Duration::from_millis(900), "an empty poll waits in full");
    }

    async fn dropping_a_receive_loses_nothing(bench: &Bench) {
        let queue = bench.queue().await;
        let ten: Vec<_> = (0..10).map(|number| message(&number.to_string())).collect();
        bench.send(&queue, &ten).await;
        let mut missing: Vec<_> = (0..10).map(|number| number.to_string()).collect();
        for _ in 0..20 {
            let soon = Duration::from_micros(fastrand::u64(0..3000));
            let polling = bench.receive(&queue, 1, 1, 5);
            if let Ok(received) = tokio::time::timeout(soon, polling).await {
                for delivery in received {
                    bench.delete(&queue, &delivery).await;
                    missing.retain(|body| *body != delivery.body);
                }
            }
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while !missing.is_empty() {
            assert!(Instant::now() < deadline, "lost: {missing:?}");
            for delivery in bench.receive(&queue, 10, 30, 2).await {
                bench.delete(&queue, &delivery).await;
                missing.retain(|body| *body != delivery.body);
            }
        }
        assert_eq!(bench.broker.depth(&queue).await.unwrap(), Depth::default());
    }

    async fn queues_are_created_found_listed_and_emptied(bench: &Bench) {
        let queue = bench.queue().await;
        assert_eq!(bench.create(&queue.name, None).await, queue, "a second time changes nothing");
        assert_eq!(bench.broker.queue(&queue.name).await.unwrap(), queue);
        assert_eq!(queue.retention, Duration::from_secs(3600));
        assert!(queue.max_message_bytes >= 262_144);
        let other = NewQueue {
            name: queue.name.clone(),
            redrive: None,
            retention: Duration::from_secs(60),
            visibility: Duration::from_secs(30),
        };
        let refused = bench.broker.create(&other).await.unwrap_err();
        assert!(matches!(refused, BrokerError::Refused { .. }), "{refused}");
        assert!(bench.broker.list().await.unwrap().contains(&queue.name));
        bench.send(&queue, &[message("x")]).await;
        bench.broker.purge(&queue).await.unwrap();
        assert_eq!(bench.broker.depth(&queue).await.unwrap(), Depth::default());
        for name in ["", "a b", "../up", "a.b"] {
            let error = bench.broker.queue(name).await.unwrap_err();
            assert!(matches!(error, BrokerError::InvalidQueue { .. }), "{error}");
        }
    }

    async fn a_dead_letter_queue_has_to_exist(bench: &Bench) {
        let queue = NewQueue {
            name: unique("contract"),
            redrive: Some((3, "nowhere".to_owned())),
            retention: Duration::from_secs(60),
            visibility: Duration::from_secs(30),
        };
        let error = bench.broker.create(&queue).await.unwrap_err();
        assert!(matches!(&error, BrokerError::NoSuchQueue { queue, .. } if queue == "nowhere"), "{error}");
        assert!(bench.is_local() || bench.broker.label().contains("SQS at http"));
    }
}

#[tokio::test]
async fn a_queue_that_is_not_on_sqs_is_named_with_a_remedy() {
    let bench = Bench::sqs().await;
    let url = format!("{}/000000000000/nowhere", support::servers::sqs_url());
    for name in ["nowhere", url.as_str()] {
        let error = bench.broker.queue(name).await.unwrap_err();
        assert!(matches!(&error, BrokerError::NoSuchQueue { .. }), "{error}");
        assert!(error.to_string().contains("`nowhere` does not exist"), "{error}");
    }
}

#[tokio::test]
async fn a_queue_on_sqs_is_found_by_its_url() {
    let bench = Bench::sqs().await;
    let queue = bench.queue().await;
    let by_url = bench.broker.queue(&queue.address).await.unwrap();
    assert_eq!(by_url, queue);
    bench.send(&by_url, &[message("x")]).await;
    assert_eq!(bench.receive_one(&queue, 30, 5).await.body, "x");
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_worth_another_try() {
    // Bound, so that nobody else listens there, and never answered.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let broker = sqs_at(&format!("http://{address}")).await;
    let error = broker.queue("q").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_local_queue_is_made_when_it_is_first_named() {
    let bench = Bench::local().await;
    let queue = bench.broker.queue("new").await.unwrap();
    assert_eq!((queue.retention.as_secs(), queue.max_receive_count), (345_600, None));
}

#[tokio::test]
async fn ten_instances_open_one_new_file_at_once_and_share_it() {
    let folder = Folder::new();
    let opening: Vec<_> = (0..10)
        .map(|_| {
            let file = folder.file();
            tokio::spawn(async move { LocalBroker::open(&file).await.unwrap() })
        })
        .collect();
    let mut brokers = Vec::new();
    for opened in opening {
        brokers.push(opened.await.unwrap());
    }
    let queue = brokers[0].queue("q").await.unwrap();
    for (round, broker) in brokers.iter().enumerate() {
        let batch: Vec<_> = (0..10).map(|n| message(&format!("{round}-{n}"))).collect();
        broker.send(&queue, &batch).await.unwrap();
    }
    let receiving: Vec<_> = brokers
        .into_iter()
        .map(|broker| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut bodies = Vec::new();
                loop {
                    let received = broker.receive(&queue, asking(3, 60, 0)).await.unwrap();
                    if received.is_empty() {
                        return bodies;
                    }
                    let receipts: Vec<_> = received.iter().map(|d| d.receipt.clone()).collect();
                    broker.delete(&queue, &receipts).await.unwrap();
                    bodies.extend(received.into_iter().map(|delivery| delivery.body));
                }
            })
        })
        .collect();
    let mut bodies = Vec::new();
    for received in receiving {
        bodies.extend(received.await.unwrap());
    }
    assert_eq!(bodies.len(), 100, "each exactly once");
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 100, "each exactly once");
}

/// The file that the other process of the next test sends to.
const OTHER_PROCESS_FILE: &str = "SQJOBS_TEST_OTHER_PROCESS_FILE";

#[tokio::test]
async fn a_message_of_another_process_ends_a_long_poll() {
    if let Some(file) = std::env::var_os(OTHER_PROCESS_FILE) {
        // This is the other process: the same test, started by the one below.
        let broker = LocalBroker::open(&PathBuf::from(file)).await.unwrap();
        let queue = broker.queue("q").await.unwrap();
        broker.send(&queue, &[message("hello")]).await.unwrap();
        return;
    }
    let bench = Bench::local().await;
    let queue = bench.broker.queue("q").await.unwrap();
    let file = bench.folder.as_ref().unwrap().file();
    let polling = bench.receive(&queue, 1, 30, 20);
    let sending = tokio::task::spawn_blocking(move || {
        let name = concat!(module_path!(), "::a_message_of_another_process_ends_a_long_poll");
        // Without the crate, which the test runner leaves out of a test's name.
        let name = name.split_once("::").map_or(name, |(_, name)| name);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(OTHER_PROCESS_FILE, file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        Instant::now()
    });
    let (received, sent) = tokio::join!(polling, sending);
    assert_eq!(bodies(&received), ["hello"]);
    assert!(sent.unwrap().elapsed() < Duration::from_secs(2));
}

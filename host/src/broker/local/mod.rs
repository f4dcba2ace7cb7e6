//! The embedded queue: the rules of SQS on SQLite, for one machine and any number of processes.
//!
//! `open` makes the database ready, `queues` keeps the queues themselves, `send`,
//! `receive` and `settle` carry a message through its life, `groups` keeps the order of
//! FIFO queues, `wake` wakes receivers, `mend` bears with rows that were edited by hand. Every call is one transaction that holds the write lock
//! from its beginning (`BEGIN IMMEDIATE`), so none fails half-way for another writer.
//!
//! It exists to develop, test and run small, and never grows into a distributed queue.

mod groups;
mod mend;
mod open;
mod queues;
mod receive;
mod send;
mod settle;
mod wake;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    Broker, BrokerError, Delivery, Depth, EntryResults, NewQueue, OutgoingMessage, Queue, Receipt,
    ReceiveOptions,
};
use crate::clock::Clock;
use wake::Wake;

/// How far a commit must have come before it counts. See sqlite.org/pragma.html#pragma_synchronous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// A commit survives the end of the process, and may be lost at a power cut; the file stays
    /// whole. Right where outcomes share the file: then both are lost, or neither.
    #[default]
    Normal,
    /// A commit survives a power cut, at the price of one disk flush each.
    Full,
}

/// How to run the embedded queue.
#[derive(Debug, Clone, Default)]
pub struct LocalOptions {
    /// Durability of commits.
    pub synchronous: Synchronous,
    /// Tells the time: `Clock::system()` but in tests.
    pub clock: Clock,
    /// Writers of this process take turns here. SQLite has one writer, and waiting for a mutex is
    /// fair and quick where its busy handler sleeps: give the same one to whatever else in this
    /// process writes to the same file.
    pub writer: Arc<Mutex<()>>,
}

/// The embedded queue. Clones share connections.
#[derive(Debug, Clone)]
pub struct LocalBroker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    pool: SqlitePool,
    options: LocalOptions,
    wake: Wake,
}

/// A transaction that writes, and this process's turn to do so. Rolled back when dropped.
struct Write {
    transaction: Transaction<'static, Sqlite>,
    _turn: OwnedMutexGuard<()>,
}

impl Deref for Write {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}

impl LocalBroker {
    /// Opens the queue in the database file `path`, usually `<data-dir>/sqjobs.db`, with default
    /// options. File and folder are made when missing, the folder for its owner only; beside
    /// the file come its lock, and a folder `<path>.wake` that wakes other processes.
    ///
    /// # Errors
    /// [`BrokerError::LocalOpen`], which tells what to do.
    pub async fn open(path: &Path) -> Result<Self, BrokerError> {
        Self::open_with(path, LocalOptions::default()).await
    }

    /// As [`Self::open`], with options.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(path: &Path, options: LocalOptions) -> Result<Self, BrokerError> {
        let pool = open::open(path, &options).await?;
        let mut folder = path.as_os_str().to_owned();
        folder.push(".wake");
        let wake = Wake::in_folder(Path::new(&folder)).map_err(|source| BrokerError::LocalOpen {
            path: path.display().to_string(),
            remedy: "its `.wake` folder can't be made; check permissions, or choose another --data-dir".to_owned(),
            source: source.into(),
        })?;
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), pool, options, wake }) })
    }

    /// Closes all connections, waiting for the calls that run.
    pub async fn close(&self) {
        self.inner.pool.close().await;
    }
}

impl Inner {
    /// Begins a transaction that holds the write lock.
    async fn begin(&self) -> Result<Write, sqlx::Error> {
        let turn = self.options.writer.clone().lock_owned().await;
        let transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Write { transaction, _turn: turn })
    }

    fn failed(&self, action: &'static str) -> impl Fn(sqlx::Error) -> BrokerError + '_ {
        let path = || self.path.display().to_string();
        move |source| BrokerError::Local { path: path(), action, source }
    }

    fn label(&self) -> String {
        format!("the embedded queue in `{}`", self.path.display())
    }
}

#[async_trait]
impl Broker for LocalBroker {
    fn label(&self) -> String {
        self.inner.label()
    }

    fn shares_file_with(&self, database: &str) -> bool {
        is_same_file(&self.inner.path, database)
    }

    fn can_drop_receives(&self) -> bool {
        true
    }

    async fn queue(&self, name: &str) -> Result<Queue, BrokerError> {
        self.inner.queue(name).await
    }

    async fn receive(
        &self,
        queue: &Queue,
        options: ReceiveOptions,
    ) -> Result<Vec<Delivery>, BrokerError> {
        self.inner.receive(queue, options).await
    }

    async fn send(
        &self,
        queue: &Queue,
        messages: &[OutgoingMessage],
    ) -> Result<EntryResults<String>, BrokerError> {
        self.inner.send(queue, messages).await
    }

    async fn delete(
        &self,
        queue: &Queue,
        receipts: &[Receipt],
    ) -> Result<EntryResults<()>, BrokerError> {
        self.inner.delete(queue, receipts).await
    }

    async fn set_visibility(
        &self,
        queue: &Queue,
        changes: &[(Receipt, u32)],
    ) -> Result<EntryResults<()>, BrokerError> {
        self.inner.set_visibility(queue, changes).await
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        self.inner.depth(queue).await
    }

    async fn create(&self, queue: &NewQueue) -> Result<Queue, BrokerError> {
        self.inner.create(queue).await
    }

    async fn find(&self, name: &str) -> Result<Option<Queue>, BrokerError> {
        self.inner.find(name).await
    }

    async fn oldest(&self, queue: &Queue) -> Result<Option<Duration>, BrokerError> {
        self.inner.oldest(queue).await
    }

    async fn list(&self) -> Result<Vec<String>, BrokerError> {
        self.inner.list().await
    }

    async fn purge(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.inner.purge(queue).await
    }
}

/// Whether `database`, as `sqlite:PATH` or `sqlite://PATH`, is the file at `path`.
fn is_same_file(path: &Path, database: &str) -> bool {
    let Some(other) = database.strip_prefix("sqlite:") else { return false };
    let other = other.strip_prefix("//").unwrap_or(other);
    let other = other.split_once('?').map_or(other, |(file, _)| file);
    match (path.canonicalize(), Path::new(other).canonicalize()) {
        (Ok(path), Ok(other)) => path == other,
        // Neither may exist yet: then only the same spelling is surely the same file.
        _ => path == Path::new(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Attributes, EntryError};
    use crate::clock::Timestamp;

    /// A broker in a folder of its own, under a held clock.
    struct Held {
        broker: LocalBroker,
        clock: Clock,
        folder: PathBuf,
    }

    impl Held {
        async fn new() -> Self {
            let clock = Clock::held_at(Timestamp(1_800_000_000_000));
            let folder =
                std::env::temp_dir().join(format!("sqjobs-local-{}", uuid::Uuid::new_v4()));
            let options = LocalOptions { clock: clock.clone(), ..LocalOptions::default() };
            let broker = LocalBroker::open_with(&folder.join("sqjobs.db"), options).await;
            Self { broker: broker.expect("a new folder can be used"), clock, folder }
        }

        async fn send(&self, queue: &Queue, body: &str, group: Option<&str>) {
            let message = OutgoingMessage {
                body: body.to_owned(),
                attributes: Attributes::new(),
                delay_secs: 0,
                group: group.map(str::to_owned),
                deduplication_id: None,
            };
            let sent = self.broker.send(queue, &[message]).await.expect("a call");
            assert!(sent[0].is_ok(), "{sent:?}");
        }

        async fn receive(&self, queue: &Queue, visibility_secs: u64) -> Vec<Delivery> {
            let options = ReceiveOptions {
                max_messages: 10,
                wait: Duration::ZERO,
                visibility: Duration::from_secs(visibility_secs),
            };
            self.broker.receive(queue, options).await.expect("a call")
        }

        fn pass(&self, seconds: u64) {
            self.clock.advance(Duration::from_secs(seconds));
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    #[tokio::test]
    async fn a_message_is_gone_once_its_retention_has_passed() {
        let held = Held::new().await;
        let queue = held.broker.queue("q").await.expect("a queue");
        held.send(&queue, "old", None).await;
        held.pass(queue.retention.as_secs());
        held.send(&queue, "new", None).await;
        assert_eq!(held.broker.depth(&queue).await.expect("a depth").visible, 1);
        let bodies: Vec<_> = held.receive(&queue, 1).await.into_iter().map(|m| m.body).collect();
        assert_eq!(bodies, ["new"]);
    }

    #[tokio::test]
    async fn the_visibility_of_one_receipt_ends_at_twelve_hours_in_all() {
        let held = Held::new().await;
        let queue = held.broker.queue("q").await.expect("a queue");
        held.send(&queue, "x", None).await;
        let receipt = held.receive(&queue, 60).await.remove(0).receipt;
        held.pass(10);
        let change = async |seconds| {
            let changes = [(receipt.clone(), seconds)];
            held.broker.set_visibility(&queue, &changes).await.expect("a call").remove(0)
        };
        assert!(matches!(change(43_191).await, Err(EntryError::Refused(_))));
        assert_eq!(change(43_190).await, Ok(()));
    }

    #[tokio::test]
    async fn a_change_of_visibility_after_the_timeout_is_told_that_the_receipt_expired() {
        let held = Held::new().await;
        let queue = held.broker.queue("q").await.expect("a queue");
        held.send(&queue, "x", None).await;
        let receipt = held.receive(&queue, 5).await.remove(0).receipt;
        held.pass(5);
        let changes = [(receipt, 30)];
        let changed = held.broker.set_visibility(&queue, &changes).await.expect("a call");
        assert_eq!(changed, [Err(EntryError::ReceiptExpired)]);
    }

    #[tokio::test]
    async fn a_group_comes_in_order_and_is_blocked_until_all_of_it_is_settled() {
        let held = Held::new().await;
        let queue = held.broker.queue("q.fifo").await.expect("a queue");
        for body in ["a1", "a2"] {
            held.send(&queue, body, Some("a")).await;
        }
        let first = held.receive(&queue, 30).await;
        assert_eq!(first.iter().map(|m| m.body.as_str()).collect::<Vec<_>>(), ["a1", "a2"]);
        held.send(&queue, "a3", Some("a")).await;
        held.send(&queue, "b1", Some("b")).await;
        assert_eq!(held.receive(&queue, 30).await.len(), 1, "only b1");
        let receipts = [first[0].receipt.clone()];
        held.broker.delete(&queue, &receipts).await.expect("a call");
        assert!(held.receive(&queue, 30).await.is_empty(), "a2 is still out");
        held.pass(30);
        let bodies: Vec<_> = held.receive(&queue, 30).await.into_iter().map(|m| m.body).collect();
        assert_eq!(bodies, ["a2", "a3", "b1"]);
    }

    #[tokio::test]
    async fn a_deduplication_id_counts_for_five_minutes_after_deletion_too() {
        let held = Held::new().await;
        let queue = held.broker.queue("q.fifo").await.expect("a queue");
        let message = OutgoingMessage {
            body: "x".to_owned(),
            attributes: Attributes::new(),
            delay_secs: 0,
            group: None,
            deduplication_id: Some("once".to_owned()),
        };
        held.broker.send(&queue, &[message.clone(), message.clone()]).await.expect("a call");
        let received = held.receive(&queue, 30).await;
        assert_eq!(received.len(), 1);
        held.broker.delete(&queue, &[received[0].receipt.clone()]).await.expect("a call");
        held.pass(299);
        held.broker.send(&queue, std::slice::from_ref(&message)).await.expect("a call");
        assert!(held.receive(&queue, 30).await.is_empty());
        held.pass(1);
        held.broker.send(&queue, &[message]).await.expect("a call");
        assert_eq!(held.receive(&queue, 30).await.len(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named_with_a_remedy() {
        let held = Held::new().await;
        let path = held.folder.join("other.db");
        std::fs::write(&path, "this is a text of some length, and no database").expect("a file");
        let error = LocalBroker::open(&path).await.expect_err("no database").to_string();
        assert!(error.contains("other.db") && error.contains("--data-dir"), "{error}");
    }

    #[tokio::test]
    async fn outcomes_in_the_same_file_are_known_by_any_spelling() {
        let held = Held::new().await;
        let path = held.folder.join("sqjobs.db");
        let other = held.folder.join(".").join("sqjobs.db");
        assert!(held.broker.shares_file_with(&format!("sqlite:{}", path.display())));
        assert!(held.broker.shares_file_with(&format!("sqlite://{}?mode=rwc", other.display())));
        assert!(!held.broker.shares_file_with("sqlite:elsewhere.db"));
        assert!(!held.broker.shares_file_with("postgres://localhost/sqjobs"));
    }

    async fn edit(held: &Held, change: &str) {
        let change = sqlx::AssertSqlSafe(format!("UPDATE {change}"));
        sqlx::query(change).execute(&held.broker.inner.pool).await.expect("an edit");
    }

    #[tokio::test]
    async fn a_row_that_was_edited_to_nonsense_holds_no_other_up_and_is_delivered() {
        let held = Held::new().await;
        let queue = held.broker.queue("q").await.expect("a queue");
        for change in [
            "attributes = 'no JSON'",
            "attributes = x'ff'",
            "body = x'ff'",
            "message_id = x'ff', message_group = x'ff'",
            "sent_at = 'yesterday', receive_count = 'often'",
            "sent_at = 0.5, receive_count = -7",
            "receive_count = 9223372036854775807",
            "visible_at = ''",
            "visible_at = x'00'",
            "visible_at = 1.5",
        ] {
            for body in ["a", "b", "c"] {
                held.send(&queue, body, None).await;
            }
            edit(&held, &format!("sqjobs_messages SET {change} WHERE seq = 2")).await;
            let mut found = held.receive(&queue, 30).await;
            while found.len() < 3 {
                let more = held.receive(&queue, 30).await;
                assert!(!more.is_empty(), "{change}: {found:?}");
                found.extend(more);
            }
            assert!(found.iter().all(|message| message.receive_count == 1), "{change}: {found:?}");
            edit(&held, "sqjobs_messages SET received_at = '', visible_at = '' WHERE seq = 2")
                .await;
            let receipts: Vec<_> = found.into_iter().map(|message| message.receipt).collect();
            let changes: Vec<_> = receipts.iter().map(|receipt| (receipt.clone(), 60)).collect();
            let changed = held.broker.set_visibility(&queue, &changes).await.expect("a call");
            assert_eq!(changed.iter().filter(|result| result.is_ok()).count(), 2, "{change}");
            let deleted = held.broker.delete(&queue, &receipts).await.expect("a call");
            assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        }
    }

    #[tokio::test]
    async fn the_attributes_of_an_edited_row_that_can_be_read_are_kept() {
        let held = Held::new().await;
        let queue = held.broker.queue("q").await.expect("a queue");
        held.send(&queue, "x", None).await;
        edit(&held, r#"sqjobs_messages SET attributes = '{"a": "1", "b": 2}'"#).await;
        let attributes = held.receive(&queue, 30).await.remove(0).attributes;
        assert_eq!(attributes, Attributes::from([("a".to_owned(), "1".into())]));
    }

    #[tokio::test]
    async fn a_group_that_was_edited_to_nonsense_is_received_too() {
        let held = Held::new().await;
        let queue = held.broker.queue("q.fifo").await.expect("a queue");
        for group in ["a", "b", "c"] {
            held.send(&queue, group, Some(group)).await;
        }
        edit(&held, "sqjobs_messages SET visible_at = 'x' WHERE message_group = 'a'").await;
        edit(&held, "sqjobs_message_groups SET visible_at = 'x' WHERE name = 'a'").await;
        edit(&held, "sqjobs_messages SET message_group = x'ff' WHERE message_group = 'b'").await;
        edit(&held, "sqjobs_message_groups SET name = x'ff' WHERE name = 'b'").await;
        let mut found = Vec::new();
        for _ in 0..6 {
            found.extend(held.receive(&queue, 30).await);
        }
        assert_eq!(found.len(), 3, "{found:?}");
        let receipts: Vec<_> = found.into_iter().map(|message| message.receipt).collect();
        let _ = held.broker.delete(&queue, &receipts).await.expect("a call");
        assert_eq!(held.broker.depth(&queue).await.expect("a depth"), Depth::default());
    }
}

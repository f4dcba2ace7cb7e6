//! The embedded queue: the rules of SQS on SQLite, for one machine and any number of processes.
//!
//! [`open`] makes the database ready, [`queues`] keeps the queues themselves, [`send`],
//! [`receive`] and [`settle`] carry a message through its life, [`groups`] keeps the order of
//! FIFO queues, [`wake`] wakes receivers. Every call is one transaction that holds the write lock
//! from its beginning (`BEGIN IMMEDIATE`), so none fails half-way for another writer.
//!
//! It exists to develop, test and run small, and never grows into a distributed queue.

mod groups;
mod open;
mod queues;
mod receive;
mod send;
mod settle;
mod wake;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

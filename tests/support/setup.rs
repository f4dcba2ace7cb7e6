//! The pairs of database and broker that everything has to work on.

use std::path::PathBuf;
use std::sync::Arc;

use sqjobs::broker::Broker;
use sqjobs::broker::local::LocalBroker;
use sqjobs::broker::sqs::{SqsBroker, SqsOptions};
use sqjobs::client::Client;
use sqjobs::store::{Database, Store};
use sqlx::Connection as _;

use crate::host::{Json, Output};
use crate::project::Project;
use crate::servers::{self, RUNTIME};
use crate::sqs::{CREDENTIALS, SqsQueue};
use crate::wait;
use crate::worker::WorkerProcess;

/// A database and a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// SQLite and the embedded queue: what a newcomer has.
    Embedded,
    /// SQLite and SQS.
    SqliteSqs,
    /// PostgreSQL and SQS.
    PostgresSqs,
}

/// A project on one of the pairs, with a queue and a database of its own.
#[derive(Debug)]
pub struct Setup {
    /// Which pair.
    pub pair: Pair,
    /// Its folder; runs of the host in it use the pair.
    pub project: Project,
    /// Its queue.
    pub queue: String,
    sqs: Option<SqsQueue>,
    schema: Option<String>,
}

impl Setup {
    /// A project with these guests, migrated and ready for a worker.
    ///
    /// # Panics
    /// A server is missing, or the database can't be migrated.
    #[must_use]
    pub fn new(pair: Pair, guests: &[&str]) -> Self {
        let setup = Self::not_migrated(pair, guests);
        if pair == Pair::PostgresSqs {
            let _ = setup.run(&["migrate"]).ok();
        }
        setup
    }

    /// Like [`Self::new`], with an empty database.
    ///
    /// # Panics
    /// A server is missing.
    #[must_use]
    pub fn not_migrated(pair: Pair, guests: &[&str]) -> Self {
        let mut project = Project::with_guests(guests);
        let mut schema = None;
        if pair == Pair::PostgresSqs {
            let name = servers::unique("schema");
            project.set("SQJOBS_DATABASE", &servers::database_url());
            project.set("SQJOBS_SCHEMA", &name);
            schema = Some(name);
        }
        if pair == Pair::Embedded {
            return Self { pair, project, queue: servers::unique("queue"), sqs: None, schema };
        }
        project.set("SQJOBS_BROKER", "sqs");
        // An idle worker waits at its stop for its long poll, for the grace time at most.
        project.set("SQJOBS_GRACE", "8s");
        project.set("AWS_ENDPOINT_URL", &servers::sqs_url());
        for (name, value) in CREDENTIALS {
            project.set(name, value);
        }
        let sqs = SqsQueue::unique();
        Self { pair, project, queue: sqs.name.clone(), sqs: Some(sqs), schema }
    }

    /// The queue on the SQS server.
    ///
    /// # Panics
    /// The pair has none.
    #[must_use]
    pub fn sqs(&self) -> &SqsQueue {
        self.sqs.as_ref().expect("the pair has an SQS server")
    }

    /// The PostgreSQL schema.
    ///
    /// # Panics
    /// The pair has none.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.schema.as_ref().expect("the pair has a PostgreSQL database")
    }

    /// Runs the binary to its end.
    #[must_use]
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Output {
        self.project.run(args)
    }

    /// Starts a worker on the queue, with these arguments besides.
    #[must_use]
    pub fn worker(&self, args: &[&str]) -> WorkerProcess {
        self.project.worker(&[&[self.queue.as_str()], args].concat())
    }

    /// Starts a worker on the queue that kills itself at a fail point, such as `claimed`,
    /// `claimed[job_name]`: see `host/src/failpoint.rs`.
    #[must_use]
    pub fn worker_killed_at(&self, point: &str, args: &[&str]) -> WorkerProcess {
        let args = [&["worker", self.queue.as_str()], args].concat();
        let mut command = self.project.command(&args);
        command.env(sqjobs::failpoint::VARIABLE, format!("{point}=kill"));
        WorkerProcess::spawn(command)
    }

    /// Adds a job on the queue, with these arguments besides, and returns its id.
    #[must_use]
    pub fn add(&self, args: &[&str]) -> String {
        let args = [&["add", "--queue", self.queue.as_str()], args].concat();
        self.run(&args).ok().line().to_owned()
    }

    /// Puts a body on the queue as it is, as a producer of any kind would, and returns the id
    /// of its message.
    ///
    /// # Panics
    /// The queue does not take it.
    pub fn send_body(&self, body: &str) -> String {
        match &self.sqs {
            Some(sqs) => sqs.send(body),
            None => self.send_bodies(&[body.to_owned()]).remove(0),
        }
    }

    /// Puts many bodies on the queue as [`Self::send_body`] does one; returns their ids.
    ///
    /// # Panics
    /// The queue does not take one.
    #[must_use]
    pub fn send_bodies(&self, bodies: &[String]) -> Vec<String> {
        match &self.sqs {
            Some(sqs) => bodies.iter().map(|body| sqs.send(body)).collect(),
            None => {
                RUNTIME.block_on(embedded::send(&self.embedded_queue_file(), &self.queue, bodies))
            }
        }
    }

    /// Another queue beside its own.
    #[must_use]
    pub fn another_queue(&self) -> String {
        match self.pair {
            Pair::Embedded => servers::unique("queue"),
            _ => SqsQueue::unique().name,
        }
    }

    /// Deletes all messages of the queue, as an operator would past the host.
    pub fn purge(&self) {
        match &self.sqs {
            Some(sqs) => sqs.purge(),
            None => {
                RUNTIME.block_on(embedded::purge(&self.embedded_queue_file(), &self.queue));
            }
        }
    }

    /// Receives the one message of the queue, as a worker that dies with it.
    ///
    /// # Panics
    /// The queue is empty.
    pub fn receive_in_vain(&self) {
        if self.pair == Pair::Embedded {
            self.execute("UPDATE sqjobs_messages SET receive_count = receive_count + 1");
        } else {
            wait::until_true("a message", || !self.sqs().receive(0).is_empty());
        }
    }

    /// Waits until so many jobs have met a worker without their module, and sets that back by as
    /// long as they are given.
    ///
    /// # Panics
    /// They do not meet it in time.
    pub fn wait_out_patience(&self, jobs: i64) {
        let unknown = "SELECT count(*) FROM {jobs} WHERE unknown_since IS NOT NULL";
        wait::until_true("jobs without a module", || self.count(unknown) == jobs);
        self.execute(&self.named("UPDATE {jobs} SET unknown_since = unknown_since - 5400000"));
    }

    /// What `status` prints of a job; `None` when it is not known.
    #[must_use]
    pub fn status(&self, id: &str) -> Option<Json> {
        let output = self.run(&["status", "--output", "json", "--", id]);
        if output.code == Some(1) {
            return None;
        }
        Some(output.ok().json())
    }

    /// Waits until the job has this status, and returns what `status` then prints.
    ///
    /// # Panics
    /// It does not get there; the message shows what was printed last.
    #[must_use]
    pub fn wait_for_status(&self, id: &str, status: &str) -> Json {
        self.wait_for_row(id, status, |row| row.text("status") == status)
    }

    /// Waits until what `status` prints of a job is as it should be, and returns it.
    ///
    /// # Panics
    /// It does not get there; the message shows what was printed last.
    #[must_use]
    pub fn wait_for_row(&self, id: &str, what: &str, is_so: impl Fn(&Json) -> bool) -> Json {
        let mut last = None;
        let found = wait::within(wait::DEADLINE, || {
            last = self.status(id);
            last.clone().filter(&is_so)
        });
        found.unwrap_or_else(|| {
            panic!(
                "job {id} does not get to {what}; last: {}",
                last.map_or("unknown".into(), |row| row.to_string())
            )
        })
    }

    /// Waits until the dead list holds this many entries, and returns them, newest first.
    ///
    /// # Panics
    /// It does not get there; the message shows what was printed last.
    #[must_use]
    pub fn wait_for_dead(&self, count: usize) -> Vec<Json> {
        let mut last = Vec::new();
        let found = wait::within(wait::DEADLINE, || {
            last = self.dead();
            (last.len() >= count).then(|| last.clone())
        });
        let found = found.unwrap_or_else(|| panic!("{count} dead are awaited; there are {last:?}"));
        assert_eq!(found.len(), count, "{found:?}");
        found
    }

    /// The dead list.
    #[must_use]
    pub fn dead(&self) -> Vec<Json> {
        self.run(&["dead", "list", "--output", "json"]).ok().json_lines()
    }

    /// Waits until the queue holds no message at all.
    ///
    /// # Panics
    /// It does not get there.
    pub fn wait_until_drained(&self) {
        wait::until_true("an empty queue", || self.depth() == [0, 0, 0]);
    }

    /// Messages in the queue: those that can be received, those in flight, and those delayed.
    #[must_use]
    pub fn depth(&self) -> [u64; 3] {
        match &self.sqs {
            Some(sqs) => sqs.depth(),
            None => RUNTIME.block_on(embedded::depth(&self.embedded_queue_file(), &self.queue)),
        }
    }

    /// A table or view of ours as SQL names it here: `job_status` may be `schema.job_status`.
    #[must_use]
    pub fn table(&self, name: &str) -> String {
        match &self.schema {
            Some(schema) => format!("\"{schema}\".{name}"),
            None => format!("sqjobs_{name}"),
        }
    }

    /// The only value of a query's only row, read past the host.
    ///
    /// # Panics
    /// The query fails, or finds no row.
    #[must_use]
    pub fn query<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any> + 'static,
    {
        RUNTIME.block_on(async {
            let mut connection = self.connect().await;
            let query = sqlx::query_scalar::<_, T>(sqlx::AssertSqlSafe(sql.to_owned()));
            let value = query.fetch_one(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            value
        })
    }

    /// The number that a query gives in which `{jobs}` stands for our table `jobs`, and so on.
    ///
    /// # Panics
    /// The query fails.
    #[must_use]
    pub fn count(&self, sql: &str) -> i64 {
        self.query(&self.named(sql))
    }

    /// Puts the tables' names into a statement in which `{jobs}` stands for our table `jobs`.
    #[must_use]
    pub fn named(&self, sql: &str) -> String {
        let tables = [
            "jobs",
            "attempts",
            "outbox",
            "dead",
            "workers",
            "unique_keys",
            "malformed_space",
            "paused_queues",
        ];
        tables.iter().fold(sql.to_owned(), |sql, name| {
            sql.replace(&format!("{{{name}}}"), &self.table(name))
        })
    }

    /// The rows of a query with two columns of text; tables are named as in [`Self::count`].
    ///
    /// # Panics
    /// The query fails.
    #[must_use]
    pub fn rows(&self, sql: &str) -> Vec<(String, String)> {
        let sql = sqlx::AssertSqlSafe(self.named(sql));
        RUNTIME.block_on(async {
            let mut connection = self.connect().await;
            let rows = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            rows
        })
    }

    /// A client of the library on this project's database and queue; SQS is reached by way of
    /// `endpoint`.
    ///
    /// # Panics
    /// Database or broker can't be used.
    #[must_use]
    pub fn client(&self, endpoint: &str) -> Client {
        RUNTIME.block_on(async {
            let database = match &self.schema {
                Some(schema) => Database::Postgres {
                    url: servers::database_url().parse().unwrap(),
                    schema: schema.clone(),
                },
                None => Database::Sqlite { path: self.sqlite_file(), is_durable: true },
            };
            let store = Store::open(&database).await.unwrap();
            let broker: Arc<dyn Broker> = match &self.sqs {
                None => Arc::new(LocalBroker::open(&self.embedded_queue_file()).await.unwrap()),
                Some(_) => {
                    let options = SqsOptions {
                        endpoint: Some(endpoint.to_owned()),
                        region: Some("us-east-1".to_owned()),
                        access_key: Some(("test".to_owned(), "test".to_owned())),
                    };
                    Arc::new(SqsBroker::connect_with(options).await.unwrap())
                }
            };
            Client::new(store, broker)
        })
    }

    /// Runs statements past the host.
    ///
    /// # Panics
    /// One fails.
    pub fn execute(&self, sql: &str) {
        RUNTIME.block_on(async {
            let mut connection = self.connect().await;
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
                .execute(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
        });
    }

    /// Whether a process holds the SQLite file for writing, and goes on to hold it.
    ///
    /// # Panics
    /// The file can't be opened.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.pair != Pair::PostgresSqs
            && RUNTIME.block_on(async {
                let mut connection = self.connect().await;
                let attempt = "PRAGMA busy_timeout = 2000; BEGIN IMMEDIATE; ROLLBACK";
                sqlx::raw_sql(attempt).execute(&mut connection).await.is_err()
            })
    }

    async fn connect(&self) -> sqlx::AnyConnection {
        sqlx::any::install_default_drivers();
        let url = match self.pair {
            Pair::PostgresSqs => servers::database_url(),
            _ => format!("sqlite:{}", self.sqlite_file().display()),
        };
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        if self.pair != Pair::PostgresSqs {
            // As patient as the workers beside it, on a busy machine.
            let patience = sqlx::raw_sql("PRAGMA busy_timeout = 30000");
            patience.execute(&mut connection).await.unwrap();
        }
        connection
    }

    fn sqlite_file(&self) -> PathBuf {
        self.project.folder().join(".sqjobs/sqjobs.db")
    }

    fn embedded_queue_file(&self) -> PathBuf {
        self.project.folder().join(".sqjobs/sqjobs.db")
    }
}

/// The embedded queue, used through the library as another process of the machine would.
mod embedded {
    use std::path::Path;

    use sqjobs::broker::local::LocalBroker;
    use sqjobs::broker::{Attributes, Broker as _, OutgoingMessage};

    pub async fn send(file: &Path, queue: &str, bodies: &[String]) -> Vec<String> {
        let broker = LocalBroker::open(file).await.unwrap();
        let queue = broker.queue(queue).await.unwrap();
        let mut ids = Vec::new();
        for batch in bodies.chunks(10) {
            let messages: Vec<_> = batch.iter().map(|body| message(body)).collect();
            let sent = broker.send(&queue, &messages).await.unwrap();
            ids.extend(sent.into_iter().map(Result::unwrap));
        }
        broker.close().await;
        ids
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

    pub async fn purge(file: &Path, queue: &str) {
        let broker = LocalBroker::open(file).await.unwrap();
        let queue = broker.queue(queue).await.unwrap();
        broker.purge(&queue).await.unwrap();
        broker.close().await;
    }

    pub async fn depth(file: &Path, queue: &str) -> [u64; 3] {
        let broker = LocalBroker::open(file).await.unwrap();
        let queue = broker.queue(queue).await.unwrap();
        let depth = broker.depth(&queue).await.unwrap();
        broker.close().await;
        [depth.visible, depth.in_flight, depth.delayed]
    }
}

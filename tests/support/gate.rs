//! A database server that goes away: a gate of ours between the host and the real one.
//!
//! It passes bytes on as they are. Closed, it cuts all connections and takes no new ones, as a
//! server that is down; it can also cut a connection between a commit and its answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::servers::{self, RUNTIME};

/// A running gate. Dropping it closes all connections through it.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
    lost_answers: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Gate {
    /// Starts an open gate in front of the tests' PostgreSQL.
    ///
    /// # Panics
    /// There is no free port, or no server.
    #[must_use]
    pub fn to_postgres() -> Self {
        let url = servers::database_url();
        let (_, place) = url.split_once('@').expect("a URL with a user");
        let upstream = place.split('/').next().unwrap_or_default().to_owned();
        let listener = RUNTIME.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let is_open = watch::channel(true).0;
        let lost_answers = Arc::new(AtomicU32::new(0));
        let task = accept(listener, upstream, is_open.subscribe(), lost_answers.clone());
        Self { address, is_open, lost_answers, task: RUNTIME.spawn(task) }
    }

    /// The database's URL by way of the gate.
    ///
    /// # Panics
    /// The tests' URL has no user or no database in it.
    #[must_use]
    pub fn database_url(&self) -> String {
        let url = servers::database_url();
        let (user, place) = url.split_once('@').expect("a URL with a user");
        let (_, database) = place.split_once('/').expect("a URL with a database");
        format!("{user}@{}/{database}", self.address)
    }

    /// Cuts all connections, and takes no more.
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }

    /// Takes connections again.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// Has so many more commits be carried out without an answer: their connections are cut.
    pub fn lose_answers(&self, commits: u32) {
        self.lost_answers.store(commits, Ordering::SeqCst);
    }

    /// How many of these commits are still to come.
    #[must_use]
    pub fn answers_to_lose(&self) -> u32 {
        self.lost_answers.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    is_open: watch::Receiver<bool>,
    lost_answers: Arc<AtomicU32>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // Dropped at once while the gate is closed.
        if !*is_open.borrow() {
            continue;
        }
        let (upstream, mut is_open, lost) =
            (upstream.clone(), is_open.clone(), lost_answers.clone());
        connections.spawn(async move {
            tokio::select! {
                // Whichever end hangs up ends its own connection only.
                _ = pass(client, &upstream, &lost) => {}
                _ = is_open.wait_for(|is_open| !is_open) => {}
            }
        });
    }
}

/// Passes bytes both ways until one side hangs up, or an answer is to be lost.
async fn pass(mut client: TcpStream, upstream: &str, lost_answers: &AtomicU32) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut is_lost = false;
    loop {
        tokio::select! {
            count = client.read(&mut asked) => {
                let count = count?;
                if count == 0 {
                    return Ok(());
                }
                is_lost |= is_commit(&asked[..count]) && take_one(lost_answers);
                server.write_all(&asked[..count]).await?;
            }
            count = server.read(&mut answered) => {
                let count = count?;
                // What the server has answered it has done.
                if count == 0 || is_lost {
                    return Ok(());
                }
                client.write_all(&answered[..count]).await?;
            }
        }
    }
}

fn is_commit(bytes: &[u8]) -> bool {
    bytes.windows(6).any(|word| word == b"COMMIT")
}

/// Counts one down, unless it is at zero; tells whether it did.
fn take_one(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    fn ask(gate: &Gate) -> Result<i32, sqlx::Error> {
        RUNTIME.block_on(async {
            let pool = PgPoolOptions::new().max_connections(1);
            let pool = pool.acquire_timeout(std::time::Duration::from_secs(2));
            let pool = pool.connect(&gate.database_url()).await?;
            sqlx::query_scalar("SELECT 1").fetch_one(&pool).await
        })
    }

    #[test]
    fn a_closed_gate_lets_nothing_through_until_it_is_opened() {
        let gate = Gate::to_postgres();
        assert_eq!(ask(&gate).unwrap(), 1);
        gate.close();
        assert!(ask(&gate).is_err());
        gate.open();
        assert_eq!(ask(&gate).unwrap(), 1);
    }

    #[test]
    fn a_lost_answer_belongs_to_a_commit_that_was_done() {
        let (gate, table) = (Gate::to_postgres(), servers::unique("gate"));
        let create = format!("CREATE TABLE {table} (n int)");
        RUNTIME.block_on(async {
            let pool = PgPoolOptions::new().connect(&gate.database_url()).await.unwrap();
            let mut transaction = pool.begin().await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(create)).execute(&mut *transaction).await.unwrap();
            gate.lose_answers(1);
            assert!(transaction.commit().await.is_err());
            let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap(), 0);
            let drop = sqlx::AssertSqlSafe(format!("DROP TABLE {table}"));
            sqlx::query(drop).execute(&pool).await.unwrap();
        });
    }
}

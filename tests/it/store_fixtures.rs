//! What the contracts of the store share: an empty store of each database, the rows behind it, and
//! jobs, claims and outcomes to fill it with.

use std::path::PathBuf;
use std::time::Duration;

use sqjobs::broker::Attributes;
use sqjobs::clock::Timestamp;
use sqjobs::payload::Job;
use sqjobs::store::claim::{Begun, Claim, ClaimRequest, ModuleVersion};
use sqjobs::store::dead::{DeadKind, DeadMessage};
use sqjobs::store::enqueue::{NewJob, Start};
use sqjobs::store::finish::{Ending, FinishRequest};
use sqjobs::store::park::ParkRequest;
use sqjobs::store::workers::WorkerRow;
use sqjobs::store::{Database, Store, StoreError};
use sqlx::{AnyPool, AssertSqlSafe};
use support::servers::{self, RUNTIME};

/// Makes of each function a test per database. The function is given an empty store, and the rows
/// behind it where it asks for them.
macro_rules! on_every_database {
    ($($(#[doc = $doc:literal])* async fn $rule:ident($store:ident $(, $rows:ident)?) $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $rule {
            #[allow(unused_imports, reason = "not every rule needs all of the file's imports")]
            use super::*;

            async fn holds($store: sqjobs::store::Store $(, $rows: $crate::store_fixtures::Rows)?) $body

            async fn of(database: sqjobs::store::Database) {
                let store = $crate::store_fixtures::open(&database).await;
                $(let $rows = $crate::store_fixtures::Rows::of(&store, &database).await;)?
                holds(store $(, $rows)?).await;
            }

            #[test]
            fn sqlite() {
                $crate::store_fixtures::on_sqlite(of);
            }

            #[test]
            fn postgres() {
                $crate::store_fixtures::on_postgres(of);
            }
        }
    )+};
}
pub(crate) use on_every_database;

/// Runs a rule on a file of its own.
pub fn on_sqlite<F: Future<Output = ()>>(holds: impl FnOnce(Database) -> F) {
    let folder: PathBuf = std::env::temp_dir().join(servers::unique("store"));
    let path = folder.join("test.db");
    RUNTIME.block_on(holds(Database::Sqlite { path, is_durable: true }));
    std::fs::remove_dir_all(folder).unwrap();
}

/// Runs a rule on a schema of its own.
pub fn on_postgres<F: Future<Output = ()>>(holds: impl FnOnce(Database) -> F) {
    let url = servers::database_url().parse().unwrap();
    RUNTIME.block_on(holds(Database::Postgres { url, schema: servers::unique("schema") }));
}

pub async fn open(database: &Database) -> Store {
    let store = Store::open(database).await.unwrap();
    assert!(matches!(store.check_schema().await, Err(StoreError::MigrationDue { found: 0, .. })));
    store.migrate().await.unwrap();
    store.check_schema().await.unwrap();
    store
}

/// The rows behind a store, as an operator or another application reads and writes them. `{p}`
/// begins the name of each table.
pub struct Rows {
    pool: AnyPool,
    prefix: String,
}

impl Rows {
    pub async fn of(store: &Store, database: &Database) -> Self {
        let url = match database {
            Database::Sqlite { path, .. } => format!("sqlite://{}", path.display()),
            Database::Postgres { url, .. } => url.to_string(),
        };
        Self { pool: AnyPool::connect(&url).await.unwrap(), prefix: store.table("") }
    }

    fn sql(&self, statement: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(statement.replace("{p}", &self.prefix))
    }

    /// Runs a statement that writes.
    pub async fn write(&self, statement: &str) {
        sqlx::query(self.sql(statement)).execute(&self.pool).await.unwrap();
    }

    /// The first column of each row, a text.
    pub async fn texts(&self, statement: &str) -> Vec<String> {
        sqlx::query_scalar(self.sql(statement)).fetch_all(&self.pool).await.unwrap()
    }

    /// The first column of the only row, a whole number.
    pub async fn number(&self, statement: &str) -> i64 {
        sqlx::query_scalar(self.sql(statement)).fetch_one(&self.pool).await.unwrap()
    }

    /// Moves what is known of all jobs into the past.
    pub async fn age_jobs(&self, ms: i64) {
        self.write(&format!(
            "UPDATE {{p}}jobs SET created_at = created_at - {ms}, updated_at = updated_at - {ms}, \
             sent_at = sent_at - {ms}, retry_at = retry_at - {ms}, \
             finished_at = finished_at - {ms}"
        ))
        .await;
    }
}

pub fn job(id: &str) -> Job {
    Job {
        id: id.into(),
        name: "adder_job".into(),
        args: r#"[1, 123456789012345678901234567890, "\u0000"]"#.into(),
        kwargs: r#"{"b": 1, "a": 2}"#.into(),
        enqueued_at: Some(Timestamp(1_700_000_000_000)),
        is_tracked: false,
        is_revived: false,
    }
}

pub fn version() -> ModuleVersion {
    ModuleVersion { name: "adder".into(), version: None, digest: "d".repeat(64) }
}

pub fn claim(job: &Job, worker: &str, token: &str) -> ClaimRequest {
    ClaimRequest {
        job: job.clone(),
        queue: "q".into(),
        group: None,
        sent_at: None,
        message_id: "m".into(),
        token: token.into(),
        worker_id: worker.into(),
        module: version(),
        is_alone: false,
        is_ordered: false,
    }
}

pub fn finish(job: &Job, token: &str, attempt: u32, ending: Ending) -> FinishRequest {
    let is_success = ending == Ending::Success;
    FinishRequest {
        job: job.clone(),
        queue: "q".into(),
        group: None,
        token: token.into(),
        worker_id: "w".into(),
        module: version(),
        attempt,
        is_claimed: true,
        is_spent: !matches!(ending, Ending::Released),
        outcome: if is_success { "success" } else { "transient" },
        result: is_success.then(|| r#"{"z":1.50,  "a":"\u0000"}"#.to_owned()),
        failure: (!is_success).then(|| ("run".to_owned(), "no way".to_owned(), None)),
        ending,
        logs: String::new(),
        warnings: String::new(),
        duration: Duration::from_millis(7),
        children: Vec::new(),
        is_parked: false,
        address: "q".into(),
        attributes: Attributes::new(),
        is_ordered: false,
        dead_letter_queue: None,
    }
}

pub fn dead(id: &str) -> DeadMessage {
    DeadMessage {
        id: id.into(),
        kind: DeadKind::Failed,
        queue: "q".into(),
        job: Some("adder_job".into()),
        job_id: Some(id.into()),
        message_id: None,
        reason: "no\0 way".into(),
        body: "body \0 as it was".into(),
        attributes: "{}".into(),
        group: None,
    }
}

pub fn worker(id: &str, lease: Duration) -> WorkerRow {
    WorkerRow { id: id.into(), host: "h".into(), pid: 1, queues: "q".into(), lease }
}

pub fn new_job() -> NewJob {
    NewJob {
        job: job("new"),
        queue: "q".into(),
        queue_url: None,
        group: None,
        start: Start::Now,
        parent_id: None,
        generation: 0,
        unique: None,
    }
}

pub fn park(job: &Job, address: &str, group: Option<&str>) -> ParkRequest {
    ParkRequest {
        job: job.clone(),
        queue: "q".into(),
        address: address.into(),
        group: group.map(str::to_owned),
        attributes: Attributes::new(),
        wait: Duration::ZERO,
        is_ordered: group.is_some(),
    }
}

pub const LEASE: Duration = Duration::from_secs(600);

pub async fn begin(store: &Store, job: &Job, token: &str) -> Begun {
    store.renew_worker(&worker("w", LEASE)).await.unwrap();
    match store.claim(&[claim(job, "w", token)]).await.unwrap().remove(0) {
        Claim::Begun(begun) => begun,
        other => panic!("{other:?}"),
    }
}

/// A worker begins the job and dies.
pub async fn crash(store: &Store, job: &Job, id: &str) {
    store.renew_worker(&worker(id, LEASE)).await.unwrap();
    let claims = store.claim(&[claim(job, id, id)]).await.unwrap();
    assert!(matches!(claims[0], Claim::Begun(_)), "{claims:?}");
    store.remove_worker(id).await.unwrap();
}

pub async fn end(store: &Store, request: FinishRequest) -> bool {
    store.finish(&[request]).await.unwrap()[0]
}

//! The examples of `docs/periodic.md` that add a job within an application's own transaction, run
//! as they are printed there.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use sqjobs::broker::local::LocalBroker;
use sqjobs::client::{Client, JobRequest};
use sqjobs::store::{Database, Store};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _};
use support::servers::{self, RUNTIME};
use support::{Output, Project, WorkerProcess, wait};

const PAGE: &str = include_str!("../../docs/periodic.md");
const THIS_FILE: &str = include_str!("outbox_snippets.rs");

/// The fenced code of a language on the page.
fn examples(language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    PAGE.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// A database of its own with a shop's table beside ours, and a beater that sends.
struct Shop {
    project: Project,
    url: String,
    outbox: &'static str,
    jobs: &'static str,
    /// The database and the user on PostgreSQL.
    name: Option<String>,
    beater: Option<WorkerProcess>,
}

impl Shop {
    fn sqlite() -> Self {
        let project = Project::empty();
        let url = format!("sqlite:{}", project.folder().join(".sqjobs/sqjobs.db").display());
        let (outbox, jobs) = ("sqjobs_outbox", "sqjobs_jobs");
        Self { project, url, outbox, jobs, name: None, beater: None }.opened()
    }

    /// In a database of its own, since the schema has its usual name.
    fn postgres() -> Self {
        let mut project = Project::empty();
        let name = servers::unique("shop");
        let server = servers::database_url();
        execute(&server, &format!("CREATE DATABASE {name}"));
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        project.set("SQJOBS_DATABASE", &url);
        let (outbox, jobs) = ("sqjobs.outbox", "sqjobs.jobs");
        Self { project, url, outbox, jobs, name: Some(name), beater: None }.opened()
    }

    fn opened(mut self) -> Self {
        self.project.write("sqjobs.toml", "[queues.mail]\n");
        let _ = self.project.run(&["migrate"]).ok();
        execute(&self.url, "CREATE TABLE orders (id bigint PRIMARY KEY)");
        if let Some(name) = &self.name {
            let _ = self.project.run(&["migrate", "--roles"]).ok();
            let user = format!("CREATE ROLE {name} LOGIN IN ROLE sqjobs_producer");
            execute(&self.url, &format!("{user}; GRANT INSERT ON orders TO {name}"));
        }
        let mut beater = WorkerProcess::spawn(self.project.command(&["beater"]));
        beater.wait_until_ready();
        self.beater = Some(beater);
        self
    }

    /// The URL by which the shop's own user connects.
    fn url_of_its_user(&self) -> String {
        let name = self.name.as_ref().unwrap();
        let (_, place) = self.url.split_once('@').unwrap();
        format!("postgres://{name}@{place}")
    }

    /// Once the example was run there is one order and one job, which is sent; run again it fails
    /// for the order that is there, and adds no job.
    fn one_order_makes_one_job(&self, run: impl Fn() -> bool) {
        execute(&self.url, "DELETE FROM orders");
        let (jobs, outbox) = (self.jobs, self.outbox);
        let sent = format!(
            "{jobs} WHERE name = 'send_invoice' AND queue = 'mail' AND args = '[7]' AND sends = 1"
        );
        let before = count(&self.url, &sent);
        assert!(run());
        assert_eq!(count(&self.url, "orders WHERE id = 7"), 1);
        wait::until_true("the job to be sent", || count(&self.url, &sent) == before + 1);
        assert!(!run(), "there is such an order already");
        assert_eq!(count(&self.url, outbox), 0);
        assert_eq!(count(&self.url, jobs), before + 1);
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.beater = None;
        if let Some(name) = &self.name
            && !std::thread::panicking()
        {
            execute(&self.url, "DROP TABLE orders");
            let server = servers::database_url();
            execute(&server, &format!("DROP DATABASE {name} WITH (FORCE)"));
            execute(&server, &format!("DROP ROLE {name}"));
        }
    }
}

fn execute(url: &str, sql: &str) {
    sqlx::any::install_default_drivers();
    RUNTIME.block_on(async {
        let mut connection = AnyConnection::connect(url).await.unwrap();
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

fn count(url: &str, what: &str) -> i64 {
    let sql = format!("SELECT CAST(count(*) AS bigint) FROM {what}");
    RUNTIME.block_on(async {
        let mut connection = AnyConnection::connect(url).await.unwrap();
        let count = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        connection.close().await.unwrap();
        count.unwrap()
    })
}

/// Whether a program ends well; it may only fail for an order that is there already.
fn succeeds(program: PathBuf, arguments: [&str; 2], variables: &[(&str, &str)]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().copied());
    let output = Output::of(command);
    let is_twice = ["UNIQUE constraint failed: orders.id", "orders_pkey"]
        .iter()
        .any(|words| output.stderr.contains(words) || output.stdout.contains(words));
    assert!(output.code == Some(0) || is_twice, "{output}");
    output.code == Some(0)
}

#[test]
fn the_python_example_for_sqlite_does_what_it_says() {
    let shop = Shop::sqlite();
    let examples = examples("python");
    let code = examples.iter().find(|code| code.contains("sqlite3")).unwrap();
    let file = shop.project.folder().join(".sqjobs/sqjobs.db");
    let variables = [("SHOP_DATABASE", file.to_str().unwrap())];
    shop.one_order_makes_one_job(|| succeeds(servers::psycopg_python(), ["-c", code], &variables));
}

#[test]
fn the_examples_for_postgres_do_what_they_say_with_the_rights_of_a_producer() {
    let shop = Shop::postgres();
    let url = shop.url_of_its_user();
    let python = examples("python");
    assert_eq!(python.len(), 2);
    let code = python.iter().find(|code| code.contains("psycopg")).unwrap();
    let variables = [("SHOP_DATABASE", url.as_str())];
    shop.one_order_makes_one_job(|| succeeds(servers::psycopg_python(), ["-c", code], &variables));

    let (_, place) = url.split_once('@').unwrap();
    let (server, database) = place.rsplit_once('/').unwrap();
    let (host, port) = server.rsplit_once(':').unwrap();
    let dsn = format!("pgsql:host={host};port={port};dbname={database}");
    let variables = [("SHOP_DSN", dsn.as_str()), ("SHOP_USER", shop.name.as_deref().unwrap())];
    let php = examples("php");
    assert_eq!(php.len(), 1);
    shop.one_order_makes_one_job(|| succeeds(servers::php(), ["-r", &php[0]], &variables));
}

#[test]
fn the_rust_example_is_the_code_that_is_run_here_and_does_what_it_says() {
    let lines = |text: &str| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    let this_file = lines(THIS_FILE);
    let at = |mark: &str| this_file.iter().position(|line| line == mark).unwrap();
    let run = &this_file[at("// As printed.") + 1..at("// Until here.")];
    let printed = examples("rust");
    assert_eq!(printed.len(), 1);
    assert_eq!(run, lines(&printed[0]));

    let shop = Shop::postgres();
    let (client, pool) = RUNTIME.block_on(async {
        let (url, schema) = (shop.url.parse().unwrap(), "sqjobs".to_owned());
        let store = Store::open(&Database::Postgres { url, schema }).await.unwrap();
        let broker = LocalBroker::open(&shop.project.folder().join("unused.db")).await.unwrap();
        let client = Client::new(store, Arc::new(broker));
        (client, sqlx::PgPool::connect(&shop.url).await.unwrap())
    });
    shop.one_order_makes_one_job(|| RUNTIME.block_on(order(&pool, &client)).is_ok());
    RUNTIME.block_on(pool.close());
}

async fn order(pool: &sqlx::PgPool, client: &Client) -> Result<String, Box<dyn Error>> {
    // As printed.
    let mut transaction = pool.begin().await?;
    sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *transaction).await?;
    let request = JobRequest::new("send_invoice").args(&[7])?.queue("mail");
    let added = client.add_job_in(&mut transaction, request).await?;
    transaction.commit().await?;
    // Until here.
    Ok(added.id)
}

//! The outbox as a door: another application inserts a row in its own transaction.

use std::sync::Arc;

use sqjobs::broker::local::LocalBroker;
use sqjobs::client::{Client, JobRequest};
use sqjobs::store::{Database, Store};
use support::servers::{self, RUNTIME};
use support::{Pair, Setup};

fn insert(setup: &Setup, id: &str, queue: &str, args: &str) -> String {
    format!(
        "INSERT INTO {} (job_id, job_name, queue, args, enqueued_at) \
         VALUES ('{id}', 'adder_job', '{queue}', '{args}', 1800000000000)",
        setup.table("outbox")
    )
}

on_every_pair! {
    /// Once that transaction commits the job is sent and run; what was rolled back never was.
    fn a_row_of_another_application_becomes_a_job(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        let rolled_back = insert(&setup, "gone", &setup.queue, "[9]");
        setup.execute(&format!("BEGIN; {rolled_back}; ROLLBACK"));
        let committed = insert(&setup, "order-7", &setup.queue, "[1, 2]");
        setup.execute(&format!("BEGIN; {committed}; COMMIT"));
        let job = setup.wait_for_status("order-7", "SUCCESS");
        assert_eq!((job.number("result"), job.text("queue")), (3, setup.queue.clone()));
        assert!(setup.status("gone").is_none());
    }

    fn a_row_that_can_t_be_sent_is_set_aside_and_fails_its_job(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        setup.execute(&insert(&setup, "elsewhere", "queue-of-others", "[1]"));
        setup.execute(&insert(&setup, "no-json", &setup.queue, "[1"));
        setup.execute(&insert(&setup, "a#b", &setup.queue, "[1]"));
        let beyond = insert(&setup, "beyond", &setup.queue, "[1]");
        setup.execute(&beyond.replace("1800000000000", "9223372036854775807"));
        let dead = setup.wait_for_dead(4);
        // The view can still be read.
        let view = format!("SELECT count(*) FROM {} WHERE enqueued_at IS NOT NULL", setup.table("job_status"));
        assert_eq!(setup.query::<i64>(&view), 4);
        let reason = |id: &str| dead.iter().find(|dead| dead.text("id") == id).unwrap().text("reason");
        assert!(reason("elsewhere").contains("neither configured nor served"));
        assert!(reason("beyond").contains("enqueued_at"));
        assert!(reason("no-json").contains("array") && reason("a#b").contains('#'));
        let job = setup.wait_for_status("elsewhere", "FAILURE");
        assert_eq!(job.text("error_kind"), "undeliverable");
        // Those behind it are sent.
        setup.execute(&insert(&setup, "good", &setup.queue, "[5]"));
        let _ = setup.wait_for_status("good", "SUCCESS");
    }
}

#[test]
fn the_producer_s_role_may_insert_into_the_outbox_and_nothing_else() {
    let setup = Setup::new(Pair::PostgresSqs, &["adder"]);
    let _ = setup.run(&["migrate", "--roles"]).ok();
    let _ = setup.run(&["migrate", "--roles"]).ok();
    let outbox = setup.table("outbox");
    let may = |role: &str, right: &str, table: &str| -> bool {
        setup.query(&format!("SELECT has_table_privilege('{role}', '{table}', '{right}')"))
    };
    let may_fill = |column: &str| -> bool {
        setup.query(&format!(
            "SELECT has_column_privilege('sqjobs_producer', '{outbox}', '{column}', 'INSERT')"
        ))
    };
    assert!(may_fill("job_name") && may_fill("args") && !may_fill("body") && !may_fill("tries"));
    for right in ["SELECT", "UPDATE", "DELETE"] {
        assert!(!may("sqjobs_producer", right, &outbox), "{right}");
    }
    assert!(!may("sqjobs_producer", "INSERT", &setup.table("jobs")));
    assert!(may("sqjobs_reader", "SELECT", &setup.table("job_status")));
    assert!(!may("sqjobs_reader", "SELECT", &setup.table("jobs")));
    // It need make up neither id nor time.
    setup.execute(&format!(
        "BEGIN; SET LOCAL ROLE sqjobs_producer; \
         INSERT INTO {outbox} (job_name, queue, args) VALUES ('adder_job', '{}', '[4, 4]'); COMMIT",
        setup.queue
    ));
    let mut worker = setup.worker(&[]);
    worker.wait_for_line(&["job adder_job: success"]);
    setup.run(&["list", "--output", "json"]).ok().json_lines().into_iter().for_each(|job| {
        assert_eq!(job.number("result"), 8);
    });
}

#[test]
fn sqlite_has_no_roles() {
    let setup = Setup::new(Pair::Embedded, &[]);
    setup.run(&["migrate", "--roles"]).exits(2).is_a_sentence().says(&["PostgreSQL"]);
}

#[test]
fn the_rust_client_adds_a_job_within_a_transaction() {
    let setup = Setup::new(Pair::PostgresSqs, &["adder"]);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    let ids = RUNTIME.block_on(async {
        let url = servers::database_url();
        let schema = setup.schema().to_owned();
        let store = Store::open(&Database::Postgres { url: url.parse().unwrap(), schema }).await;
        let folder = setup.project.folder().join("unused.db");
        let broker = Arc::new(LocalBroker::open(&folder).await.unwrap());
        let client = Client::new(store.unwrap(), broker);
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let mut ids = Vec::new();
        for commits in [true, false] {
            let mut transaction = pool.begin().await.unwrap();
            let request = JobRequest::new("adder_job").args(&[20, 22]).unwrap();
            let request = request.queue(setup.queue.as_str());
            ids.push(client.add_job_in(&mut transaction, request).await.unwrap().id);
            if commits {
                transaction.commit().await.unwrap();
            } else {
                transaction.rollback().await.unwrap();
            }
        }
        ids
    });
    assert_eq!(setup.wait_for_status(&ids[0], "SUCCESS").number("result"), 42);
    assert!(setup.status(&ids[1]).is_none());
}

//! `--listen`: probes and metrics over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use support::gate::Gate;
use support::{Pair, Setup, WorkerProcess, wait};

/// Waits for the worker to say where it listens.
fn address(worker: &mut WorkerProcess) -> String {
    let line = worker.wait_for_line(&["listening on http://"]);
    let (_, rest) = line.split_once("listening on http://").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

/// The answer to a request, head and body.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A server that refuses what it has not read to its end may hang up rudely.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n"))
}

on_every_pair! {
    fn probes_and_metrics_are_answered(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids = [setup.add(&["counter"]), setup.add(&["fail_permanent"])];
        let mut worker = setup.worker(&["--listen", "127.0.0.1:0", "--concurrency", "7"]);
        let address = address(&mut worker);
        for id in &ids {
            let _ = setup.wait_for_row(id, "its end", |row| row.raw("finished_at") != "null");
        }
        assert!(get(&address, "/livez").starts_with("HTTP/1.1 200 OK\r\n"));
        let ready = get(&address, "/readyz");
        assert!(ready.starts_with("HTTP/1.1 200 OK\r\n"), "{ready}");
        for part in ["database: ok", &format!("queue {}: ok", setup.queue), "modules: "] {
            assert!(ready.contains(part), "{part} in {ready}");
        }
        let queue = &setup.queue;
        let lines = [
            format!("sqjobs_attempts_total{{queue=\"{queue}\",job=\"counter\",outcome=\"success\"}} 1"),
            format!("sqjobs_put_aside_total{{queue=\"{queue}\",kind=\"failed\"}} 1"),
            format!("sqjobs_attempt_duration_seconds_count{{queue=\"{queue}\",job=\"counter\"}} 1"),
            format!("sqjobs_queue_paused{{queue=\"{queue}\"}} 0"),
            "sqjobs_slots 7".to_owned(),
            "# TYPE sqjobs_attempt_duration_seconds histogram".to_owned(),
        ];
        // Counted as soon as the outcome is stored, which a probe may outrun.
        wait::until_true("all series", || {
            let text = get(&address, "/metrics");
            lines.iter().all(|line| text.lines().any(|found| found == line))
        });
        assert!(get(&address, "/").starts_with("HTTP/1.1 404"));
        assert!(ask(&address, "POST /livez HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(ask(&address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
        assert!(ask(&address, &"x".repeat(10_000)).starts_with("HTTP/1.1 431"));
        assert_eq!(worker.terminate(), Some(0));
    }
}

#[test]
fn a_worker_without_its_database_lives_and_is_not_ready() {
    let mut setup = Setup::new(Pair::PostgresSqs, &["outcomes"]);
    let gate = Gate::to_postgres();
    setup.project.set("SQJOBS_DATABASE", &gate.database_url());
    let mut worker = setup.worker(&["--listen", "127.0.0.1:0"]);
    let address = address(&mut worker);
    wait::until_true("readiness", || get(&address, "/readyz").starts_with("HTTP/1.1 200"));
    gate.close();
    wait::until_true("no readiness", || get(&address, "/readyz").starts_with("HTTP/1.1 503"));
    assert!(get(&address, "/livez").starts_with("HTTP/1.1 200"));
    gate.open();
    wait::until_true("readiness again", || get(&address, "/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_worker_without_a_job_is_not_ready() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = setup.worker(&["--listen", "127.0.0.1:0"]);
    let address = address(&mut worker);
    let ready = get(&address, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("no job is deployed"), "{ready}");
}

#[test]
fn an_address_that_is_taken_or_none_is_told() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["worker", setup.queue.as_str(), "--listen", &address];
    setup.run(&args).exits(1).says(&[&address, "--listen"]);
    let args = ["worker", setup.queue.as_str(), "--listen", "here"];
    setup.run(&args).exits(2).says(&["--listen", "127.0.0.1:9464"]);
}

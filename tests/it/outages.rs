//! An SQS that refuses, loses and repeats calls: nothing is lost, nothing runs twice for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::proxy::{Faults, Proxy};
use support::{Pair, Setup, wait};

/// A project whose host reaches SQS through a proxy.
fn behind_proxy(pair: Pair, seed: u64) -> (Setup, Proxy) {
    let mut setup = Setup::new(pair, &["outcomes"]);
    let proxy = Proxy::start(seed, Faults::default());
    setup.project.set("AWS_ENDPOINT_URL", &proxy.url());
    (setup, proxy)
}

fn send_counters(setup: &Setup, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|number| format!("job-{number}")).collect();
    for id in &ids {
        let json = format!(r#"{{"id": "{id}", "name": "counter", "args": ["."]}}"#);
        setup.send_body(&STANDARD.encode(json));
    }
    ids
}

#[test]
fn an_outage_is_logged_once_and_work_goes_on_after_it() {
    let (setup, proxy) = behind_proxy(Pair::SqliteSqs, 1);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    let is_noise = |line: &String| !line.contains("WARN") && !line.contains("ERROR");

    proxy.set_faults(Faults { unavailable: 1.0, ..Faults::default() });
    let before = proxy.calls("ReceiveMessage");
    // The receive under way ends by itself; then some are refused.
    wait::until_true("refused receives", || proxy.calls("ReceiveMessage") > before + 6);
    worker.wait_for_line(&["receive", &setup.queue]);
    let told = worker.log().into_iter().filter(|line| !is_noise(line)).count();
    assert_eq!(told, 1, "{}", worker.shown());

    proxy.set_faults(Faults::default());
    let ids = send_counters(&setup, 1);
    let _ = setup.wait_for_status(&ids[0], "SUCCESS");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn lost_calls_lose_no_job_and_double_no_success() {
    for (pair, seed) in [(Pair::SqliteSqs, 7), (Pair::PostgresSqs, 8)] {
        let (setup, proxy) = behind_proxy(pair, seed);
        let ids = send_counters(&setup, 60);
        let mut worker = setup.worker(&["--lease", "5s", "--concurrency", "10"]);
        worker.wait_until_ready();
        proxy.set_faults(Faults {
            lost_request: 0.1,
            lost_reply: 0.1,
            unavailable: 0.05,
            throttled: 0.05,
            failed_entry: 0.1,
            duplicate_delivery: 0.2,
            ..Faults::default()
        });
        for id in &ids {
            assert_eq!(setup.wait_for_status(id, "SUCCESS").number("attempts"), 1, "{id}");
        }
        proxy.set_faults(Faults::default());
        setup.wait_until_drained();
        assert_eq!(worker.terminate(), Some(0));
        assert_eq!(setup.dead().len(), 0);
    }
}

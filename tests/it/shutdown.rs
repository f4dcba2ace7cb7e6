//! SIGTERM and ctrl-c: what runs is finished, what waits stays.

use support::{Setup, wait};

on_every_pair! {
    fn sigterm_finishes_what_runs_and_receives_no_more(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let running = setup.add(&["sleep_ms", "1500"]);
        let mut worker = setup.worker(&["--concurrency", "1"]);
        let _ = setup.wait_for_status(&running, "RUNNING");
        let waiting = setup.add(&["counter"]);

        assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
        assert_eq!(setup.status(&running).unwrap().text("status"), "SUCCESS");
        let row = setup.status(&waiting).unwrap();
        assert_eq!((row.text("status").as_str(), row.number("attempts")), ("PENDING", 0));

        let _next = setup.worker(&[]);
        let _ = setup.wait_for_status(&waiting, "SUCCESS");
        assert_eq!(setup.status(&running).unwrap().number("attempts"), 1);
    }

    fn a_second_signal_leaves_at_once(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let running = setup.add(&["sleep_ms", "50000"]);
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&running, "RUNNING");
        let before = worker.log().len();
        worker.signal("TERM");
        wait::until_true("a word about the first signal", || worker.log().len() > before);
        assert!(worker.is_running(), "the job still runs");

        worker.signal("TERM");
        assert_ne!(worker.wait_for_exit().code(), Some(0), "an end that is not clean");
        assert_ne!(setup.status(&running).unwrap().text("status"), "SUCCESS");
    }

    fn an_idle_worker_ends_while_it_polls(pair) {
        let setup = Setup::new(pair, &["adder"]);
        for signal in ["TERM", "INT"] {
            let mut worker = setup.worker(&[]);
            worker.wait_until_ready();
            worker.signal(signal);
            assert_eq!(worker.wait_for_exit().code(), Some(0), "SIG{signal}: {}", worker.shown());
        }
    }

    fn ctrl_c_finishes_what_runs(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let running = setup.add(&["sleep_ms", "1000"]);
        let mut worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&running, "RUNNING");
        worker.signal("INT");
        assert_eq!(worker.wait_for_exit().code(), Some(0), "{}", worker.shown());
        assert_eq!(setup.status(&running).unwrap().text("status"), "SUCCESS");
    }

    /// `on-success` may hang as any stage may: what it was told stands.
    fn a_handler_that_hangs_is_stopped_at_the_end_of_the_grace_time(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["fail_in", "--kwarg", "hang_in=on-success"]);
        let mut worker = setup.worker(&["--grace", "200ms"]);
        worker.wait_for_line(&[&id, "on-success"]);
        assert_eq!(worker.terminate(), Some(0), "{}", worker.shown());
        let row = setup.status(&id).unwrap();
        assert_eq!(row.text("status"), "SUCCESS", "{row}");
        let _ = worker.wait_for_line(&["on-success", "stopp"]);
    }
}

//! `list`: filters, pages, and jobs as they change. `status`: progress while it runs, logs that
//! are cut.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use support::{Setup, wait};

fn ids(setup: &Setup, args: &[&str]) -> Vec<String> {
    let args = [&["list", "--output", "json"], args].concat();
    setup.run(&args).ok().json_lines().iter().map(|row| row.text("id")).collect()
}

on_every_pair! {
    fn a_list_is_cut_by_every_filter_and_turned_page_by_page(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let mut all: Vec<String> = (0..5).map(|_| setup.add(&["counter"])).collect();
        all.push(setup.add(&["fail_permanent", "100% of_it"]));
        let _worker = setup.worker(&[]);
        for id in &all {
            let _ = setup.wait_for_row(id, "its end", |row| row.raw("finished_at") != "null");
        }
        all.reverse();
        assert_eq!(ids(&setup, &[]), all);
        let mut turned = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = match &after {
                None => ids(&setup, &["--limit", "4"]),
                Some(id) => ids(&setup, &["--limit", "4", "--after", id]),
            };
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            turned.extend(page);
        }
        assert_eq!(turned, all, "every job once");
        assert_eq!(ids(&setup, &["--error", "100% OF_"]), all[..1]);
        assert_eq!(ids(&setup, &["--error", "100%Xof"]).len(), 0);
        assert_eq!(ids(&setup, &["--status", "failure", "--queue", &setup.queue]), all[..1]);
        assert_eq!(ids(&setup, &["--status", "success"]), all[1..]);
        assert_eq!(ids(&setup, &["--since", "1h"]), all);
        assert_eq!(ids(&setup, &["--until", "1h"]).len(), 0);
        let second = setup.status(&all[1]).unwrap().text("created_at");
        assert_eq!(ids(&setup, &["--since", &second, "--job", "counter"])[0], all[1]);
        setup.run(&["list", "--after", "nobody"]).exits(1).is_a_sentence().says(&["nobody"]);
        setup.run(&["list", "--job", "nobody"]).ok().says(&["no job matches"]);
        setup.run(&["list", "--since", "soon"]).exits(2).says(&["--since", "2h"]);
    }

    fn a_list_that_is_followed_tells_each_change(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let before = setup.add(&["counter"]);
        let mut command = setup.project.command(&["list", "--follow", "--output", "json"]);
        let mut follow = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        let mut next = |id: &str, status: &str| loop {
            let line = support::Json::parse(&lines.next().unwrap().unwrap());
            if line.text("id") == id && line.text("status") == status {
                return;
            }
        };
        next(&before, "PENDING");
        let later = setup.add(&["fail_permanent"]);
        next(&later, "PENDING");
        let _worker = setup.worker(&[]);
        next(&later, "FAILURE");
        follow.kill().unwrap();
        follow.wait().unwrap();
        let _ = setup.wait_for_status(&before, "SUCCESS");
    }

    fn progress_is_seen_while_the_job_runs(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["progress_job", "4", "--kwarg", "hold_ms=600000"]);
        let _worker = setup.worker(&[]);
        // Above 1 is the end; what is no number is none.
        let row = setup.wait_for_row(&id, "its progress", |row| row.raw("progress") == "1.0");
        assert_eq!(row.text("status"), "RUNNING");
        assert_eq!(row.text("progress_message"), "beyond the end");
        let _ = setup.run(&["cancel", &id]).ok();
    }

    fn logs_and_output_are_kept_up_to_a_limit_with_a_mark(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let id = setup.add(&["print", &"x".repeat(1000), "500"]);
        let _worker = setup.worker(&[]);
        let _ = setup.wait_for_status(&id, "SUCCESS");
        let logs = format!("SELECT logs FROM {{attempts}} WHERE job_id = '{id}'");
        let logs: String = setup.query(&setup.named(&logs));
        assert!((60 << 10..66 << 10).contains(&logs.len()), "{} bytes", logs.len());
        let end = &logs[logs.len() - 200..];
        assert!(end.contains("dropped") || end.contains("cut"), "no mark at the end: {end}");
        wait::until_true("the logs in `status`", || setup.run(&["status", &id]).ok().stdout.contains("xxx"));
    }
}

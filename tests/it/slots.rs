//! A slot comes first: what a worker receives, and from which queue.

use std::collections::BTreeMap;

use support::{Json, Setup, wait};

/// The rows of all jobs of a setup, by id.
fn rows(setup: &Setup) -> BTreeMap<String, Json> {
    let listed = setup.run(&["list", "--limit", "1000", "--output", "json"]).ok().json_lines();
    listed.into_iter().map(|row| (row.text("id"), row)).collect()
}

fn running(setup: &Setup) -> usize {
    rows(setup).values().filter(|row| row.text("status") == "RUNNING").count()
}

/// Adds so many jobs that take a while, on a queue.
fn add_sleeps(setup: &Setup, queue: &str, count: usize, ms: &str) -> Vec<String> {
    let add = |_| {
        let args = ["add", "--queue", queue, "sleep_ms", ms];
        setup.run(&args).ok().line().to_owned()
    };
    (0..count).map(add).collect()
}

on_every_pair! {
    fn no_message_is_received_without_a_slot_for_it(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let ids = add_sleeps(&setup, &setup.queue, 8, "1500");
        let _worker = setup.worker(&["--concurrency", "2"]);
        let mut most = 0;
        wait::until_true("all jobs done", || {
            let [_, in_flight, _] = setup.depth();
            most = most.max(in_flight);
            rows(&setup).values().filter(|row| row.text("status") == "SUCCESS").count() == ids.len()
        });
        // Two that run, and two whose deletion travels in a batch. A worker that takes what it
        // can get would have had eight.
        assert!((1..=4).contains(&most), "{most} messages were in flight");
    }

    /// With a slot each the idle ones would leave none.
    fn ten_idle_queues_leave_every_slot_to_the_busy_one(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let idle: Vec<String> = (0..10).map(|_| setup.another_queue()).collect();
        let mut args: Vec<&str> = idle.iter().map(String::as_str).collect();
        args.extend([setup.queue.as_str(), "--concurrency", "4"]);
        let mut worker = setup.project.worker(&args);
        worker.wait_until_ready();
        let ids = add_sleeps(&setup, &setup.queue, 8, "4000");
        wait::until_true("four jobs at once", || running(&setup) == 4);
        let last = setup.another_queue();
        for id in &ids {
            let _ = setup.wait_for_status(id, "SUCCESS");
        }
        drop(last);
        // And the idle ones are still served.
        let id = add_sleeps(&setup, &idle[3], 1, "1").remove(0);
        let _ = setup.wait_for_status(&id, "SUCCESS");
    }

    fn a_queue_has_no_more_jobs_at_once_than_its_own_limit(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let toml = format!("[queues.{}]\nconcurrency = 1\n", setup.queue);
        setup.project.write("sqjobs.toml", toml);
        let ids = add_sleeps(&setup, &setup.queue, 4, "700");
        let _worker = setup.worker(&["--concurrency", "8"]);
        let mut most = 0;
        wait::until_true("all jobs done", || {
            most = most.max(running(&setup));
            rows(&setup).values().filter(|row| row.text("status") == "SUCCESS").count() == ids.len()
        });
        assert_eq!(most, 1);
    }

    fn in_strict_order_a_later_queue_waits_until_the_earlier_is_empty(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let late = setup.another_queue();
        let low = add_sleeps(&setup, &late, 6, "300");
        let high = add_sleeps(&setup, &setup.queue, 6, "300");
        let args = [setup.queue.as_str(), late.as_str(), "--strict", "--concurrency", "1"];
        let _worker = setup.project.worker(&args);
        for id in low.iter().chain(&high) {
            let _ = setup.wait_for_status(id, "SUCCESS");
        }
        let rows = rows(&setup);
        let last = high.iter().map(|id| rows[id].text("started_at")).max().unwrap();
        let before = low.iter().filter(|id| rows[*id].text("started_at") < last).count();
        assert!(before <= 1, "{before} jobs of the later queue came before the last of the earlier");
    }

    /// Slots that become free while the earlier queue is asked are not the later one's.
    fn in_strict_order_a_queue_that_is_paused_is_not_waited_for(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let late = setup.another_queue();
        let args = [setup.queue.as_str(), late.as_str(), "--strict", "--concurrency", "1"];
        let mut worker = setup.project.worker(&args);
        worker.wait_until_ready();
        let ids = add_sleeps(&setup, &setup.queue, 6, "1500");
        let _ = setup.wait_for_status(&ids[0], "RUNNING");
        let _ = setup.run(&["queues", "pause", &setup.queue]).ok();
        worker.wait_for_line(&["is paused"]);
        let other = add_sleeps(&setup, &late, 1, "1").remove(0);
        let _ = setup.wait_for_status(&other, "SUCCESS");
        let left = rows(&setup).values().filter(|row| row.text("status") == "PENDING").count();
        assert!(left > 0, "the paused queue was not worked off first");
        assert_eq!(worker.terminate(), Some(0));
    }

    fn strict_order_holds_with_several_slots(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let late = setup.another_queue();
        let low = add_sleeps(&setup, &late, 16, "150");
        let high = add_sleeps(&setup, &setup.queue, 24, "150");
        let args = [setup.queue.as_str(), late.as_str(), "--strict", "--concurrency", "4"];
        let _worker = setup.project.worker(&args);
        for id in low.iter().chain(&high) {
            let _ = setup.wait_for_status(id, "SUCCESS");
        }
        let rows = rows(&setup);
        let last = high.iter().map(|id| rows[id].text("started_at")).max().unwrap();
        let before = low.iter().filter(|id| rows[*id].text("started_at") < last).count();
        // Both queues are asked for the first time at once, when nothing is known of either.
        assert!(before <= 4, "{before} jobs of the later queue came before the last of the earlier");
    }

    fn busy_queues_share_the_slots_by_weight(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let light = setup.another_queue();
        let toml = format!("[queues.{}]\nweight = 4\n[queues.{light}]\nweight = 1\n", setup.queue);
        setup.project.write("sqjobs.toml", toml);
        let heavy = add_sleeps(&setup, &setup.queue, 20, "150");
        let other = add_sleeps(&setup, &light, 20, "150");
        let _worker = setup.project.worker(&[setup.queue.as_str(), &light, "--concurrency", "1"]);
        for id in &heavy {
            let _ = setup.wait_for_status(id, "SUCCESS");
        }
        let rows = rows(&setup);
        let last = heavy.iter().map(|id| rows[id].text("started_at")).max().unwrap();
        let before = other.iter().filter(|id| {
            rows[*id].value("started_at").as_str().is_some_and(|at| *at < *last)
        });
        let before = before.count();
        assert!((3..=8).contains(&before), "{before} of the light queue beside 20 of the heavy one");
    }
}

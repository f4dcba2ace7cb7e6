//! Jobs that jobs add: who belongs to whom, and where a chain ends.

use support::sqs::SqsQueue;
use support::{Json, Pair, Setup, wait};

fn children(row: &Json) -> Vec<String> {
    serde_json::from_str(row.raw("children")).unwrap()
}

on_every_pair! {
    fn status_tells_parent_and_children(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let parent = setup.add(&["add_children", "3"]);
        let _worker = setup.worker(&[]);
        let row = setup.wait_for_status(&parent, "SUCCESS");
        let mut told: Vec<String> = serde_json::from_str(row.raw("result")).unwrap();
        let mut found = children(&row);
        found.sort();
        told.sort();
        assert_eq!(found, told);
        for id in &found {
            let child = setup.wait_for_status(id, "SUCCESS");
            assert_eq!(child.text("parent"), parent);
            assert!(children(&child).is_empty());
        }
        let list = setup.run(&["list", "--output", "json"]).ok().stdout;
        let listed = list.lines().map(Json::parse).find(|row| row.text("id") == parent).unwrap();
        assert_eq!(listed.raw("children"), row.raw("children"));
        assert_eq!(listed.keys().collect::<Vec<_>>(), row.keys().collect::<Vec<_>>());
        let text = setup.run(&["status", &parent]).ok().stdout;
        assert!(found.iter().all(|id| text.contains(id)), "{text}");
    }

    fn a_chain_ends_after_its_generations_with_a_permanent_failure(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        setup.project.write("sqjobs.toml", "max-generations = 3\n");
        let mut id = setup.add(&["chain", "0"]);
        let _worker = setup.worker(&[]);
        for _ in 0..3 {
            id = children(&setup.wait_for_status(&id, "SUCCESS")).remove(0);
        }
        let last = setup.wait_for_status(&id, "FAILURE");
        assert_eq!((last.text("error_kind").as_str(), last.number("attempts")), ("permanent", 1));
        assert!(last.text("error").contains("max-generations"), "{last}");
        assert!(children(&last).is_empty());
    }

    fn a_chain_ends_after_sixteen_generations_without_a_setting(pair) {
        let setup = Setup::new(pair, &["outcomes"]);
        let _ = setup.add(&["chain", "0"]);
        let _worker = setup.worker(&[]);
        let dead = setup.wait_for_dead(1);
        assert_eq!(dead[0].text("job"), "chain");
        assert_eq!(setup.count("SELECT count(*) FROM {jobs} WHERE status = 'SUCCESS'"), 16);
    }
}

#[test]
fn the_number_of_generations_has_its_limits() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    for wrong in ["-1", "1000001", "many"] {
        let args = ["worker", &setup.queue, "--max-generations", wrong];
        setup.run(&args).exits(2).is_a_sentence().says(&["--max-generations", wrong]);
    }
    setup.project.write("sqjobs.toml", "max-generations = \"none\"\n");
    setup.run(&["worker", &setup.queue]).exits(2).is_a_sentence().says(&["max-generations"]);
}

/// The worker knows its own queue by a URL, which is not where other queues are.
#[test]
fn a_child_goes_to_the_queue_that_it_names_also_where_the_worker_was_given_a_url() {
    let setup = Setup::new(Pair::SqliteSqs, &["outcomes"]);
    let [by_name, by_url] = [(), ()].map(|()| SqsQueue::unique());
    let grants = format!(
        "[jobs.add_children.grants]\nadd-job-queues = [\"{}\", \"{}\"]\n",
        by_name.name, by_url.url
    );
    setup.project.write("sqjobs.toml", &grants);
    for queue in [&by_name.name, &by_url.url] {
        let _ = setup.add(&["add_children", "1", "--kwarg", &format!("queue={queue}")]);
    }
    let _ = setup.add(&["add_children", "1"]);
    let _worker = setup.project.worker(&[&setup.sqs().url]);
    wait::until_true("a child on each queue", || {
        by_name.depth() == [1, 0, 0] && by_url.depth() == [1, 0, 0]
    });
    let own = format!("SELECT count(*) FROM {{jobs}} WHERE queue = '{}'", setup.queue);
    let done = format!("{own} AND status = 'SUCCESS'");
    wait::until_true("the jobs of its own queue", || setup.count(&done) == 4);
    let of_url = format!("SELECT count(*) FROM {{jobs}} WHERE queue = '{}'", by_url.name);
    assert_eq!((setup.count(&own), setup.count(&of_url)), (4, 1));
}

//! Jobs that jobs add: who belongs to whom, and where a chain ends.

use support::{Json, Setup};

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
    let setup = Setup::new(support::Pair::Embedded, &["outcomes"]);
    for wrong in ["-1", "1000001", "many"] {
        let args = ["worker", &setup.queue, "--max-generations", wrong];
        setup.run(&args).exits(2).is_a_sentence().says(&["--max-generations", wrong]);
    }
    setup.project.write("sqjobs.toml", "max-generations = \"none\"\n");
    setup.run(&["worker", &setup.queue]).exits(2).is_a_sentence().says(&["max-generations"]);
}

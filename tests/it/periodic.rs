//! Periodic entries as people define them: by modules, the configuration file and commands.

use support::{Json, Output, Pair, Setup, wait};

fn periodic(setup: &Setup, args: &[&str]) -> Output {
    setup.run(&[&["periodic"], args].concat())
}

fn show(setup: &Setup, name: &str) -> Json {
    periodic(setup, &["show", name, "--output", "json"]).ok().json()
}

const NIGHTLY: [&str; 8] = [
    "add",
    "nightly",
    "--job",
    "adder_job",
    "--schedule",
    "30 2 * * *",
    "--timezone",
    "Europe/Madrid",
];

on_every_pair! {
    /// The sample's own: a minute past midnight in Madrid.
    fn the_entry_that_a_module_describes_is_there_once_a_worker_has_started(pair) {
        let setup = Setup::new(pair, &["samples"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        let entry = show(&setup, "dummy_periodic_job");
        assert_eq!(
            [entry.text("schedule"), entry.text("timezone"), entry.text("source"), entry.text("queue")],
            ["1 0 * * *", "Europe/Madrid", "module", "my_queue"]
        );
        assert_eq!(entry.raw("orphaned"), "false");
        assert!(entry.value("next_local")[0].as_str().unwrap().contains(" 00:01 CE"), "{entry}");

        // An operator's word stands over the module's, also when a worker starts again.
        let _ = periodic(&setup, &["edit", "dummy_periodic_job", "--schedule", "5 0 * * *"]).ok();
        let _ = periodic(&setup, &["disable", "dummy_periodic_job"]).ok();
        assert_eq!(worker.terminate(), Some(0));
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        let entry = show(&setup, "dummy_periodic_job");
        assert_eq!((entry.text("schedule"), entry.raw("enabled")), ("5 0 * * *".into(), "false"));
        let _ = periodic(&setup, &["edit", "dummy_periodic_job", "--reset"]).ok();
        assert_eq!(show(&setup, "dummy_periodic_job").text("schedule"), "1 0 * * *");
        periodic(&setup, &["remove", "dummy_periodic_job"]).exits(1).says(&["disable"]);

        // Once no live worker holds it, it is orphaned and can be removed.
        assert_eq!(worker.terminate(), Some(0));
        wait::until_true("the worker's row to be gone", || {
            show(&setup, "dummy_periodic_job").raw("orphaned") == "true"
        });
        let _ = periodic(&setup, &["remove", "dummy_periodic_job"]).ok();
        periodic(&setup, &["show", "dummy_periodic_job"]).exits(1).is_a_sentence();
    }

    fn an_entry_is_added_changed_run_and_removed_by_commands(pair) {
        let setup = Setup::new(pair, &["adder"]);
        let queue = ["--queue", setup.queue.as_str()];
        let added = periodic(&setup, &[&NIGHTLY[..], &queue, &["--args-json", "[1, 2]"]].concat()).ok();
        assert!(added.line().starts_with("nightly: next tick "), "{added}");
        added.says(&["skipped by the clock", "comes twice"]);
        periodic(&setup, &[&NIGHTLY[..], &queue].concat()).exits(1).says(&["already", "edit"]);

        let before = show(&setup, "nightly");
        // Schedule and zone are left alone, so is the next tick.
        let _ = periodic(&setup, &["edit", "nightly", "--overlap", "skip", "--grace", "5m"]).ok();
        let after = show(&setup, "nightly");
        assert_eq!(after.text("next_fire_at"), before.text("next_fire_at"));
        assert_eq!((after.text("overlap"), after.number("grace_ms")), ("skip".into(), 300_000));
        let _ = periodic(&setup, &["edit", "nightly", "--every", "10m"]).ok();
        let after = show(&setup, "nightly");
        assert_eq!((after.raw("schedule"), after.number("every_ms")), ("null", 600_000));
        assert!(after.text("next_fire_at").contains("0:00Z"), "{after}");

        let id = periodic(&setup, &["run-now", "nightly"]).ok().line().to_owned();
        let mut worker = setup.worker(&[]);
        let job = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!((job.text("schedule"), job.number("result")), ("nightly".into(), 3));
        assert_eq!(worker.terminate(), Some(0));
        let history = show(&setup, "nightly").value("history");
        assert_eq!((history[0]["job_id"].as_str(), history[0]["reason"].as_str()), (Some(&*id), Some("by hand")));

        let alone = periodic(&setup, &["edit", "nightly", "--reset"]).exits(1);
        alone.is_a_sentence().says(&["commands alone", "periodic remove nightly"]);
        let _ = periodic(&setup, &["remove", "nightly"]).ok();
        assert_eq!(periodic(&setup, &["list", "--output", "json"]).ok().stdout, "");
    }

    /// The future only: nothing that was due by the schedule before is lost, nothing comes twice.
    fn a_changed_schedule_takes_effect_after_what_is_due_was_claimed(pair) {
        let setup = Setup::new(pair, &[]);
        let queue = ["--queue", setup.queue.as_str()];
        let _ = periodic(&setup, &[&NIGHTLY[..], &queue].concat()).ok();
        let table = setup.table("periodic");
        let day = 86_400_000;
        setup.execute(&format!(
            "UPDATE {table} SET next_fire_at = next_fire_at - {day}, due_at = due_at - {day}"
        ));
        let due = show(&setup, "nightly").text("next_fire_at");
        let _ = periodic(&setup, &["edit", "nightly", "--schedule", "45 3 * * *"]).ok();
        let entry = show(&setup, "nightly");
        assert_eq!(entry.text("last_fire_at"), due);
        assert_eq!(entry.value("history").as_array().unwrap().len(), 1);
        assert_eq!(entry.value("history")[0]["fire_time"].as_str(), Some(&*due));
        assert!(entry.value("next_local")[0].as_str().unwrap().contains(" 03:45 "), "{entry}");
    }
}

#[test]
fn of_two_entries_of_one_name_the_configuration_file_s_stands_over_the_module_s() {
    let setup = Setup::new(Pair::Embedded, &["samples"]);
    setup.project.write(
        "sqjobs.toml",
        "[periodic.dummy_periodic_job]\nschedule = \"7 7 * * *\"\ntimezone = \"UTC\"\n\
         queue = \"other\"\nargs = [1, \"two\"]\nkwargs = { deep = [true] }\njitter = \"10m\"\n",
    );
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    let entry = show(&setup, "dummy_periodic_job");
    assert_eq!(
        [entry.text("source"), entry.text("schedule"), entry.text("queue")],
        ["config", "7 7 * * *", "other"]
    );
    assert_eq!((entry.raw("args"), entry.raw("kwargs")), (r#"[1,"two"]"#, r#"{"deep":[true]}"#));
    periodic(&setup, &["remove", "dummy_periodic_job"]).exits(1).says(&["disable"]);
}

#[test]
fn what_is_wrong_in_the_configuration_file_is_said_all_at_once() {
    let setup = Setup::new(Pair::Embedded, &[]);
    setup.project.write(
        "sqjobs.toml",
        "[periodic.a]\nschedule = \"61 * * * *\"\ntimezone = \"UTC\"\n\
         [periodic.b]\nschedule = \"* * * * *\"\ntimezone = \"Europe/Madird\"\n\
         [periodic.c]\nevery = \"10m\"\noverlap = \"maybe\"\n[periodic.d]\nevry = \"10m\"\n",
    );
    let output = periodic(&setup, &["list"]).exits(2);
    output.is_a_sentence().says(&["minute", "Europe/Madrid", "allow, skip or replace", "every"]);
}

#[test]
fn an_entry_that_can_t_be_is_refused_with_the_reason() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let queue = ["--queue", "q"];
    let add = |code: i32, args: &[&str], says: &[&str]| {
        let output = periodic(&setup, &[&["add", "n", "--job", "adder_job"], args].concat());
        output.exits(code).is_a_sentence().says(says);
    };
    add(
        2,
        &[&queue[..], &["--schedule", "0 25 * * *", "--timezone", "UTC"]].concat(),
        &["hour", "0-23"],
    );
    add(
        2,
        &[&queue[..], &["--schedule", "@daily", "--timezone", "europe/madrid"]].concat(),
        &["Europe/Madrid"],
    );
    add(2, &[&queue[..], &["--schedule", "@daily"]].concat(), &["time zone"]);
    add(2, &[&queue[..], &["--every", "10ms"]].concat(), &["1s"]);
    add(2, &["--every", "1m", "--queue", "no queue"], &["queue"]);
    add(2, &queue, &["crontab expression", "interval"]);
    add(2, &[&queue[..], &["--every", "1m", "--args-json", "{}"]].concat(), &["--args-json"]);
    add(
        2,
        &[&queue[..], &["--every", "1m", "--catch-up", "some"]].concat(),
        &["none, last or all"],
    );
    add(2, &[&queue[..], &["--every", "1m", "--start", "tomorrow"]].concat(), &["--start"]);
    // A job that nobody knows has no queue.
    add(1, &["--every", "1m"], &["adder_job", "--queue"]);
    assert_eq!(periodic(&setup, &["list", "--output", "json"]).ok().stdout, "");
    let _ = periodic(&setup, &[&NIGHTLY[..], &queue].concat()).ok();
    periodic(&setup, &["disable", "nihgtly"]).exits(1).says(&["nightly"]);
}

#[test]
fn list_warns_of_what_is_wrong_and_of_special_nights() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let _ = periodic(&setup, &[&NIGHTLY[..], &["--queue", "q"]].concat()).ok();
    let list = periodic(&setup, &["list"]).ok();
    list.says(&[
        "orphaned",
        "skipped by the clock",
        "comes twice",
        "no beater runs",
        "time zone rules",
    ]);
    assert!(list.stdout.contains("nightly") && list.stdout.contains("Europe/Madrid"), "{list}");
}

#[test]
fn the_entry_that_a_module_describes_is_there_once_it_was_swapped_in() {
    let setup = Setup::new(Pair::Embedded, &["adder"]);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    periodic(&setup, &["show", "dummy_periodic_job"]).exits(1).is_a_sentence();
    setup.project.deploy("samples");
    worker.wait_for_line(&["the periodic entry `dummy_periodic_job` is new, by module"]);
    assert_eq!(show(&setup, "dummy_periodic_job").raw("orphaned"), "false");
    std::fs::remove_file(setup.project.jobs_dir().join("samples.wasm")).unwrap();
    wait::until_true("nobody to hold its job", || {
        show(&setup, "dummy_periodic_job").raw("orphaned") == "true"
    });
    assert_eq!(worker.terminate(), Some(0));
}

/// Also on a machine that has nothing of what the jobs are granted.
#[test]
fn a_beater_follows_its_configuration_file_and_sighup() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let grant = "[modules.m.grants.secrets]\nKEY = { file = \"not-there\" }\n";
    let write = |entries: &str| {
        setup.project.write("sqjobs.toml", format!("{grant}{entries}"));
    };
    let every = |name: &str, every: &str| {
        format!("[periodic.{name}]\njob = \"j\"\nqueue = \"q\"\nevery = \"{every}\"\n")
    };
    write(&every("a", "1h"));
    let mut beater = support::WorkerProcess::spawn(setup.project.command(&["beater"]));
    beater.wait_until_ready();
    assert_eq!(show(&setup, "a").number("every_ms"), 3_600_000);
    write(&[every("a", "2h"), every("b", "3h")].concat());
    beater.wait_for_line(&["`b` is new, by config"]);
    assert_eq!(show(&setup, "a").number("every_ms"), 7_200_000);
    write(&every("a", "0s"));
    beater.wait_for_line(&["the old one stays", "[periodic.a]"]);
    write(&[every("a", "2h"), every("b", "4h")].concat());
    beater.wait_for_line(&["`b` is defined anew, by config"]);
    assert_eq!(show(&setup, "a").number("every_ms"), 7_200_000);
    let reads = |beater: &support::WorkerProcess| {
        let log = beater.log();
        log.iter().filter(|line| line.contains("read the configuration again")).count()
    };
    let before = reads(&beater);
    beater.signal("HUP");
    wait::until_true("the file to be read once more", || reads(&beater) > before);
    assert_eq!(beater.terminate(), Some(0));
}

on_every_pair! {
    /// A host with the older module that starts again turns nothing back; a command does.
    fn a_rollback_brings_the_schedule_of_the_older_version_back(pair) {
        let setup = Setup::new(pair, &["samples"]);
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        let schedule = || show(&setup, "dummy_periodic_job").text("schedule");
        assert_eq!(schedule(), "1 0 * * *");
        let file = setup.project.jobs_dir().join("samples.wasm");
        let older = std::fs::read(&file).unwrap();
        let at = older.windows(9).position(|bytes| bytes == b"1 0 * * *").unwrap();
        let mut newer = older.clone();
        newer[at] = b'7';
        support::versions::move_into_place(&file, &newer);
        wait::until_true("the newer schedule", || schedule() == "7 0 * * *");
        let said = setup.run(&["modules", "rollback", "samples", "--reason", "wrong hour"]).ok();
        said.says(&["dummy_periodic_job"]);
        assert_eq!(schedule(), "1 0 * * *");
        worker.wait_for_line(&["samples", &support::versions::digest(&older)]);
        assert_eq!(worker.terminate(), Some(0));
        assert_eq!(schedule(), "1 0 * * *");
    }
}

//! Deploying is copying a file: however it comes, it serves without a restart; what is broken
//! leaves the old version serving; what runs keeps its version.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqjobs::registry::cache::Cache;
use sqjobs::registry::load::Loader;
use sqjobs::registry::{Registry, Swap};
use sqjobs::sandbox::Sandbox;
use support::servers::{self, RUNTIME};
use support::versions::{FILE, digest, marker_of, move_into_place, padded, version};
use support::{Pair, Project, Setup, WorkerProcess, wait};

/// Makes of each function a test per way of noticing changes: `rule::events` and `rule::polling`.
/// The function is given a project that is set so.
macro_rules! in_both_ways {
    ($($(#[doc = $doc:literal])* fn $rule:ident($setup:ident) $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $rule {
            #[allow(unused_imports, reason = "not every rule needs all of the file's imports")]
            use super::*;

            fn holds($setup: &Setup) $body

            #[test]
            fn events() {
                holds(&setup_with("watch = \"events\"\nrescan = \"1h\"\n"));
            }

            #[test]
            fn polling() {
                holds(&setup_with("watch = \"polling\"\npoll-interval = \"100ms\"\n"));
            }
        }
    )+};
}

fn setup_with(deploy: &str) -> Setup {
    let setup = Setup::new(Pair::Embedded, &[]);
    setup.project.write("sqjobs.toml", format!("[deploy]\n{deploy}"));
    setup
}

/// A worker that serves version `0`.
fn worker_on(setup: &Setup) -> WorkerProcess {
    setup.deploy_version("0");
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    assert_eq!(setup.serving_marker(), padded("0"));
    worker
}

/// A way of deploying: its name, and what it does with a file and its new bytes.
type Way<'a> = (&'a str, &'a dyn Fn(&Path, &[u8]));

/// As a copy in place does it, with the halves written one by one.
fn copy_in_halves(file: &Path, bytes: &[u8]) {
    let mut open = std::fs::File::create(file).unwrap();
    for half in bytes.chunks(bytes.len() / 2 + 1) {
        open.write_all(half).unwrap();
        open.flush().unwrap();
    }
}

/// As rsync does it: a hidden file beside it, then a rename.
fn rsync(file: &Path, bytes: &[u8]) {
    let hidden = file.with_file_name(format!(".{FILE}.Xq31Zs"));
    std::fs::write(&hidden, &bytes[..100]).unwrap();
    std::fs::write(&hidden, bytes).unwrap();
    std::fs::rename(hidden, file).unwrap();
}

/// As `cargo build` does it: the old file removed, then a hard link to the new one.
fn link_anew(file: &Path, bytes: &[u8]) {
    let built = file.parent().unwrap().parent().unwrap().join(servers::unique("built"));
    std::fs::write(&built, bytes).unwrap();
    let _ = std::fs::remove_file(file);
    std::fs::hard_link(built, file).unwrap();
}

/// A symbolic link to a file elsewhere.
fn symlink_anew(file: &Path, bytes: &[u8]) {
    let elsewhere = file.parent().unwrap().parent().unwrap().join(servers::unique("elsewhere"));
    std::fs::write(&elsewhere, bytes).unwrap();
    let _ = std::fs::remove_file(file);
    std::os::unix::fs::symlink(elsewhere, file).unwrap();
}

/// By a program, as a shell would start it.
fn by_program(command: &str, file: &Path, bytes: &[u8]) {
    let from = file.parent().unwrap().parent().unwrap().join(servers::unique("from"));
    std::fs::write(&from, bytes).unwrap();
    let mut words = command.split(' ');
    let mut program = std::process::Command::new(words.next().unwrap());
    let status = program.args(words).arg(&from).arg(file).status();
    let status = status.unwrap_or_else(|error| panic!("{command}: {error}; is it installed?"));
    assert!(status.success(), "{command}");
}

in_both_ways! {
    fn a_changed_file_serves_however_it_comes(setup) {
        let mut worker = worker_on(setup);
        let file = setup.versioned_file();
        let ways: [Way<'_>; 10] = [
            ("moved", &move_into_place),
            ("copied", &copy_in_halves),
            ("rsynced", &rsync),
            ("linked hard", &link_anew),
            ("cp", &|file, bytes| by_program("cp", file, bytes)),
            ("mv", &|file, bytes| by_program("mv", file, bytes)),
            ("rsync", &|file, bytes| by_program("rsync --archive --ignore-times", file, bytes)),
            ("rsync again", &|file, bytes| by_program("rsync --inplace --ignore-times", file, bytes)),
            ("ln", &|file, bytes| by_program("ln --force", file, bytes)),
            ("linked", &symlink_anew),
        ];
        for (name, deploy) in ways {
            deploy(&file, &version(name));
            setup.wait_for_version(name);
        }
        assert!(!worker.shown().contains("refused"), "{}", worker.shown());
        assert_eq!(worker.terminate(), Some(0));
    }

    /// The way of Kubernetes: the file is a link through `..data`, which is a link to a folder.
    fn a_switched_data_link_serves(setup) {
        let jobs = setup.project.jobs_dir();
        for marker in ["first", "second"] {
            let folder = jobs.join(format!("..{marker}"));
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(FILE), version(marker)).unwrap();
        }
        std::os::unix::fs::symlink("..first", jobs.join("..data")).unwrap();
        std::os::unix::fs::symlink(format!("..data/{FILE}"), setup.versioned_file()).unwrap();
        let mut worker = setup.worker(&[]);
        setup.wait_for_version("first");
        std::os::unix::fs::symlink("..second", jobs.join("..data_tmp")).unwrap();
        std::fs::rename(jobs.join("..data_tmp"), jobs.join("..data")).unwrap();
        setup.wait_for_version("second");
        assert_eq!(worker.terminate(), Some(0));
    }

    fn a_new_file_serves_and_a_removed_one_does_not(setup) {
        let mut worker = setup.worker(&[]);
        worker.wait_until_ready();
        setup.deploy_version("new");
        worker.wait_for_line(&["module `versioned` serves which"]);
        setup.wait_for_version("new");
        std::fs::remove_file(setup.versioned_file()).unwrap();
        worker.wait_for_line(&["module `versioned` was removed"]);
        let id = setup.add(&["which"]);
        worker.wait_for_line(&["no module holds the job `which`"]);
        setup.deploy_version("back");
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(marker_of(&row), padded("back"));
        assert_eq!(row.number("attempts"), 1, "waiting for a module is no attempt");
        assert_eq!(worker.terminate(), Some(0));
    }

    fn a_half_written_file_leaves_the_old_one_serving(setup) {
        let mut worker = worker_on(setup);
        let bytes = version("whole");
        let mut open = std::fs::File::create(setup.versioned_file()).unwrap();
        open.write_all(&bytes[..bytes.len() / 2]).unwrap();
        let line = worker.wait_for_line(&["refused a module", FILE]);
        let old = digest(&version("0"));
        assert!(line.contains(&format!("{:.12} serves on", old)), "{line}");
        assert_eq!(setup.serving_marker(), padded("0"));
        open.write_all(&bytes[bytes.len() / 2..]).unwrap();
        drop(open);
        setup.wait_for_version("whole");
        assert_eq!(worker.terminate(), Some(0));
    }

    /// A file that never rests is taken all the same.
    fn a_deploy_under_constant_change_gets_through(setup) {
        let mut worker = worker_on(setup);
        for (marker, is_in_place) in [("moved", false), ("written", true)] {
            let (file, is_over) = (setup.versioned_file(), Arc::new(AtomicBool::new(false)));
            let (bytes, stop) = (version(marker), is_over.clone());
            let writer = std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if is_in_place {
                        std::fs::write(&file, &bytes).unwrap();
                    } else {
                        move_into_place(&file, &bytes);
                    }
                    // A machine has other things to do, too.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
            setup.wait_for_version(marker);
            assert!(!writer.is_finished());
            is_over.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        }
        assert_eq!(worker.terminate(), Some(0));
    }

    fn an_attempt_keeps_its_version_and_the_next_one_takes_the_new(setup) {
        let mut worker = worker_on(setup);
        let id = setup.add(&["which", "4000"]);
        let _ = setup.wait_for_status(&id, "RUNNING");
        setup.deploy_version("1");
        worker.wait_for_line(&["module `versioned` serves which instead of"]);
        setup.wait_for_version("1");
        let row = setup.wait_for_status(&id, "SUCCESS");
        assert_eq!(marker_of(&row), padded("0"));
        assert_eq!(row.text("module_digest"), digest(&version("0")));
        assert_eq!(worker.terminate(), Some(0));
    }
}

#[test]
fn a_bad_file_leaves_the_old_one_serving_and_says_why() {
    let setup = setup_with("");
    let mut worker = worker_on(&setup);
    let adder = std::fs::read(servers::guest("describe_traps")).unwrap();
    for (bytes, reason) in [
        (b"not wasm at all".to_vec(), "magic"),
        (Vec::new(), "magic"),
        (adder, "describe"),
        (wat::parse_str("(component)").unwrap(), "holds no jobs"),
    ] {
        move_into_place(&setup.versioned_file(), &bytes);
        worker.wait_for_line(&["refused a module", FILE, reason, "serves on"]);
        let jobs = setup.run(&["jobs"]).ok();
        assert!(jobs.stdout.contains("refused:") && jobs.stdout.contains(reason), "{jobs}");
        assert_eq!(setup.serving_marker(), padded("0"));
    }
    setup.deploy_version("good");
    setup.wait_for_version("good");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_removed_file_may_serve_on() {
    let setup = setup_with("on-removal = \"keep\"\n");
    let mut worker = worker_on(&setup);
    std::fs::remove_file(setup.versioned_file()).unwrap();
    worker.wait_for_line(&["was removed; module `versioned` serves on"]);
    assert_eq!(setup.serving_marker(), padded("0"));
    setup.deploy_version("1");
    setup.wait_for_version("1");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn the_holder_of_a_job_name_keeps_it_and_the_other_is_tried_when_it_goes() {
    let setup = setup_with("");
    let mut worker = worker_on(&setup);
    // Before the holder in the order of names: what serves counts, not the name.
    let other = setup.project.jobs_dir().join("aaa.wasm");
    move_into_place(&other, &version("other"));
    let line = worker.wait_for_line(&["aaa.wasm", "the job `which` is served by"]);
    assert!(line.contains(FILE), "{line}");
    assert_eq!(setup.serving_marker(), padded("0"));
    setup.deploy_version("1");
    setup.wait_for_version("1");
    std::fs::remove_file(setup.versioned_file()).unwrap();
    setup.wait_for_version("other");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn of_two_files_with_one_name_the_second_is_tried_when_the_first_goes() {
    let setup = setup_with("");
    let second = setup.project.folder().join("more-jobs");
    std::fs::create_dir(&second).unwrap();
    setup.deploy_version("0");
    move_into_place(&second.join(FILE), &version("second"));
    let mut worker = setup.worker(&["--jobs-dir", "jobs", "--jobs-dir", "more-jobs"]);
    worker.wait_for_line(&["the module `versioned` is deployed from", "rename"]);
    assert_eq!(setup.serving_marker(), padded("0"));
    std::fs::remove_file(setup.versioned_file()).unwrap();
    setup.wait_for_version("second");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_jobs_folder_that_goes_away_takes_nothing_with_it() {
    let setup = setup_with("rescan = \"100ms\"\n");
    let mut worker = worker_on(&setup);
    let (jobs, away) = (setup.project.jobs_dir(), setup.project.folder().join("away"));
    std::fs::rename(&jobs, &away).unwrap();
    worker.wait_for_line(&["cannot read the folder"]);
    assert_eq!(setup.serving_marker(), padded("0"));
    std::fs::create_dir(&jobs).unwrap();
    std::fs::write(jobs.join(FILE), version("1")).unwrap();
    setup.wait_for_version("1");
    setup.deploy_version("2");
    setup.wait_for_version("2");
    assert_eq!(worker.terminate(), Some(0));
}

/// Those who add jobs without modules at hand learn of the new version from the database.
#[test]
fn a_swap_is_told_to_the_database() {
    let setup = setup_with("");
    let mut worker = worker_on(&setup);
    setup.deploy_version("1");
    let table = setup.table("deployed_jobs");
    let wanted = digest(&version("1"));
    wait::until_true("the new digest in the database", || {
        let sql = format!("SELECT module_digest FROM {table} WHERE name = 'which'");
        setup.query::<String>(&sql) == wanted
    });
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_version_is_freed_when_its_last_attempt_ends() {
    let project = Project::empty();
    let file = project.jobs_dir().join(FILE);
    RUNTIME.block_on(async {
        let loader = Loader::new(Arc::new(Sandbox::new(1).unwrap()), Cache::new(None));
        move_into_place(&file, &version("0"));
        let registry = Registry::of(loader.load(&file).await.unwrap());
        let attempt = registry.current("which").unwrap();
        let old = Arc::downgrade(&attempt.module);
        move_into_place(&file, &version("1"));
        assert_eq!(registry.put(loader.load(&file).await.unwrap()), Swap::Serves);
        assert_eq!(registry.put(loader.load(&file).await.unwrap()), Swap::Unchanged);
        assert!(old.upgrade().is_some(), "an attempt runs it");
        drop(attempt);
        assert!(old.upgrade().is_none(), "nothing runs it");
    });
}

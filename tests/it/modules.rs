//! Files in the jobs folder: those that can't serve are named with the reason, the others serve.

use std::path::{Path, PathBuf};

use support::{Output, Pair, Project, Setup, servers};

/// A hostile guest in the text format, as bytes.
fn from_text(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(format!("{name}.wat"));
    wat::parse_file(file).unwrap()
}

/// Every kind of file that is no module of ours, and what is said about it.
fn bad_files() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let built = |name: &str| std::fs::read(servers::guest(name)).unwrap();
    let adder = built("adder");
    vec![
        ("text", b"not wasm at all".to_vec(), &["not"]),
        ("empty", Vec::new(), &["not"]),
        ("truncated", adder[..adder.len() / 2].to_vec(), &["component"]),
        ("core-module", from_text("core-module"), &["component", "wasm32-wasip2"]),
        ("other-world", from_text("other-world"), &["sqjobs:job/job@1.0.0"]),
        ("job-2.0.0", from_text("job-2.0.0"), &["sqjobs:job/job@2.0.0"]),
        ("unknown-import", from_text("unknown-import"), &["acme:cloud/storage@1.0.0"]),
        ("http-import", from_text("http-import"), &["wasi:http"]),
        ("wrong-types", from_text("wrong-types"), &["sqjobs:job"]),
        ("describe_traps", built("describe_traps"), &["describe", "nothing to say"]),
        ("describe_spins", built("describe_spins"), &["describe"]),
        ("name_clash", built("name_clash"), &["twin"]),
    ]
}

#[test]
fn bad_files_are_refused_by_name_with_the_reason_and_the_others_serve() {
    let setup = Setup::new(Pair::Embedded, &["adder"]);
    let jobs_dir = setup.project.jobs_dir();
    for (name, bytes, _) in bad_files() {
        std::fs::write(jobs_dir.join(format!("{name}.wasm")), bytes).unwrap();
    }
    std::fs::create_dir(jobs_dir.join("a-folder.wasm")).unwrap();
    std::os::unix::fs::symlink("nowhere", jobs_dir.join("dangling.wasm")).unwrap();
    std::fs::write(jobs_dir.join("README.md"), "not a module, and not meant to be").unwrap();
    let id = setup.add(&["adder_job", "1", "2"]);

    let mut worker = setup.worker(&[]);
    assert_eq!(setup.wait_for_status(&id, "SUCCESS").raw("result"), "3");
    for (name, _, words) in bad_files() {
        let line = worker.wait_for_line(&[&format!("{name}.wasm")]);
        for word in words {
            assert!(line.contains(word), "`{word}` is not in: {line}");
        }
    }
    worker.wait_for_line(&["a-folder.wasm"]);
    worker.wait_for_line(&["dangling.wasm"]);
    assert!(!worker.shown().contains("README"), "{}", worker.shown());
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn inspect_says_why_a_file_is_no_module() {
    let project = Project::empty();
    for (name, bytes, words) in bad_files() {
        let file = project.write(&format!("{name}.wasm"), bytes).display().to_string();
        project.run(&["inspect", &file]).exits(1).is_a_sentence().says(words);
    }
}

#[test]
fn of_two_modules_with_one_job_name_the_first_by_file_name_serves() {
    let setup = Setup::new(Pair::Embedded, &["adder", "samples"]);
    std::fs::copy(servers::guest("adder"), setup.project.jobs_dir().join("zz.wasm")).unwrap();
    let id = setup.add(&["adder_job", "1", "2"]);
    let mut worker = setup.worker(&[]);
    let line = worker.wait_for_line(&["zz", "adder_job"]);
    assert!(line.contains("adder"), "{line}");
    let _ = setup.wait_for_status(&id, "SUCCESS");
    let rows = setup.run(&["jobs", "--output", "json"]).ok().json_lines();
    let holders: Vec<String> = rows
        .iter()
        .filter(|row| row.value("name") == "adder_job" && row.value("refused").is_null())
        .map(|row| row.text("module"))
        .collect();
    assert_eq!(holders, ["adder"]);
}

#[test]
fn an_empty_jobs_folder_is_no_error_and_says_so() {
    let setup = Setup::new(Pair::Embedded, &[]);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    worker.wait_for_line(&["jobs"]);
    assert_eq!(worker.terminate(), Some(0));
}

/// The guest was compiled when version 1.0.0 of the interface was released, and stays.
#[test]
fn a_guest_of_each_released_version_still_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut guests: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    guests.retain(|path| path.extension().is_some_and(|extension| extension == "wasm"));
    assert!(!guests.is_empty(), "none in {}", folder.display());
    let project = Project::empty();
    for guest in guests {
        let guest = guest.display().to_string();
        assert!(project.run(&["inspect", &guest]).ok().stdout.contains("adder_job"), "{guest}");
        assert_eq!(project.run(&["run", &guest, "1", "2", "3", "4"]).ok().line(), "10", "{guest}");
    }
}

/// A second worker finds what the first one has compiled; damage to it is not believed.
#[test]
fn compiled_code_is_kept_and_a_damaged_copy_is_made_again() {
    let project = Project::with_guests(&["adder"]);
    let run = || project.run(&["jobs", "--output", "json"]).ok();
    let first = run();
    let cached = files_below(&project.folder().join(".sqjobs"));
    assert!(!cached.is_empty(), "nothing is kept in .sqjobs");
    let id = project.run(&["add", "adder_job", "1", "2"]).ok().line().to_owned();
    for file in cached.iter().filter(|file| !file.to_string_lossy().contains(".db")) {
        std::fs::write(file, b"damaged").unwrap();
    }
    assert_eq!(run().stdout, first.stdout);
    let mut worker = project.worker(&["my_queue"]);
    support::wait::until_true("the job to be done", || {
        project.run(&["status", &id]).ok().stdout.contains("SUCCESS")
    });
    assert_eq!(worker.terminate(), Some(0));
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}

/// What is not granted is denied: nothing is seen, nothing is reached.
#[test]
fn a_job_sees_no_folder_variable_argument_or_address() {
    let mut project = Project::with_guests(&["outcomes"]);
    project.set("SECRET_OF_THE_HOST", "hunter2");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let output: Output = project.run(&["run", "look_around", &format!("\"{address}\"")]).ok();
    let seen = output.json();
    assert_eq!(seen.raw("arguments"), "[]");
    assert_eq!(seen.raw("variables"), "[]");
    assert_eq!(seen.text("standard_input"), "");
    for denied in [
        "working_folder",
        "root_folder",
        "passwd",
        "written_file",
        "tcp",
        "listener",
        "udp",
        "name_lookup",
    ] {
        let text = seen.text(denied);
        assert!(text.starts_with("error: ") || text.is_empty() || text == "[]", "{denied}: {text}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the guest reached {address}");
}

#[test]
fn a_flood_of_output_is_cut_with_a_mark_and_the_job_goes_on() {
    let setup = Setup::new(Pair::Embedded, &["outcomes"]);
    let id = setup.add(&["print", &"x".repeat(200), "20000"]);
    let mut worker = setup.worker(&[]);
    let _ = setup.wait_for_status(&id, "SUCCESS");
    assert_eq!(worker.terminate(), Some(0));
    let bytes: usize = worker.log().iter().map(String::len).sum();
    assert!(bytes < 1_000_000, "{bytes} bytes of log for 8 MB of output");
}

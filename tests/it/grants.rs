//! Grants: what is listed is reached, everything else is not, and what can't be granted is refused
//! by the line of the configuration that says so.

use std::net::TcpListener;
use std::os::unix::fs::symlink;

use support::{Pair, Project, Setup, servers};

/// A project with a hostile guest and this configuration.
fn project(settings: &str) -> Project {
    let project = Project::with_guests(&["hostile", "outcomes"]);
    project.write("sqjobs.toml", settings);
    project
}

/// What `open_paths` got of each path.
fn read(project: &Project, paths: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
    let args: Vec<&str> =
        ["run", "open_paths"].into_iter().chain(quoted.iter().map(String::as_str)).collect();
    let output = project.run(&args).ok();
    serde_json::from_str(output.line()).unwrap()
}

const FOLDER: &str = "[[modules.hostile.grants.folders]]\npath = \"shared/in\"\n";

#[test]
fn a_granted_folder_is_read_and_nothing_outside_by_whatever_path() {
    let project = project(FOLDER);
    project.write("secret.txt", "outside");
    project.write("shared/beside.txt", "outside");
    project.write("shared/in/ok.txt", "inside");
    project.write("shared/in/deep/ok.txt", "deep");
    let inside = project.folder().join("shared/in");
    symlink("../beside.txt", inside.join("link")).unwrap();
    symlink(project.folder().join("secret.txt"), inside.join("absolute")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    symlink("deep/ok.txt", inside.join("within")).unwrap();
    symlink("/dev/zero", inside.join("device")).unwrap();

    let good = ["/in/ok.txt", "/in/deep/../ok.txt", "/in/within"];
    assert_eq!(read(&project, &good), ["inside", "inside", "deep"]);
    let outside = [
        "/in/../beside.txt",
        "/in/deep/../../beside.txt",
        "/in/link",
        "/in/absolute",
        "/in/up/beside.txt",
        "/in/up/in/../beside.txt",
        "/in/device",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "shared/beside.txt",
        "",
    ];
    for (path, got) in outside.iter().zip(read(&project, &outside)) {
        assert!(got.starts_with("error: "), "{path}: {got}");
    }
}

#[test]
fn a_folder_is_written_only_where_that_was_granted() {
    let project = project(FOLDER);
    project.write("shared/in/ok.txt", "before");
    let write = || project.run(&["run", "write_file", "\"/in/ok.txt\"", "\"after\""]).ok();
    assert!(write().stdout.contains("error: "));
    let content = || std::fs::read_to_string(project.folder().join("shared/in/ok.txt")).unwrap();
    assert_eq!(content(), "before");
    project.write("sqjobs.toml", format!("{FOLDER}write = true\n"));
    assert!(write().stdout.contains("written"));
    assert_eq!(content(), "after");
}

#[test]
fn too_many_open_files_end_the_job() {
    let project = project(&format!("[defaults]\nhandles = 50\n{FOLDER}"));
    project.write("shared/in/ok.txt", "x");
    let run = |count: &str| project.run(&["run", "open_many", "\"/in/ok.txt\"", count]);
    assert_eq!(run("20").ok().line(), "20");
    run("1000").exits(1).says(&["`handles`"]);
}

/// What lies in a granted folder runs nothing: a grant over the code cache would.
#[test]
fn a_folder_that_touches_what_the_host_stands_on_is_refused_at_start() {
    let project = project("");
    std::fs::create_dir_all(project.folder().join(".sqjobs/cache")).unwrap();
    std::fs::create_dir_all(project.folder().join("jobs/inner")).unwrap();
    symlink("jobs", project.folder().join("harmless")).unwrap();
    let program = servers::host().canonicalize().unwrap();
    let program = program.parent().unwrap().display().to_string();
    for (path, words) in [
        ("jobs", "the jobs folder"),
        ("jobs/inner", "lies in the jobs folder"),
        ("harmless", "the jobs folder"),
        (".sqjobs", "the data folder"),
        (".sqjobs/cache", "lies in the data folder"),
        (".", "contains"),
        ("..", "contains"),
        ("missing", "missing"),
        ("/proc", "contains the system's folder of processes"),
        ("/proc/self", "lies in the system's folder of processes"),
        ("/dev", "contains the system's folder of devices"),
        (&program, "contains the folder of this program"),
    ] {
        let settings = format!("[[modules.hostile.grants.folders]]\npath = \"{path}\"\n");
        project.write("sqjobs.toml", settings);
        for command in [&["worker", "q"][..], &["run", "open_paths"]] {
            let output = project.run(command).exits(2);
            output.is_a_sentence().says(&["`folders` in [modules.hostile.grants]", words]);
        }
        let _ = project.run(&["list"]).ok();
    }
}

#[test]
fn a_folder_within_one_that_may_be_written_is_refused_at_start() {
    let project = project(
        "[[modules.hostile.grants.folders]]\npath = \"shared\"\nwrite = true\n[[modules.outcomes.grants.folders]]\npath = \"shared/in\"\n",
    );
    std::fs::create_dir_all(project.folder().join("shared/in")).unwrap();
    let output = project.run(&["worker", "q"]).exits(2);
    output.is_a_sentence().says(&["shared/in", "a link in its place"]);
}

#[test]
fn a_folder_that_is_gone_by_now_fails_the_attempt_and_says_so() {
    let setup = Setup::new(Pair::Embedded, &["hostile"]);
    let folder = setup.project.folder().join("shared/in");
    std::fs::create_dir_all(&folder).unwrap();
    setup.project.write("sqjobs.toml", FOLDER);
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    std::fs::remove_dir(&folder).unwrap();
    let id = setup.add(&["open_paths", "\"/in/ok.txt\""]);
    let row = setup.wait_for_status(&id, "RETRY");
    assert!(row.text("error").contains("can't be opened"), "{row}");
    std::fs::create_dir(&folder).unwrap();
    let _ = setup.wait_for_status(&id, "SUCCESS");
    assert_eq!(worker.terminate(), Some(0));
}

#[test]
fn a_job_sees_the_variables_that_were_granted_and_no_others() {
    let mut project = project("[modules.outcomes.grants]\nenv = [\"GREETING\", \"NOT_THERE\"]\n");
    project.set("GREETING", "hello");
    project.set("OTHER", "hidden");
    let seen = project.run(&["run", "look_around"]).ok().json();
    assert_eq!(seen.raw("variables"), "[[\"GREETING\",\"hello\"]]");
}

/// Wherever the guest puts it: log, output, progress, error, backtrace, panic.
#[test]
fn a_secret_reaches_the_job_and_no_log_error_or_command() {
    let mut setup = Setup::new(Pair::Embedded, &["hostile"]);
    setup.project.set("HOST_API_KEY", "hunter2-of-the-host");
    setup.project.write("keys/pem", "-----line one-----\n-----line two-----\n");
    let settings = "[defaults]\nmax-attempts = 1\n[modules.hostile.grants.secrets]\nAPI_KEY = { env = \"HOST_API_KEY\" }\nPEM = { file = \"keys/pem\" }\n";
    setup.project.write("sqjobs.toml", settings);
    let mut worker = setup.worker(&["--log-level", "trace"]);
    let mut shown = Vec::new();
    for args in [&["\"API_KEY\""][..], &["\"API_KEY\"", "true"], &["\"PEM\""]] {
        let id = setup.add(&[&["leak_secret"], args].concat());
        let row = setup.wait_for_status(&id, "FAILURE");
        assert!(row.text("error").contains("[secret "), "{row}");
        shown.push(row.to_string());
        for command in [&["status", &id][..], &["dead", "show", &id], &["list"]] {
            shown.push(setup.run(command).ok().stdout);
        }
    }
    assert_eq!(worker.terminate(), Some(0));
    shown.push(worker.shown());
    let file = setup.project.jobs_dir().join("hostile.wasm").display().to_string();
    shown.push(setup.run(&["inspect", &file]).ok().stdout);
    for text in shown {
        for secret in ["hunter2", "line one", "line two"] {
            assert!(!text.contains(secret), "{secret} is in: {text}");
        }
    }
}

#[test]
fn a_secret_that_is_not_there_is_a_fault_that_names_it_for_those_who_run_jobs_only() {
    let project = project(
        "[modules.hostile.grants.secrets]\nA = { env = \"NO_SUCH\" }\nB = { file = \"no/such\" }\n",
    );
    for command in [&["worker", "q"][..], &["run", "open_paths"]] {
        let output = project.run(command).exits(2);
        output.is_a_sentence().says(&["`A`", "NO_SUCH", "`B`", "no/such"]);
    }
    let _ = project.run(&["list"]).ok();
}

#[test]
fn a_grant_that_is_not_well_formed_is_a_fault_that_names_its_place() {
    let project = project(
        "[modules.m]\ndigest = \"md5:1\"\n[modules.m.grants]\nhttp = [\"no port\"]\nsockets = [\"db:5432\"]\nenv = [\"A=B\"]\nsecrets.X = { file = \"a\", env = \"b\" }\nhtpt = []\nmodule = \"m\"\n[[modules.m.grants.folders]]\nas = \"in\"\n[jobs.j.grants]\nadd-job-queues = \"q\"\n",
    );
    let output = project.run(&["list"]).exits(2);
    output.is_a_sentence().says(&[
        "`digest` in [modules.m]",
        "`http` in [modules.m.grants]",
        "`sockets` in [modules.m.grants]",
        "`env` in [modules.m.grants]",
        "`secrets` in [modules.m.grants]",
        "did you mean `http`",
        "`module` in [modules.m.grants]",
        "`path` in [modules.m.grants.folders]",
        "`add-job-queues` in [jobs.j.grants]",
    ]);
}

#[test]
fn raw_sockets_reach_listed_addresses_only() {
    let listed = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (listed_at, other_at) = (listed.local_addr().unwrap(), other.local_addr().unwrap());
    let project = project(&format!("[modules.outcomes.grants]\nsockets = [\"{listed_at}\"]\n"));
    let look =
        |address| project.run(&["run", "look_around", &format!("\"{address}\"")]).ok().json();
    let seen = look(listed_at);
    assert_eq!(seen.text("tcp"), "connected");
    assert!(seen.text("listener").starts_with("error: "), "{seen}");
    assert!(look(other_at).text("tcp").starts_with("error: "));
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err(), "the guest reached {other_at}");
    project.write(
        "sqjobs.toml",
        format!(
            "[defaults]\nconnections = 0\n[modules.outcomes.grants]\nsockets = [\"{listed_at}\"]\n"
        ),
    );
    assert!(look(listed_at).text("tcp").starts_with("error: "), "none may be opened");
}

#[test]
fn jobs_are_added_on_the_own_queue_and_on_what_was_granted() {
    let add = |settings: &str, job: &[&str]| {
        let setup = Setup::new(Pair::Embedded, &["outcomes"]);
        let settings = format!("[defaults]\nmax-attempts = 1\n{settings}");
        setup.project.write("sqjobs.toml", settings);
        let id = setup.add(job);
        let mut worker = setup.worker(&[]);
        let is_over = |row: &support::Json| row.has("error") && row.raw("finished_at") != "null";
        let row = setup.wait_for_row(&id, "its end", is_over);
        assert_eq!(worker.terminate(), Some(0));
        row
    };
    let elsewhere = ["add_children", "1", "--kwarg", "queue=other"];
    let denied = add("", &elsewhere);
    let error = denied.text("error");
    for word in ["`other`", "`add-job-queues`", "`add-job-names`", "[modules.outcomes.grants]"] {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    for grant in ["add-job-queues = [\"other\"]", "add-job-names = [\"counter\"]"] {
        let row = add(&format!("[modules.outcomes.grants]\n{grant}\n"), &elsewhere);
        assert_eq!(row.text("status"), "SUCCESS", "{grant}: {row}");
    }
    let row = add("[jobs.add_children.grants]\nadd-job-queues = [\"other\"]\n", &elsewhere);
    assert_eq!(row.text("status"), "SUCCESS", "{row}");
}

#[test]
fn a_pinned_module_is_served_from_its_own_file_only() {
    let setup = Setup::new(Pair::Embedded, &["adder"]);
    let file = setup.project.jobs_dir().join("adder.wasm");
    let inspected = setup.run(&["inspect", "--output", "json", &file.display().to_string()]).ok();
    let digest = inspected.json().text("digest");
    setup.project.write("sqjobs.toml", format!("[modules.adder]\ndigest = \"sha256:{digest}\"\n"));
    assert!(setup.run(&["jobs"]).ok().stdout.contains("adder_job"));
    std::fs::copy(servers::guest("samples"), file).unwrap();
    let refused = setup.run(&["jobs"]).ok();
    refused.says(&["[modules.adder] pins", &digest, "change `digest`"]);
    assert!(!refused.stdout.contains("adder_job"), "{refused}");
}

#[test]
fn grants_bound_to_a_jobs_folder_hold_in_no_other() {
    let mut project = project(
        "jobs-dir = [\"trusted\", \"drop\"]\n[modules.outcomes.grants]\njobs-dir = \"trusted\"\nenv = [\"GREETING\"]\n",
    );
    project.set("GREETING", "hello");
    for folder in ["trusted", "drop"] {
        std::fs::create_dir(project.folder().join(folder)).unwrap();
    }
    let variables = || project.run(&["run", "look_around"]).ok().json().raw("variables").to_owned();
    let (trusted, dropped) = (
        project.folder().join("trusted/outcomes.wasm"),
        project.folder().join("drop/outcomes.wasm"),
    );
    std::fs::copy(servers::guest("outcomes"), &dropped).unwrap();
    assert_eq!(variables(), "[]");
    std::fs::rename(dropped, trusted).unwrap();
    assert_eq!(variables(), "[[\"GREETING\",\"hello\"]]");
}

#[test]
fn inspect_tells_of_each_import_whether_it_is_granted_empty_or_refused() {
    let project = Project::with_guests(&["fetcher"]);
    project.write("shared/x", "");
    let file = project.jobs_dir().join("fetcher.wasm").display().to_string();
    let status = |import: &str| {
        let shown = project.run(&["inspect", &file]).ok().stdout;
        let line = shown.lines().find(|line| line.contains(import)).unwrap().trim().to_owned();
        line.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(status("sqjobs:job/log@"), "granted");
    assert_eq!(status("wasi:http/outgoing-handler@"), "refused");
    assert_eq!(status("wasi:cli/environment@"), "empty");
    let shown = project.run(&["inspect", &file]).ok().stdout;
    assert!(shown.contains("`http` of [modules.fetcher.grants]"), "{shown}");
    project.write(
        "sqjobs.toml",
        "[modules.fetcher.grants]\nhttp = [\"api.example.com:443\"]\nenv = [\"TZ\"]\n",
    );
    assert_eq!(status("wasi:http/outgoing-handler@"), "granted");
    assert_eq!(status("wasi:cli/environment@"), "granted");
}

#[test]
fn inspect_shows_the_imports_of_a_file_that_wants_what_no_host_offers() {
    let project = Project::empty();
    let bytes = wat::parse_str(include_str!("../guests/unknown-import.wat")).unwrap();
    let file = project.write("unknown.wasm", bytes).display().to_string();
    let shown = project.run(&["inspect", &file]).exits(1);
    assert!(shown.stdout.contains("refused  acme:cloud/storage@1.0.0"), "{shown}");
    shown.is_a_sentence().says(&["acme:cloud/storage@1.0.0", "does not offer"]);
}

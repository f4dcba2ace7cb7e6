//! Files in the jobs folder that attack whoever loads them: each is refused by name and with the
//! limit that it passed, and the module beside it serves.

use std::process::Command;

use support::versions::slow;
use support::{Pair, Setup, servers};

/// Deploys what attacks beside a good module; the worker must refuse it with these words, and
/// serve the other.
fn refuse(settings: &str, deploy: impl FnOnce(&Setup), name: &str, words: &[&str]) {
    let setup = Setup::new(Pair::Embedded, &["adder"]);
    // The good one is in the cache by now: the settings of compiling are for the other.
    let _ = setup.run(&["jobs"]).ok();
    setup.project.write("sqjobs.toml", settings);
    deploy(&setup);
    let mut worker = setup.worker(&[]);
    let line = worker.wait_for_line(&[&format!("{name}.wasm")]);
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
    worker.wait_until_ready();
    let id = setup.add(&["adder_job", "1", "2"]);
    assert_eq!(setup.wait_for_status(&id, "SUCCESS").raw("result"), "3");
    let peak = worker.peak_memory_bytes();
    assert!(peak < 512 << 20, "the worker held {peak} bytes");
    assert_eq!(worker.terminate(), Some(0));
}

fn guest(name: &'static str) -> impl FnOnce(&Setup) {
    move |setup| setup.project.deploy(name)
}

fn text(name: &'static str, text: String) -> impl FnOnce(&Setup) {
    move |setup| {
        let bytes = wat::parse_str(text).unwrap();
        std::fs::write(setup.project.jobs_dir().join(format!("{name}.wasm")), bytes).unwrap();
    }
}

#[test]
fn one_that_computes_for_ever_in_describe() {
    refuse("", guest("describe_spins"), "describe_spins", &["describe", "longer than 5 s"]);
}

#[test]
fn one_that_computes_for_ever_at_start_up() {
    refuse("", guest("startup_spins"), "startup_spins", &["longer than 5 s"]);
}

#[test]
fn one_that_traps_at_start_up() {
    refuse("", guest("startup_traps"), "startup_traps", &["unreachable"]);
}

#[test]
fn one_with_a_huge_table() {
    let module = "(component (core module (table 100000000 funcref)))";
    refuse(
        "",
        text("table", module.into()),
        "table",
        &["does not fit into a sandbox", "table", "100000"],
    );
}

#[test]
fn one_with_more_memories_than_a_slot_has() {
    let memories = "(memory 1)".repeat(8);
    let module =
        format!("(component (core module $m {memories}) (core instance (instantiate $m)))");
    refuse("", text("memories", module), "memories", &["does not fit into a sandbox", "memor"]);
}

#[test]
fn one_with_hundreds_of_instances() {
    let instances = "(core instance (instantiate $m))".repeat(300);
    let module = format!("(component (core module $m) {instances})");
    refuse(
        "",
        text("instances", module),
        "instances",
        &["does not fit into a sandbox", "instances", "100"],
    );
}

#[test]
fn one_of_two_hundred_megabytes() {
    let deploy = |setup: &Setup| {
        let file = std::fs::File::create(setup.project.jobs_dir().join("large.wasm")).unwrap();
        file.set_len(200 << 20).unwrap();
    };
    refuse("", deploy, "large", &["209715200 bytes", "may have 67108864", "module-size"]);
}

/// A number in LEB128.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}

/// A component of one section.
fn within_a_component(id: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.push(id);
    bytes.extend(leb(content.len()));
    bytes.extend(content);
    bytes
}

/// A component around one core module of these sections.
fn component(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut core = b"\0asm\x01\0\0\0".to_vec();
    for (id, content) in sections {
        core.push(*id);
        core.extend(leb(content.len()));
        core.extend(content);
    }
    within_a_component(1, &core)
}

#[test]
fn one_with_a_hundred_thousand_functions() {
    let count = [0xa0, 0x8d, 0x06]; // 100,000
    let types = vec![1, 0x60, 0, 0];
    let functions = [&count[..], &[0; 100_000]].concat();
    let bodies = [&count[..], &[2, 0, 0x0b].repeat(100_000)].concat();
    let bytes = component(&[(1, types), (3, functions), (10, bodies)]);
    let deploy = move |setup: &Setup| {
        std::fs::write(setup.project.jobs_dir().join("many.wasm"), bytes).unwrap();
    };
    refuse("", deploy, "many", &["100000 functions", "may have 50000", "`functions`"]);
}

#[test]
fn one_that_takes_minutes_to_compile() {
    let settings = "[compile]\ntimeout = \"1s\"\n";
    let words = ["can't be compiled", "longer than 1s", "`timeout` in [compile]"];
    refuse(settings, text("slow", slow(1500)), "slow", &words);
}

#[test]
fn one_that_takes_too_much_memory_to_compile() {
    let settings = "[compile]\nmemory = \"64MiB\"\n";
    let words = ["can't be compiled", "bytes of memory", "`memory` in [compile]"];
    refuse(settings, text("fat", slow(1500)), "fat", &words);
}

#[test]
fn one_that_imports_what_no_host_offers() {
    let module = include_str!("../guests/unknown-import.wat").to_owned();
    refuse("", text("unknown", module), "unknown", &["acme:cloud/storage@1.0.0"]);
}

/// The compiler's parser would follow it all the way down, past the count of functions.
#[test]
fn one_that_is_nested_ten_thousand_deep() {
    let mut bytes = wat::parse_str("(component)").unwrap();
    for _ in 0..10_000 {
        bytes = within_a_component(4, &bytes);
    }
    let deploy = move |setup: &Setup| {
        std::fs::write(setup.project.jobs_dir().join("deep.wasm"), bytes).unwrap();
    };
    refuse("", deploy, "deep", &["nests components deeper than 100"]);
}

/// Opening a FIFO for reading would wait for a writer that never comes.
#[test]
fn one_that_is_no_file() {
    let deploy = |setup: &Setup| {
        let fifo = setup.project.jobs_dir().join("fifo.wasm");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let device = setup.project.jobs_dir().join("device.wasm");
        std::os::unix::fs::symlink("/dev/zero", device).unwrap();
    };
    refuse("", deploy, "fifo", &["not a regular file"]);
    let deploy = |setup: &Setup| {
        let device = setup.project.jobs_dir().join("device.wasm");
        std::os::unix::fs::symlink("/dev/zero", device).unwrap();
    };
    refuse("", deploy, "device", &["not a regular file"]);
}

/// It comes first by its file's name, so it serves the job; the grants of the name were bound to
/// the module that they were meant for, so it gets none of them.
#[test]
fn one_that_claims_somebody_else_s_job_name_gets_none_of_its_grants() {
    let mut setup = Setup::new(Pair::Embedded, &[]);
    setup.project.set("HOST_API_KEY", "hunter2-of-the-host");
    let jobs_dir = setup.project.jobs_dir();
    std::fs::copy(servers::guest("hostile"), jobs_dir.join("zz-billing.wasm")).unwrap();
    std::fs::copy(servers::guest("hostile"), jobs_dir.join("aa-thief.wasm")).unwrap();
    let settings = "[defaults]\nmax-attempts = 1\n[jobs.leak_secret.grants]\nmodule = \"zz-billing\"\nsecrets.API_KEY = { env = \"HOST_API_KEY\" }\n";
    setup.project.write("sqjobs.toml", settings);
    let size_told = |setup: &Setup| {
        let id = setup.add(&["leak_secret", "\"API_KEY\""]);
        let mut worker = setup.worker(&[]);
        let row = setup.wait_for_status(&id, "FAILURE");
        assert_eq!(worker.terminate(), Some(0));
        row.text("error")
    };
    assert!(size_told(&setup).contains("is nothing"));
    std::fs::remove_file(jobs_dir.join("aa-thief.wasm")).unwrap();
    assert!(size_told(&setup).contains("value of 19 bytes is [secret API_KEY]"));
}

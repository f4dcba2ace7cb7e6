//! Compiling happens in a child of the host: so many at once, only for as long as somebody waits
//! for it, and never longer than the host lives.

use support::versions::{move_into_place, slow};
use support::{Pair, Setup, WorkerProcess, wait};

fn setup_with(compile: &str) -> Setup {
    let setup = Setup::new(Pair::Embedded, &[]);
    setup.project.write("sqjobs.toml", format!("[compile]\n{compile}"));
    setup
}

/// A module that takes far longer to compile than any test waits.
fn endless() -> Vec<u8> {
    wat::parse_str(slow(1500)).unwrap()
}

fn wait_for_a_compiler(worker: &WorkerProcess) -> u32 {
    wait::until("a compiler", || worker.compilers().first().copied())
}

fn is_there(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // One that has ended may wait for whoever adopted it to ask how.
    status.is_ok_and(|status| !status.contains(") Z "))
}

/// The most compilers that run at once while four modules are compiled until the deadline of each.
fn most_at_once(at_once: usize) -> usize {
    let setup = setup_with(&format!("at-once = {at_once}\ntimeout = \"1s\"\n"));
    let bytes = endless();
    for name in ["a", "b", "c", "d"] {
        std::fs::write(setup.project.jobs_dir().join(format!("{name}.wasm")), &bytes).unwrap();
    }
    let mut worker = setup.worker(&[]);
    let mut most = 0;
    wait::until_true("four refusals", || {
        most = most.max(worker.compilers().len());
        worker.log().iter().filter(|line| line.contains("longer than 1s")).count() == 4
    });
    assert_eq!(worker.terminate(), Some(0));
    most
}

#[test]
fn so_many_modules_as_are_allowed_are_compiled_at_once() {
    assert_eq!(most_at_once(1), 1);
    assert_eq!(most_at_once(2), 2);
}

#[test]
fn a_compiler_ends_with_its_host() {
    let setup = setup_with("");
    std::fs::write(setup.project.jobs_dir().join("slow.wasm"), endless()).unwrap();
    let mut worker = setup.worker(&[]);
    let compiler = wait_for_a_compiler(&worker);
    assert!(is_there(compiler));
    worker.kill();
    wait::until_true("the compiler's end", || !is_there(compiler));
}

#[test]
fn a_host_that_compiles_stops_when_it_is_told_to() {
    let setup = setup_with("timeout = \"1h\"\n");
    let mut worker = setup.worker(&[]);
    worker.wait_until_ready();
    move_into_place(&setup.versioned_file(), &endless());
    let compiler = wait_for_a_compiler(&worker);
    assert_eq!(worker.terminate(), Some(0));
    wait::until_true("the compiler's end", || !is_there(compiler));
}

/// However the file changes, the compile of what it held before is of use to nobody.
#[test]
fn a_changed_file_does_not_wait_for_the_compile_of_what_it_held_before() {
    let setup = setup_with("timeout = \"1h\"\n");
    setup.deploy_version("0");
    let mut worker = setup.worker(&[]);
    setup.wait_for_version("0");
    let (file, bad) = (setup.versioned_file(), endless());
    for is_removed in [false, true] {
        move_into_place(&file, &bad);
        let compiler = wait_for_a_compiler(&worker);
        if is_removed {
            std::fs::remove_file(&file).unwrap();
        } else {
            setup.deploy_version("good");
        }
        wait::until_true("the compiler's end", || !is_there(compiler));
        if is_removed {
            worker.wait_for_line(&["module `versioned` was removed"]);
        } else {
            setup.wait_for_version("good");
        }
    }
    assert!(!worker.shown().contains("refused"), "{}", worker.shown());
    assert_eq!(worker.terminate(), Some(0));
}

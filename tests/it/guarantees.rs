//! `docs/guarantees.md` names the tests that hold each promise: they must be there.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_test_that_the_guarantees_name_is_there() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("it");
    let page = std::fs::read_to_string(tests.join("../../docs/guarantees.md")).unwrap();
    let named: BTreeSet<(&str, &str)> = page
        .split('`')
        .filter(|word| !word.contains(char::is_whitespace))
        .filter_map(|word| word.split_once("::"))
        .collect();
    assert!(named.len() > 30, "{named:?}");
    for (file, rule) in named {
        let paths = [tests.join(format!("{file}.rs")), tests.join(format!("{file}/mod.rs"))];
        let text = paths.iter().find_map(|path| std::fs::read_to_string(path).ok());
        let text = text.unwrap_or_else(|| panic!("no file of the test {file}::{rule}"));
        assert!(text.contains(&format!("fn {rule}(")), "no test {file}::{rule}");
    }
}

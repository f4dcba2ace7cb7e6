//! The examples of `docs/writing-jobs.md`, run; and the page itself, compared with them.

mod adder;
mod arguments;
mod children;
mod failures;
mod once;
mod options;

use std::path::Path;

/// Each Rust example on the page stands, word for word, in the file that the line above it names;
/// those files are compiled and tested, here or with the guest examples.
#[test]
fn every_example_on_the_page_is_from_a_file_that_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/writing-jobs.md")).unwrap();
    let blocks = page.matches("```rust\n").count();
    let named: Vec<_> = page.split("<!-- from ").skip(1).collect();
    assert_eq!(named.len(), blocks, "each example is named by a line `<!-- from PATH -->`");
    for part in named {
        let (path, rest) = part.split_once(" -->\n```rust\n").unwrap();
        let (code, _) = rest.split_once("```").unwrap();
        let file = std::fs::read_to_string(root.join(path)).unwrap();
        assert!(file.contains(code), "docs/writing-jobs.md: this is not in {path}:\n{code}");
    }
}

//! `new`: a job project that builds anywhere. The SDK's source travels in this binary and is
//! written beside the job, until a registry has it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{Usage, print};

#[derive(Args)]
pub(super) struct NewArguments {
    /// Name of the job, and of the folder: letters, digits, `-` and `_`
    name: String,
}

macro_rules! sdk {
    ($($file:literal),* $(,)?) => {
        [$(($file, include_str!(concat!("../../../sdk/", $file)))),*]
    };
}

/// The SDK, file by file.
const SDK: [(&str, &str); 16] = sdk![
    "Cargo.toml",
    "src/add_job.rs",
    "src/bindings.rs",
    "src/call.rs",
    "src/export.rs",
    "src/failure.rs",
    "src/host.rs",
    "src/job.rs",
    "src/lib.rs",
    "src/log.rs",
    "src/options.rs",
    "src/progress.rs",
    "src/report.rs",
    "src/testing.rs",
    "src/testing/recorder.rs",
    "src/testing/tests.rs",
];

/// The project around it; `{{name}}` and `{{name_snake}}` stand for the job's name.
const TEMPLATE: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../../templates/new/Cargo.toml.tmpl")),
    ("README.md", include_str!("../../templates/new/README.md")),
    (".gitignore", include_str!("../../templates/new/gitignore")),
    ("rust-toolchain.toml", include_str!("../../templates/new/rust-toolchain.toml")),
    ("src/lib.rs", include_str!("../../templates/new/src/lib.rs")),
];

pub(super) fn new(arguments: &NewArguments) -> anyhow::Result<()> {
    let name = arguments.name.as_str();
    check(name)?;
    let folder = PathBuf::from(name);
    if folder.exists() {
        anyhow::bail!("`{name}` exists already; choose another name, or remove it first");
    }
    let snake = name.replace('-', "_");
    for (file, text) in TEMPLATE {
        let text = text.replace("{{name_snake}}", &snake).replace("{{name}}", name);
        write(&folder.join(file), &text)?;
    }
    for (file, text) in SDK {
        write(&folder.join("sqjobs-sdk").join(file), text)?;
    }
    print::note(format_args!(
        "made `{name}`. Next:\n  cd {name}\n  cargo test\n  cargo build --release --target wasm32-wasip2\n  sqjobs-host run target/wasm32-wasip2/release/{snake}.wasm 1 2 3 4"
    ));
    Ok(())
}

/// Words that no crate can be called by. Source: the Rust reference, "Keywords" (strict, reserved,
/// and those of single editions).
const KEYWORDS: [&str; 52] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
    "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
    "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
    "return", "self", "Self", "static", "struct", "super", "trait", "true", "try", "type",
    "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// Crates that a project's code means by these names: those of the standard library, which
/// `cargo new` refuses too, and the SDK.
const TAKEN: [&str; 6] = ["alloc", "core", "proc_macro", "sqjobs_sdk", "std", "test"];

/// A name that is a folder, a cargo package and a Rust crate alike.
fn check(name: &str) -> Result<(), Usage> {
    let begins = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    let goes_on = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !begins || !goes_on || name.len() > 64 {
        return Err(Usage(format!(
            "`{name}` can't be a job project's name: expected a letter, then letters, digits, `-` or `_`, at most 64 in all"
        )));
    }
    let crate_name = name.replace('-', "_");
    let lower = crate_name.to_ascii_lowercase();
    let reason = if KEYWORDS.contains(&crate_name.as_str()) {
        "a word of Rust's own"
    } else if TAKEN.contains(&lower.as_str()) {
        "the name of a crate that its code uses"
    } else {
        return Ok(());
    };
    Err(Usage(format!("`{name}` can't be a job project's name: it is {reason}; try `{name}-job`")))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let shown = || format!("cannot write `{}`", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(shown)?;
    }
    std::fs::write(path, text).with_context(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_sdk_travels_in_the_binary() {
        fn collect(folder: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, found);
                } else {
                    found.push(path.to_string_lossy().into_owned());
                }
            }
        }
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        let mut found = vec![sdk.join("Cargo.toml").to_string_lossy().into_owned()];
        collect(&sdk.join("src"), &mut found);
        let mut embedded: Vec<String> =
            SDK.iter().map(|(file, _)| sdk.join(file).to_string_lossy().into_owned()).collect();
        found.sort();
        embedded.sort();
        assert_eq!(found, embedded);
    }

    #[test]
    fn names_that_would_not_build_are_refused() {
        for name in ["", "1st", "a b", "../x", "ñ", "-x", "_", "a.b", &"x".repeat(65)] {
            assert!(check(name).is_err(), "{name}");
        }
        for name in KEYWORDS.iter().chain(&TAKEN).chain(&["sqjobs-sdk", "proc-macro", "Std"]) {
            let error = check(name).expect_err(name).to_string();
            assert!(error.contains(&format!("`{name}-job`")), "{error}");
            assert!(check(&format!("{name}-job")).is_ok(), "{name}");
        }
        for name in ["hello-job_2", "fnord", "Hello", "union", "serde", "x"] {
            assert!(check(name).is_ok(), "{name}");
        }
    }
}

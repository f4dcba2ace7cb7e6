//! Generates `sdk/src/bindings.rs` from the WIT package: `scripts/bindings` runs it.
//!
//! The generated file is checked in, since generating costs every build of every job a minute and
//! more; a test here fails when it no longer says what `wit/` says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator};
use wit_bindgen_rust::Opts;

/// The world that a module of jobs is built for.
const WORLD: &str = "job-module";

/// Stands at the head of the generated file.
const HEADER: &str = "\
// Generated from `wit/` by `scripts/bindings`; do not edit by hand.
#![allow(clippy::all, clippy::pedantic, clippy::restriction, missing_docs)]
";

fn main() -> Result<()> {
    let path = bindings_path();
    std::fs::write(&path, generate()?).with_context(|| format!("cannot write `{}`", path.display()))
}

/// The SDK's checked-in bindings.
fn bindings_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/bindings.rs")
}

/// The text of the bindings, as `wit/` says now.
///
/// # Errors
/// The WIT package can't be read, has a fault, or lacks the world.
fn generate() -> Result<String> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit"))?;
    let world = resolve.select_world(&[package], Some(WORLD))?;
    let options = Opts {
        // The job's crate calls the SDK's macro, not this one; it must be reachable from there.
        pub_export_macro: true,
        export_macro_name: Some("export_bindings".to_owned()),
        default_bindings_module: Some("sqjobs_sdk::bindings".to_owned()),
        runtime_path: Some("::wit_bindgen::rt".to_owned()),
        generate_unused_types: true,
        format: true,
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;
    let (_, contents) = files.iter().next().ok_or_else(|| anyhow!("nothing was generated"))?;
    let code = std::str::from_utf8(contents).context("the generated code is not UTF-8")?;
    Ok(format!("{HEADER}{code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_bindings_match_the_wit_package() {
        let checked_in = std::fs::read_to_string(bindings_path()).unwrap();
        assert!(
            checked_in == generate().unwrap(),
            "sdk/src/bindings.rs does not match wit/; run scripts/bindings and check the result in"
        );
    }
}

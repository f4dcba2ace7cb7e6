//! Asks before what can't be taken back.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use super::{Exit, Usage, print};

/// Asks on the terminal whether to `do_this`, unless `--yes` was said. Off a terminal nobody can
/// be asked, so `--yes` is wanted.
///
/// # Errors
/// The answer is no: exit code 1. Nobody can be asked: exit code 2.
pub(super) fn confirm(do_this: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Usage(format!("this would {do_this}; say --yes to do so")).into());
    }
    let _ = write!(std::io::stderr().lock(), "{do_this}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    print::note("nothing was done");
    Err(Exit(1).into())
}

//! Which version of a module a host serves: what was decided for all hosts, and what its own
//! file holds. Pure.

use crate::store::versions::{Choice, ModuleState};

/// What a host should serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What the file holds.
    File,
    /// This version, from wherever it is kept.
    Version(String),
    /// Whatever serves now goes on.
    AsBefore,
}

/// What to serve, given the digest of the file's module; `None` for a file that is no module.
pub(super) fn wanted(state: &ModuleState, file: Option<&str>) -> Wanted {
    let chosen = match &state.choice {
        Choice::Held(digest) | Choice::Pinned(digest) => Some(digest),
        Choice::Follow => match file {
            Some(file) if !state.refused.contains(file) => None,
            // What another host took into service last, or this one before it was restarted.
            _ => match &state.serving {
                Some(serving) if !state.refused.contains(serving) => Some(serving),
                _ => return Wanted::AsBefore,
            },
        },
    };
    match chosen {
        Some(digest) if file != Some(digest.as_str()) => Wanted::Version(digest.clone()),
        _ => Wanted::File,
    }
}

/// Whether a file that holds this version ends `held`: it is another one than those that were
/// there when that was decided. `before` is what the file held when this host last read it.
pub(super) fn ends_hold(state: &ModuleState, file: &str, before: Option<&str>) -> bool {
    let is_new = !state.known.contains(file) || before.is_some_and(|before| before != file);
    match &state.choice {
        Choice::Held(held) => is_new && held != file && !state.refused.contains(file),
        Choice::Follow | Choice::Pinned(_) => false,
    }
}

/// Why a file's version does not serve, in words.
pub(super) fn why_not(state: &ModuleState, module: &str, file: &str) -> String {
    let is_refused = state.refused.contains(file);
    match &state.choice {
        _ if is_refused => format!(
            "version {file:.12} of `{module}` was refused; `modules pin` takes it back, or deploy another"
        ),
        Choice::Pinned(digest) => format!(
            "version {file:.12} of `{module}` waits, since {digest:.12} is pinned; see `modules unpin`"
        ),
        _ => format!("version {file:.12} of `{module}` waits until its file changes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(choice: Choice, serving: &str, refused: &[&str]) -> ModuleState {
        ModuleState {
            choice,
            serving: (!serving.is_empty()).then(|| serving.to_owned()),
            refused: refused.iter().map(|digest| (*digest).to_owned()).collect(),
            known: ["a", "b"].map(str::to_owned).into(),
            ..ModuleState::default()
        }
    }

    fn version(digest: &str) -> Wanted {
        Wanted::Version(digest.to_owned())
    }

    #[test]
    fn a_module_follows_its_file() {
        assert_eq!(wanted(&state(Choice::Follow, "a", &[]), Some("b")), Wanted::File);
        assert_eq!(wanted(&ModuleState::default(), Some("b")), Wanted::File);
    }

    #[test]
    fn what_is_pinned_serves_whatever_the_file_holds() {
        let pinned = state(Choice::Pinned("a".into()), "a", &[]);
        assert_eq!(wanted(&pinned, Some("b")), version("a"));
        assert_eq!(wanted(&pinned, Some("a")), Wanted::File);
        assert!(!ends_hold(&pinned, "c", Some("b")));
    }

    #[test]
    fn a_refused_version_is_not_served_after_another_was_deployed_elsewhere() {
        let follow = state(Choice::Follow, "c", &["b"]);
        assert_eq!(wanted(&follow, Some("b")), version("c"));
        assert_eq!(wanted(&state(Choice::Follow, "b", &["b"]), Some("b")), Wanted::AsBefore);
    }

    #[test]
    fn a_restart_with_a_bad_file_serves_what_served_last() {
        assert_eq!(wanted(&state(Choice::Follow, "a", &[]), None), version("a"));
        assert_eq!(wanted(&ModuleState::default(), None), Wanted::AsBefore);
    }

    #[test]
    fn only_a_file_with_another_version_ends_a_hold() {
        let held = state(Choice::Held("a".into()), "a", &["b"]);
        assert!(!ends_hold(&held, "b", Some("a")), "it was refused");
        assert!(!ends_hold(&held, "a", Some("b")), "it is what is held");
        assert!(ends_hold(&held, "c", None), "no host has seen it");
        let mut held = held;
        held.known.insert("c".into());
        assert!(!ends_hold(&held, "c", None), "it was there before");
        assert!(ends_hold(&held, "c", Some("b")), "somebody put it there now");
    }
}

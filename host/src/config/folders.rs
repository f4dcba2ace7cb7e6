//! Whether a granted folder touches what the host itself stands on.
//!
//! A guest that can write in the cache writes native code that the host runs; one that can write
//! in a jobs folder or the configuration gives itself grants; one that can read the data folder
//! reads every job. So such a grant is refused, by whatever path or link it is named.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A folder of the host that no guest may have.
pub(super) struct Protected {
    /// What it is, for errors: `the jobs folder`.
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    /// Whether a folder within it is forbidden too. The configuration's own folder forbids only
    /// what holds it: relative paths stand against it, so most granted folders lie there.
    pub(super) is_deep: bool,
}

/// A file or folder, whatever its path: device and inode.
type Identity = (u64, u64);

/// The granted folder without links in its path.
///
/// # Errors
/// It is no folder, or it touches a protected one, and which.
pub(super) fn check(granted: &Path, protected: &[Protected]) -> Result<PathBuf, String> {
    let shown = granted.display();
    let folder = granted.canonicalize().map_err(|error| format!("`{shown}`: {error}"))?;
    if !folder.is_dir() {
        return Err(format!("`{shown}` is not a folder"));
    }
    let own = identity(&folder).ok_or_else(|| format!("`{shown}` can't be looked at"))?;
    let above = lineage(&folder);
    for other in protected {
        let (what, path) = (other.what, other.path.display());
        if lineage(&other.path).contains(&own) {
            return Err(format!(
                "`{shown}` contains {what} `{path}`, which no job may reach; grant another folder"
            ));
        }
        let is_within = identity(&other.path).is_some_and(|other| above.contains(&other));
        if other.is_deep && is_within {
            return Err(format!(
                "`{shown}` lies in {what} `{path}`, which no job may reach; grant another folder"
            ));
        }
    }
    Ok(folder)
}

fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The path itself and every folder above it, links resolved; of a path that is not there yet,
/// what there is of it.
fn lineage(path: &Path) -> BTreeSet<Identity> {
    let existing = path.ancestors().find_map(|above| {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        above.canonicalize().ok()
    });
    existing.iter().flat_map(|path| path.ancestors()).filter_map(identity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sqjobs-folders-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(folder.join("jobs/inner")).unwrap();
        std::fs::create_dir_all(folder.join("shared")).unwrap();
        folder.canonicalize().unwrap()
    }

    #[test]
    fn a_folder_that_contains_lies_in_or_links_to_a_protected_one_is_refused() {
        let base = scratch();
        std::os::unix::fs::symlink(base.join("jobs"), base.join("link")).unwrap();
        let protected = [
            Protected { what: "the jobs folder", path: base.join("jobs"), is_deep: true },
            Protected { what: "the data folder", path: base.join("later/data"), is_deep: true },
            Protected { what: "the folder of", path: base.clone(), is_deep: false },
        ];
        let refused = |path: &str| check(&base.join(path), &protected).unwrap_err();
        assert!(refused(".").contains("contains the jobs folder"));
        assert!(refused("..").contains("contains"));
        assert!(refused("jobs").contains("contains"));
        assert!(refused("jobs/inner").contains("lies in the jobs folder"));
        assert!(refused("link").contains("contains the jobs folder"));
        assert!(refused("link/inner").contains("lies in"));
        assert!(refused("shared/../jobs").contains("contains"));
        assert!(refused("missing").contains("missing"));
        assert_eq!(check(&base.join("shared"), &protected), Ok(base.join("shared")));
        std::fs::remove_dir_all(base).unwrap();
    }
}

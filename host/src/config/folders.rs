//! Whether a granted folder touches what the host itself stands on.
//!
//! A guest that can write in the cache writes native code that the host runs; one that can write
//! in a jobs folder or the configuration gives itself grants; one that can read the data folder
//! reads every job. So such a grant is refused, by whatever path or link it is named.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::sandbox::grants::Folder;

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

/// Most links that are followed on the way to one path, as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Every folder that a look-up of the path goes through, and what it ends at: whoever can write
/// in one of them decides where the path leads. Of a path that is not there yet, what there is.
fn lineage(path: &Path) -> BTreeSet<Identity> {
    let mut passed = BTreeSet::new();
    let Ok(path) = std::path::absolute(path) else { return passed };
    let (mut current, mut links) = (PathBuf::new(), 0);
    let parts = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut waiting = parts(&path);
    while let Some(part) = waiting.pop() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => current = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(current.pop()),
            Some(Component::Normal(name)) => {
                let next = current.join(name);
                let Ok(found) = std::fs::symlink_metadata(&next) else { break };
                if found.file_type().is_symlink() {
                    links += 1;
                    let Ok(target) = std::fs::read_link(&next) else { break };
                    if links > MAX_LINKS {
                        break;
                    }
                    waiting.extend(parts(&target));
                    continue;
                }
                current = next;
            }
            _ => {}
        }
        passed.extend(identity(&current));
    }
    passed
}

/// Tells of a folder that lies within another one which some job may write: that job could put a
/// link in its place, and the next attempt would be given whatever the link leads to.
pub(super) fn check_nesting<'a>(folders: impl Iterator<Item = &'a Folder> + Clone) -> Vec<String> {
    let mut faults = BTreeSet::new();
    for outer in folders.clone().filter(|folder| folder.is_writable) {
        for inner in folders.clone() {
            if inner.host != outer.host && inner.host.starts_with(&outer.host) {
                faults.insert(format!(
                    "the granted folder `{}` lies in `{}`, which is granted with `write`: a job could put a link in its place; grant folders beside each other",
                    inner.host.display(),
                    outer.host.display()
                ));
            }
        }
    }
    faults.into_iter().collect()
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

    /// Whoever writes in it can turn the link that the host's own path goes by.
    #[test]
    fn a_folder_with_a_link_that_leads_to_a_protected_one_is_refused() {
        let base = scratch();
        std::os::unix::fs::symlink("../jobs", base.join("shared/way")).unwrap();
        std::os::unix::fs::symlink("shared/way", base.join("alias")).unwrap();
        for path in ["shared/way", "alias", "alias/inner/later"] {
            let path = base.join(path);
            let protected = [Protected { what: "the jobs folder", path, is_deep: true }];
            let refused = check(&base.join("shared"), &protected).unwrap_err();
            assert!(refused.contains("contains the jobs folder"), "{refused}");
        }
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        assert!(check(&base.join("loop"), &[]).is_err());
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn no_folder_is_granted_within_one_that_a_job_may_write() {
        let folder =
            |path: &str, is_writable| Folder { host: path.into(), guest: "/x".into(), is_writable };
        let check = |folders: &[Folder]| check_nesting(folders.iter()).len();
        assert_eq!(check(&[folder("/a", true), folder("/a/b", false)]), 1);
        assert_eq!(check(&[folder("/a", false), folder("/a/b", true)]), 0);
        assert_eq!(check(&[folder("/a", true), folder("/a", true), folder("/ab", true)]), 0);
    }
}

//! Path 2, between step A and B: when a changed file may be read.
//!
//! A file that was renamed into its place or closed after writing is whole: it is taken at once.
//! Of any other change nobody says when it is over, so the file is taken once it has not changed
//! for [`STABLE`]. One that never rests is taken every [`LONGEST`], as it is then. Pure: the
//! time and what is on the disk are told.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a file must not have changed.
const STABLE: Duration = Duration::from_millis(100);
/// The longest a file under constant change waits. Also how long an empty file must stay empty
/// and a missing one missing: both are most often a moment of a copy that goes on.
const LONGEST: Duration = Duration::from_secs(1);

/// What tells one state of a file from another, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The file's present state; `None` when it is not there. A link that leads nowhere is there:
    /// it is a bad file, not a removed one.
    ///
    /// # Errors
    /// It can't be told now, as when a network file system is away.
    pub(crate) fn of(path: &Path) -> std::io::Result<Option<Self>> {
        let found = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path));
        match found {
            Ok(found) => Ok(Some(Self {
                device: found.dev(),
                inode: found.ino(),
                size: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How a file's state became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Somebody looked.
    Looked,
    /// Something was done to it, and more may follow.
    Touched,
    /// It was renamed into its place, or closed after writing.
    Whole,
}

/// Files whose change has not been taken yet, and what was taken last of the others.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    files: BTreeMap<PathBuf, Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    taken: Option<Stamp>,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    stamp: Option<Stamp>,
    first: Instant,
    last: Instant,
    is_whole: bool,
}

impl Pending {
    fn due(&self) -> Instant {
        match self.stamp {
            None => self.last + LONGEST,
            Some(stamp) if stamp.size == 0 => self.last + LONGEST,
            Some(_) if self.is_whole => self.first,
            Some(_) => (self.last + STABLE).min(self.first + LONGEST),
        }
    }
}

impl Settling {
    /// Notes a file's state.
    pub(crate) fn observe(&mut self, path: &Path, stamp: Option<Stamp>, hint: Hint, now: Instant) {
        let known = self.files.get(path);
        let is_as_taken =
            known.map_or(stamp.is_none(), |file| file.pending.is_none() && file.taken == stamp);
        if is_as_taken && hint != Hint::Whole {
            return;
        }
        let file = self.files.entry(path.to_path_buf()).or_default();
        let pending =
            file.pending.get_or_insert(Pending { stamp, first: now, last: now, is_whole: false });
        if pending.stamp != stamp || hint == Hint::Touched {
            *pending = Pending { stamp, last: now, is_whole: false, ..*pending };
        }
        pending.is_whole |= hint == Hint::Whole;
    }

    /// When the next file may be taken, if nothing more happens to it.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.files.values().filter_map(|file| file.pending.as_ref().map(Pending::due)).min()
    }

    /// The files that may be taken now, and whether each is there. `look` tells a file's present
    /// state: a change of which no word came must not be taken for rest.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        look: impl Fn(&Path) -> std::io::Result<Option<Stamp>>,
    ) -> Vec<(PathBuf, bool)> {
        let mut due = Vec::new();
        for (path, file) in &mut self.files {
            let Some(pending) = &mut file.pending else { continue };
            if pending.due() > now {
                continue;
            }
            // Told at the next look, when it can be told.
            let Ok(stamp) = look(path) else { continue };
            let is_patient = pending.first + LONGEST > now || stamp.is_none();
            if stamp != pending.stamp && is_patient {
                *pending = Pending { stamp, last: now, is_whole: false, ..*pending };
                continue;
            }
            file.pending = None;
            file.taken = stamp;
            due.push((path.clone(), stamp.is_some()));
        }
        self.files.retain(|_, file| file.taken.is_some() || file.pending.is_some());
        due
    }

    /// Has a file taken once more, though it did not change.
    pub(crate) fn look_again(&mut self, path: &Path) {
        if let Some(file) = self.files.get_mut(path) {
            file.taken = None;
        }
    }

    /// The files that are known to be there.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Whether each file is as it was taken, as far as `look` can tell its present state.
    pub(crate) fn is_up_to_date(
        &self,
        look: impl Fn(&Path) -> std::io::Result<Option<Stamp>>,
    ) -> bool {
        self.files.iter().all(|(path, file)| {
            file.pending.is_none() && !look(path).is_ok_and(|stamp| stamp != file.taken)
        })
    }

    /// Notes that a file was taken in this state.
    pub(crate) fn taken(&mut self, path: &Path, stamp: Option<Stamp>) {
        self.files.insert(path.to_path_buf(), Watched { taken: stamp, pending: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn stamp(size: u64) -> Option<Stamp> {
        Some(Stamp { device: 1, inode: 1, size, modified: (0, 0), changed: (0, 0) })
    }

    fn path() -> &'static Path {
        Path::new("jobs/a.wasm")
    }

    fn taken(settling: &mut Settling, now: Instant, stamp: Option<Stamp>) -> bool {
        !settling.take_due(now, |_| Ok(stamp)).is_empty()
    }

    #[test]
    fn a_file_renamed_into_place_or_closed_after_writing_is_taken_at_once() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.observe(path(), stamp(5), Hint::Touched, now);
        assert!(!taken(&mut settling, now, stamp(5)));
        settling.observe(path(), stamp(5), Hint::Whole, now);
        assert_eq!(settling.take_due(now, |_| Ok(stamp(5))), [(path().to_path_buf(), true)]);
        assert_eq!(settling.next_due(), None);
    }

    #[test]
    fn a_file_that_grows_is_taken_when_it_has_rested() {
        let (mut settling, begun) = (Settling::default(), Instant::now());
        for step in 0..5 {
            let now = begun + step * 50 * MS;
            settling.observe(path(), stamp(5 + u64::from(step)), Hint::Touched, now);
            assert!(!taken(&mut settling, now + 40 * MS, stamp(5 + u64::from(step))));
        }
        let rested = begun + 301 * MS;
        assert!(taken(&mut settling, rested, stamp(9)));
        settling.observe(path(), stamp(9), Hint::Looked, rested);
        assert!(!taken(&mut settling, rested + LONGEST, stamp(9)), "it did not change again");
    }

    #[test]
    fn a_change_without_word_is_seen_before_the_file_is_taken() {
        let (mut settling, begun) = (Settling::default(), Instant::now());
        settling.observe(path(), stamp(5), Hint::Looked, begun);
        assert!(!taken(&mut settling, begun + 101 * MS, stamp(6)));
        assert!(!taken(&mut settling, begun + 190 * MS, stamp(6)));
        assert!(taken(&mut settling, begun + 202 * MS, stamp(6)));
    }

    #[test]
    fn a_file_under_constant_change_is_taken_every_second() {
        let (mut settling, begun) = (Settling::default(), Instant::now());
        let mut count = 0;
        for step in 0..300u32 {
            let now = begun + step * 10 * MS;
            settling.observe(path(), stamp(1000 + u64::from(step)), Hint::Touched, now);
            count += usize::from(taken(&mut settling, now, stamp(5000 + u64::from(step))));
        }
        assert_eq!(count, 2);
    }

    #[test]
    fn an_empty_file_is_given_a_second_though_it_was_closed() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.observe(path(), stamp(0), Hint::Whole, now);
        assert!(!taken(&mut settling, now + 900 * MS, stamp(0)));
        settling.observe(path(), stamp(5), Hint::Whole, now + 900 * MS);
        assert!(taken(&mut settling, now + 900 * MS, stamp(5)));
    }

    #[test]
    fn a_file_is_gone_when_it_stays_gone() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.taken(path(), stamp(5));
        settling.observe(path(), None, Hint::Touched, now);
        assert!(!taken(&mut settling, now + 999 * MS, None));
        settling.observe(path(), stamp(6), Hint::Whole, now + 999 * MS);
        assert!(taken(&mut settling, now + 999 * MS, stamp(6)), "it was replaced, not removed");
        settling.observe(path(), None, Hint::Looked, now);
        assert_eq!(settling.take_due(now + LONGEST, |_| Ok(None)), [(path().to_path_buf(), false)]);
        assert_eq!(settling.known().count(), 0);
    }

    #[test]
    fn a_file_of_which_nothing_can_be_told_is_not_gone() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.taken(path(), stamp(5));
        settling.observe(path(), None, Hint::Looked, now);
        let away = || std::io::Error::from_raw_os_error(5);
        assert!(settling.take_due(now + LONGEST, |_| Err(away())).is_empty());
    }

    #[test]
    fn what_changed_since_it_was_taken_is_not_up_to_date() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.observe(path(), stamp(5), Hint::Whole, now);
        assert!(!settling.is_up_to_date(|_| Ok(stamp(5))), "it was not taken yet");
        assert!(taken(&mut settling, now, stamp(5)));
        assert!(settling.is_up_to_date(|_| Ok(stamp(5))));
        assert!(!settling.is_up_to_date(|_| Ok(stamp(0))), "it was cut to be written anew");
        assert!(!settling.is_up_to_date(|_| Ok(None)));
    }

    #[test]
    fn a_file_may_be_looked_at_again() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        settling.taken(path(), stamp(5));
        settling.look_again(path());
        settling.observe(path(), stamp(5), Hint::Looked, now);
        assert!(taken(&mut settling, now + STABLE, stamp(5)));
    }

    #[test]
    fn a_link_that_leads_nowhere_is_there() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&folder).unwrap();
        let link = folder.join("a.wasm");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(Stamp::of(&link).unwrap().is_some());
        assert_eq!(Stamp::of(&folder.join("b.wasm")).unwrap(), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

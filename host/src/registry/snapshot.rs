//! What is deployed at one moment, and which of two modules serves a job that both hold.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::definition::Definition;
use super::load::Module;
use super::tally::Tally;
use crate::config::Config;
use crate::store::modules::DeployedJob;
use crate::store::unique::UniqueRules;
use crate::text::printable;

/// A job that can be run.
#[derive(Clone)]
pub struct Served {
    /// The module that holds it.
    pub module: Arc<Module>,
    /// What the module says of it.
    pub definition: Definition,
    /// Where its outcomes are counted.
    pub tally: Arc<Tally>,
}

/// A file, or a job in it, that does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// The job that another module serves; `None` when the file itself is refused.
    pub job: Option<String>,
    /// Why.
    pub reason: String,
}

/// What is deployed at one moment.
#[derive(Default)]
pub struct Snapshot {
    /// By job name.
    pub jobs: BTreeMap<String, Served>,
    /// By job name: what a share (of 10,000) of its attempts takes instead.
    pub canaries: BTreeMap<String, (Served, u32)>,
    /// The modules, in the order of their files' names.
    pub modules: Vec<Arc<Module>>,
    /// What does not serve, and why.
    pub refused: Vec<Refused>,
    /// Which calls of each job count as the same.
    pub unique: Arc<UniqueRules>,
}

/// A file's name, then its path: the order in which files claim job names at the start, so that
/// it does not depend on the file system's.
pub(super) type Place = (OsString, PathBuf);

/// The place of a file.
pub(super) fn place(path: &Path) -> Place {
    (path.file_name().unwrap_or_default().to_owned(), path.to_path_buf())
}

/// A module that serves, and what is counted of it.
#[derive(Clone)]
pub(super) struct Version {
    pub(super) module: Arc<Module>,
    pub(super) tally: Arc<Tally>,
}

impl Version {
    pub(super) fn new(module: Module) -> Self {
        Self { module: Arc::new(module), tally: Arc::default() }
    }

    fn serves(&self, definition: &Definition) -> Served {
        Served {
            module: self.module.clone(),
            definition: definition.clone(),
            tally: self.tally.clone(),
        }
    }
}

/// One module file.
#[derive(Default)]
pub(super) struct Deployed {
    /// What serves.
    pub(super) serving: Option<Version>,
    /// What a share (of 10,000) of attempts takes instead.
    pub(super) canary: Option<(Version, u32)>,
    /// Why the file as it is now does not.
    pub(super) problem: Option<String>,
}

/// All module files, and who holds which job name.
#[derive(Default)]
pub(super) struct Deployment {
    pub(super) files: BTreeMap<Place, Deployed>,
    /// Job name to the name of the module that holds it. One that is not deployed here stands
    /// for nothing; it is kept until another takes the name.
    pub(super) owners: BTreeMap<String, String>,
    /// Whether files are still being read for the first time: nobody takes a job name before
    /// all who claim it are there.
    pub(super) is_starting: bool,
}

impl Deployment {
    /// The module of this name, wherever its file lies.
    pub(super) fn module(&self, name: &str) -> Option<&Arc<Module>> {
        let serving = self.files.values().filter_map(|file| file.serving.as_ref());
        serving.map(|version| &version.module).find(|module| module.version.name == name)
    }

    /// Who serves what. A job name stays with the module that holds it for as long as that
    /// module has the job; then the first by file name takes it.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let mut unique = UniqueRules::new();
        let mut snapshot = Snapshot::default();
        for ((_, path), file) in &self.files {
            if let Some(problem) = &file.problem {
                let refused = Refused { path: path.clone(), job: None, reason: problem.clone() };
                snapshot.refused.push(refused);
            }
            let Some(version) = &file.serving else { continue };
            let module = &version.module;
            snapshot.modules.push(module.clone());
            for definition in &module.jobs {
                let name = &definition.name;
                let owner = self.owners.get(name).and_then(|owner| self.module(owner));
                let holder = owner.filter(|owner| owner.jobs.iter().any(|job| job.name == *name));
                if holder.is_none_or(|holder| Arc::ptr_eq(holder, module)) {
                    self.owners.insert(name.clone(), module.version.name.clone());
                    snapshot.jobs.insert(name.clone(), version.serves(definition));
                    unique.insert(name.clone(), definition.unique.clone());
                    // A job that only the canary has waits for its promotion.
                    let canary = file.canary.as_ref().and_then(|(canary, share)| {
                        let same = canary.module.jobs.iter().find(|job| job.name == *name)?;
                        Some((canary.serves(same), *share))
                    });
                    snapshot.canaries.extend(canary.map(|canary| (name.clone(), canary)));
                } else if let Some(holder) = holder {
                    let reason = format!(
                        "the job `{}` is served by `{}` already; remove it from one of the two",
                        printable(name),
                        holder.path.display()
                    );
                    let job = Some(name.clone());
                    snapshot.refused.push(Refused { path: path.clone(), job, reason });
                }
            }
        }
        snapshot.unique = Arc::new(unique);
        snapshot
    }
}

impl Snapshot {
    /// The jobs as the database keeps them for those who have no modules.
    #[must_use]
    pub fn deployed_jobs(&self, config: &Config) -> Vec<DeployedJob> {
        let jobs = self.jobs.values().map(|served| DeployedJob {
            name: served.definition.name.clone(),
            module: served.module.version.clone(),
            queue: served.definition.queue.clone(),
            records_result: config.records(&served.definition),
            description: served.definition.to_json().to_string(),
        });
        jobs.collect()
    }
}

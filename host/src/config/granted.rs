//! Which grants hold for an attempt: those of its module and of its job, as far as file, folder
//! and digest are those that the operator bound them to.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::folders::{Protected, check_nesting};
use super::grants::{self, GrantSettings};
use super::{Config, ConfigError, DatabaseChoice};
use crate::sandbox::grants::Grants;

pub(crate) use super::read::toml_key;

/// A module, as far as grants depend on it.
#[derive(Debug, Clone, Copy)]
pub struct ModuleSource<'a> {
    /// Its name.
    pub name: &'a str,
    /// SHA-256 of its file, in lower-case hexadecimal.
    pub digest: &'a str,
    /// The folder that its file lies in.
    pub folder: &'a Path,
}

/// Grants with their secrets read and their folders checked.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenGrants {
    modules: BTreeMap<String, Arc<Grants>>,
    jobs: BTreeMap<String, Arc<Grants>>,
}

impl Config {
    /// The settings with grants opened: secrets read, folders checked. Only who runs jobs needs
    /// them.
    ///
    /// # Errors
    /// All that can't be granted, with where it stands.
    pub fn with_grants(mut self) -> Result<Self, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        let protected = self.protected();
        let (mut grants, mut faults) = (OpenGrants::default(), Vec::new());
        let mut open = |settings: &Option<GrantSettings>| {
            let opened = settings.as_ref()?.open(&protected, &environment);
            opened.map_err(|mut told| faults.append(&mut told)).ok()
        };
        for (name, settings) in &self.modules {
            grants.modules.extend(open(&settings.grants).map(|grants| (name.clone(), grants)));
        }
        for (name, settings) in &self.jobs {
            grants.jobs.extend(open(&settings.grants).map(|grants| (name.clone(), grants)));
        }
        let all = grants.modules.values().chain(grants.jobs.values());
        faults.extend(check_nesting(all.flat_map(|grants| &grants.folders)));
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        self.grants = grants;
        Ok(self)
    }

    /// The host's own folders, which no granted folder may touch.
    fn protected(&self) -> Vec<Protected> {
        let mut protected = Vec::new();
        let mut add = |what, path: &Path, is_deep| {
            protected.push(Protected { what, path: path.to_path_buf(), is_deep });
        };
        for folder in &self.jobs_dirs {
            add("the jobs folder", folder, true);
        }
        add("the data folder", &self.data_dir, true);
        // With the environment and the memory of this process in it, and then the devices.
        add("the system's folder of processes", Path::new("/proc"), true);
        add("the system's folder of devices", Path::new("/dev"), false);
        if let Ok(program) = std::env::current_exe()
            && let Some(folder) = program.parent()
        {
            add("the folder of this program", folder, false);
        }
        add("the code cache", &self.cache_dir(), true);
        if let Some(folder) = self.file.as_deref().and_then(Path::parent) {
            add("the folder of the configuration", folder, false);
        }
        if let DatabaseChoice::Sqlite(file) = &self.database
            && let Some(folder) = file.parent()
        {
            add("the folder of the database", folder, false);
        }
        let modules = self.modules.values().filter_map(|settings| settings.grants.as_ref());
        let jobs = self.jobs.values().filter_map(|settings| settings.grants.as_ref());
        for file in modules.chain(jobs).flat_map(GrantSettings::secret_files) {
            add("the folder of a secret", file.parent().unwrap_or(file), false);
        }
        protected
    }

    /// What one attempt of a job may reach: what its module was granted and what the job was, as
    /// far as module, file and folder are those that the grants are bound to.
    #[must_use]
    pub fn grants(&self, module: ModuleSource<'_>, job: &str) -> Arc<Grants> {
        let (mut of_module, mut of_job) = (None, None);
        for (_, is_job) in self.bound(module, &[job]) {
            if is_job {
                of_job = self.grants.jobs.get(job);
            } else {
                of_module = self.grants.modules.get(module.name);
            }
        }
        match (of_module, of_job) {
            (Some(module), Some(job)) => Arc::new(grants::together(module, job)),
            (Some(only), None) | (None, Some(only)) => only.clone(),
            (None, None) => {
                let place = format!("[modules.{}.grants]", toml_key(module.name));
                Arc::new(Grants { place, ..Grants::default() })
            }
        }
    }

    /// The tables of grants that hold for a module and these of its jobs, each with whether it is
    /// a job's.
    fn bound(&self, module: ModuleSource<'_>, jobs: &[&str]) -> Vec<(&GrantSettings, bool)> {
        let settings = self.modules.get(module.name);
        let pin = settings.and_then(|settings| settings.digest.as_deref());
        if pin.is_some_and(|digest| digest != module.digest) {
            return Vec::new();
        }
        let is_bound = |grants: &&GrantSettings| {
            grants.module.as_ref().is_none_or(|name| name == module.name)
                && grants.jobs_dir.as_ref().is_none_or(|dir| is_same_folder(dir, module.folder))
        };
        let own = settings.and_then(|settings| settings.grants.as_ref());
        let of_jobs = jobs.iter().filter_map(|job| self.jobs.get(*job)?.grants.as_ref());
        let mut bound: Vec<_> =
            own.filter(is_bound).map(|grants| (grants, false)).into_iter().collect();
        bound.extend(of_jobs.filter(is_bound).map(|grants| (grants, true)));
        bound
    }

    /// Whether an import of a module is granted, for the module or one of its jobs: `None` for an
    /// import that needs no grant.
    #[must_use]
    pub fn grants_import(
        &self,
        module: ModuleSource<'_>,
        jobs: &[&str],
        import: &str,
    ) -> Option<bool> {
        GrantSettings::default().covers(import)?;
        let bound = self.bound(module, jobs);
        Some(bound.iter().any(|(grants, _)| grants.covers(import) == Some(true)))
    }

    /// Whether there is a grant for this import that might be meant for the module, though its
    /// jobs are not known yet.
    #[must_use]
    pub fn may_grant_import(&self, module: ModuleSource<'_>, import: &str) -> bool {
        let jobs: Vec<&str> = self.jobs.keys().map(String::as_str).collect();
        self.grants_import(module, &jobs, import) != Some(false)
    }
}

/// Whether two paths name one folder, also by a link.
fn is_same_folder(one: &Path, other: &Path) -> bool {
    let identity = |path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

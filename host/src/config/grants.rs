//! Grants as the operator writes them, and what they are once opened: secrets read, folders
//! checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folders::{self, Protected};
use super::read::Place;
use crate::sandbox::address::Network;
use crate::sandbox::grants::{Folder, Grants, HttpTarget, Secret, SocketTarget};

const KEYS: [&str; 10] = [
    "jobs-dir",
    "folders",
    "env",
    "secrets",
    "http",
    "private-addresses",
    "sockets",
    "add-job-queues",
    "add-job-names",
    "module",
];

/// Largest secret, in bytes.
const MAX_SECRET_BYTES: usize = 64 << 10;

/// One table of grants, as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantSettings {
    /// The table's name, for errors: `[modules.invoices.grants]`.
    pub place: String,
    /// The only jobs folder whose modules get these grants.
    pub jobs_dir: Option<PathBuf>,
    /// Of a job's grants: the only module that gets them.
    pub module: Option<String>,
    /// Where HTTP requests may go.
    pub http: Vec<HttpTarget>,
    /// Where raw sockets may connect and send to.
    pub sockets: Vec<SocketTarget>,
    private_addresses: Vec<Network>,
    queues: BTreeSet<String>,
    jobs: BTreeSet<String>,
    folders: Vec<FolderSettings>,
    variables: Vec<String>,
    secrets: BTreeMap<String, SecretSource>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FolderSettings {
    host: PathBuf,
    guest: String,
    is_writable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SecretSource {
    Variable(String),
    File(PathBuf),
}

impl GrantSettings {
    /// Reads the table `grants` of `place`. `base` is the folder that relative paths stand
    /// against.
    pub(super) fn read(place: &mut Place, base: &Path, is_job: bool) -> Option<Self> {
        let mut table = place.sub("grants")?;
        table.check_keys(if is_job { &KEYS } else { &KEYS[..9] });
        let name = |text: &str| match text {
            "" => Err("a name can't be empty".to_owned()),
            text => Ok(text.to_owned()),
        };
        let settings = Self {
            place: table.header(),
            jobs_dir: table.text("jobs-dir").map(|path| base.join(path)),
            module: if is_job { table.text("module") } else { None },
            http: table.texts("http", str::parse),
            sockets: table.texts("sockets", str::parse),
            private_addresses: table.texts("private-addresses", str::parse),
            queues: table.texts("add-job-queues", name).into_iter().collect(),
            jobs: table.texts("add-job-names", name).into_iter().collect(),
            folders: folders(&mut table, base),
            variables: table.texts("env", variable),
            secrets: secrets(&mut table, base),
        };
        let twice = settings.variables.iter().find(|name| settings.secrets.contains_key(*name));
        if let Some(name) = twice {
            table.fault("secrets", &format!("`{name}` is in `env` too; remove one of the two"));
        }
        place.faults.append(&mut table.faults);
        Some(settings)
    }

    /// Reads secrets and variables and checks folders.
    ///
    /// # Errors
    /// All that can't be granted, and why.
    pub(super) fn open(
        &self,
        protected: &[Protected],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Arc<Grants>, Vec<String>> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, what: &str| {
            faults.push(format!("`{key}` in {}: {what}", self.place));
        };
        let mut folders: Vec<Folder> = Vec::new();
        for folder in &self.folders {
            match folders::check(&folder.host, protected) {
                Ok(host) => folders.push(Folder {
                    host,
                    guest: folder.guest.clone(),
                    is_writable: folder.is_writable,
                }),
                Err(what) => fault("folders", &what),
            }
        }
        let mut secrets = Vec::new();
        for (name, source) in &self.secrets {
            match source.read(environment) {
                Ok(value) => secrets.push(Secret { name: name.clone(), value }),
                Err(what) => fault("secrets", &format!("`{name}`: {what}")),
            }
        }
        let variables = self.variables.iter();
        let variables = variables.filter_map(|name| Some((name.clone(), environment(name)?)));
        let grants = Grants {
            folders,
            variables: variables.collect(),
            secrets,
            http: self.http.clone(),
            private_addresses: self.private_addresses.clone(),
            sockets: self.sockets.clone(),
            queues: self.queues.clone(),
            jobs: self.jobs.clone(),
            place: self.place.clone(),
        };
        if faults.is_empty() { Ok(Arc::new(grants)) } else { Err(faults) }
    }

    /// Whether something is granted that an import of this name is for: `None` for one that
    /// needs no grant.
    #[must_use]
    pub fn covers(&self, import: &str) -> Option<bool> {
        if import.starts_with("wasi:http/") {
            Some(!self.http.is_empty())
        } else if import.starts_with("wasi:sockets/") {
            Some(!self.sockets.is_empty())
        } else if import.starts_with("wasi:filesystem/") {
            Some(!self.folders.is_empty())
        } else if import.starts_with("wasi:cli/environment") {
            Some(!self.variables.is_empty() || !self.secrets.is_empty())
        } else {
            None
        }
    }

    /// Files and folders of secrets, which no granted folder may hold.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        self.secrets.values().filter_map(|source| match source {
            SecretSource::File(path) => Some(path.as_path()),
            SecretSource::Variable(_) => None,
        })
    }
}

/// Both grants together, for an attempt whose module and job have some.
#[must_use]
pub(super) fn together(module: &Grants, job: &Grants) -> Grants {
    let mut all = module.clone();
    // The job's own word wins where both name the same folder or variable.
    all.folders.retain(|one| job.folders.iter().all(|other| other.guest != one.guest));
    let names: BTreeSet<&str> = job
        .variables
        .iter()
        .map(|(name, _)| name.as_str())
        .chain(job.secrets.iter().map(|secret| secret.name.as_str()))
        .collect();
    all.variables.retain(|(name, _)| !names.contains(name.as_str()));
    all.secrets.retain(|secret| !names.contains(secret.name.as_str()));
    all.folders.extend(job.folders.iter().cloned());
    all.variables.extend(job.variables.iter().cloned());
    all.secrets.extend(job.secrets.iter().cloned());
    all.http.extend(job.http.iter().cloned());
    all.private_addresses.extend(job.private_addresses.iter().copied());
    all.sockets.extend(job.sockets.iter().cloned());
    all.queues.extend(job.queues.iter().cloned());
    all.jobs.extend(job.jobs.iter().cloned());
    all
}

fn folders(table: &mut Place, base: &Path) -> Vec<FolderSettings> {
    let mut folders: Vec<FolderSettings> = Vec::new();
    for mut entry in table.list("folders") {
        entry.check_keys(&["path", "as", "write"]);
        let Some(path) = entry.text("path") else {
            entry.fault("path", "a granted folder needs one");
            table.faults.append(&mut entry.faults);
            continue;
        };
        let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let guest = entry.text("as").unwrap_or_else(|| format!("/{name}"));
        let is_plain = guest.starts_with('/') && !guest.split('/').any(|part| part == "..");
        if !is_plain || guest.contains('\0') {
            entry.fault("as", "expected a path from `/` on, without `..`");
        }
        if folders.iter().any(|other| other.guest == guest) {
            entry.fault("as", &format!("`{guest}` stands for another folder already"));
        }
        let is_writable = entry.boolean("write").unwrap_or(false);
        folders.push(FolderSettings { host: base.join(path), guest, is_writable });
        table.faults.append(&mut entry.faults);
    }
    folders
}

fn secrets(table: &mut Place, base: &Path) -> BTreeMap<String, SecretSource> {
    let mut secrets = BTreeMap::new();
    for (name, mut entry) in table.subs("secrets") {
        entry.check_keys(&["env", "file"]);
        if let Err(what) = variable(&name) {
            table.fault("secrets", &what);
        }
        match (entry.text("env"), entry.text("file")) {
            (Some(name_of), None) => {
                secrets.insert(name, SecretSource::Variable(name_of));
            }
            (None, Some(path)) => {
                secrets.insert(name, SecretSource::File(base.join(path)));
            }
            _ => table.fault(
                "secrets",
                &format!("`{name}`: expected {{ env = \"NAME\" }} or {{ file = \"PATH\" }}"),
            ),
        }
        table.faults.append(&mut entry.faults);
    }
    secrets
}

/// The name of an environment variable.
fn variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['=', '\0']) {
        return Err(format!("expected the name of a variable, found `{text}`"));
    }
    Ok(text.to_owned())
}

impl SecretSource {
    /// The secret's value; what is wrong is told without it.
    fn read(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
        let (value, source) = match self {
            Self::Variable(name) => {
                let value = environment(name)
                    .ok_or_else(|| format!("the environment has no variable `{name}`"))?;
                (value, format!("the variable `{name}`"))
            }
            Self::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
                (text.trim_end_matches(['\n', '\r']).to_owned(), format!("`{}`", path.display()))
            }
        };
        if value.is_empty() || value.contains('\0') || value.len() > MAX_SECRET_BYTES {
            return Err(format!(
                "{source} holds no text of 1 to {MAX_SECRET_BYTES} bytes without U+0000"
            ));
        }
        Ok(value)
    }
}

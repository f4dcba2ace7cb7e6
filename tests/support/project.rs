//! A temporary folder with a jobs folder in it, and the host run there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::Output;
use crate::servers;
use crate::worker::WorkerProcess;

/// A folder to run the host in, removed at the end of a test that passed.
///
/// Nothing of the tester's environment reaches the host: no `SQJOBS_*`, no `AWS_*`, no home.
#[derive(Debug)]
pub struct Project {
    folder: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Project {
    /// A folder with an empty jobs folder. The host run in it finds the embedded database and
    /// queue, as it would for a newcomer.
    ///
    /// # Panics
    /// No folder can be made.
    #[must_use]
    pub fn empty() -> Self {
        let folder = std::env::temp_dir().join(servers::unique("sqjobs-it"));
        std::fs::create_dir_all(folder.join("jobs")).unwrap();
        // The temporary folder may be behind a symbolic link, and messages show real paths.
        let folder = folder.canonicalize().unwrap();
        let environment = BTreeMap::from([
            ("HOME".to_owned(), folder.display().to_string()),
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            ("TZ".to_owned(), "UTC".to_owned()),
        ]);
        Self { folder, environment }
    }

    /// [`Self::empty`] with these guests deployed.
    #[must_use]
    pub fn with_guests(guests: &[&str]) -> Self {
        let project = Self::empty();
        for guest in guests {
            project.deploy(guest);
        }
        project
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of job modules.
    #[must_use]
    pub fn jobs_dir(&self) -> PathBuf {
        self.folder.join("jobs")
    }

    /// Deploys a compiled guest by a rename, as a careful operator would.
    ///
    /// # Panics
    /// It is not built, or the folder can't be written.
    pub fn deploy(&self, guest: &str) {
        let half = self.folder.join(format!("{guest}.half"));
        std::fs::copy(servers::guest(guest), &half).unwrap();
        std::fs::rename(half, self.jobs_dir().join(format!("{guest}.wasm"))).unwrap();
    }

    /// Writes a file in the folder and returns its path.
    ///
    /// # Panics
    /// It can't be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Sets a variable for every later run of the host in this folder.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// The binary with these arguments, to be run in the folder.
    #[must_use]
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(servers::host());
        command
            .args(args.iter().map(AsRef::as_ref))
            .current_dir(&self.folder)
            .env_clear()
            .envs(&self.environment);
        command
    }

    /// Runs the binary to its end.
    #[must_use]
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Output {
        Output::of(self.command(args))
    }

    /// Starts a worker with these arguments.
    #[must_use]
    pub fn worker<S: AsRef<str>>(&self, args: &[S]) -> WorkerProcess {
        let args: Vec<&str> =
            std::iter::once("worker").chain(args.iter().map(AsRef::as_ref)).collect();
        WorkerProcess::spawn(self.command(&args))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the test's folder is kept: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

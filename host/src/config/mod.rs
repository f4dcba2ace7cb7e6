//! One typed [`Config`]: defaults < `sqjobs.toml` < `SQJOBS_*` < flags. Reports every fault at
//! once.

mod database;
mod deploy;
mod folders;
pub mod granted;
pub mod grants;
pub mod limits;
pub mod live;
mod read;
mod tables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::beater::definition::Definition as Periodic;
use crate::broker::MAX_VISIBILITY_TIMEOUT_SECS;
use crate::clock::MAX_AHEAD;
use crate::registry::compile::CompileSettings;
use crate::registry::definition::Definition;
use crate::registry::settle::Stamp;
use crate::retry::RetryPolicy;
use crate::sandbox::limits::Limits;
use crate::store::Database;
use database::DatabaseChoice;
use deploy::deploy_settings;
pub use deploy::{DeploySettings, Removal};
use granted::OpenGrants;
use grants::GrantSettings;
use limits::LimitSettings;
use read::Reader;
use tables::{Tables, compile_settings, periodic_entry, queue_settings};

/// The file that is looked for in the working folder and the ones above.
pub const FILE_NAME: &str = "sqjobs.toml";
/// The folder of the embedded database and queue and of the code cache.
const DATA_DIR: &str = ".sqjobs";
/// The file of the embedded database and queue within the data folder.
const DATABASE_FILE: &str = "sqjobs.db";
/// Most attempts of one process at once. Each reserves 16 GiB of address space, and a process
/// has 128 TiB of it.
const MAX_CONCURRENCY: u64 = 4000;
/// Most generations of added jobs that may be allowed. Each is an attempt; what needs more is a
/// loop, or a periodic job.
const MAX_GENERATIONS: u32 = 1_000_000;
/// Most finished jobs that `keep-count` may name: finding the last one to be kept counts them.
const MAX_KEEP_COUNT: u64 = 10_000_000;

/// Everything that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Which queue service is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerKind {
    /// The embedded queue, for one machine.
    Local,
    /// Amazon SQS, or a server that speaks its protocol.
    Sqs,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For eyes.
    Text,
    /// One JSON object a line.
    Json,
}

/// How log lines are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the operator says of one job, over what its module describes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobSettings {
    /// Whether outcome and result are kept.
    pub record: Option<bool>,
    /// What one attempt may use.
    pub limits: LimitSettings,
    /// What its attempts may reach, beside what their module may.
    pub grants: Option<GrantSettings>,
    /// Attempts in all, from 1.
    pub max_attempts: Option<u32>,
    /// Upper bound of the wait after the first failure.
    pub initial_backoff: Option<Duration>,
    /// Ceiling of the wait.
    pub max_backoff: Option<Duration>,
}

/// What the operator says of one module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleSettings {
    /// What an attempt of any of its jobs may use.
    pub limits: LimitSettings,
    /// What an attempt of any of its jobs may reach.
    pub grants: Option<GrantSettings>,
    /// SHA-256 of the only file that may be this module, in lower-case hexadecimal.
    pub digest: Option<String>,
}

/// What the operator says of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSettings {
    /// Most attempts of this queue at once, within the worker's own limit.
    pub concurrency: Option<usize>,
    /// Its part of the worker's slots where several queues want them, 1 to 1000; default 1.
    pub weight: Option<u32>,
    /// Bytes of malformed bodies that are kept; default 1 GiB.
    pub malformed_limit: Option<u64>,
}

/// What the command line says; every value as it was written.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Setting's name, without dashes in front, to its values.
    pub values: BTreeMap<&'static str, Vec<String>>,
}

/// The settings of one process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// That file's state just before it was read: what changes after it is a change.
    pub(crate) file_stamp: Option<Stamp>,
    /// Folder of the embedded database and queue, and of the code cache.
    pub data_dir: PathBuf,
    /// The chosen broker; `None` when none was chosen, which means the local one.
    pub chosen_broker: Option<BrokerKind>,
    /// Folders of modules.
    pub jobs_dirs: Vec<PathBuf>,
    /// Most attempts at once.
    pub concurrency: usize,
    /// How long a message is held at a time.
    pub lease: Duration,
    /// Whether slots go to the queues in the order in which the worker was told them.
    pub strict: bool,
    /// How long running attempts have when the worker is told to stop.
    pub grace: Duration,
    /// How many generations of added jobs a job may lead to.
    pub max_generations: u32,
    /// How long after its end a job is kept whole; `None`: for ever.
    pub keep: Option<Duration>,
    /// How many finished jobs are kept whole; `None`: all.
    pub keep_count: Option<u64>,
    /// Where the worker answers probes and scrapers; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether the worker brings a PostgreSQL schema to its version by itself.
    pub migrate: bool,
    /// How data is printed.
    pub output: Output,
    /// How log lines are printed.
    pub log_format: LogFormat,
    /// Least level of log lines: error, warn, info, debug or trace.
    pub log_level: tracing::Level,
    /// What every job has that says nothing else.
    pub defaults: JobSettings,
    /// The most that any job may have.
    pub caps: LimitSettings,
    /// By job name.
    pub jobs: BTreeMap<String, JobSettings>,
    /// By module name.
    pub modules: BTreeMap<String, ModuleSettings>,
    /// How modules are compiled, and which are not even tried.
    pub compile: CompileSettings,
    /// By queue name.
    pub queues: BTreeMap<String, QueueSettings>,
    /// How module files are deployed.
    pub deploy: DeploySettings,
    /// Periodic entries, by name.
    pub periodic: BTreeMap<String, Periodic>,
    database: DatabaseChoice,
    aws_endpoint: Option<&'static str>,
    /// Empty until [`Config::with_grants`].
    grants: OpenGrants,
}

/// The settings that have a flag, an environment variable and a key, with what each is for.
const SETTINGS: [&str; 26] = [
    "database",
    "database-password-file",
    "schema",
    "broker",
    "jobs-dir",
    "data-dir",
    "concurrency",
    "lease",
    "grace",
    "strict",
    "max-generations",
    "keep",
    "keep-count",
    "listen",
    "migrate",
    "output",
    "log-format",
    "log-level",
    "defaults",
    "caps",
    "jobs",
    "modules",
    "queues",
    "compile",
    "deploy",
    "periodic",
];

impl Config {
    /// Reads the configuration of this process.
    ///
    /// # Errors
    /// All that is wrong with it, each with where it stands and what was expected.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let folder = std::env::current_dir().map_err(|error| {
            ConfigError(vec![format!("cannot tell the working folder: {error}")])
        })?;
        Self::read(flags, &|name| std::env::var(name).ok().filter(|v| !v.is_empty()), &folder)
    }

    /// Reads the configuration from given sources; `folder` is the working folder.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(
        flags: &Flags,
        environment: &dyn Fn(&str) -> Option<String>,
        folder: &Path,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(flags, environment, folder)?;
        let config = Self::gather(&mut reader, environment);
        if reader.faults.is_empty() { Ok(config) } else { Err(ConfigError(reader.faults)) }
    }

    fn gather(reader: &mut Reader<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Self {
        reader.check_keys(&SETTINGS);
        let data_dir = reader.path("data-dir").unwrap_or_else(|| reader.base().join(DATA_DIR));
        let jobs_dirs = match reader.paths("jobs-dir") {
            folders if folders.is_empty() => vec![reader.base().join("jobs")],
            folders => folders,
        };
        let database = DatabaseChoice::read(reader, &data_dir);
        let chosen_broker =
            reader.choice("broker", &[("local", BrokerKind::Local), ("sqs", BrokerKind::Sqs)]);
        let output = reader.choice("output", &[("text", Output::Text), ("json", Output::Json)]);
        let log_format =
            reader.choice("log-format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        let log_level = reader.choice(
            "log-level",
            &[
                ("error", tracing::Level::ERROR),
                ("warn", tracing::Level::WARN),
                ("info", tracing::Level::INFO),
                ("debug", tracing::Level::DEBUG),
                ("trace", tracing::Level::TRACE),
            ],
        );
        let concurrency = reader.number("concurrency", 1, MAX_CONCURRENCY).unwrap_or(64);
        let most_lease = Duration::from_secs(u64::from(MAX_VISIBILITY_TIMEOUT_SECS));
        let lease = reader.duration("lease", Duration::from_secs(5), most_lease);
        let grace = reader.duration("grace", Duration::ZERO, most_lease);
        let strict = reader.boolean("strict");
        let max_generations = reader.number("max-generations", 0, u64::from(MAX_GENERATIONS));
        let keep = reader.duration("keep", Duration::ZERO, MAX_AHEAD);
        let keep_count = reader.number("keep-count", 0, MAX_KEEP_COUNT);
        let listen = reader.address("listen");
        let migrate = reader.boolean("migrate");
        let tables = Tables::read(reader);
        let mut queues = BTreeMap::new();
        for (name, mut place) in reader.tables("queues") {
            if let Err(error) = crate::broker::check_queue(&name) {
                place.fault_of_all(&error.to_string());
            }
            queues.insert(name, queue_settings(&mut place));
            reader.faults.append(&mut place.faults);
        }
        let mut compile = reader.table("compile");
        let compile_settings = compile_settings(&mut compile);
        reader.faults.append(&mut compile.faults);
        let mut periodic = BTreeMap::new();
        for (name, mut place) in reader.tables("periodic") {
            periodic.insert(name.clone(), periodic_entry(&name, &mut place));
            reader.faults.append(&mut place.faults);
        }
        let (deploy, mut faults) = deploy_settings(&mut reader.table("deploy"));
        reader.faults.append(&mut faults);
        let aws_endpoint = ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find(|name| environment(name).is_some());
        Self {
            file: reader.file.clone(),
            file_stamp: reader.file_stamp,
            data_dir,
            chosen_broker,
            jobs_dirs,
            concurrency: usize::try_from(concurrency).unwrap_or(64),
            lease: lease.unwrap_or(Duration::from_secs(30)),
            grace: grace.unwrap_or(Duration::from_secs(25)),
            strict: strict.unwrap_or(false),
            max_generations: max_generations
                .and_then(|number| u32::try_from(number).ok())
                .unwrap_or(Limits::default().generations),
            keep,
            keep_count,
            listen,
            migrate: migrate.unwrap_or(false),
            output: output.unwrap_or(Output::Text),
            log_format: log_format.unwrap_or(LogFormat::Text),
            log_level: log_level.unwrap_or(tracing::Level::INFO),
            defaults: tables.defaults,
            caps: tables.caps,
            jobs: tables.jobs,
            modules: tables.modules,
            compile: compile_settings,
            queues,
            deploy,
            periodic,
            database,
            aws_endpoint,
            grants: OpenGrants::default(),
        }
    }

    /// The broker to use for these queues. Without a choice it is the local one, unless
    /// something says that SQS was meant: two queues of one name would silently be two queues.
    ///
    /// # Errors
    /// None was chosen, and a queue's URL or an AWS endpoint says that SQS may be meant.
    pub fn broker(&self, queues: &[String]) -> Result<BrokerKind, ConfigError> {
        if let Some(broker) = self.chosen_broker {
            let url = queues.iter().find(|queue| queue.contains("://"));
            return match (broker, url) {
                (BrokerKind::Local, Some(url)) => Err(ConfigError(vec![format!(
                    "`{url}` is a queue URL, and the local broker knows queues by name only; choose `--broker sqs`"
                )])),
                _ => Ok(broker),
            };
        }
        let reason = if let Some(url) = queues.iter().find(|queue| queue.contains("://")) {
            format!("`{url}` is a queue URL")
        } else if let Some(name) = self.aws_endpoint {
            format!("{name} is set")
        } else {
            return Ok(BrokerKind::Local);
        };
        Err(ConfigError(vec![format!(
            "{reason}, but no broker is chosen; say `--broker sqs` for Amazon SQS or `--broker local` for the embedded queue"
        )]))
    }

    /// The database, given which broker keeps the messages.
    #[must_use]
    pub fn database(&self, broker: BrokerKind) -> Database {
        match &self.database {
            DatabaseChoice::Sqlite(path) => {
                let shares_file = broker == BrokerKind::Local && *path == self.queue_file();
                Database::Sqlite { path: path.clone(), is_durable: !shares_file }
            }
            DatabaseChoice::Postgres { url, schema } => {
                Database::Postgres { url: url.clone(), schema: schema.clone() }
            }
        }
    }

    /// The file of the embedded queue.
    #[must_use]
    pub fn queue_file(&self) -> PathBuf {
        self.data_dir.join(DATABASE_FILE)
    }

    /// The folder of compiled code.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.data_dir.join("cache")
    }

    /// Whether the outcomes of a job are kept: the operator's word, then the module's.
    #[must_use]
    pub fn records(&self, job: &Definition) -> bool {
        self.job(&job.name).and_then(|settings| settings.record).unwrap_or(job.records_result)
    }

    /// What one attempt of a job may use: the operator's word on the job, then on its module, then
    /// the timeout that the module asks for, then the defaults.
    #[must_use]
    pub fn limits(&self, module: &str, job: &Definition) -> Limits {
        let own = self.job(&job.name).map(|settings| settings.limits).unwrap_or_default();
        let of_module = self.modules.get(module).map(|settings| settings.limits);
        let described = LimitSettings { timeout: job.timeout, ..LimitSettings::default() };
        let limits = own
            .or(of_module.unwrap_or_default())
            .or(described)
            .or(self.defaults.limits)
            .complete(&self.caps);
        Limits { generations: self.max_generations, ..limits }
    }

    /// What a module may use while it describes itself: what is said of it, not of its jobs.
    #[must_use]
    pub fn module_limits(&self, module: &str) -> Limits {
        let own = self.modules.get(module).map(|settings| settings.limits);
        own.unwrap_or_default().or(self.defaults.limits).complete(&self.caps)
    }

    /// What is wrong with a job's limits: its module asks for more than the operator's cap, and
    /// nothing of the operator's says otherwise.
    #[must_use]
    pub fn beyond_cap(&self, module: &str, job: &Definition) -> Option<String> {
        let (limit, cap) = (self.limits(module, job).timeout, self.caps.timeout?);
        (limit > cap).then(|| {
            format!(
                "the job `{}` asks for a timeout of {}, and [caps] allows {}; set `timeout` in [jobs.{}], or raise the cap",
                job.name,
                humantime::format_duration(limit),
                humantime::format_duration(cap),
                job.name
            )
        })
    }

    /// What happens after a job's failure: the operator's word, then the module's.
    #[must_use]
    pub fn policy(&self, job: &Definition) -> RetryPolicy {
        let default = RetryPolicy::default();
        let default = RetryPolicy {
            max_attempts: self.defaults.max_attempts.unwrap_or(default.max_attempts),
            initial_backoff: self.defaults.initial_backoff.unwrap_or(default.initial_backoff),
            max_backoff: self.defaults.max_backoff.unwrap_or(default.max_backoff),
        };
        let told = job.policy(&default);
        let settings = self.job(&job.name).cloned().unwrap_or_default();
        RetryPolicy {
            max_attempts: settings.max_attempts.unwrap_or(told.max_attempts),
            initial_backoff: settings.initial_backoff.unwrap_or(told.initial_backoff),
            max_backoff: settings.max_backoff.unwrap_or(told.max_backoff),
        }
    }

    fn job(&self, name: &str) -> Option<&JobSettings> {
        self.jobs.get(name)
    }
}

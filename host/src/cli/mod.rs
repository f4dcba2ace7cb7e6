//! The command tree. Data goes to standard output, all else to standard error; exit codes are
//! 0 done, 1 failed, 2 wrong usage.

mod beat;
mod cancel;
mod confirm;
mod dead;
mod dev;
mod enqueue;
mod list;
mod migrate;
mod modules;
mod new;
mod periodic;
mod print;
mod queues;
mod results;
mod run;
mod time;
mod versions;
mod work;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::broker::Broker;
use crate::broker::local::{LocalBroker, LocalOptions, Synchronous};
use crate::broker::sqs::SqsBroker;
use crate::config::{BrokerKind, Config, ConfigError, Flags, Output};
use crate::outage::chain;
use crate::registry::cache::Cache;
use crate::registry::compile::{self, Compiler};
use crate::registry::load::Loader;
use crate::sandbox::Sandbox;
use crate::store::{Dialect, Store};
use crate::text::printable;

/// Runs background jobs from Amazon SQS in WebAssembly sandboxes.
#[derive(Parser)]
#[command(name = "sqjobs-host", version, max_term_width = 100)]
#[command(
    after_help = "Every option is also an environment variable (SQJOBS_DATABASE for --database) \
                  and a key of sqjobs.toml. Flags win over the environment, that over the file."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Args)]
#[command(next_help_heading = "Settings")]
struct Global {
    /// Configuration file [default: sqjobs.toml in this folder or the nearest one above]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<String>,
    /// sqlite:PATH or postgres://USER@HOST/DATABASE [default: sqlite in the data folder]
    #[arg(long, global = true, value_name = "URL")]
    database: Option<String>,
    /// File that holds the database password
    #[arg(long, global = true, value_name = "FILE")]
    database_password_file: Option<String>,
    /// Schema of a PostgreSQL database [default: sqjobs]
    #[arg(long, global = true, value_name = "NAME")]
    schema: Option<String>,
    /// local (embedded) or sqs [default: local]
    #[arg(long, global = true, value_name = "BROKER")]
    broker: Option<String>,
    /// Folder of modules; may be repeated [default: jobs]
    #[arg(long, global = true, value_name = "DIR")]
    jobs_dir: Vec<String>,
    /// Folder of the embedded database and queue, and of the code cache [default: .sqjobs]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// Most jobs at once [default: 64]
    #[arg(long, global = true, value_name = "N", allow_hyphen_values = true)]
    concurrency: Option<String>,
    /// How long a message is held at a time, extended while its job runs [default: 30s]
    #[arg(long, global = true, value_name = "TIME", allow_hyphen_values = true)]
    lease: Option<String>,
    /// How long running jobs may take when the worker is told to stop [default: 25s]
    #[arg(long, global = true, value_name = "TIME", allow_hyphen_values = true)]
    grace: Option<String>,
    /// text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    output: Option<String>,
    /// text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the jobs of some queues
    Worker(work::WorkerArguments),
    /// Queue the jobs of periodic entries; any number of beaters may run
    Beater(beat::BeaterArguments),
    /// Add a job and print its id
    Add(enqueue::AddArguments),
    /// Run a job here and now, without queue, database or worker, and print its result
    Run(run::RunArguments),
    /// Build the jobs of a project whenever its sources change, deploy them, and run one of them
    Dev(dev::DevArguments),
    /// Show a job
    Status(results::StatusArguments),
    /// List jobs, newest first
    List(list::ListArguments),
    /// Cancel jobs: those that wait never run, those that run are stopped
    Cancel(cancel::CancelArguments),
    /// Queues: how full they are; create, pause, resume, empty them
    #[command(subcommand)]
    Queues(queues::QueuesCommand),
    /// What was put aside: messages that can't be run, jobs that failed for good
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Periodic entries: what is queued when
    #[command(subcommand)]
    Periodic(periodic::PeriodicCommand),
    /// Show what is deployed in the jobs folders
    Jobs,
    /// Which version of each module serves: history, rollback, pin, canary
    #[command(subcommand)]
    Modules(versions::ModulesCommand),
    /// Show what a module file holds
    Inspect(modules::InspectArguments),
    /// Bring the database's schema to this version
    Migrate(migrate::MigrateArguments),
    /// Make a project for a job that builds
    New(new::NewArguments),
    /// Compile a module from standard input to standard output, for a host that started this
    #[command(name = compile::COMMAND, hide = true)]
    Compile { memory_bytes: u64, cpu_secs: u64, host: u32 },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// The queues that are named as arguments.
    fn queues(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::Worker(arguments) => arguments.queues.iter(),
            Self::Beater(arguments) => arguments.queues.iter(),
            Self::Queues(command) => command.queues().iter(),
            _ => [].iter(),
        }
    }
}

/// The command line or the configuration is wrong: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The error of a child process, for the host that started it: as it is, without `error: `.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

/// The command did its work, and the answer is "no": exit code as given, nothing more to say.
#[derive(Debug, thiserror::Error)]
#[error("exit code {0}")]
struct Exit(u8);

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let printed = error.print();
            if error.use_stderr() {
                return ExitCode::from(2);
            }
            // Help and version are data.
            return match printed.map_err(print::OutputError::from) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => report(&error.into()),
            };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Completions { shell } => return completions(shell),
        Command::New(arguments) => return new::new(&arguments),
        Command::Compile { memory_bytes, cpu_secs, host } => {
            return compile::child(memory_bytes, cpu_secs, host)
                .map_err(|reason| Told(reason).into());
        }
        _ => {}
    }
    crate::failpoint::arm().map_err(|error| Usage(error.to_string()))?;
    let is_worker = matches!(arguments.command, Command::Worker(_));
    let mut flags = arguments.global.flags();
    if let Command::Worker(worker) = &arguments.command {
        for (name, value) in worker.settings() {
            flags.values.insert(name, vec![value]);
        }
    }
    if let Command::Beater(beater) = &arguments.command
        && beater.migrate
    {
        flags.values.insert("migrate", vec!["true".into()]);
    }
    let grace = match &arguments.command {
        // There it says how late a tick may be claimed, and has no bound of twelve hours.
        Command::Periodic(_) => flags.values.remove("grace").and_then(|mut values| values.pop()),
        _ => None,
    };
    let fault_of = |queue: &String| enqueue::check_queue("QUEUE", queue).err();
    let mut faults: Vec<String> =
        arguments.command.queues().filter_map(fault_of).map(|Usage(fault)| fault).collect();
    let config = match Config::load(&flags) {
        Ok(config) if faults.is_empty() => Arc::new(config),
        loaded => {
            faults.extend(loaded.err().into_iter().flat_map(|ConfigError(found)| found));
            return Err(ConfigError(faults).into());
        }
    };
    let level = match (&arguments.command, config.log_level) {
        // A newcomer sees the job run; other commands speak up only when something is wrong.
        (Command::Worker(_) | Command::Beater(_) | Command::Run(_) | Command::Dev(_), level) => {
            level
        }
        (_, tracing::Level::INFO) => tracing::Level::WARN,
        (_, level) => level,
    };
    crate::telemetry::start(config.log_format, level);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    if !is_worker {
        runtime.worker_threads(2);
    }
    let runtime = runtime.build().context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        match arguments.command {
            Command::Worker(arguments) => work::worker(config, flags, &arguments).await,
            Command::Beater(arguments) => beat::beater(config, flags, &arguments).await,
            Command::Add(arguments) => enqueue::add(config, &arguments).await,
            Command::Run(arguments) => run::run(config, &arguments).await,
            Command::Dev(arguments) => dev::dev(config, &arguments).await,
            Command::Status(arguments) => results::status(&config, &arguments).await,
            Command::List(arguments) => list::list(&config, &arguments).await,
            Command::Cancel(arguments) => cancel::cancel(&config, &arguments).await,
            Command::Queues(command) => queues::queues(&config, &command).await,
            Command::Dead(command) => dead::dead(&config, &command).await,
            Command::Periodic(command) => {
                periodic::periodic(&config, &command, grace.as_deref()).await
            }
            Command::Jobs => modules::jobs(&config).await,
            Command::Modules(command) => versions::modules(&config, &command).await,
            Command::Inspect(arguments) => modules::inspect(&config, &arguments).await,
            Command::Migrate(arguments) => migrate::migrate(&config, &arguments).await,
            Command::New(_) | Command::Compile { .. } | Command::Completions { .. } => Ok(()),
        }
    });
    // What still runs (a receive under way) must not hold the process up.
    runtime.shutdown_background();
    done
}

/// Tells an error and returns its exit code.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(Exit(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    if error.downcast_ref().is_some_and(print::OutputError::is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    if let Some(ConfigError(faults)) = error.downcast_ref() {
        faults.iter().for_each(|fault| tell_error(fault));
        return ExitCode::from(2);
    }
    if let Some(Told(reason)) = error.downcast_ref() {
        print::note(format_args!("{reason}"));
        return ExitCode::FAILURE;
    }
    tell_error(&chain(error.as_ref()));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

/// One error, one line: what a guest or a driver said may have several.
fn tell_error(text: &str) {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    print::note(format_args!("error: {}", printable(&lines.join(" "))));
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "sqjobs-host", &mut script);
    print::bytes(&script)
}

impl Global {
    fn flags(self) -> Flags {
        let mut values: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for (name, value) in [
            ("config", self.config),
            ("database", self.database),
            ("database-password-file", self.database_password_file),
            ("schema", self.schema),
            ("broker", self.broker),
            ("data-dir", self.data_dir),
            ("concurrency", self.concurrency),
            ("lease", self.lease),
            ("grace", self.grace),
            ("output", self.output),
            ("log-format", self.log_format),
            ("log-level", self.log_level),
        ] {
            values.extend(value.map(|value| (name, vec![value])));
        }
        if !self.jobs_dir.is_empty() {
            values.insert("jobs-dir", self.jobs_dir);
        }
        Flags { values }
    }
}

/// What reads module files: compiling in a child process, and keeping the code if `keeps_code`.
fn loader(config: &Arc<Config>, sandbox: &Arc<Sandbox>, keeps_code: bool) -> Loader {
    let cache = if keeps_code { open_cache(config) } else { Cache::new(None) };
    Loader::new(sandbox.clone(), cache)
        .with_config(config.clone())
        .with_compiler(Arc::new(Compiler::child(config.compile)))
}

/// Opens the database; an embedded one is brought to this version by itself.
async fn open_store(config: &Config, broker: BrokerKind) -> anyhow::Result<Store> {
    let store = Store::open(&config.database(broker)).await?;
    match store.dialect() {
        Dialect::Sqlite => {
            migrate::bring_up(&store).await?;
        }
        Dialect::Postgres => store.check_schema().await?,
    }
    Ok(store)
}

/// Opens the database for a command that sends nothing: which broker is used matters only for
/// how durable an SQLite file is.
async fn open_store_to_read(config: &Config) -> anyhow::Result<Store> {
    open_store(config, config.chosen_broker.unwrap_or(BrokerKind::Local)).await
}

/// Connects to the broker. The embedded queue shares its turn at the file with `store`.
async fn open_broker(
    config: &Config,
    kind: BrokerKind,
    store: &Store,
) -> anyhow::Result<Arc<dyn Broker>> {
    Ok(match kind {
        BrokerKind::Sqs => Arc::new(SqsBroker::connect().await?),
        BrokerKind::Local => {
            let path = config.queue_file();
            let shares_file = config.database(kind).path() == Some(path.as_path());
            let options = LocalOptions {
                synchronous: if shares_file { Synchronous::Normal } else { Synchronous::Full },
                writer: if shares_file { store.writer() } else { Arc::default() },
                ..LocalOptions::default()
            };
            Arc::new(LocalBroker::open_with(&path, options).await?)
        }
    })
}

/// The cache of compiled code.
fn open_cache(config: &Config) -> Cache {
    let folder = config.cache_dir();
    Cache::outside(Some(&folder), &config.jobs_dirs, config.deploy.cache_bytes)
}

fn is_json(config: &Config) -> bool {
    config.output == Output::Json
}

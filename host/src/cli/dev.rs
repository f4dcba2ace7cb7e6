//! `dev`: builds the jobs of a project whenever its sources change, deploys them, and runs one
//! of them: the loop in which an author lives.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::enqueue::JobArguments;
use super::{Usage, loader, print};
use crate::clock::Clock;
use crate::config::Config;
use crate::eager::{Eager, EagerError};
use crate::outage::chain;
use crate::outcome::Outcome;
use crate::payload::Job;
use crate::registry::Registry;
use crate::registry::load::{Loader, Module};
use crate::sandbox::Sandbox;
use crate::text::{printable, printable_block};

/// Folders of a project that hold no sources.
const NOT_SOURCES: [&str; 3] = ["target", "node_modules", "__pycache__"];
/// How long sources must rest: an editor writes several files at once.
const REST: Duration = Duration::from_millis(150);

#[derive(Args)]
pub(super) struct DevArguments {
    /// The job to run after each build [default: none is run]
    job: Option<String>,
    #[command(flatten)]
    arguments: JobArguments,
    /// Folder of the job project
    #[arg(long, value_name = "DIR", default_value = ".")]
    project: PathBuf,
    /// Command that builds it, run by sh in its folder [default: cargo build --release --target
    /// wasm32-wasip2]
    #[arg(long, value_name = "COMMAND", requires = "file")]
    build: Option<String>,
    /// Module file that the command makes; may be repeated
    #[arg(long, value_name = "FILE", requires = "build")]
    file: Vec<PathBuf>,
}

pub(super) async fn dev(config: Arc<Config>, arguments: &DevArguments) -> anyhow::Result<()> {
    let config = Arc::new(Config::clone(&config).with_grants()?);
    let project = arguments.project.canonicalize().map_err(|error| {
        Usage(format!("cannot read the project `{}`: {error}", arguments.project.display()))
    })?;
    let job =
        arguments.job.as_ref().map(|name| arguments.arguments.texts().map(|texts| (name, texts)));
    let job = job.transpose()?;
    let jobs_dir =
        config.jobs_dirs.first().context("there is no jobs folder; name one with --jobs-dir")?;
    std::fs::create_dir_all(jobs_dir)
        .with_context(|| format!("cannot make the jobs folder `{}`", jobs_dir.display()))?;
    let jobs_dir = jobs_dir.canonicalize()?;
    let sandbox = Arc::new(Sandbox::new(4)?);
    let loader = loader(&config, &sandbox, true);
    let mut sources = Sources::watch(&project, &jobs_dir)?;
    loop {
        let begun = Instant::now();
        match build(&project, arguments).await {
            Err(error) => say(&format!("{error:#}")),
            Ok(files) => {
                let (mut modules, mut failed) = (Vec::new(), 0);
                for file in &files {
                    match deploy(&loader, file, &jobs_dir).await {
                        Ok(module) => modules.push(module),
                        Err(error) => {
                            failed += 1;
                            say(&format!("not deployed: {error:#}"));
                        }
                    }
                }
                if !modules.is_empty() {
                    say(&format!("built and deployed in {:.1} s", begun.elapsed().as_secs_f64()));
                }
                // The job may be one of those that were not deployed, and the reason is told.
                let is_held = |name: &str| {
                    let mut jobs = modules.iter().flat_map(|module| &module.jobs);
                    jobs.any(|job| job.name == name)
                };
                if let Some((name, (args, kwargs))) = &job
                    && (failed == 0 || is_held(name))
                {
                    run(&config, &sandbox, modules, name, args, kwargs).await?;
                }
            }
        }
        say("waiting for changes; ctrl-c ends");
        sources.changed().await?;
    }
}

fn say(text: &str) {
    for line in text.lines() {
        print::note(format!("dev: {}", printable_block(line)));
    }
}

/// Builds the project, with the builder's own words on standard error; returns the modules made.
async fn build(project: &Path, arguments: &DevArguments) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = match &arguments.build {
        Some(build) => {
            let mut command = Command::new("sh");
            command.args(["-c", build]);
            command
        }
        None => {
            let mut command = Command::new("cargo");
            command.args(["build", "--release", "--target", "wasm32-wasip2"]);
            command.arg("--message-format=json-render-diagnostics");
            command
        }
    };
    command.current_dir(project).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().context("cannot start the build; is cargo installed?")?;
    let output = child.wait_with_output().await.context("cannot wait for the build")?;
    if !output.status.success() {
        anyhow::bail!("the build failed ({}); what was deployed before serves on", output.status);
    }
    if arguments.build.is_some() {
        return Ok(arguments.file.iter().map(|file| project.join(file)).collect());
    }
    let files = artifacts(&String::from_utf8_lossy(&output.stdout));
    if files.is_empty() {
        anyhow::bail!(
            "the build made no module; is `crate-type = [\"cdylib\"]` in Cargo.toml? `sqjobs-host new` makes a project"
        );
    }
    Ok(files)
}

/// The module files that cargo says it made, or had made before.
fn artifacts(messages: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let made = message["filenames"].as_array().into_iter().flatten();
        files.extend(
            made.filter_map(|file| file.as_str())
                .filter(|file| file.ends_with(".wasm"))
                .map(PathBuf::from),
        );
    }
    files
}

/// Checks a module, and moves a copy of it into the jobs folder.
async fn deploy(loader: &Loader, file: &Path, jobs_dir: &Path) -> anyhow::Result<Module> {
    let name = file.file_name().context("a module file has a name")?;
    let target = jobs_dir.join(name);
    let module = loader.load_in_place(file, &target).await?;
    // Not a module by its name, so that no worker reads it before it is whole.
    let half = jobs_dir.join(format!(".{}.{}", name.to_string_lossy(), uuid::Uuid::new_v4()));
    let moved = std::fs::copy(file, &half).and_then(|_| std::fs::rename(&half, &target));
    if moved.is_err() {
        // The first error is the one that counts.
        let _ = std::fs::remove_file(&half);
    }
    moved.with_context(|| format!("cannot write `{}`", target.display()))?;
    Ok(module)
}

/// Runs the job once, and prints its result or why there is none.
async fn run(
    config: &Arc<Config>,
    sandbox: &Arc<Sandbox>,
    modules: Vec<Module>,
    name: &str,
    args: &str,
    kwargs: &str,
) -> anyhow::Result<()> {
    let registry = Registry::default();
    for module in modules {
        registry.put(module);
    }
    let job = Job {
        id: uuid::Uuid::new_v4().to_string(),
        name: name.to_owned(),
        args: args.to_owned(),
        kwargs: kwargs.to_owned(),
        enqueued_at: Some(Clock::system().now()),
        is_tracked: false,
        is_revived: false,
    };
    let eager = Eager::new(sandbox.clone(), Arc::new(registry), config.clone());
    match eager.run(&job).await.map(|execution| execution.outcome) {
        Ok(Outcome::Success(result)) => print::line(result.as_deref().unwrap_or("null"))?,
        Ok(Outcome::Failed(failure)) => {
            for line in failure.backtrace.as_deref().unwrap_or_default().lines() {
                print::note(format!("  {}", printable(line)));
            }
            say(&chain(&EagerError::Failed(failure)));
        }
        Ok(_) => say(&EagerError::Stopped.to_string()),
        Err(error) => say(&chain(&error)),
    }
    Ok(())
}

/// The sources of a project, watched.
struct Sources {
    project: PathBuf,
    jobs_dir: PathBuf,
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
}

impl Sources {
    fn watch(project: &Path, jobs_dir: &Path) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        // Fails only when nobody waits any more.
        let watcher = notify::recommended_watcher(move |event| drop(sender.send(event)))
            .context("cannot watch folders; raise fs.inotify.max_user_instances")?;
        let (project, jobs_dir) = (project.to_path_buf(), jobs_dir.to_path_buf());
        let mut sources = Self { project, jobs_dir, watcher, events };
        sources.watch_folders()?;
        Ok(sources)
    }

    /// The project's own files, and all below those of its folders that hold sources: what a
    /// build writes has thousands of folders.
    fn watch_folders(&mut self) -> anyhow::Result<()> {
        let failed = |path: &Path| format!("cannot watch `{}`", path.display());
        let project = self.project.clone();
        self.watcher
            .watch(&project, RecursiveMode::NonRecursive)
            .with_context(|| failed(&project))?;
        for entry in std::fs::read_dir(&project).with_context(|| failed(&project))?.flatten() {
            let path = entry.path();
            if path.is_dir() && self.is_source(&path) {
                self.watcher
                    .watch(&path, RecursiveMode::Recursive)
                    .with_context(|| failed(&path))?;
            }
        }
        Ok(())
    }

    fn is_source(&self, path: &Path) -> bool {
        let Ok(inside) = path.strip_prefix(&self.project) else { return false };
        let is_ignored = inside.components().any(|part| {
            let name = part.as_os_str().to_string_lossy();
            name.starts_with('.') || NOT_SOURCES.contains(&name.as_ref())
        });
        let is_output = path.starts_with(&self.jobs_dir)
            || path.extension().is_some_and(|ending| ending == "wasm");
        let is_lock = inside == Path::new("Cargo.lock"); // written by the build itself
        !is_ignored && !is_output && !is_lock && !inside.as_os_str().is_empty()
    }

    /// Waits until sources changed and then rested.
    async fn changed(&mut self) -> anyhow::Result<()> {
        let mut is_changed = false;
        loop {
            let event = if is_changed {
                match tokio::time::timeout(REST, self.events.recv()).await {
                    Ok(event) => event,
                    Err(_) => break,
                }
            } else {
                self.events.recv().await
            };
            // Never closed: the watcher holds the other end.
            let Some(Ok(event)) = event else { continue };
            let is_write = !matches!(event.kind, EventKind::Access(_));
            is_changed |= is_write && event.paths.iter().any(|path| self.is_source(path));
        }
        // A new folder may hold sources.
        self.watch_folders()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tells_which_modules_it_made() {
        let messages = r#"{"reason":"compiler-artifact","filenames":["/t/libserde.rlib"]}
{"reason":"compiler-artifact","filenames":["/t/hello.wasm"],"fresh":true}
{"reason":"build-finished","success":true}
what a build script says"#;
        assert_eq!(artifacts(messages), [PathBuf::from("/t/hello.wasm")]);
    }

    #[test]
    fn what_a_build_writes_is_no_source() {
        let folder = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir_all(folder.join("src")).unwrap();
        let sources = Sources::watch(&folder, &folder.join("jobs")).unwrap();
        for (path, is_source) in [
            ("src/lib.rs", true),
            ("Cargo.toml", true),
            ("target/release/x.d", false),
            ("jobs/x.wasm", false),
            ("out/x.wasm", false),
            (".git/index", false),
            ("src/.lib.rs.swp", false),
            ("Cargo.lock", false),
        ] {
            assert_eq!(sources.is_source(&folder.join(path)), is_source, "{path}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}

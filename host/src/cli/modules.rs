//! `jobs` and `inspect`: what is deployed, and what a file holds.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{is_json, open_cache, open_store, print};
use crate::config::{BrokerKind, Config};
use crate::registry::Registry;
use crate::registry::cache::Cache;
use crate::registry::definition::Definition;
use crate::registry::load::{EXPORT, Loader, Module};
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::text::printable;

#[derive(Args)]
pub(super) struct InspectArguments {
    /// The module file
    file: PathBuf,
}

pub(super) async fn jobs(config: &Config) -> anyhow::Result<()> {
    let sandbox = Arc::new(Sandbox::new(1)?);
    let loader = Loader::new(sandbox, open_cache(config));
    // What was refused is said by the log, on standard error, too.
    let registry = Registry::load(&loader, &config.jobs_dirs).await?;
    let snapshot = registry.snapshot();
    let mut grid = print::Grid::new(&[
        "job", "queue", "module", "version", "digest", "served", "records", "timeout", "schedule",
    ]);
    let store = existing_store(config).await;
    for served in snapshot.jobs.values() {
        let (definition, version) = (&served.definition, &served.module.version);
        let timeout = config.limits(definition).timeout;
        let served_digest = match &store {
            Some(store) => store.deployed_job(&definition.name).await?,
            None => None,
        };
        let served_digest = served_digest.map(|job| job.module.digest);
        if is_json(config) {
            let mut object = definition.to_json();
            let extra = json!({
                "module": version.name,
                "module_version": version.version,
                "module_digest": version.digest,
                "served_digest": served_digest,
                "file": served.module.path.display().to_string(),
                "records_result": config.records(definition),
                "timeout_ms": crate::clock::millis(timeout),
                "refused": null,
            });
            merge(&mut object, extra);
            print::line(&object.to_string())?;
            continue;
        }
        grid.row(&[
            &definition.name,
            definition.queue.as_deref().unwrap_or(""),
            &version.name,
            version.version.as_deref().unwrap_or(""),
            &version.digest[..12.min(version.digest.len())],
            &served_digest.map_or_else(String::new, |digest| format!("{digest:.12}")),
            if config.records(definition) { "yes" } else { "no" },
            &humantime::format_duration(timeout).to_string(),
            &schedule(definition),
        ]);
    }
    for refused in &snapshot.refused {
        if is_json(config) {
            let object = json!({
                "name": refused.job,
                "file": refused.path.display().to_string(),
                "refused": refused.reason,
            });
            print::line(&object.to_string())?;
        }
    }
    if is_json(config) {
        return Ok(());
    }
    if snapshot.jobs.is_empty() {
        eprintln!("no job is deployed; copy modules (*.wasm) into the jobs folder");
    } else {
        grid.print()?;
    }
    if !snapshot.refused.is_empty() {
        print::line("\nrefused:")?;
        for refused in &snapshot.refused {
            let file = refused.path.display().to_string();
            print::line(&format!("  {}: {}", printable(&file), printable(&refused.reason)))?;
        }
    }
    Ok(())
}

/// The database, where there is one already: to look at a folder makes none and needs none.
async fn existing_store(config: &Config) -> Option<Store> {
    let broker = config.chosen_broker.unwrap_or(BrokerKind::Local);
    if config.database(broker).path().is_some_and(|path| !path.exists()) {
        return None;
    }
    match open_store(config, broker).await {
        Ok(store) => Some(store),
        Err(error) => {
            eprintln!("what workers serve is not known: {}", printable(&format!("{error:#}")));
            None
        }
    }
}

fn merge(object: &mut serde_json::Value, extra: serde_json::Value) {
    if let (Some(object), serde_json::Value::Object(extra)) = (object.as_object_mut(), extra) {
        object.extend(extra);
    }
}

fn schedule(definition: &Definition) -> String {
    match &definition.periodic {
        None => String::new(),
        Some(periodic) => match &periodic.timezone {
            Some(zone) => format!("{} {zone}", periodic.schedule),
            None => periodic.schedule.clone(),
        },
    }
}

pub(super) async fn inspect(config: &Config, arguments: &InspectArguments) -> anyhow::Result<()> {
    let loader = Loader::new(Arc::new(Sandbox::new(1)?), Cache::new(None));
    let module = loader.load(&arguments.file).await?;
    if is_json(config) {
        let imports: Vec<_> = module
            .imports
            .iter()
            .map(|name| json!({"name": name, "status": status(name)}))
            .collect();
        let jobs: Vec<_> = module.jobs.iter().map(Definition::to_json).collect();
        let object = json!({
            "file": module.path.display().to_string(),
            "module": module.version.name,
            "version": module.version.version,
            "digest": module.version.digest,
            "size": module.size,
            "sdk": module.sdk,
            "world": EXPORT,
            "imports": imports,
            "jobs": jobs,
        });
        return print::line(&object.to_string());
    }
    show(&module)
}

/// What a module finds at an import: our own work; of WASI only what harms nobody is granted.
fn status(import: &str) -> &'static str {
    let is_granted = ["sqjobs:job/", "wasi:io/", "wasi:clocks/", "wasi:random/"]
        .iter()
        .any(|package| import.starts_with(package));
    if is_granted { "granted" } else { "empty" }
}

fn show(module: &Module) -> anyhow::Result<()> {
    let mut grid = print::Grid::new(&[]);
    let size = bytesize::ByteSize::b(module.size).to_string();
    grid.row(&["file", &module.path.display().to_string()]);
    grid.row(&["module", &module.version.name]);
    if let Some(version) = &module.version.version {
        grid.row(&["version", version]);
    }
    grid.row(&["digest", &format!("sha256:{}", module.version.digest)]);
    grid.row(&["size", &size]);
    grid.row(&["sdk", &module.sdk]);
    grid.row(&["world", EXPORT]);
    grid.print()?;
    print::line("\njobs:")?;
    for job in &module.jobs {
        let queue = job.queue.as_deref().unwrap_or("(names no queue)");
        let records = if job.records_result { "" } else { ", records nothing" };
        let schedule = schedule(job);
        let schedule = if schedule.is_empty() { schedule } else { format!(", {schedule}") };
        let text = format!("{} on {queue}{records}{schedule}", job.name);
        print::line(&format!("  {}", printable(&text)))?;
    }
    print::line("\nimports:")?;
    for import in &module.imports {
        print::line(&format!("  {:8} {}", status(import), printable(import)))?;
    }
    Ok(())
}

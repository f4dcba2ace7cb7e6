//! `jobs` and `inspect`: what is deployed, and what a file holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{is_json, loader, open_store, print};
use crate::config::granted::{ModuleSource, toml_key};
use crate::config::{BrokerKind, Config};
use crate::registry::Registry;
use crate::registry::definition::Definition;
use crate::registry::load::{EXPORT, LoadError, Module, is_offered, module_name};
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::text::printable;

#[derive(Args)]
pub(super) struct InspectArguments {
    /// The module file
    file: PathBuf,
}

pub(super) async fn jobs(config: &Arc<Config>) -> anyhow::Result<()> {
    let sandbox = Arc::new(Sandbox::new(1)?);
    let loader = loader(config, &sandbox, true);
    // What was refused is said by the log, on standard error, too.
    let registry = Registry::load(&loader, &config.jobs_dirs).await?;
    let snapshot = registry.snapshot();
    let mut grid = print::Grid::new(&[
        "job", "queue", "module", "version", "digest", "served", "records", "timeout", "schedule",
    ]);
    let store = existing_store(config).await;
    for served in snapshot.jobs.values() {
        let (definition, version) = (&served.definition, &served.module.version);
        let served_digest = match &store {
            Some(store) => store.deployed_job(&definition.name).await?,
            None => None,
        };
        let served_digest = served_digest.map(|job| job.module.digest);
        let timeout = config.limits(&version.name, definition).timeout;
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
            print::json(&object.to_string())?;
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
            print::json(&object.to_string())?;
        }
    }
    if is_json(config) {
        return Ok(());
    }
    if snapshot.jobs.is_empty() {
        print::note("no job is deployed; copy modules (*.wasm) into the jobs folder");
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
            print::note(format_args!(
                "what workers serve is not known: {}",
                printable(&format!("{error:#}"))
            ));
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
    let settings = definition.periodic.as_ref().and_then(|periodic| periodic.check().ok());
    settings.map(|settings| settings.schedule.to_string()).unwrap_or_default()
}

pub(super) async fn inspect(
    config: &Arc<Config>,
    arguments: &InspectArguments,
) -> anyhow::Result<()> {
    let loader = loader(config, &Arc::new(Sandbox::new(1)?), false).for_inspection();
    let module = match loader.load(&arguments.file).await {
        Ok(module) => module,
        Err(error) => return Err(unloadable(config, &arguments.file, error)),
    };
    let names = module.jobs.iter().map(|job| job.name.as_str()).collect();
    let grants = Granted::of(config, module.source(), names);
    if is_json(config) {
        let imports: Vec<_> = module
            .imports
            .iter()
            .map(|name| json!({"name": name, "status": grants.status(name)}))
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
        return print::json(&object.to_string());
    }
    show(&module, &grants)
}

/// What a module finds at its imports under the configuration.
struct Granted<'a> {
    config: &'a Config,
    module: ModuleSource<'a>,
    jobs: Vec<&'a str>,
    /// The table that would grant more.
    place: String,
}

impl<'a> Granted<'a> {
    fn of(config: &'a Config, module: ModuleSource<'a>, jobs: Vec<&'a str>) -> Self {
        let place = format!("[modules.{}.grants]", toml_key(module.name));
        Self { config, module, jobs, place }
    }

    /// `granted`; `empty`, where the import is there and finds nothing; `refused`, where the
    /// module is not loaded without a grant.
    fn status(&self, import: &str) -> &'static str {
        let needs_no_grant = ["sqjobs:job/", "wasi:io/", "wasi:clocks/", "wasi:random/"];
        if needs_no_grant.iter().any(|package| import.starts_with(package)) {
            return "granted";
        }
        if !is_offered(import) {
            return "refused";
        }
        match self.config.grants_import(self.module, &self.jobs, import) {
            Some(true) => "granted",
            Some(false) if import.starts_with("wasi:http/") => "refused",
            _ => "empty",
        }
    }
}

fn show(module: &Module, grants: &Granted<'_>) -> anyhow::Result<()> {
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
    show_imports(&module.imports, grants)
}

fn show_imports(imports: &[String], grants: &Granted<'_>) -> anyhow::Result<()> {
    print::line("\nimports:")?;
    for import in imports {
        let (status, name) = (grants.status(import), printable(import));
        let remedy = match status {
            "refused" if is_offered(import) => {
                format!("  (to grant it, list hosts in `http` of {})", grants.place)
            }
            "refused" => "  (this host does not offer it)".to_owned(),
            _ => String::new(),
        };
        print::line(&format!("  {status:8} {name}{remedy}"))?;
    }
    Ok(())
}

/// Why a file is no module; of one that imports what nobody offers, all imports are shown first.
fn unloadable(config: &Config, file: &Path, error: LoadError) -> anyhow::Error {
    let LoadError::UnknownImport { imports, .. } = &error else { return error.into() };
    if !is_json(config) {
        let name = module_name(file);
        let module = ModuleSource { name: &name, digest: "", folder: Path::new(".") };
        if let Err(unseen) = show_imports(imports, &Granted::of(config, module, Vec::new())) {
            return unseen;
        }
    }
    error.into()
}

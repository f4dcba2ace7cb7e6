//! `modules`: which version of each module serves, what came before, and what is to serve.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Usage, is_json, loader, open_store_to_read, print};
use crate::config::Config;
use crate::payload::hex;
use crate::registry::canary::WHOLE;
use crate::sandbox::Sandbox;
use crate::store::Store;
use crate::store::versions::{Decision, ModuleState, VersionRow};
use crate::text::printable;

#[derive(Subcommand)]
pub(super) enum ModulesCommand {
    /// Show which version of each module serves, since when, and why
    List,
    /// Show what happened to a module, newest first, and which versions are kept
    History {
        /// The module's name: its file's, without .wasm
        name: String,
    },
    /// Refuse the version that serves and go back to an earlier one, on all hosts
    Rollback {
        /// The module's name
        name: String,
        /// The version to go back to [default: the one that served before]
        digest: Option<String>,
        /// Why, for the history
        #[arg(long, default_value = "rolled back by hand")]
        reason: String,
    },
    /// Have one version serve on all hosts, whatever the jobs folders hold
    Pin {
        /// The module's name
        name: String,
        /// The version; the first characters will do [default: the one that serves]
        digest: Option<String>,
    },
    /// Follow the files of the jobs folders again
    Unpin {
        /// The module's name
        name: String,
    },
    /// Try a new version on a share of the jobs; it is rolled back by itself if it fails more
    Canary(CanaryArguments),
    /// Have the canary serve all jobs
    Promote {
        /// The module's name
        name: String,
    },
}

#[derive(Args)]
pub(super) struct CanaryArguments {
    /// The module's name
    name: String,
    /// The file of the new version
    #[arg(required_unless_present = "end")]
    file: Option<PathBuf>,
    /// Share of the jobs that take it, as in 10%
    #[arg(long, default_value = "10%")]
    share: String,
    /// End the canary instead
    #[arg(long, conflicts_with = "file")]
    end: bool,
}

pub(super) async fn modules(config: &Arc<Config>, command: &ModulesCommand) -> anyhow::Result<()> {
    let store = open_store_to_read(config).await?;
    match command {
        ModulesCommand::List => list(config, &store).await,
        ModulesCommand::History { name } => history(config, &store, name).await,
        ModulesCommand::Rollback { name, digest, reason } => {
            let module = Known::of(&store, name).await?;
            let from = module.serving()?;
            let to = match digest {
                Some(digest) => module.version(digest)?,
                None => module.earlier(&from)?,
            };
            if to.digest == from {
                anyhow::bail!("version {from:.12} of `{name}` serves already; name another");
            }
            module.check_kept(to)?;
            let to = to.digest.clone();
            let text = format!(
                "module `{name}` goes back to {to:.12}; {from:.12} is refused until it is pinned"
            );
            module.decide(&Decision::RollBack { from, to, reason: reason.clone() }, &text).await
        }
        ModulesCommand::Pin { name, digest } => {
            let module = Known::of(&store, name).await?;
            let digest = match digest {
                Some(digest) => module.version(digest)?.digest.clone(),
                None => module.serving()?,
            };
            module.check_kept(module.version(&digest)?)?;
            let text = format!("module `{name}` is pinned to {digest:.12}");
            module.decide(&Decision::Pin(digest), &text).await
        }
        ModulesCommand::Unpin { name } => {
            let module = Known::of(&store, name).await?;
            let text = format!("module `{name}` follows its file");
            module.decide(&Decision::Unpin, &text).await
        }
        ModulesCommand::Canary(arguments) => canary(config, &store, arguments).await,
        ModulesCommand::Promote { name } => {
            let module = Known::of(&store, name).await?;
            let digest = module.canary()?;
            let text = format!(
                "module `{name}` serves {digest:.12} until a file with another version appears"
            );
            module.decide(&Decision::Promote(digest), &text).await
        }
    }
}

/// A module that the database knows.
struct Known<'a> {
    store: &'a Store,
    name: &'a str,
    state: ModuleState,
    versions: Vec<VersionRow>,
}

impl<'a> Known<'a> {
    async fn of(store: &'a Store, name: &'a str) -> anyhow::Result<Self> {
        let mut states = store.module_states().await?;
        let Some(state) = states.remove(name) else {
            let known: Vec<&str> = states.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            anyhow::bail!(
                "no worker has served a module `{}`; known are: {}",
                printable(name),
                printable(&known)
            );
        };
        Ok(Self { store, name, state, versions: store.module_versions(name).await? })
    }

    /// The version that serves, as far as the database knows.
    fn serving(&self) -> anyhow::Result<String> {
        let chosen = self.state.choice.digest().map(str::to_owned);
        chosen
            .or_else(|| self.state.serving.clone())
            .ok_or_else(|| anyhow::anyhow!("no version of `{}` serves; name one", self.name))
    }

    fn canary(&self) -> anyhow::Result<String> {
        let canary = self.state.canary.as_ref().map(|canary| canary.digest.clone());
        canary.ok_or_else(|| {
            anyhow::anyhow!(
                "module `{}` has no canary; begin one by `modules canary`, or see why it ended in `modules history`",
                self.name
            )
        })
    }

    /// The one version whose digest begins so.
    fn version(&self, digest: &str) -> anyhow::Result<&VersionRow> {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        let mut found = self.versions.iter().filter(|version| version.digest.starts_with(digest));
        match (found.next(), found.next()) {
            (Some(version), None) if !digest.is_empty() => Ok(version),
            (Some(_), Some(_)) => {
                anyhow::bail!("several versions of `{}` begin so; give more of it", self.name)
            }
            _ => anyhow::bail!(
                "no version of `{}` begins with `{}`; see `modules history {}`",
                self.name,
                printable(digest),
                self.name
            ),
        }
    }

    /// The version that served last before this one.
    fn earlier(&self, than: &str) -> anyhow::Result<&VersionRow> {
        let served = self.versions.iter().find(|version| {
            version.digest != than
                && version.served_at.is_some()
                && version.refused.is_none()
                && version.is_kept
        });
        served.ok_or_else(|| {
            anyhow::anyhow!(
                "no earlier version of `{}` is kept; see `modules history {}`",
                self.name,
                self.name
            )
        })
    }

    fn check_kept(&self, version: &VersionRow) -> anyhow::Result<()> {
        if version.is_kept {
            return Ok(());
        }
        anyhow::bail!(
            "the bytes of version {:.12} of `{}` are not kept any more; deploy its file",
            version.digest,
            self.name
        )
    }

    async fn decide(&self, decision: &Decision, text: &str) -> anyhow::Result<()> {
        let host = gethostname::gethostname().to_string_lossy().into_owned();
        if !self.store.decide(self.name, decision, &host).await? {
            anyhow::bail!("nothing to do for module `{}`; see `modules list`", self.name);
        }
        if let Decision::RollBack { to: digest, .. }
        | Decision::Pin(digest)
        | Decision::Promote(digest) = decision
        {
            self.bring_schedules_back(digest).await;
        }
        print::line(&printable(text))
    }

    /// A version that serves by command is as one that is seen later: what it says of periodic
    /// entries stands. The decision is made by then, so what fails here is only said.
    async fn bring_schedules_back(&self, digest: &str) {
        match self.store.module_seen_again(digest).await {
            Ok(names) => {
                for name in names {
                    eprintln!(
                        "note: the periodic entry `{}` is as this version describes it, under what the configuration file and commands say",
                        printable(&name)
                    );
                }
            }
            Err(error) => eprintln!(
                "warning: the schedules of this version do not stand again: {}; use `periodic edit`",
                printable(&error.to_string())
            ),
        }
    }
}

async fn canary(
    config: &Arc<Config>,
    store: &Store,
    arguments: &CanaryArguments,
) -> anyhow::Result<()> {
    let name = &arguments.name;
    let Some(file) = &arguments.file else {
        let module = Known::of(store, name).await?;
        let digest = module.canary()?;
        let text = format!("the canary of module `{name}` ended");
        return module.decide(&Decision::EndCanary(digest, None), &text).await;
    };
    let share = share(&arguments.share)?;
    let module = Known::of(store, name).await?;
    let loader = loader(config, &Arc::new(Sandbox::new(1)?), false);
    let canary = loader.load_in_place(file, &place(config, name)).await;
    let canary = canary.with_context(|| format!("it can't be a canary of `{name}`"))?;
    let digest = canary.version.digest.clone();
    if module.serving()? == digest {
        anyhow::bail!("version {digest:.12} of `{name}` serves already");
    }
    let bytes = std::fs::read(file)?;
    if hex(&Sha256::digest(&bytes)) != digest {
        anyhow::bail!("`{}` changed while it was read; try again", file.display());
    }
    store.note_version(&canary.version, canary.size, &bytes).await?;
    let percent = f64::from(share) / 100.0;
    let text = format!("module `{name}` tries {digest:.12} on {percent} % of its jobs");
    Known::of(store, name).await?.decide(&Decision::Canary(digest, share), &text).await
}

/// Where the module's file lies, by which it is granted what it may reach; or would lie.
fn place(config: &Config, name: &str) -> PathBuf {
    let file = format!("{name}.wasm");
    let places = config.jobs_dirs.iter().map(|folder| folder.join(&file));
    let first = || config.jobs_dirs.first().map_or_else(|| Path::new("."), PathBuf::as_path);
    places.clone().find(|place| place.exists()).unwrap_or_else(|| first().join(&file))
}

/// A share of jobs, of 10,000.
fn share(text: &str) -> Result<u32, Usage> {
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match number {
        Some(percent) if percent > 0.0 && percent <= 100.0 => {
            // From 0 to 10,000.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let share = (percent * f64::from(WHOLE) / 100.0).round() as u32;
            Ok(share.max(1))
        }
        _ => Err(Usage(format!(
            "--share is a percentage such as `10%`, above 0% and at most 100%, found `{text}`"
        ))),
    }
}

async fn list(config: &Config, store: &Store) -> anyhow::Result<()> {
    let mut grid = print::Grid::new(&["module", "serves", "version", "since", "mode", "canary"]);
    for (name, state) in store.module_states().await? {
        let digest = state.choice.digest().map(str::to_owned).or(state.serving.clone());
        let versions = store.module_versions(&name).await?;
        let row = versions.iter().find(|version| Some(&version.digest) == digest.as_ref());
        let version = row.and_then(|row| row.version.clone());
        let since = row.and_then(|row| row.served_at).map(|time| time.to_string());
        let canary = state.canary.as_ref();
        if is_json(config) {
            let runs = |digest: &str| versions.iter().find(|version| version.digest == digest);
            let canary = canary.map(|canary| {
                json!({
                    "digest": canary.digest,
                    "share": f64::from(canary.share) / f64::from(WHOLE),
                    "since": canary.since.to_string(),
                    "runs": runs(&canary.digest).map(|version| version.runs),
                    "failures": runs(&canary.digest).map(|version| version.failures),
                })
            });
            let object = json!({
                "module": name,
                "digest": digest,
                "version": version,
                "since": since,
                "mode": state.choice.name(),
                "refused": state.refused,
                "canary": canary,
            });
            print::line(&object.to_string())?;
            continue;
        }
        let canary = canary.map(|canary| {
            format!("{:.12} on {} %", canary.digest, f64::from(canary.share) / 100.0)
        });
        grid.row(&[
            &name,
            &digest.map_or_else(String::new, |digest| format!("{digest:.12}")),
            &version.unwrap_or_default(),
            &since.unwrap_or_default(),
            state.choice.name(),
            &canary.unwrap_or_default(),
        ]);
    }
    if is_json(config) { Ok(()) } else { grid.print() }
}

async fn history(config: &Config, store: &Store, name: &str) -> anyhow::Result<()> {
    let module = Known::of(store, name).await?;
    let is_kept = |digest: &Option<String>| {
        let version = module.versions.iter().find(|row| Some(&row.digest) == digest.as_ref());
        version.is_some_and(|version| version.is_kept)
    };
    let mut grid =
        print::Grid::new(&["at", "event", "digest", "version", "kept", "host", "reason"]);
    for row in store.module_history(name).await? {
        if is_json(config) {
            let object = json!({
                "at": row.at.to_string(),
                "event": row.event,
                "digest": row.digest,
                "version": row.version,
                "is_kept": is_kept(&row.digest),
                "host": row.host,
                "reason": row.reason,
            });
            print::line(&object.to_string())?;
            continue;
        }
        grid.row(&[
            &row.at.to_string(),
            &row.event,
            &row.digest.as_ref().map_or_else(String::new, |digest| format!("{digest:.12}")),
            row.version.as_deref().unwrap_or(""),
            if is_kept(&row.digest) { "yes" } else { "" },
            &row.host,
            row.reason.as_deref().unwrap_or(""),
        ]);
    }
    if is_json(config) { Ok(()) } else { grid.print() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage() {
        assert_eq!(share("10%").ok(), Some(1000));
        assert_eq!(share(" 0.5 %").ok(), Some(50));
        assert_eq!(share("100%").ok(), Some(WHOLE));
        assert_eq!(share("0.001%").ok(), Some(1));
        for wrong in ["10", "0%", "101%", "-1%", "NaN%", "x%", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}

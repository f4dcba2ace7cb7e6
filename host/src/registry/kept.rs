//! Versions that come from the database instead of a file.

use std::path::{Path, PathBuf};

use super::load::{Loader, Module};
use crate::outage::chain;
use crate::store::Store;

/// Fetches a kept version of a module and loads it in the place of the module's file.
///
/// # Errors
/// It is not kept, or can't serve, and why.
pub(super) async fn load(
    loader: &Loader,
    store: &Store,
    folder: &Path,
    place: &Path,
    name: &str,
    digest: &str,
) -> Result<Module, String> {
    let failed = |reason: String| format!("version {digest:.12} of `{name}`: {reason}");
    let bytes = store.module_bytes(name, digest).await.map_err(|error| failed(chain(&error)))?;
    let Some(bytes) = bytes else {
        return Err(failed("its bytes are not kept any more; deploy its file".into()));
    };
    let file = TemporaryFile::write(folder, bytes)
        .await
        .map_err(|error| failed(format!("cannot write it to `{}`: {error}", folder.display())))?;
    let loaded = loader.load_named(&file.0, place, place).await;
    let module = loaded.map_err(|error| failed(chain(&error)))?;
    if module.version.digest != digest {
        return Err(failed("the database holds other bytes under this digest".into()));
    }
    Ok(module)
}

/// A file that is removed when dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    async fn write(folder: &Path, bytes: Vec<u8>) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let file = Self(folder.join(format!("{}.wasm", uuid::Uuid::new_v4())));
        let (folder, path) = (folder.to_path_buf(), file.0.clone());
        let write = move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            std::fs::write(path, bytes)
        };
        tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)??;
        Ok(file)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // At worst a file stays behind that nobody reads.
        let _ = std::fs::remove_file(&self.0);
    }
}

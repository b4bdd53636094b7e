//! The directory that is exported to the guest, and the work on it that tree and volumes have in common.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::MountsError;
use crate::host::{mount, mountinfo};

/// How often, and how far apart, a busy mount is tried before it is detached instead.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Where mount points are made: nothing is ever mounted here, so it can be removed without looking.
pub(super) fn backing(share: &Path) -> PathBuf {
    share.with_extension("rw")
}

pub(super) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, MountsError> {
    mountinfo::below(path).map_err(|source| MountsError::ListMounts { source })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MountsError> + Send + 'static,
) -> Result<T, MountsError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(MountsError::CutOff))
}

/// Unmounts what is at a path and below it. What stays busy for long is detached, which is logged.
pub(super) async fn unmount_below(path: &Path) -> Result<(), MountsError> {
    let mut attempt = 0;
    loop {
        let path = path.to_owned();
        let last = attempt == TRIES;
        let done = blocking(move || unmount_once(&path, last)).await?;
        if done {
            return Ok(());
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Says whether nothing is left.
fn unmount_once(path: &Path, last: bool) -> Result<bool, MountsError> {
    let mut done = true;
    for target in mounts_below(path)? {
        match mount::unmount(&target) {
            Err(error) if error.is_busy() && last => {
                tracing::warn!(target_path = %target.display(), "mount stays in use, detaching it");
                mount::detach(&target).map_err(MountsError::Mount)?;
            }
            Err(error) if error.is_busy() => done = false,
            result => result.map_err(MountsError::Mount)?,
        }
    }
    Ok(done)
}

/// Its owner is root and its mode does not matter: something is mounted over it.
pub(super) fn make_directory(path: &Path) -> Result<(), MountsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| MountsError::MakeMountPoint { path: path.to_owned(), source })
}

//! The pid namespace that the containers of a pod share when Kubernetes asks for it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::mount_bind;

use crate::process::helper::{Job, LaunchError, Stdio, launch};
use crate::process::reaper::Reaper;

/// The namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidNamespaceError {
    #[error("open /dev/null for the namespace's init process")]
    OpenNull(#[source] io::Error),
    #[error("start the namespace's init process")]
    Launch(#[source] LaunchError),
    #[error("write {path}")]
    CreateFile { path: PathBuf, source: io::Error },
    #[error("bind the namespace of process {pid} at {path}")]
    Bind { pid: u32, path: PathBuf, source: io::Error },
}

/// Makes a pid namespace with an init process of its own and binds it at `path`. Idempotent.
pub(crate) async fn make(reaper: &Reaper, path: &Path) -> Result<(), PidNamespaceError> {
    if path.exists() {
        return Ok(());
    }
    let stdio = Stdio::null().map_err(PidNamespaceError::OpenNull)?;
    let init = launch(reaper, &Job::PidNamespace, stdio).await.map_err(PidNamespaceError::Launch)?;
    let ended = reaper.claim(init.pid, init.since_nanos);
    // A container that calls reboot(2) ends this init process, and with it every process in the namespace. No process
    // can be made in the namespace any more (pid_namespaces(7)), so the pod cannot go on: its VM ends, which the host
    // sees.
    tokio::spawn(async move {
        if let Ok(exit) = ended.await {
            tracing::error!(
                status = exit.status,
                "the init process of the pod's pid namespace has ended, the VM is switched off"
            );
            drop(tokio::task::spawn_blocking(crate::kernel::power::power_off));
        }
    });
    let create = |source| PidNamespaceError::CreateFile { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(create)?;
    }
    std::fs::File::create(path).map_err(create)?;
    mount_bind(format!("/proc/{}/ns/pid", init.pid), path).map_err(|errno| {
        let undone = std::fs::remove_file(path);
        tracing::debug!(undone = undone.is_ok(), "the pid namespace's file is removed again");
        PidNamespaceError::Bind { pid: init.pid, path: path.to_owned(), source: errno.into() }
    })
}

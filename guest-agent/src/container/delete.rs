//! Delete: nothing of a container is left behind, neither in the guest nor open on the host.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::error::chain;

use super::disks;
use super::error::ContainerError;
use super::mounts::{guest, memory, share};
use super::state::State;
use super::{Attachments, Container, Containers, KILL, KILL_LIMIT, bundle};
use crate::cgroup::Cgroup;
use crate::kernel::blocking::blocking;
use crate::process::helper::STATE_DIR;

/// The kernel tears down the mount namespace of an ended process one tick later (`delayed_mntput`), and its mounts
/// cannot be unmounted before.
const A_TICK: Duration = Duration::from_millis(8);

impl Containers {
    /// Deletes an exec or container that has ended or was never started.
    pub(crate) async fn delete(self: Arc<Self>, id: String, exec: String) -> Result<(), ContainerError> {
        let container = self.find(&id)?;
        let _operation = container.operation.lock().await;
        if exec.is_empty() {
            self.delete_container(&container).await
        } else {
            self.delete_exec(&container, &exec)
        }
    }

    fn delete_exec(&self, container: &Container, name: &str) -> Result<(), ContainerError> {
        let exec = container.exec(name)?;
        match exec.process.state() {
            State::Added | State::Ended(_) => {}
            State::Created { .. } | State::Running { .. } => {
                return Err(ContainerError::StillRuns { process: exec.process.name() });
            }
        }
        container.execs().remove(name);
        exec.process.delete();
        self.streams.forget(&container.id, Some(name));
        Ok(())
    }

    async fn delete_container(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        // Another delete may have been faster.
        self.find(&container.id)?;
        match container.init.state() {
            State::Running { .. } => {
                return Err(ContainerError::StillRuns { process: container.init.name() });
            }
            State::Created { pid } => self.end_unstarted(container, pid).await?,
            State::Added | State::Ended(_) => {}
        }
        container.cgroup.kill()?;
        container.cgroup.wait_empty(KILL_LIMIT).await?;
        container.cgroup.remove()?;
        container.gone.send_replace(true);
        container.init.delete();
        container.execs().drain().for_each(|(_, exec)| exec.process.delete());
        self.streams.forget(&container.id, None);
        self.clean_up(&container.id, &container.cgroup, &container.attached).await;
        self.lock().remove(&container.id);
        tracing::debug!(container = container.id, "deleted");
        Ok(())
    }

    /// Removes what is left of a container, or of one whose creation failed. Every step is tried even if another one
    /// fails: a directory that cannot be removed must not keep the host's mounts busy.
    pub(super) async fn clean_up(&self, id: &str, cgroup: &Cgroup, attached: &Attachments) {
        let log = |step: &str, error: &ContainerError| {
            tracing::warn!(container = id, step, error = %chain(error), "something is left behind");
        };
        if cgroup.exists() {
            let gone = async {
                cgroup.kill()?;
                cgroup.wait_empty(KILL_LIMIT).await?;
                cgroup.remove()
            };
            if let Err(error) = gone.await {
                log("cgroup", &error.into());
            }
        }
        self.sockets.close(id);
        for dir in [bundle(id), Path::new(STATE_DIR).join(id)] {
            if let Err(error) = remove_dir(&dir) {
                log("directory", &error);
            }
        }
        tokio::time::sleep(A_TICK).await;
        disks::detach(&self.disks, &attached.disks).await;
        let (id_of, attached, volumes) = (id.to_owned(), attached.clone(), Arc::clone(&self.volumes));
        blocking(move || {
            guest::detach_all(&attached.mounts);
            memory::remove_mount_points(&id_of);
            share::release_share(&id_of, &volumes, &attached.volumes);
        })
        .await;
    }

    async fn end_unstarted(&self, container: &Container, pid: u32) -> Result<(), ContainerError> {
        // If it has ended meanwhile, that is just as well.
        let killed = self.reaper.signal(pid, KILL);
        tracing::debug!(container = container.id, ?killed, "deleted before its start");
        let limit = KILL_LIMIT;
        match tokio::time::timeout(limit, container.init.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ContainerError::Unkillable { id: container.id.clone(), limit }),
        }
    }
}

fn remove_dir(dir: &Path) -> Result<(), ContainerError> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ContainerError::RemoveFile { path: dir.to_owned(), source }),
    }
}

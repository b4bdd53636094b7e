//! Delete: nothing of a container stays, neither here nor open on the host.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::error::chain;

use super::disks;
use super::error::ContainerError;
use super::mounts::{guest, memory, share};
use super::state::State;
use super::{Attached, Container, Containers, KILL, KILL_LIMIT, bundle};
use crate::cgroup::Cgroup;
use crate::kernel::blocking::blocking;
use crate::process::helper::STATE_DIR;

/// Mount namespaces of ended processes are torn down by the kernel a moment later (its `delayed_mntput`, one
/// tick); what they held is not unmountable before.
const A_TICK: Duration = Duration::from_millis(8);

impl Containers {
    /// Deletes an ended (or never started) exec or container.
    pub(crate) async fn delete(self: Arc<Self>, id: String, exec: String) -> Result<(), ContainerError> {
        let container = self.find(&id)?;
        let _turn = container.turn.lock().await;
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
        // Another delete was faster.
        self.find(&container.id)?;
        match container.init.state() {
            State::Running { .. } => {
                return Err(ContainerError::StillRuns { process: container.init.name() });
            }
            State::Created { pid } => self.end_unstarted(container, pid).await?,
            State::Added | State::Ended(_) => {}
        }
        container.cgroup.kill()?;
        container.cgroup.emptied(KILL_LIMIT).await?;
        container.cgroup.remove()?;
        container.gone.send_replace(true);
        container.init.delete();
        container.execs().drain().for_each(|(_, exec)| exec.process.delete());
        self.streams.forget(&container.id, None);
        self.remove_remains(&container.id, &container.cgroup, &container.attached).await;
        self.lock().remove(&container.id);
        tracing::debug!(container = container.id, "deleted");
        Ok(())
    }

    /// Removes what a container left, or what there is of one that failed to be created. Each step is tried, whatever
    /// became of the others: a directory that stays is no reason to keep the host's mounts busy.
    pub(super) async fn remove_remains(&self, id: &str, cgroup: &Cgroup, attached: &Attached) {
        let log = |step: &str, error: &ContainerError| {
            tracing::warn!(container = id, step, error = %chain(error), "something is left");
        };
        if cgroup.exists() {
            let gone = async {
                cgroup.kill()?;
                cgroup.emptied(KILL_LIMIT).await?;
                cgroup.remove()
            };
            if let Err(error) = gone.await {
                log("cgroup", &error.into());
            }
        }
        self.sockets.hide(id);
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
            memory::forget(&id_of);
            share::leave_share(&id_of, &volumes, &attached.volumes);
        })
        .await;
    }

    async fn end_unstarted(&self, container: &Container, pid: u32) -> Result<(), ContainerError> {
        // An end between our look and the signal is as good.
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

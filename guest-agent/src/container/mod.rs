//! Containers: created, run and deleted as the host asks.
//!
//! A container's files are below `/run/bulkhead/containers/<id>` (bundle) and `/run/bulkhead/state/<id>`
//! (libcontainer), its processes in the cgroup `/bulkhead/<id>`. Operations on one container run one after another;
//! different containers do not wait for each other.

mod create;
mod delete;
mod disks;
mod error;
mod mounts;
mod process;
mod run;
mod session;
mod spec;
mod state;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_protocol::agent::{StatsResponse, Stdio};
use bulkhead_protocol::error::chain;
use tokio::sync::watch;

pub(crate) use error::ContainerError;
pub(crate) use state::Ended;

use crate::cgroup::{self, Cgroup, OomWatch};
use crate::forward::host_sockets::HostSockets;
use crate::hotplug::Disks;
use crate::process::reaper::{self, Reaper, SignalError};
use crate::stdio::Streams;
use disks::AttachedDisk;
use mounts::{memory, share};
use process::Process;
use state::State;

/// One directory for each container.
const DIR: &str = "/run/bulkhead/containers";
/// Longest id, in bytes: containerd's longest are 76 (its `identifiers` package).
const LONGEST_ID: usize = 128;
/// SIGKILL, signal(7).
const KILL: u32 = 9;
/// SIGTERM, signal(7).
const TERMINATE: u32 = 15;
/// How long a killed process may take to end: longer only if it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long freezing may take: it waits for every process to leave the kernel.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// The containers of the guest.
#[derive(Debug)]
pub(crate) struct Containers {
    map: Mutex<HashMap<String, Entry>>,
    reaper: Arc<Reaper>,
    streams: Arc<Streams>,
    volumes: Arc<share::Volumes>,
    memory: Arc<memory::MemoryVolumes>,
    disks: Disks,
    sockets: Arc<HostSockets>,
}

#[derive(Debug)]
enum Entry {
    /// Being created.
    Creating,
    Created(Arc<Container>),
}

/// One container.
#[derive(Debug)]
struct Container {
    id: String,
    cgroup: Cgroup,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// Held while the container is started or deleted, or an exec is added.
    operation: tokio::sync::Mutex<()>,
    attached: Attachments,
    /// What its execs inherit.
    inherited: spec::Inherited,
    /// Becomes true when it is deleted.
    gone: watch::Sender<bool>,
}

/// What was attached for a container, to be detached with it.
#[derive(Debug, Clone, Default)]
struct Attachments {
    /// Targets of the mounts made for it.
    mounts: Vec<PathBuf>,
    /// Volumes of the share that it has acquired.
    volumes: Vec<PathBuf>,
    /// Disks that it has.
    disks: Vec<AttachedDisk>,
}

/// A process added to a container.
#[derive(Debug)]
struct Exec {
    process: Arc<Process>,
    spec: oci_spec::runtime::Process,
    stdio: Stdio,
}

impl Containers {
    /// Without any container yet.
    pub(crate) fn new(reaper: Arc<Reaper>, streams: Arc<Streams>, sockets: Arc<HostSockets>) -> Arc<Self> {
        Arc::new(Self {
            map: Mutex::new(HashMap::new()),
            reaper,
            streams,
            volumes: Arc::default(),
            memory: Arc::default(),
            disks: Disks::default(),
            sockets,
        })
    }

    /// Waits for the end of a process.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<Ended, ContainerError> {
        self.process(id, exec)?.wait().await
    }

    /// Sends a signal to a process, or to every process of a container.
    pub(crate) fn signal(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let process = container.process(exec)?;
        if all {
            return container.signal_all(signal);
        }
        match process.state() {
            State::Created { pid } | State::Running { pid } => {
                self.reaper.signal(pid, signal)?;
                if signal == KILL && !exec.is_empty() {
                    session::kill(&container.cgroup, pid)?;
                }
                Ok(())
            }
            State::Added => Err(ContainerError::NotStarted { process: process.name() }),
            State::Ended(_) => Err(ContainerError::HasEnded { process: process.name() }),
        }
    }

    /// Pids of a container, in the guest's initial pid namespace.
    pub(crate) fn pids(&self, id: &str) -> Result<Vec<u32>, ContainerError> {
        Ok(self.find(id)?.cgroup.pids()?)
    }

    /// Statistics of a container. It has them until it is deleted, also after its end.
    pub(crate) fn stats(&self, id: &str) -> Result<StatsResponse, ContainerError> {
        let container = self.find(id)?;
        match cgroup::stats(&container.cgroup) {
            // It is being deleted.
            Err(_) if !container.cgroup.exists() => Ok(StatsResponse::default()),
            read => Ok(read?),
        }
    }

    /// Sets a container's limits from an OCI `linux.resources` object.
    pub(crate) fn update(&self, id: &str, resources: &[u8]) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let resources = serde_json::from_slice(resources)
            .map_err(|source| ContainerError::ParseResources { id: id.to_owned(), source })?;
        Ok(container.cgroup.update(&resources)?)
    }

    /// Sets the size of a process's terminal, in cells.
    pub(crate) fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<(), ContainerError> {
        self.process(id, exec)?.resize(width, height)
    }

    /// Waits until more than `seen` processes of a container were killed by the OOM killer, and returns how many.
    pub(crate) async fn wait_oom(&self, id: &str, seen: u64) -> Result<u64, ContainerError> {
        let container = self.find(id)?;
        let watch = OomWatch::new(&container.cgroup)?;
        let mut gone = container.gone.subscribe();
        drop(container);
        tokio::select! {
            count = watch.more_than(seen) => count.map_err(ContainerError::from),
            _ = gone.wait_for(|gone| *gone) => Err(ContainerError::NoContainer { id: id.to_owned() }),
        }
    }

    /// Freezes every process of a container.
    pub(crate) async fn pause(self: Arc<Self>, id: String) -> Result<(), ContainerError> {
        Ok(self.find(&id)?.cgroup.freeze(true, FREEZE_LIMIT).await?)
    }

    /// Thaws every process of a container.
    pub(crate) async fn resume(self: Arc<Self>, id: String) -> Result<(), ContainerError> {
        Ok(self.find(&id)?.cgroup.freeze(false, FREEZE_LIMIT).await?)
    }

    /// Ends every container: with SIGTERM first, if there is a grace period, then with SIGKILL.
    pub(crate) async fn end_all(&self, grace: Duration) {
        let all = Cgroup::all();
        if !all.exists() {
            return;
        }
        if !grace.is_zero() {
            for container in self.created() {
                let asked = container.init.state().pid().map(|pid| self.reaper.signal(pid, TERMINATE));
                tracing::debug!(container = container.id, ?asked, "asked to end");
            }
            if let Err(error) = all.wait_empty(grace).await {
                tracing::info!(%error, "killing what is left");
            }
        }
        if let Err(error) = all.kill() {
            tracing::warn!(error = %chain(&error), "the containers were not killed");
        }
        if let Err(error) = all.wait_empty(KILL_LIMIT).await {
            tracing::warn!(%error, "processes are left after the kill");
        }
    }

    fn created(&self) -> Vec<Arc<Container>> {
        let here = |entry: &Entry| match entry {
            Entry::Created(container) => Some(Arc::clone(container)),
            Entry::Creating => None,
        };
        self.lock().values().filter_map(here).collect()
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match self.lock().get(id) {
            Some(Entry::Created(container)) => Ok(Arc::clone(container)),
            Some(Entry::Creating) | None => Err(ContainerError::NoContainer { id: id.to_owned() }),
        }
    }

    fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, ContainerError> {
        self.find(id)?.process(exec)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    /// Its init process when `exec` is empty.
    fn process(&self, exec: &str) -> Result<Arc<Process>, ContainerError> {
        if exec.is_empty() { Ok(Arc::clone(&self.init)) } else { Ok(Arc::clone(&self.exec(exec)?.process)) }
    }

    fn exec(&self, exec: &str) -> Result<Arc<Exec>, ContainerError> {
        let unknown = || ContainerError::NoExec { id: self.id.clone(), exec: exec.to_owned() };
        self.execs().get(exec).cloned().ok_or_else(unknown)
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal_all(&self, signal: u32) -> Result<(), ContainerError> {
        if signal == KILL {
            return Ok(self.cgroup.kill()?);
        }
        for pid in self.cgroup.pids()? {
            match reaper::send(pid, signal) {
                Ok(()) | Err(SignalError::Ended { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Directory of a container's bundle.
fn bundle(id: &str) -> PathBuf {
    Path::new(DIR).join(id)
}

/// Checks an id: directories and cgroups get it as name.
fn check_id(id: &str) -> Result<(), ContainerError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-+".contains(&byte);
    let fits = !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(plain) && !id.starts_with('.');
    if fits { Ok(()) } else { Err(ContainerError::BadId { id: id.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_plain_path_component() {
        for good in ["c1", "a.b_c-d+e", &"f".repeat(LONGEST_ID)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".volumes", "a/b", "a b", "ä", "a\0", &"f".repeat(LONGEST_ID + 1)] {
            assert!(matches!(check_id(bad), Err(ContainerError::BadId { .. })), "{bad}");
        }
    }

    #[tokio::test]
    async fn calls_for_an_unknown_container_are_not_found() {
        let containers = Containers::new(Arc::default(), Arc::default(), Arc::default());
        assert!(matches!(containers.wait("c", "").await, Err(ContainerError::NoContainer { .. })));
        assert!(matches!(containers.signal("c", "", 9, true), Err(ContainerError::NoContainer { .. })));
        assert!(matches!(containers.pids("c"), Err(ContainerError::NoContainer { .. })));
        assert!(matches!(containers.wait_oom("c", 0).await, Err(ContainerError::NoContainer { .. })));
    }
}

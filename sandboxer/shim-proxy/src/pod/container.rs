//! What is kept in memory of a container.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::Mount;
use tokio::task::JoinHandle;

use super::process::{ContainerInfo, Process, ProcessRef};
use crate::host_sockets::HostSockets;
use crate::stdio;

/// How long streams of execs may take to deliver what has reached the host, once their container is forgotten.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// A container, owned by the pod: its init process and its execs.
#[derive(Debug)]
pub(super) struct Container {
    info: Arc<ContainerInfo>,
    init: Process,
    execs: HashMap<String, Process>,
    /// Whether subscribers have been told of an OOM kill in it.
    pub(super) oom_told: bool,
    /// Whether containerd is known to have given it up.
    pub(super) given_up: bool,
    /// The task that watches for OOM kills. It ends with the container.
    pub(super) oom_watch: Option<JoinHandle<()>>,
    /// The unix sockets of the host that it has, served as long as this is here.
    pub(super) sockets: Option<HostSockets>,
    /// Kept for the event of its creation.
    pub(super) rootfs: Vec<Mount>,
}

impl Container {
    /// A container that is about to be created.
    pub(super) fn new(id: String, bundle: String, rootfs: Vec<Mount>, stdio: stdio::Request) -> Self {
        Self {
            info: Arc::new(ContainerInfo { id, bundle }),
            init: Process::new(String::new(), stdio),
            execs: HashMap::new(),
            oom_told: false,
            given_up: false,
            oom_watch: None,
            sockets: None,
            rootfs,
        }
    }

    /// What never changes of it.
    pub(super) fn info(&self) -> &ContainerInfo {
        &self.info
    }

    /// Whether the reference is to a process of this container, and not of another one with the same id.
    pub(super) fn is_of(&self, process: &ProcessRef) -> bool {
        process.is_of(&self.info)
    }

    /// A reference to its init process.
    pub(super) fn init(&self) -> ProcessRef {
        self.init.reference(&self.info)
    }

    /// A reference to an exec by its id, to its init process for the empty id.
    pub(super) fn process(&self, exec: &str) -> Option<ProcessRef> {
        if exec.is_empty() {
            return Some(self.init());
        }
        self.execs.get(exec).map(|process| process.reference(&self.info))
    }

    /// References to its execs.
    pub(super) fn execs(&self) -> Vec<ProcessRef> {
        self.execs.values().map(|process| process.reference(&self.info)).collect()
    }

    /// References to its execs first, to its init process last.
    pub(super) fn processes(&self) -> Vec<ProcessRef> {
        let mut processes = self.execs();
        processes.push(self.init());
        processes
    }

    /// The pids of its living processes, the init process first. The pid of an ended init process stands for none: an
    /// empty list makes containerd give the container up (fact 6.3).
    pub(super) fn pids(&self) -> Vec<u32> {
        let all = [&self.init].into_iter().chain(self.execs.values());
        let mut pids: Vec<_> =
            all.filter(|process| process.is_alive()).map(|process| process.state().pid()).collect();
        let init = self.init.state().pid();
        if pids.is_empty() && init > 0 {
            pids.push(init);
        }
        pids
    }

    /// The process that is referred to, unless it has been forgotten.
    pub(super) fn process_mut(&mut self, process: &ProcessRef) -> Option<&mut Process> {
        let known =
            if process.is_init() { Some(&mut self.init) } else { self.execs.get_mut(process.exec_id()) };
        known.filter(|known| known.is(process))
    }

    /// Adds an exec that is about to be created; none when the id is in use.
    pub(super) fn add_exec(&mut self, exec: &str, stdio: stdio::Request) -> Option<ProcessRef> {
        if self.execs.contains_key(exec) {
            return None;
        }
        let process = Process::new(exec.to_owned(), stdio);
        let reference = process.reference(&self.info);
        self.execs.insert(exec.to_owned(), process);
        Some(reference)
    }

    /// Forgets an exec, with its streams.
    pub(super) fn forget_exec(&mut self, process: &ProcessRef) {
        if self.execs.get(process.exec_id()).is_some_and(|known| known.is(process)) {
            self.execs.remove(process.exec_id());
        }
    }

    /// Ends what runs for the container. Streams of its execs, which are cut, still deliver what has reached the host.
    pub(super) fn end(mut self) {
        if let Some(watch) = self.oom_watch.take() {
            watch.abort();
        }
        for mut streams in self.execs.into_values().filter_map(|exec| exec.streams) {
            tokio::spawn(async move { streams.finished(STREAM_TIMEOUT).await });
        }
    }
}

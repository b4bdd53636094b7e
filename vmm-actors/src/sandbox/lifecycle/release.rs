//! The way down: everything a sandbox owns is given back, in the reverse order of its making.
//!
//! Each step is idempotent and goes by the record, so that the same way serves Stop, Shutdown, the undoing of a
//! start, and a successor that finds what a crash left. Each has a deadline, so that nothing that hangs keeps a caller
//! waiting: all of them together stay below the two minutes that kubelet gives a call. A step that fails or is late does
//! not keep the next from running.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use actix::{Handler, Message};
use bulkhead_protocol::KILLED_STATUS;
use bulkhead_protocol::error::chain;
use tokio::time::timeout;
use tracing::{Span, debug, warn};

use super::state::Cause;
use crate::ask::ask;
use crate::containers::Containers;
use crate::host::dir::{self, DirError};
use crate::sandbox::children::Children;
use crate::sandbox::record::{Nanos, Record};
use crate::trace::{self, Step};
use crate::{agent, cgroup, containers, mounts, network, shim, virtiofsd, vm};

/// How long the agent may take to answer that it heard of the end.
const AGENT_HEARS: Duration = Duration::from_secs(2);
/// How long the shim proxy may take for an answer from memory. One that is late is not waited for again.
const SHIM_ANSWERS: Duration = Duration::from_secs(2);
/// How long the guest may take to sync and power off before the VMM is killed.
const GUEST_ENDS: Duration = Duration::from_secs(10);
/// How long any other step may take. An owner of a process needs up to 14 s to find that SIGKILL does not end it.
const STEP: Duration = Duration::from_secs(15);

/// How much is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum Scope {
    /// The VM and all it used. A shim proxy that still answers for containers stays, with cgroup and directory:
    /// containerd fetches their exit from it.
    Stop,
    /// Everything.
    Everything,
}

/// All the way down needs, so that the future borrows nothing of the actor.
pub(in crate::sandbox) struct Release {
    pub(in crate::sandbox) children: Children,
    pub(in crate::sandbox) record: Record,
    pub(in crate::sandbox) scope: Scope,
    pub(in crate::sandbox) cause: Option<Cause>,
    pub(in crate::sandbox) ended_at: Nanos,
    /// The span of the call that it is for.
    pub(in crate::sandbox) call: Span,
}

impl Release {
    /// Goes all the way; answers with what could not be released, a line each.
    pub(in crate::sandbox) async fn run(mut self) -> Vec<String> {
        let step = Step::begin(&self.call, "release the sandbox");
        step.span().record("sandbox.id", self.record.id.as_str());
        self.call = step.span().clone();
        let left = self.parts().await;
        if left.is_empty() {
            step.succeeded()
        } else {
            step.failed(&left.join("; "))
        }
        left
    }

    async fn parts(&self) -> Vec<String> {
        let mut left = Vec::new();
        self.tell_containers(containers::Close).await;
        let grace = self.end_guest().await;
        let shim = self.tell_shim().await;
        let vm = ask(&self.children.vm, vm::Shutdown { grace });
        left.note("the VM", self.step("the VM", grace + STEP, vm).await);
        let virtiofsd = ask(&self.children.virtiofsd, virtiofsd::Kill);
        let network = ask(&self.children.network, network::Release);
        let (virtiofsd, network) =
            tokio::join!(self.step("virtiofsd", STEP, virtiofsd), self.step("network", STEP, network));
        left.note("virtiofsd", virtiofsd);
        left.note("network", network);
        let mounts = ask(&self.children.mounts, mounts::Close);
        left.note("mounts", self.step("mounts", STEP, mounts).await);
        if self.scope == Scope::Everything || self.is_idle(shim).await {
            self.release_last(&mut left).await;
        }
        self.tell_containers(containers::Forget).await;
        left
    }

    /// What a shim proxy needs that still answers for containers, and itself.
    async fn release_last(&self, left: &mut Vec<String>) {
        let shim = ask(&self.children.shim, shim::Shutdown);
        left.note("the shim proxy", self.step("the shim proxy", STEP, shim).await);
        let cgroup = ask(&self.children.cgroup, cgroup::Delete);
        let of_vm = self.record.vm_dir();
        let (cgroup, vm_directory, directory) = tokio::join!(
            self.step("cgroup", STEP, cgroup),
            self.step("directory of the VM", STEP, remove_directory(of_vm.path())),
            self.step("directory", STEP, remove_directory(self.record.dir.path())),
        );
        left.note("cgroup", cgroup);
        left.note("directory of the VM", vm_directory);
        left.note("directory", directory);
    }

    /// One step, with its deadline and its span.
    async fn step<T, E: Error + 'static>(
        &self,
        name: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, StepError<E>> {
        trace::step(&self.call, name, in_time(deadline, work)).await
    }

    /// What it is told must not be lost: it waits for room in the mailbox, which nothing there keeps from being read.
    async fn tell_containers<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Containers: Handler<M>,
    {
        if self.children.containers.send(message).await.is_err() {
            debug!("the containers' actor has ended before its sandbox");
        }
    }

    /// A guest that still answers ends its containers, syncs and powers off; one that does not is not waited for.
    /// Answers how long the VMM has to end by itself.
    async fn end_guest(&self) -> Duration {
        let asked = ask(&self.children.agent, agent::Shutdown { grace: Duration::ZERO });
        match self.step("tell the guest", AGENT_HEARS, asked).await {
            Ok(()) => return GUEST_ENDS,
            Err(StepError::Failed(failed)) => {
                debug!(error = chain(&failed), "the guest was not told of its end");
            }
            Err(StepError::Late(waited)) => {
                warn!(?waited, "the guest did not hear of its end; killing its VM");
            }
        }
        Duration::ZERO
    }

    /// Ends every Wait on a container of the pod.
    async fn tell_shim(&self) -> Hearing {
        let reason = self.cause.as_ref().map_or_else(String::new, |cause| cause.reason.clone());
        let exited_at = self.ended_at.0;
        let gone = shim::VmGone { exit_status: KILLED_STATUS, exited_at_nanos: exited_at, reason };
        let told = ask(&self.children.shim, gone);
        match self.step("tell the shim proxy", SHIM_ANSWERS, told).await {
            Ok(()) => Hearing::Hears,
            Err(StepError::Failed(failed)) => {
                debug!(error = chain(&failed), "the shim proxy was not told of the VM's end");
                Hearing::Gone
            }
            Err(StepError::Late(waited)) => {
                warn!(?waited, "the shim proxy does not hear of the VM's end");
                Hearing::Hangs
            }
        }
    }

    /// Whether the shim proxy has nothing that containerd may still ask for. One that hangs may have.
    async fn is_idle(&self, shim: Hearing) -> bool {
        match shim {
            Hearing::Gone => return true,
            Hearing::Hangs => return false,
            Hearing::Hears => {}
        }
        let asked = ask(&self.children.shim, shim::Observe);
        match timeout(SHIM_ANSWERS, asked).await {
            Ok(Ok(view)) => view.containers.is_empty(),
            Ok(Err(failed)) => {
                debug!(error = chain(&failed), "the shim proxy does not say what it has");
                true
            }
            Err(_late) => false,
        }
    }
}

async fn remove_directory(path: &Path) -> Result<(), DirError> {
    let owned = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || dir::remove(&owned)).await;
    let failed = |panic| DirError::Remove { path: path.to_owned(), source: std::io::Error::other(panic) };
    removed.unwrap_or_else(|panic| Err(failed(panic)))
}

/// Whether a shim proxy can be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    /// It answers.
    Hears,
    /// It runs and does not answer.
    Hangs,
    /// It has ended, or takes no calls.
    Gone,
}

/// Why a step did not get to its end.
#[derive(Debug, thiserror::Error)]
enum StepError<E: Error + 'static> {
    #[error(transparent)]
    Failed(E),
    #[error("not done after {0:?}; it goes on, and waits for something that does not answer")]
    Late(Duration),
}

async fn in_time<T, E: Error + 'static>(
    deadline: Duration,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, StepError<E>> {
    match timeout(deadline, step).await {
        Ok(done) => done.map_err(StepError::Failed),
        Err(_late) => Err(StepError::Late(deadline)),
    }
}

/// Collects what could not be released.
trait Note {
    fn note<T, E: Error + 'static>(&mut self, what: &str, outcome: Result<T, E>);
}

impl Note for Vec<String> {
    fn note<T, E: Error + 'static>(&mut self, what: &str, outcome: Result<T, E>) {
        if let Err(failed) = outcome {
            self.push(format!("{what}: {}", chain(&failed)));
        }
    }
}

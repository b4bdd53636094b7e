//! The VM behind the pod: it is attached once, watched to its end, and everything of the pod ends with it.

use std::path::Path;
use std::sync::Arc;

use bulkhead_protocol::error::chain;
use bulkhead_protocol::shim::AttachRequest;
use tracing::{info, warn};

use super::{Pod, PodHandle, killed_now};
use crate::error::TaskError;
use crate::guest::vmm::{Vmm, WatchError};
use crate::lifecycle::{Event, Exit};
use crate::portforward::{self, PortForward};
use crate::runtime::owner::Message;
use crate::runtime::shared_task::SharedTask;

/// What the pod has of its VM.
#[derive(Debug, Default)]
pub(super) struct Vm {
    /// Whether the sandboxer has named the VMM.
    is_watched: bool,
    vmm: Option<Arc<Vmm>>,
    forwarding: Forwarding,
}

/// Port-forward into the guest.
#[derive(Debug, Default)]
enum Forwarding {
    #[default]
    Closed,
    Open(PortForward),
    Closing(SharedTask<()>),
}

/// Why a VM is not attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// It comes too late.
    #[error("the VM of this pod is gone")]
    VmGone,
    /// The request names no socket.
    #[error("attach needs the path of the vsock socket")]
    NoVsock,
    /// The process that the request names cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

impl PodHandle {
    /// The VM is up: opens the session with its agent, watches its VMM, and forwards ports. Idempotent.
    ///
    /// # Errors
    /// [`AttachError`] within, [`TaskError::Crashed`].
    pub(crate) async fn attach(&self, request: AttachRequest) -> Result<Result<(), AttachError>, TaskError> {
        self.ask(Attach(request)).await
    }

    /// The VM has ended, and so has everything in it. Only the first call counts. When this returns, nothing of ours is
    /// open in the pod's network namespace.
    ///
    /// # Errors
    /// [`TaskError::Crashed`].
    pub(crate) async fn vm_gone(&self, exit: Exit, reason: Arc<str>) -> Result<(), TaskError> {
        match self.ask(VmGone { exit, reason }).await? {
            Some(closing) => closing.join().await,
            None => Ok(()),
        }
    }

    /// The VM ends now, by a kill or with the pod. As [`PodHandle::vm_gone`].
    ///
    /// # Errors
    /// [`TaskError::Crashed`].
    pub(crate) async fn vm_killed(&self, reason: &str) -> Result<(), TaskError> {
        self.vm_gone(killed_now(), reason.into()).await
    }

    /// The VMM, if the sandboxer has named it.
    pub(super) async fn vmm(&self) -> Option<Arc<Vmm>> {
        self.ask(GetVmm).await.ok().flatten()
    }
}

struct Attach(AttachRequest);

impl Message<Pod> for Attach {
    type Answer = Result<(), AttachError>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.attach(&self.0)
    }
}

struct VmGone {
    exit: Exit,
    reason: Arc<str>,
}

impl Message<Pod> for VmGone {
    type Answer = Option<SharedTask<()>>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.vm_gone(self.exit, &self.reason);
        pod.vm.forwarding.close()
    }
}

struct GetVmm;

impl Message<Pod> for GetVmm {
    type Answer = Option<Arc<Vmm>>;
    fn handle(self, pod: &mut Pod) -> Self::Answer {
        pod.vm.vmm.clone()
    }
}

impl Pod {
    fn attach(&mut self, request: &AttachRequest) -> Result<(), AttachError> {
        if self.handle.links.agent.gone().is_some() {
            return Err(AttachError::VmGone);
        }
        if request.vsock.is_empty() {
            return Err(AttachError::NoVsock);
        }
        if request.vmm_pid == 0 {
            warn!("attached without the VMM's pid: its end shows only when its sockets close");
        } else if !std::mem::replace(&mut self.vm.is_watched, true) {
            self.watch_vmm(request.vmm_pid, request.vmm_start_time)?;
        }
        info!(vmm = request.vmm_pid, vsock = request.vsock, "attached");
        let vsock: Arc<Path> = Path::new(&request.vsock).into();
        self.open_session(vsock.clone());
        if matches!(self.vm.forwarding, Forwarding::Closed) && self.handle.links.agent.gone().is_none() {
            self.vm.forwarding = match portforward::open_or_log(&request.netns, &vsock) {
                Some(forward) => Forwarding::Open(forward),
                None => Forwarding::Closed,
            };
        }
        Ok(())
    }

    fn watch_vmm(&mut self, pid: u32, start_time: u64) -> Result<(), WatchError> {
        let vmm = match Vmm::open(pid, start_time) {
            Ok(vmm) => Arc::new(vmm),
            Err(error) => {
                self.vm_gone(killed_now(), &chain(&error).into());
                return Err(error);
            }
        };
        self.vm.vmm = Some(vmm.clone());
        let pod = self.handle.clone();
        tokio::spawn(async move {
            vmm.ended().await;
            pod.vm_killed("the VMM process has ended").await
        });
        Ok(())
    }

    fn open_session(&self, vsock: Arc<Path>) {
        let pod = self.handle.clone();
        if pod.links.agent.begin_dialling() {
            tokio::spawn(async move {
                let reason = pod.links.agent.keep(vsock).await;
                pod.vm_gone(killed_now(), reason).await
            });
        }
    }

    fn vm_gone(&mut self, exit: Exit, reason: &Arc<str>) {
        if !self.handle.links.agent.set_gone(exit, reason) {
            return;
        }
        info!(reason = &**reason, status = exit.status, "the VM is gone");
        drop(self.vm.forwarding.close());
        for container in self.containers.values_mut() {
            container.sockets = None;
        }
        for process in self.processes() {
            if let Some(known) = self.process_mut(&process) {
                known.cut_streams();
            }
            self.note(&process, Event::Ended(exit));
        }
    }
}

impl Forwarding {
    /// Closes it, for good; every caller can wait for the same end.
    fn close(&mut self) -> Option<SharedTask<()>> {
        *self = match std::mem::take(self) {
            Self::Open(forward) => Self::Closing(SharedTask::spawn(async move {
                forward.close().await;
                Ok(())
            })),
            other @ (Self::Closed | Self::Closing(_)) => other,
        };
        match self {
            Self::Closing(closing) => Some(closing.clone()),
            Self::Closed | Self::Open(_) => None,
        }
    }
}

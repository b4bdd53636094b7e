//! What the sandboxer asks of the proxy.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_protocol::host::EXIT_KILLED;
use bulkhead_protocol::pod::{Nothing, Version};
use bulkhead_protocol::shim::{AttachRequest, ContainerView, ObserveResponse, VmGoneRequest};
use bulkhead_protocol::shim_ttrpc::Shim;
use bulkhead_protocol::version;
use tracing::{info, warn};
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use crate::error::chain;
use crate::guest::vmm::Vmm;
use crate::lifecycle::Exit;
use crate::pod::{Container, Pod};
use crate::runtime::clock;

/// The service, over the pod.
#[derive(Debug)]
pub(crate) struct ShimService(pub(crate) Arc<Pod>);

fn refused(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

fn killed_now() -> Exit {
    Exit { status: EXIT_KILLED, at_nanos: clock::now_nanos() }
}

#[async_trait]
impl Shim for ShimService {
    async fn hello(&self, _: &TtrpcContext, theirs: Version) -> ttrpc::Result<Version> {
        version::negotiate(theirs.min_version, theirs.max_version)
            .map_err(|error| refused(Code::FAILED_PRECONDITION, error))?;
        Ok(version::pod_hello())
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<Nothing> {
        if self.0.agent.gone().is_some() {
            return Err(refused(Code::FAILED_PRECONDITION, "the VM of this pod is gone"));
        }
        if request.vsock.is_empty() {
            return Err(refused(Code::INVALID_ARGUMENT, "attach needs the path of the vsock socket"));
        }
        if request.vmm_pid == 0 {
            warn!("attached without the VMM's pid: its end shows only when its sockets close");
        } else if self.0.watch_vmm() {
            match Vmm::open(request.vmm_pid, request.vmm_start_time) {
                Ok(vmm) => drop(tokio::spawn(watch_vmm(self.0.clone(), self.0.hold_vmm(vmm)))),
                Err(error) => {
                    let text = chain(&error);
                    self.0.vm_gone(killed_now(), &text.as_str().into());
                    return Err(refused(Code::FAILED_PRECONDITION, text));
                }
            }
        }
        info!(vmm = request.vmm_pid, vsock = request.vsock, "attached");
        let vsock = Path::new(&request.vsock);
        self.0.attach(vsock);
        self.0.open_forward(&request.netns, vsock).await;
        Ok(Nothing::new())
    }

    async fn vm_gone(&self, _: &TtrpcContext, request: VmGoneRequest) -> ttrpc::Result<Nothing> {
        let at_nanos = if request.exited_at_nanos > 0 { request.exited_at_nanos } else { clock::now_nanos() };
        let reason = if request.reason.is_empty() { "the sandboxer ended it" } else { &request.reason };
        self.0.vm_gone(Exit { status: request.exit_status.min(255), at_nanos }, &reason.into());
        // The sandboxer lets containerd remove the network namespace once this is answered.
        self.0.close_forward().await;
        Ok(Nothing::new())
    }

    async fn observe(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<ObserveResponse> {
        Ok(ObserveResponse {
            containers: self.0.containers().iter().map(view).collect(),
            open_connections: u32::try_from(self.0.callers.count()).unwrap_or(u32::MAX),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<Nothing> {
        self.0.vm_gone(killed_now(), &"the pod is being removed".into());
        self.0.close_forward().await;
        self.0.shutdown.notify_one();
        Ok(Nothing::new())
    }
}

async fn watch_vmm(pod: Arc<Pod>, vmm: Arc<Vmm>) {
    vmm.ended().await;
    pod.vm_gone(killed_now(), &"the VMM process has ended".into());
}

fn view(container: &Arc<Container>) -> ContainerView {
    let mut everything = container.everything();
    everything.pop();
    let init = container.at_init().process;
    let state = init.state();
    let exit = state.exit();
    ContainerView {
        container_id: container.id.clone(),
        status: state.name().to_owned(),
        pid: state.pid(),
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at_nanos: exit.map_or(0, |exit| exit.at_nanos),
        bundle: container.bundle.clone(),
        execs: everything.into_iter().map(|at| at.process.exec.clone()).collect(),
        ..Default::default()
    }
}

//! The calls of the sandboxer.

use async_trait::async_trait;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::pod::{Nothing, Version};
use bulkhead_protocol::shim::{AttachRequest, ObserveResponse, VmGoneRequest};
use bulkhead_protocol::shim_ttrpc::Shim;
use bulkhead_protocol::version;
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use crate::error::TaskError;
use crate::guest::answers::MAX_STATUS;
use crate::lifecycle::Exit;
use crate::pod::{AttachError, PodHandle};
use crate::runtime::clock;

/// The service.
#[derive(Debug)]
pub(crate) struct ShimService(pub(crate) PodHandle);

fn refused(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

fn code(error: &AttachError) -> Code {
    match error {
        AttachError::VmGone | AttachError::Watch(_) => Code::FAILED_PRECONDITION,
        AttachError::NoVsock => Code::INVALID_ARGUMENT,
    }
}

#[async_trait]
impl Shim for ShimService {
    async fn hello(&self, _: &TtrpcContext, theirs: Version) -> ttrpc::Result<Version> {
        version::negotiate(theirs.min_version, theirs.max_version)
            .map_err(|error| refused(Code::FAILED_PRECONDITION, error))?;
        Ok(version::pod_hello())
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<Nothing> {
        let attached = self.0.attach(request).await.map_err(|error| error.status())?;
        attached.map_err(|error| refused(code(&error), chain(&error)))?;
        Ok(Nothing::new())
    }

    /// The sandboxer lets containerd remove the network namespace once this is answered.
    async fn vm_gone(&self, _: &TtrpcContext, request: VmGoneRequest) -> ttrpc::Result<Nothing> {
        let at_nanos = if request.exited_at_nanos > 0 { request.exited_at_nanos } else { clock::now_nanos() };
        let reason = if request.reason.is_empty() { "the sandboxer ended it" } else { &request.reason };
        let exit = Exit { status: request.exit_status.min(MAX_STATUS), at_nanos };
        self.0.vm_gone(exit, reason.into()).await.map_err(|error| error.status())?;
        Ok(Nothing::new())
    }

    async fn observe(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<ObserveResponse> {
        self.0.observe().await.map_err(|error| error.status())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<Nothing> {
        let ended: Result<(), TaskError> = self.0.vm_killed("the pod is being removed").await;
        // Whatever could not be ended ends with this process.
        self.0.links().shutdown.notify_one();
        ended.map_err(|error| error.status())?;
        Ok(Nothing::new())
    }
}

//! CRI's `UpdatePodSandboxResources`, which the crate of CRI's messages does not have yet: one message, one call.

use k8s_cri::v1::LinuxContainerResources;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{GrpcMethod, Request, Status};
use tonic_prost::ProstCodec;

use crate::cri::{Cri, within};

/// `runtime.v1.UpdatePodSandboxResourcesRequest` (cri-api 0.33 and later, `api.proto`).
#[derive(Clone, PartialEq, prost::Message)]
struct UpdateRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    overhead: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "3")]
    resources: Option<LinuxContainerResources>,
}

/// `runtime.v1.UpdatePodSandboxResourcesResponse`, which is empty.
#[derive(Clone, PartialEq, prost::Message)]
struct UpdateResponse {}

const SERVICE: &str = "runtime.v1.RuntimeService";
const METHOD: &str = "UpdatePodSandboxResources";

impl Cri {
    /// Gives a running pod other limits, as kubelet does when it is resized in place.
    pub async fn try_resize_pod(&self, id: &str, resources: LinuxContainerResources) -> Result<(), Status> {
        let mut client = tonic::client::Grpc::new(self.channel());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let update =
            UpdateRequest { pod_sandbox_id: id.to_owned(), overhead: None, resources: Some(resources) };
        let mut request: Request<UpdateRequest> = within(update);
        request.extensions_mut().insert(GrpcMethod::new(SERVICE, METHOD));
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/UpdatePodSandboxResources");
        let codec: ProstCodec<UpdateRequest, UpdateResponse> = ProstCodec::default();
        client.unary(request, path, codec).await.map(drop)
    }
}

//! Generates the gRPC server of `containerd.services.sandbox.v1.Controller` over the message types of
//! `containerd-client`, so that no `.proto` file has to be kept here.

use tonic_build::manual::{Builder, Method, Service};

/// The nine calls, as Rust and as the wire spell them.
const CALLS: [(&str, &str); 9] = [
    ("create", "Create"),
    ("start", "Start"),
    ("platform", "Platform"),
    ("stop", "Stop"),
    ("wait", "Wait"),
    ("status", "Status"),
    ("shutdown", "Shutdown"),
    ("metrics", "Metrics"),
    ("update", "Update"),
];

fn main() {
    let messages = "containerd_client::services::v1::sandbox";
    let service = CALLS
        .iter()
        .fold(
            Service::builder().name("Controller").package("containerd.services.sandbox.v1"),
            |service, call| {
                let (name, route) = call;
                service.method(
                    Method::builder()
                        .name(name)
                        .route_name(route)
                        .input_type(format!("{messages}::Controller{route}Request"))
                        .output_type(format!("{messages}::Controller{route}Response"))
                        .codec_path("tonic_prost::ProstCodec")
                        .build(),
                )
            },
        )
        .build();
    Builder::new().build_client(false).compile(&[service]);
}

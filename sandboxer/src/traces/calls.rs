//! Spans of the calls that are served, below the span that the caller names in the call's metadata (W3C Trace Context).
//! Their attributes are those of OpenTelemetry's conventions for RPC, and `sandbox.id` as containerd's own spans have it.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::codegen::http::HeaderMap;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use ttrpc::r#async::TtrpcContext;
use vmm_actors::PodSpec;
use vmm_actors::trace::{TARGET, current};

/// Answers when the sandbox has ended, which may be in a year: a span of that length tells nothing.
const ENDLESS: &str = "Wait";

/// The span of a call of containerd's.
pub(crate) fn of_controller(method: &str, metadata: &HeaderMap) -> Span {
    if method == ENDLESS {
        return Span::none();
    }
    let span = info_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = %format_args!("sandbox.{method}"),
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = "containerd.services.sandbox.v1.Controller",
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        sandbox.id = Empty,
        k8s.namespace.name = Empty,
        k8s.pod.name = Empty,
        k8s.pod.uid = Empty,
        otel.status_description = Empty,
    );
    below_caller(&span, &Headers(metadata));
    span
}

/// Serves a call of a shim proxy's, about a sandbox and one of its containers, within a span.
pub(crate) async fn of_shim_proxy<T>(
    context: &TtrpcContext,
    method: &str,
    (sandbox, container): (String, String),
    work: impl Future<Output = ttrpc::Result<T>>,
) -> ttrpc::Result<T> {
    let span = info_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = %format_args!("pod.{method}"),
        otel.kind = "server",
        rpc.system = "ttrpc",
        rpc.service = "bulkhead.pod.v1.Pod",
        rpc.method = method,
        rpc.ttrpc.status_code = Empty,
        sandbox.id = sandbox,
        container.id = container,
        otel.status_description = Empty,
    );
    below_caller(&span, &Metadata(&context.metadata));
    let answer = work.instrument(span.clone()).await;
    let (code, failure) = match &answer {
        Ok(_) => (ttrpc::Code::OK, None),
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), Some(status.message().to_owned())),
        Err(other) => (ttrpc::Code::UNKNOWN, Some(other.to_string())),
    };
    span.record("rpc.ttrpc.status_code", code as i32);
    if code != ttrpc::Code::NOT_FOUND {
        span.record("otel.status_description", failure);
    }
    answer
}

/// Has the pod's names in the span of its Create.
pub(crate) fn name_pod(pod: &PodSpec) {
    let span = current();
    span.record("k8s.namespace.name", &pod.namespace);
    span.record("k8s.pod.name", &pod.name);
    span.record("k8s.pod.uid", &pod.uid);
}

/// The call that is being served, for calls that follow from it. Invalid outside of one.
pub(crate) fn reference() -> SpanContext {
    current().context().span().span_context().clone()
}

/// Notes what the call that is being served follows from: unlike a child it may be in another trace.
pub(crate) fn follows(cause: SpanContext) {
    current().add_link(cause);
}

fn below_caller(span: &Span, metadata: &dyn Extractor) {
    if span.is_disabled() {
        return;
    }
    let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), metadata);
    if let Err(error) = span.set_parent(caller) {
        tracing::debug!(%error, "a call is not seen in its caller's trace");
    }
}

/// Metadata of a gRPC call.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

/// Metadata of a ttrpc call.
struct Metadata<'a>(&'a HashMap<String, Vec<String>>);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceId};

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn extracted(metadata: &dyn Extractor) -> SpanContext {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), metadata);
        context.span().span_context().clone()
    }

    fn expect_parent(found: &SpanContext) {
        assert_eq!(found.trace_id(), TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128));
        assert_eq!(found.span_id(), SpanId::from(0xb7ad_6b71_6920_3331_u64));
        assert!(found.is_remote() && found.is_sampled());
        assert_eq!(found.trace_state().get("vendor"), Some("a"));
    }

    #[test]
    fn the_caller_is_found_in_the_metadata_of_grpc_and_of_ttrpc() {
        let headers =
            [("traceparent", PARENT), ("tracestate", "vendor=a"), ("containerd-namespace", "k8s.io")];
        let headers = headers.map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap()));
        expect_parent(&extracted(&Headers(&HeaderMap::from_iter(headers))));
        let metadata =
            [("traceparent", PARENT), ("tracestate", "vendor=a"), ("containerd-namespace-ttrpc", "k8s.io")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        expect_parent(&extracted(&Metadata(&HashMap::from(metadata))));
    }

    #[test]
    fn what_is_no_context_is_none() {
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        for bad in
            ["", "00", "00-xyz-1-01", &PARENT[..35], &zero_trace, &zero_span, &PARENT.replacen("00", "ff", 1)]
        {
            let metadata = HashMap::from([("traceparent".to_owned(), vec![bad.to_owned()])]);
            assert!(!extracted(&Metadata(&metadata)).is_valid(), "{bad:?}");
        }
        assert!(!extracted(&Metadata(&HashMap::from([("traceparent".to_owned(), Vec::new())]))).is_valid());
        let binary = HeaderMap::from_iter([("traceparent".parse().unwrap(), "\u{fe}".parse().unwrap())]);
        assert!(!extracted(&Headers(&binary)).is_valid());
    }

    #[test]
    fn what_never_ends_has_no_span() {
        assert!(of_controller(ENDLESS, &HeaderMap::new()).is_none());
    }
}

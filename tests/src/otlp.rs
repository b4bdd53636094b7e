//! An OpenTelemetry collector that keeps what it is sent: OTLP over gRPC.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as wire, span::SpanKind};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use crate::wait;

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Span {
    /// Attributes of who made it, values as text.
    pub resource: BTreeMap<String, String>,
    /// Id of its trace, in hexadecimal digits as in `traceparent`.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// Id of its parent; empty for a root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Whether it serves a call.
    pub is_server: bool,
    /// Attributes, values as text.
    pub attributes: BTreeMap<String, String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Trace and span of what it follows from.
    pub links: Vec<(String, String)>,
    /// When it began, in nanoseconds since 1970.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
}

impl Span {
    /// Name of the service that made it.
    #[must_use]
    pub fn service(&self) -> &str {
        self.resource.get("service.name").map_or("", String::as_str)
    }

    /// An attribute; empty if it has none.
    #[must_use]
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// Whether `parent` is its parent.
    #[must_use]
    pub fn is_below(&self, parent: &Self) -> bool {
        (&self.trace, &self.parent) == (&parent.trace, &parent.id)
    }
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    kept: Kept,
    server: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Collector {
    /// Listens on a unix socket.
    #[must_use]
    pub fn on_socket(path: &Path) -> Self {
        let listener = tokio::net::UnixListener::bind(path).expect("bind the collector's socket");
        Self::serve(|router| async { router.serve_with_incoming(UnixListenerStream::new(listener)).await })
    }

    /// Listens on what was bound.
    #[must_use]
    pub fn on(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).expect("let the listener not block");
        let listener = tokio::net::TcpListener::from_std(listener).expect("take the listener over");
        Self::serve(|router| async { router.serve_with_incoming(TcpListenerStream::new(listener)).await })
    }

    fn serve<F>(serve: impl FnOnce(Router) -> F) -> Self
    where
        F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        let kept = Kept::default();
        let served = serve(Server::builder().add_service(TraceServiceServer::new(kept.clone())));
        let server = tokio::spawn(async { served.await.expect("serve the collector") });
        Self { kept, server }
    }

    /// Everything so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.kept.0.lock().unwrap().clone()
    }

    /// Waits for a span.
    pub async fn expect(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        let found =
            wait::until(Duration::from_secs(30), async || self.spans().into_iter().find(&is_it)).await;
        found.unwrap_or_else(|| panic!("no span {what} came, but {:#?}", self.spans()))
    }

    /// The children of a span by name.
    #[must_use]
    pub fn children(&self, parent: &Span) -> BTreeMap<String, Span> {
        let children = self.spans().into_iter().filter(|span| span.is_below(parent));
        children.map(|span| (span.name.clone(), span)).collect()
    }
}

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap();
        for group in request.into_inner().resource_spans {
            let resource = attributes(group.resource.unwrap_or_default().attributes);
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| seen(resource.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn seen(resource: BTreeMap<String, String>, span: wire::Span) -> Span {
    let status = span.status.clone().unwrap_or_default();
    Span {
        resource,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        is_server: span.kind() == SpanKind::Server,
        attributes: attributes(span.attributes),
        error: (status.code() == StatusCode::Error).then_some(status.message),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        begin: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        name: span.name,
    }
}

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    all.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

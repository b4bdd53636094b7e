//! A span around each call, made and named by whoever serves; see [`SpanOf`].

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

/// Makes the span of a call from the call's name (`Create`) and its gRPC metadata. The call is served within it, and
/// these of its fields are recorded: `sandbox.id`; `rpc.grpc.status_code`
/// (<https://grpc.io/docs/guides/status-codes/>; 1, cancelled, when the client left before the answer); and why it
/// failed in `otel.status_description`, but for "there is no such sandbox", which is an everyday answer.
pub type SpanOf = fn(&str, &HeaderMap) -> Span;

/// Field for the sandbox's id.
pub(crate) const SANDBOX: &str = "sandbox.id";
/// Field for the gRPC status code.
const STATUS: &str = "rpc.grpc.status_code";
/// Field for the reason of a failure.
const FAILURE: &str = "otel.status_description";

/// Puts [`Traced`] around a service.
#[derive(Clone)]
pub(crate) struct Tracing(pub(crate) SpanOf);

impl<S> Layer<S> for Tracing {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Traced { inner, span_of: self.0 }
    }
}

/// A service whose every call has a span.
#[derive(Clone)]
pub(crate) struct Traced<S> {
    inner: S,
    span_of: SpanOf,
}

impl<S, Asked, Answered> Service<Request<Asked>> for Traced<S>
where
    S: Service<Request<Asked>, Response = Response<Answered>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Answered: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, ctx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(ctx)
    }

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let span = (self.span_of)(name, request.headers());
        let answer = span.in_scope(|| self.inner.call(request));
        if span.is_disabled() {
            return answer.boxed();
        }
        let mut call = Call { span: span.clone(), is_answered: false };
        let answer = async move {
            let answer = answer.await;
            if let Ok(response) = &answer {
                call.answered(response.headers());
            }
            answer
        };
        answer.instrument(span).boxed()
    }
}

/// A call that is being served.
struct Call {
    span: Span,
    is_answered: bool,
}

impl Call {
    /// A failed unary call has its status before its body, a successful one behind it.
    fn answered(&mut self, headers: &HeaderMap) {
        self.is_answered = true;
        let status = Status::from_header_map(headers).unwrap_or_else(|| Status::ok(""));
        self.span.record(STATUS, i32::from(status.code()));
        if !matches!(status.code(), Code::Ok | Code::NotFound) {
            self.span.record(FAILURE, status.message());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_answered {
            self.span.record(STATUS, i32::from(Code::Cancelled));
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::fmt::Debug;
    use std::future::{pending, ready};
    use std::sync::{Arc, Mutex};

    use tower::{Layer as _, service_fn};
    use tracing::field::{Empty, Field, Visit};
    use tracing::info_span;
    use tracing::span::{Attributes, Id, Record};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry;

    use super::*;

    /// Fields of spans in the order in which they were recorded.
    #[derive(Clone, Default)]
    struct Fields(Arc<Mutex<Vec<(&'static str, String)>>>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0.lock().unwrap().push((field.name(), format!("{value:?}")));
        }
    }

    impl<S: tracing::Subscriber> Layer<S> for Fields {
        fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            attributes.record(&mut self.clone());
        }

        fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
            values.record(&mut self.clone());
        }
    }

    fn span_of(name: &str, metadata: &HeaderMap) -> Span {
        let caller = metadata.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        info_span!("call", name, caller, rpc.grpc.status_code = Empty, otel.status_description = Empty)
    }

    /// What is recorded of a call that is answered so, or is never answered and left.
    fn recorded(answer: Option<Status>) -> Vec<(&'static str, String)> {
        let fields = Fields::default();
        tracing::subscriber::with_default(registry().with(fields.clone()), || {
            let inner = service_fn(move |_: Request<()>| {
                let answer = answer.clone().map(|status| status.into_http::<()>());
                async move {
                    match answer {
                        Some(response) => ready(Ok::<_, Infallible>(response)).await,
                        None => pending().await,
                    }
                }
            });
            let mut service = Tracing(span_of).layer(inner);
            let request =
                Request::builder().uri("http://x/some.Service/Create").header("traceparent", "theirs");
            let answered = service.call(request.body(()).unwrap());
            drop(answered.now_or_never());
        });
        fields.0.lock().unwrap().clone()
    }

    #[test]
    fn a_calls_span_has_its_name_its_caller_and_its_outcome() {
        let with = |rest: &[(&'static str, &str)]| {
            let all = [("name", "\"Create\""), ("caller", "\"theirs\"")].iter().chain(rest);
            all.map(|(name, value)| (*name, (*value).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(recorded(Some(Status::ok(""))), with(&[(STATUS, "0")]));
        assert_eq!(recorded(Some(Status::not_found("none"))), with(&[(STATUS, "5")]), "an everyday answer");
        let full = Status::resource_exhausted("no memory, 50 % short");
        assert_eq!(recorded(Some(full)), with(&[(STATUS, "8"), (FAILURE, "\"no memory, 50 % short\"")]));
        assert_eq!(recorded(None), with(&[(STATUS, "1")]), "the client left");
    }
}

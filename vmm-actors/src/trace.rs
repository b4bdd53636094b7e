//! Spans for OTLP traces: which steps a call led to, how long each took and why it failed. Whoever exports traces takes
//! the spans of [`TARGET`]; without such a taker none is made, and the log never shows them.
//!
//! A step is a child of the call that began it, even where it goes on after that call was answered. No step's span is
//! entered: its lines in the log keep the sandbox's own span.

use bulkhead_protocol::error::chain;
use tracing::field::Empty;
use tracing::{Span, info_span};

/// Target of every span that is meant for a trace.
pub const TARGET: &str = "bulkhead::traces";

/// Field for the reason why what a span stands for failed; its name makes `tracing-opentelemetry` set the span's status.
const FAILURE: &str = "otel.status_description";

/// The span of the call that is being served; a disabled one outside of calls, and where nobody takes traces.
#[must_use]
pub fn current() -> Span {
    let span = Span::current();
    if span.metadata().is_some_and(|metadata| metadata.target() == TARGET) { span } else { Span::none() }
}

/// A step under way. Dropped before its end it says that it was given up.
#[derive(Debug)]
pub(crate) struct Step {
    span: Span,
    under_way: bool,
}

impl Step {
    /// Begins a step of a call. Without a call it is the root of a trace of its own.
    pub(crate) fn begin(call: &Span, name: &str) -> Self {
        let span = info_span!(
            target: TARGET,
            parent: call,
            "step",
            otel.name = name,
            sandbox.id = Empty,
            step.given_up = Empty,
            otel.status_description = Empty,
        );
        Self { span, under_way: true }
    }

    /// For the steps that this one consists of.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// It has come to its end.
    pub(crate) fn succeeded(mut self) {
        self.under_way = false;
    }

    /// It has come to its end, and failed.
    pub(crate) fn failed(mut self, why: &str) {
        self.under_way = false;
        self.span.record(FAILURE, why);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.under_way {
            self.span.record("step.given_up", true);
        }
    }
}

/// Does the work as a step of a call.
pub(crate) async fn step<T, E>(
    call: &Span,
    name: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E>
where
    E: std::error::Error + 'static,
{
    let step = Step::begin(call, name);
    let result = work.await;
    match &result {
        Ok(_) => step.succeeded(),
        Err(error) => step.failed(&chain(error)),
    }
    result
}

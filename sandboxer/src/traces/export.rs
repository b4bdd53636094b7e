//! What becomes of spans: a queue with an end, and an account of what was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};

/// Spans that may wait for the collector. A pod's start has about twenty.
pub(super) const QUEUE: usize = 4096;

/// How many spans wait, and how many were lost since the collector took some.
#[derive(Debug)]
pub(super) struct Account {
    endpoint: String,
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Account {
    pub(super) fn new(endpoint: String) -> Self {
        Self { endpoint, waiting: AtomicUsize::new(0), lost: AtomicU64::new(0) }
    }

    /// Whether there is room for one more span, which has it then.
    fn enter(&self) -> bool {
        let has_room = self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE;
        if !has_room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.lose(1, &"more spans end than the collector takes");
        }
        has_room
    }

    fn leave(&self, spans: usize) {
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
    }

    /// Says so the first time only.
    fn lose(&self, spans: usize, why: &dyn std::fmt::Display) {
        let spans = u64::try_from(spans).unwrap_or(u64::MAX);
        if self.lost.fetch_add(spans, Ordering::Relaxed) == 0 {
            let endpoint = &self.endpoint;
            tracing::warn!(endpoint, %why, "traces are lost, until the collector takes them; pods do not wait for it");
        }
    }

    fn taken(&self) {
        // A queue that is still full goes on losing.
        if self.waiting.load(Ordering::Relaxed) > QUEUE / 2 {
            return;
        }
        let lost_spans = self.lost.swap(0, Ordering::Relaxed);
        if lost_spans > 0 {
            tracing::info!(endpoint = self.endpoint, lost_spans, "the collector takes traces again");
        }
    }
}

/// Lets spans into the SDK's queue as long as there is room.
#[derive(Debug)]
pub(super) struct Queue {
    next: BatchSpanProcessor,
    account: Arc<Account>,
}

impl Queue {
    /// Before `next`, whose queue must hold [`QUEUE`] spans.
    pub(super) fn new(next: BatchSpanProcessor, account: Arc<Account>) -> Self {
        Self { next, account }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.account.enter() {
            self.next.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Takes spans out of the account, whatever became of them. A failure ends here: the SDK has nothing to add to it.
#[derive(Debug)]
pub(super) struct Counted<E> {
    next: E,
    account: Arc<Account>,
}

impl<E> Counted<E> {
    pub(super) fn new(next: E, account: Arc<Account>) -> Self {
        Self { next, account }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.next.export(batch).await;
        self.account.leave(spans);
        match exported {
            Ok(()) => self.account.taken(),
            Err(error) => self.account.lose(spans, &error),
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_lost_and_counted_until_the_collector_takes_some() {
        let account = Account::new(String::new());
        let lost = || account.lost.load(Ordering::Relaxed);
        assert!((0..QUEUE).all(|_| account.enter()));
        assert!(!account.enter() && !account.enter());
        assert_eq!(lost(), 2);
        // One batch more or less: it goes on losing.
        account.leave(1);
        account.taken();
        assert_eq!(lost(), 2);
        assert!(account.enter() && !account.enter());
        assert_eq!(lost(), 3);
        account.leave(QUEUE);
        account.taken();
        assert_eq!((lost(), account.waiting.load(Ordering::Relaxed)), (0, 0));
        account.lose(7, &"away");
        assert_eq!(lost(), 7);
    }
}

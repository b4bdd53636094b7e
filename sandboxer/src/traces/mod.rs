//! Traces of calls for an OpenTelemetry collector (OTLP over gRPC), off unless set.
//!
//! Spans end in a bounded queue that a thread of the SDK empties; whoever ends one never waits. What does not find room
//! there, or does not reach the collector, is lost, which is logged once ([`export`]).

mod calls;
mod export;

use std::sync::Arc;
use std::time::Duration;

use bulkhead_config::Traces as Settings;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tonic::transport::Endpoint;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;
use vmm_actors::trace::TARGET;

pub(crate) use calls::{follows, name_pod, of_controller, of_shim_proxy, reference};
use export::{Account, Counted, QUEUE, Queue};

/// As it is named in every trace (`service.name`).
const SERVICE: &str = "bulkhead-sandboxer";

/// Spans that go in one message.
const BATCH: usize = 512;
/// How long spans wait for others to go with.
const GATHER: Duration = Duration::from_secs(1);
/// How long a connection to the collector may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the collector may take for an answer, repetitions included.
const EXPORT: Duration = Duration::from_secs(5);
/// How long the service's end waits for the last spans.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracesError {
    /// The settings were checked, so this is a disagreement about what an address is.
    #[error("cannot use the collector's address")]
    Endpoint(#[source] tonic::transport::Error),
    /// The exporter.
    #[error("cannot make the exporter")]
    Exporter(#[source] ExporterBuildError),
}

/// Makes traces until it is ended.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins, if the settings name a collector; it need not be there yet. Must be called within a tokio runtime that runs
    /// until the traces are ended.
    ///
    /// # Errors
    /// [`TracesError`].
    pub(crate) fn start(settings: &Settings) -> Result<Option<Self>, TracesError> {
        if settings.endpoint.is_empty() {
            return Ok(None);
        }
        let endpoint = Endpoint::from_shared(settings.endpoint.clone()).map_err(TracesError::Endpoint)?;
        let channel = endpoint.connect_timeout(CONNECT).timeout(EXPORT).connect_lazy();
        let exporter = SpanExporter::builder().with_tonic().with_channel(channel).with_timeout(EXPORT);
        let exporter = exporter.build().map_err(TracesError::Exporter)?;
        let account = Arc::new(Account::new(settings.endpoint.clone()));
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(GATHER)
            .build();
        let batches = BatchSpanProcessor::builder(Counted::new(exporter, Arc::clone(&account)));
        let queue = Queue::new(batches.with_batch_config(batch).build(), account);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_resource(resource())
            .with_sampler(sampler(settings.sample_percent))
            .build();
        Ok(Some(Self { provider }))
    }

    /// Takes the spans that are meant for traces, and nothing else.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SERVICE))
            .with_context_activation(false)
            .with_level(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// Sends what is there, as far as the collector takes it in time.
    pub(crate) async fn end(self) {
        // Its thread needs this one for its connection.
        let ended = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FAREWELL));
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the last traces were not sent in time"),
            Err(error) => tracing::error!(%error, "ending the traces panicked"),
        }
    }
}

/// A caller's decision is followed.
fn sampler(percent: u8) -> Sampler {
    let here = match percent {
        100.. => Sampler::AlwaysOn,
        percent => Sampler::TraceIdRatioBased(f64::from(percent) / 100.0),
    };
    Sampler::ParentBased(Box::new(here))
}

/// Who makes the traces; `OTEL_RESOURCE_ATTRIBUTES` of the environment adds to it.
fn resource() -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Resource::builder()
        .with_service_name(SERVICE)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("host.name", host))
        .build()
}

/// What the log may show, without the spans that are meant for traces.
pub(crate) fn not_for_the_log(filter: Targets) -> Targets {
    filter.with_target(TARGET, LevelFilter::OFF)
}

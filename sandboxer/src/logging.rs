//! The log: stderr, as the settings say. Beside it, whoever takes traces.

use std::io::{self, IsTerminal};

use bulkhead_config::{LogFormat, Sandboxer};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::traces::{self, Traces};

/// Starts logging. A second start in one process is ignored.
pub(crate) fn start(settings: &Sandboxer, traces: Option<&Traces>) {
    if let Err(error) = subscriber(settings, traces).try_init() {
        tracing::debug!(%error, "logging had been started before");
    }
}

fn subscriber(settings: &Sandboxer, traces: Option<&Traces>) -> impl SubscriberInitExt + use<> {
    // Checked with the other settings. Targets, not EnvFilter: no regular expressions for the life of the service.
    let filter: Targets = settings.log_level.parse().unwrap_or_default();
    let filter = traces::not_for_the_log(filter);
    // Without its report of lines that stderr did not take: it would go to stderr as well, and panic where that fails.
    let log = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let log = match settings.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    // A list: an `Option` that is `None` counts as a layer without a filter, and every span would be made for it.
    let mut layers = vec![log.with_filter(filter).boxed()];
    layers.extend(traces.map(|traces| traces.layer().boxed()));
    registry().with(layers)
}

#[cfg(test)]
mod tests {
    use tracing::info_span;
    use vmm_actors::trace::TARGET;

    use super::*;

    #[test]
    fn spans_for_traces_are_made_only_where_traces_are_taken() {
        let settings = Sandboxer { log_level: "debug".to_owned(), ..Sandboxer::default() };
        let _default = subscriber(&settings, None).set_default();
        assert!(info_span!(target: TARGET, "call").is_disabled());
        assert!(!info_span!("of the log").is_disabled());
    }
}

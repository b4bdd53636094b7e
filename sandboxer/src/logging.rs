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
    // Checked with the other settings. Targets, not EnvFilter: no regular expressions for the life of the service.
    let filter: Targets = settings.log_level.parse().unwrap_or_default();
    let filter = traces::not_for_the_log(filter);
    // Without its report of lines that stderr did not take: it would go to stderr as well, and panic where that fails.
    let log = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let log = match settings.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    if let Err(error) = registry().with(traces.map(Traces::layer)).with(log.with_filter(filter)).try_init() {
        tracing::debug!(%error, "logging had been started before");
    }
}

//! The log: stderr, as the settings say.

use std::io::{self, IsTerminal};

use bulkhead_config::{LogFormat, Sandboxer};
use tracing_subscriber::EnvFilter;

/// Starts logging. A second start in one process is ignored.
pub(crate) fn start(settings: &Sandboxer) {
    let filter = EnvFilter::new(&settings.log_level);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match settings.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging had been started before");
    }
}

//! Lines on stderr, which the sandboxer points to a file in the pod's directory.

use tracing::level_filters::LevelFilter;

/// Installs the log at `level` (as tracing spells it; anything else: info).
pub(crate) fn init(level: &str) {
    let level = level.parse().unwrap_or(LevelFilter::INFO);
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
}

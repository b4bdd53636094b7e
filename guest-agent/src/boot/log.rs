//! The agent's log: one line per event on the console, with the seconds since the kernel started.
//!
//! The host keeps the console of every VM, and shows its last lines when a boot fails.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::PanicHookInfo;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::kernel::clock;

/// Seconds since boot, with milliseconds, as the kernel's own lines have it.
struct SinceBoot;

impl FormatTime for SinceBoot {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let millis = clock::boot_nanos() / 1_000_000;
        write!(writer, "[{:>5}.{:03}]", millis / 1000, millis % 1000)
    }
}

/// Sends the log to the console, or to the kernel's log when there is no console. Without either nothing is logged:
/// that must not keep a pod from running.
pub(crate) fn init(level: LevelFilter) {
    let Ok(sink) = open("/dev/console").or_else(|_| open("/dev/kmsg")) else { return };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        // Otherwise it reports a failed write to stderr, and panics when that fails, too.
        .log_internal_errors(false)
        .with_timer(SinceBoot)
        .with_writer(Mutex::new(sink));
    tracing_subscriber::registry().with(lines).with(targets(level)).init();
    std::panic::set_hook(Box::new(panicked));
}

/// libcontainer logs every step at info, and every controller that it does not know at warn, for each container. Below
/// debug only its errors are logged.
fn targets(level: LevelFilter) -> Targets {
    let quiet = if level > LevelFilter::INFO { level } else { level.min(LevelFilter::ERROR) };
    Targets::new().with_default(level).with_target("libcontainer", quiet).with_target("libcgroups", quiet)
}

fn open(path: &str) -> io::Result<File> {
    // The console must not become our controlling terminal: ^C on it would be a signal to PID 1.
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC).open(path)
}

fn panicked(info: &PanicHookInfo<'_>) {
    tracing::error!(panic = %info, "a task panicked");
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libcontainer_is_logged_at_error_level_unless_debugging() {
        let info = targets(LevelFilter::INFO);
        assert!(info.would_enable("bulkhead_agent::boot", &Level::INFO));
        assert!(!info.would_enable("libcgroups::v2", &Level::WARN));
        assert!(info.would_enable("libcontainer::process", &Level::ERROR));
        let debug = targets(LevelFilter::DEBUG);
        assert!(debug.would_enable("libcontainer::process", &Level::DEBUG));
        assert!(!targets(LevelFilter::OFF).would_enable("libcontainer::process", &Level::ERROR));
    }
}

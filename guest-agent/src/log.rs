//! The agent's log: one line per event on the console, with the seconds since the kernel started.
//!
//! The console is what the host keeps for every VM, and its tail is what a person sees when a boot fails.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::PanicHookInfo;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::clock;

/// Seconds since boot, with milliseconds, as the kernel's own lines have it.
struct SinceBoot;

impl FormatTime for SinceBoot {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let millis = clock::boot_nanos() / 1_000_000;
        write!(writer, "[{:>5}.{:03}]", millis / 1000, millis % 1000)
    }
}

/// Sends the log to the console, or to the kernel's log when there is no console. Without either the agent is
/// silent: that must not keep a pod from running.
pub(crate) fn init(level: LevelFilter) {
    let Ok(sink) = open("/dev/console").or_else(|_| open("/dev/kmsg")) else { return };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_timer(SinceBoot)
        .with_writer(Mutex::new(sink))
        .init();
    std::panic::set_hook(Box::new(panicked));
}

fn open(path: &str) -> io::Result<File> {
    // The console must not become our controlling terminal: ^C on it would be a signal to PID 1.
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC).open(path)
}

fn panicked(info: &PanicHookInfo<'_>) {
    tracing::error!(panic = %info, "a task panicked");
}

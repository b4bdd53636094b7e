//! The frequency of the time stamp counter, which an emulated guest sees as it is.
//!
//! A guest that is not told measures it against emulated timers. On a busy host that fails, and a `microvm` has no
//! other clock to fall back on: it hangs (tried: 1 boot in 4 with 16 runnable threads on 4 processors).

use std::sync::OnceLock;
use std::time::Duration;

use crate::host::tsc;

/// How long the counter is watched: 10 ms are precise to some millionths.
const WATCH: Duration = Duration::from_millis(10);

/// In kHz, measured once. `None` where the processor has no constant counter.
pub(super) fn tsc_khz() -> Option<u32> {
    static KHZ: OnceLock<Option<u32>> = OnceLock::new();
    *KHZ.get_or_init(|| tsc::frequency_khz(WATCH))
}

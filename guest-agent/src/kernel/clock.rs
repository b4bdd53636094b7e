//! The guest's clocks.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::syscalls;

/// A clock that is off by less than this is left alone: stepping time back and forth hurts more than it helps.
pub(crate) const TOLERANCE_NANOS: u64 = 10_000_000;

/// A clock that is off by less than this is slewed: it runs a little faster or slower for some minutes (at 500 ppm,
/// adjtimex(2)), but never jumps and never runs backwards. The bound of NTP, RFC 5905 section 11.3.
const STEP_FROM_NANOS: u64 = 128_000_000;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// The clock could not be set to the host's time.
#[derive(Debug, thiserror::Error)]
#[error("set the clock to {nanos} ns since the epoch")]
pub(crate) struct SetClock {
    nanos: i64,
    source: rustix::io::Errno,
}

/// The clock could not be adjusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdjustClock {
    #[error("slew the clock by {nanos} ns")]
    Slew { nanos: i64, source: nix::errno::Errno },
    #[error(transparent)]
    Step(SetClock),
}

/// Nanoseconds since the kernel started, CLOCK_BOOTTIME.
pub(crate) fn boot_nanos() -> u64 {
    u64::try_from(nanos(clock_gettime(ClockId::Boottime))).unwrap_or(0)
}

/// CLOCK_REALTIME, nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    nanos(clock_gettime(ClockId::Realtime))
}

/// Sets CLOCK_REALTIME to the host's time unless it is within [`TOLERANCE_NANOS`]. Returns whether it was set.
pub(crate) fn step_to(host_nanos: i64) -> Result<bool, SetClock> {
    if !is_off(now_nanos(), host_nanos) {
        return Ok(false);
    }
    set(host_nanos)?;
    Ok(true)
}

/// Adjusts CLOCK_REALTIME by a number of nanoseconds: slews it for small differences, steps it for large ones.
pub(crate) fn adjust(by_nanos: i64) -> Result<(), AdjustClock> {
    match by_nanos.unsigned_abs() {
        0 => Ok(()),
        1..STEP_FROM_NANOS => {
            tracing::debug!(by_nanos, "the clock is slewed");
            syscalls::slew_clock(by_nanos / 1000)
                .map_err(|source| AdjustClock::Slew { nanos: by_nanos, source })
        }
        STEP_FROM_NANOS.. => {
            tracing::info!(by_nanos, "the clock is stepped");
            set(now_nanos().saturating_add(by_nanos)).map_err(AdjustClock::Step)
        }
    }
}

fn set(nanos: i64) -> Result<(), SetClock> {
    let time =
        Timespec { tv_sec: nanos.div_euclid(NANOS_PER_SECOND), tv_nsec: nanos.rem_euclid(NANOS_PER_SECOND) };
    clock_settime(ClockId::Realtime, time).map_err(|source| SetClock { nanos, source })
}

fn is_off(guest_nanos: i64, host_nanos: i64) -> bool {
    guest_nanos.abs_diff(host_nanos) > TOLERANCE_NANOS
}

fn nanos(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(NANOS_PER_SECOND).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_ten_milliseconds_is_tolerated() {
        let host = 1_700_000_000_000_000_000;
        assert!(!is_off(host + 10_000_000, host));
        assert!(!is_off(host - 10_000_000, host));
        assert!(is_off(host + 10_000_001, host));
        assert!(is_off(0, host));
        assert!(is_off(i64::MIN, i64::MAX));
    }

    #[test]
    fn both_clocks_can_be_read() {
        assert!(boot_nanos() > 0);
        assert!(now_nanos() > 1_600_000_000_000_000_000);
    }
}

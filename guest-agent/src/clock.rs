//! The guest's clocks.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A clock that is off by less than this is left alone: stepping time back and forth hurts more than it helps.
pub(crate) const TOLERANCE_NANOS: u64 = 10_000_000;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// The host's time could not be taken over.
#[derive(Debug, thiserror::Error)]
#[error("set the clock to {nanos} ns since the epoch")]
pub(crate) struct SetClock {
    nanos: i64,
    source: rustix::io::Errno,
}

/// Nanoseconds since the kernel started, CLOCK_BOOTTIME.
pub(crate) fn boot_nanos() -> u64 {
    u64::try_from(nanos(clock_gettime(ClockId::Boottime))).unwrap_or(0)
}

/// CLOCK_REALTIME, nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    nanos(clock_gettime(ClockId::Realtime))
}

/// Steps CLOCK_REALTIME to the host's, unless it is close already. Says whether it did.
pub(crate) fn step_to(host_nanos: i64) -> Result<bool, SetClock> {
    if !is_off(now_nanos(), host_nanos) {
        return Ok(false);
    }
    let time = Timespec {
        tv_sec: host_nanos.div_euclid(NANOS_PER_SECOND),
        tv_nsec: host_nanos.rem_euclid(NANOS_PER_SECOND),
    };
    clock_settime(ClockId::Realtime, time).map_err(|source| SetClock { nanos: host_nanos, source })?;
    Ok(true)
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
    fn ten_milliseconds_are_tolerated_in_both_directions() {
        let host = 1_700_000_000_000_000_000;
        assert!(!is_off(host + 10_000_000, host));
        assert!(!is_off(host - 10_000_000, host));
        assert!(is_off(host + 10_000_001, host));
        assert!(is_off(0, host));
        assert!(is_off(i64::MIN, i64::MAX));
    }

    #[test]
    fn time_goes_on() {
        assert!(boot_nanos() > 0);
        assert!(now_nanos() > 1_600_000_000_000_000_000);
    }
}

//! Times and deadlines in the forms that containerd and the guest use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;
use tokio::time::Instant;

/// Timeout of a call whose caller gave none: kubelet's own default for slow calls is 2 minutes.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long before the caller's deadline we give up, so that our error still reaches the caller.
const MARGIN: Duration = Duration::from_millis(500);
/// Longest timeout of a call; a longer one is cut to this.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Nanoseconds since the epoch, at least 1.
pub(crate) fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// A time in the form of containerd's messages.
pub(crate) fn timestamp(nanos: i64) -> Timestamp {
    let sub = nanos.rem_euclid(1_000_000_000);
    Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(sub).unwrap_or_default(),
        ..Default::default()
    }
}

/// When to give up on a call with this timeout (nanoseconds; 0: none given).
pub(crate) fn deadline(timeout_nanos: i64) -> Instant {
    let timeout = match u64::try_from(timeout_nanos) {
        Ok(0) | Err(_) => DEFAULT_TIMEOUT,
        Ok(given) => {
            let given = Duration::from_nanos(given);
            given.saturating_sub(MARGIN.min(given / 10))
        }
    };
    Instant::now() + timeout.min(MAX_TIMEOUT)
}

/// The deadline of a call that has none.
pub(crate) fn never() -> Instant {
    // tokio's own notion of far away; more could overflow.
    Instant::now() + Duration::from_secs(30 * 365 * 24 * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_has_the_seconds_and_nanoseconds_of_its_time() {
        let time = timestamp(1_700_000_000_000_000_007);
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 7));
        assert_eq!(timestamp(-1).nanos, 999_999_999);
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_leave_time_for_the_answer() {
        let now = Instant::now();
        assert_eq!(deadline(0) - now, DEFAULT_TIMEOUT);
        assert_eq!(deadline(-5) - now, DEFAULT_TIMEOUT);
        assert_eq!(deadline(1_000_000_000) - now, Duration::from_millis(900));
        assert_eq!(deadline(60_000_000_000) - now, Duration::from_millis(59_500));
        assert!(deadline(i64::MAX) > now);
    }
}

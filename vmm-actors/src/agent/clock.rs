//! How far a guest's clock is off, as one question to it tells.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that is off by less is right: nobody can tell it from an answer that took its time.
const TOLERANCE: Duration = Duration::from_millis(10);

/// What to turn the guest's clock by, in nanoseconds: 0 when it may be right. It said `guest` (CLOCK_REALTIME in
/// nanoseconds since the epoch) to a question that was asked at `asked` and took `trip` until it was answered.
pub(super) fn turn(asked: SystemTime, trip: Duration, guest: i64) -> i64 {
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let asked = nanos(asked.duration_since(UNIX_EPOCH).unwrap_or_default());
    // It was read somewhere on the way.
    let uncertain = nanos(trip / 2);
    let off = guest.saturating_sub(asked.saturating_add(uncertain));
    let doubt = uncertain.saturating_add(nanos(TOLERANCE));
    // Agents from before the question was answered say 0.
    if guest == 0 || off.unsigned_abs() <= doubt.unsigned_abs() { 0 } else { off.saturating_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: u64 = 1_800_000_000;
    const NOW: i64 = 1_800_000_000_000_000_000;
    const MILLI: i64 = 1_000_000;

    fn turn(trip: Duration, guest: i64) -> i64 {
        super::turn(UNIX_EPOCH + Duration::from_secs(SECONDS), trip, guest)
    }

    #[test]
    fn a_clock_that_may_be_right_is_left_alone() {
        for millis in [-10, 0, 10] {
            assert_eq!(turn(Duration::ZERO, NOW + millis * MILLI), 0);
        }
        // Read at once or at the very end of a long trip.
        let trip = Duration::from_millis(400);
        for millis in [0, 200, 400] {
            assert_eq!(turn(trip, NOW + millis * MILLI), 0, "{millis}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_turned_to_the_middle_of_the_trip() {
        let trip = Duration::from_millis(2);
        assert_eq!(turn(trip, NOW + 21 * MILLI), -20 * MILLI);
        assert_eq!(turn(trip, NOW - 3_599_999 * MILLI), 3_600_000 * MILLI);
    }

    #[test]
    fn nonsense_does_not_overflow() {
        for guest in [i64::MIN, i64::MAX, 1] {
            assert_ne!(turn(Duration::ZERO, guest), 0);
            turn(Duration::MAX, guest);
        }
        assert_eq!(turn(Duration::ZERO, 0), 0);
    }
}

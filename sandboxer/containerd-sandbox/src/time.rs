//! Points in time, between protobuf and the standard library.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// The time a message names; `None` before 1970: containerd writes "not set" as the year 1.
pub(crate) fn from_wire(time: Option<&Timestamp>) -> Option<SystemTime> {
    let time = time?;
    let seconds = u64::try_from(time.seconds).ok().filter(|seconds| *seconds > 0)?;
    let nanos = u32::try_from(time.nanos).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// The message for a time.
pub(crate) fn to_wire(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_and_go() {
        let now = SystemTime::now();
        assert_eq!(from_wire(Some(&to_wire(now))), Some(now));
    }

    #[test]
    fn the_year_one_is_no_time() {
        let go_zero = Timestamp { seconds: -62_135_596_800, nanos: 0 };
        assert_eq!(from_wire(Some(&go_zero)), None);
        assert_eq!(from_wire(Some(&Timestamp::default())), None);
        assert_eq!(from_wire(Some(&Timestamp { seconds: i64::MAX, nanos: -1 })), None);
        assert_eq!(from_wire(None), None);
    }
}

//! The processor's time stamp counter.

#![allow(unsafe_code, reason = "the counter is read by a processor instruction")]

use std::time::{Duration, Instant};

/// Measures the counter's frequency by watching it for `watch`, without giving the processor away meanwhile.
///
/// `None` on processors without such a counter, or with one whose pace changes (`constant_tsc` in `/proc/cpuinfo`).
#[must_use]
pub fn frequency_khz(watch: Duration) -> Option<u32> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    if !cpuinfo.split_ascii_whitespace().any(|flag| flag == "constant_tsc") {
        return None;
    }
    // A preemption between clock and counter spoils a measurement, and makes it wrong in one direction only at either
    // end: the middle one of several is good.
    let mut measured: Vec<u64> = (0..3).filter_map(|_| measure(watch)).collect();
    measured.sort_unstable();
    measured.get(measured.len() / 2).and_then(|khz| u32::try_from(*khz).ok()).filter(|khz| *khz > 0)
}

fn measure(watch: Duration) -> Option<u64> {
    let (first, start) = (counter()?, Instant::now());
    while start.elapsed() < watch {
        std::hint::spin_loop();
    }
    let (last, elapsed) = (counter()?, start.elapsed());
    let cycles = u128::from(last.checked_sub(first)?);
    u64::try_from(cycles.checked_mul(1_000_000)?.checked_div(elapsed.as_nanos())?).ok()
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: RDTSC exists on every x86-64 processor, touches no memory, and Linux leaves it open to programs.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let Some(first) = frequency_khz(Duration::from_millis(5)) else {
            println!("skipped: this processor has no constant time stamp counter");
            return;
        };
        let second = frequency_khz(Duration::from_millis(5)).unwrap();
        assert!(first.abs_diff(second) < first / 500, "{first} and {second} kHz");
    }
}

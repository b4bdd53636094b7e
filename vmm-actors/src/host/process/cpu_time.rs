//! How much CPU time a process was given.

use std::fs;
use std::io;
use std::time::Duration;

use super::identity::parse_cpu_ticks;

/// Length of a tick in `/proc/<pid>/stat` in milliseconds: `USER_HZ` is 100 on x86-64 (time(7)).
const TICK_MILLIS: u64 = 10;

/// CPU time of a process and of the children that it has now, all their threads and guests included.
///
/// # Errors
/// What `/proc` says: that the process is gone, or that this kernel tells of no children.
pub fn cpu_time_with_children(pid: u32) -> io::Result<Duration> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let own = ticks(pid)?;
    let theirs = children.split_ascii_whitespace().filter_map(|child| ticks(child.parse().ok()?).ok());
    let ticks = theirs.fold(own, u64::saturating_add);
    Ok(Duration::from_millis(ticks.saturating_mul(TICK_MILLIS)))
}

fn ticks(pid: u32) -> io::Result<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_cpu_ticks(&line)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no such stat line is known"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn what_a_child_uses_counts_and_what_it_sleeps_does_not() {
        let mut busy = Command::new("sh");
        // Two processes, as the shell has more to do than the loop.
        busy.args(["-c", "sh -c 'while :; do :; done'; true"]).stdout(Stdio::null());
        let mut busy = busy.spawn().unwrap();
        let mut idle = Command::new("sleep").arg("60").spawn().unwrap();
        let used = || cpu_time_with_children(busy.id()).unwrap();
        let slept = || cpu_time_with_children(idle.id()).unwrap();
        let mut before = (used(), slept());
        // The one that sleeps has to get as far as that first.
        let mut told_apart = false;
        for _ in 0..100 {
            while used() < before.0 + Duration::from_millis(50) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            told_apart = slept() == before.1;
            if told_apart {
                break;
            }
            before = (used(), slept());
        }
        let below = fs::read_to_string(format!("/proc/{0}/task/{0}/children", busy.id())).unwrap();
        for pid in below.split_ascii_whitespace().map(str::to_owned).chain([busy.id().to_string()]) {
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        }
        idle.kill().unwrap();
        busy.wait().unwrap();
        idle.wait().unwrap();
        assert!(told_apart, "{before:?}");
        assert!(cpu_time_with_children(idle.id()).is_err());
    }
}

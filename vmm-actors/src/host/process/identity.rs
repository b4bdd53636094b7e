//! Telling a process from a later one with the same pid.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// A process, so described that neither a reused pid nor a reboot can be taken for it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ProcessIdentity {
    /// In our pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat` (proc(5)): clock ticks since boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id` (random(4)).
    pub boot_id: String,
}

/// What `/proc/<pid>/stat` says that we need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Ended, but not waited for: field 3 is Z or X.
    pub(super) ended: bool,
    /// Field 22.
    pub(super) start_time: u64,
}

impl ProcessIdentity {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// `NotFound` when there is none, else what `/proc` says.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = stat(pid)?;
        Ok(Self { pid, start_time: stat.start_time, boot_id: boot_id()? })
    }
}

/// Identifies the current boot.
///
/// # Errors
/// What reading the kernel's file says.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

pub(super) fn stat(pid: u32) -> io::Result<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no such stat line is known"))
}

/// The name (field 2) is in parentheses and may hold anything, more parentheses included; all else is numbers.
fn parse_stat(line: &str) -> Option<Stat> {
    let (_, behind_name) = line.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 3 is taken; 22 is 18 further on.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { ended: matches!(state, "Z" | "X" | "x"), start_time })
}

/// CPU time in clock ticks: fields 14 and 15, its own in user space, guests included, and in the kernel.
pub(super) fn parse_cpu_ticks(line: &str) -> Option<u64> {
    let (_, behind_name) = line.rsplit_once(')')?;
    // The first field behind the name is 3.
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_that_of_user_space_and_kernel() {
        let line = "7 (a) Z 1 (b) S 1 7 7 0 -1 4194560 1 0 0 0 30 12 5 6 20 0 1 0 4242 1 1 1";
        assert_eq!(parse_cpu_ticks(line), Some(42));
        assert_eq!(parse_cpu_ticks("7 (x) S 1 7 7"), None);
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let line = "7 (a) Z 1 (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1";
        assert_eq!(parse_stat(line), Some(Stat { ended: false, start_time: 4242 }));
    }

    #[test]
    fn a_zombie_has_ended() {
        let line = "7 (x) Z 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9 1 1 1";
        assert_eq!(parse_stat(line), Some(Stat { ended: true, start_time: 9 }));
    }

    #[test]
    fn a_cut_line_is_refused() {
        assert_eq!(parse_stat("7 (x) S 1 7 7"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn this_process_is_the_same_twice() {
        let pid = std::process::id();
        assert_eq!(ProcessIdentity::of(pid).unwrap(), ProcessIdentity::of(pid).unwrap());
    }
}

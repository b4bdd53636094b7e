//! The process of the VMM, watched so that its end is noticed even while the sandboxer is away.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Why a VMM cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// There is no such process, or the pid belongs to another one now.
    #[error("the VMM (pid {pid}) is not running")]
    NotRunning {
        /// As the sandboxer named it.
        pid: u32,
    },
    /// The process exists and cannot be watched.
    #[error("cannot watch the VMM (pid {pid})")]
    Open {
        /// As the sandboxer named it.
        pid: u32,
        /// The cause.
        source: io::Error,
    },
}

/// A VMM that was running when this was made.
#[derive(Debug)]
pub(crate) struct Vmm {
    pidfd: AsyncFd<OwnedFd>,
}

impl Vmm {
    /// Opens a process and checks that it is the one that started at `start_time` (field 22 of `/proc/<pid>/stat`).
    ///
    /// # Errors
    /// [`WatchError`].
    pub(crate) fn open(pid: u32, start_time: u64) -> Result<Self, WatchError> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(WatchError::NotRunning { pid })?;
        let pidfd = match pidfd_open(id, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Err(WatchError::NotRunning { pid }),
            Err(error) => return Err(WatchError::Open { pid, source: error.into() }),
        };
        // Read after the pidfd is ours: from here on the pid cannot pass to another process unnoticed.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if started(&stat) != Some(start_time) {
            return Err(WatchError::NotRunning { pid });
        }
        let pidfd = sys::readable(pidfd);
        Ok(Self { pidfd: pidfd.map_err(|source| WatchError::Open { pid, source })? })
    }

    /// Kills the VMM, and with it everything in the guest.
    ///
    /// # Errors
    /// As pidfd_send_signal(2), for example when it has ended already.
    pub(crate) fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL)?)
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&self) {
        // A pidfd polls readable once, when the process ends (pidfd_open(2)).
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`; the command in field 2 may hold blanks and parentheses. A zombie has ended.
fn started(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_name_with_blanks_and_parentheses() {
        let rest = (4..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(started(&format!("7 (a) b) (c) S {rest}")), Some(22));
        assert_eq!(started(&format!("7 (a) Z {rest}")), None);
        assert_eq!(started("7 (a) S 1 2"), None);
        assert_eq!(started(""), None);
    }

    #[tokio::test]
    async fn the_end_is_noticed_and_another_process_with_the_pid_is_refused() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let start = started(&stat).unwrap();
        assert!(matches!(Vmm::open(child.id(), start + 1), Err(WatchError::NotRunning { .. })));
        let vmm = Vmm::open(child.id(), start).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), vmm.ended()).await.is_err());
        vmm.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(5), vmm.ended()).await.unwrap();
        child.wait().unwrap();
        assert!(matches!(Vmm::open(child.id(), start), Err(WatchError::NotRunning { .. })));
    }
}

//! The reaper of PID 1: it waits for every process that has no other parent.
//!
//! A container's init process may end before the helper that made it has reported its pid. So exit statuses that nobody
//! has claimed are kept for a while. Pids are reused: a claim gets a status only when it is younger than the helper.
//! Signals go through the reaper as well, under the same lock as waitpid(2), so that they cannot hit another process
//! with a reused pid.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::kernel::{clock, syscalls};

/// How many unclaimed statuses are kept. Orphans of containers without a pid namespace of their own are among them, so
/// the number is bounded.
const KEPT: usize = 256;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell says it: the exit code, or 128 + n when ended by signal n.
    pub(crate) status: u32,
    /// CLOCK_REALTIME when it was reaped, nanoseconds since the epoch.
    pub(crate) at_nanos: i64,
}

/// A signal could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignalError {
    #[error("process {pid} has ended")]
    Ended { pid: u32 },
    #[error("{signal} is no signal number")]
    BadSignal { signal: u32 },
    #[error("send signal {signal} to process {pid}")]
    Send { signal: u32, pid: u32, source: nix::errno::Errno },
}

/// Exit statuses of processes: those that were reaped, and those that are claimed.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Processes that have not ended as far as is known, and are waited for.
    claimed: HashMap<u32, oneshot::Sender<Exit>>,
    /// Processes that have ended before they were claimed, with the time since boot.
    unclaimed: HashMap<u32, (Exit, u64)>,
}

impl Table {
    fn ended(&mut self, pid: u32, exit: Exit, boot_nanos: u64) {
        if let Some(waiter) = self.claimed.remove(&pid) {
            if waiter.send(exit).is_err() {
                tracing::debug!(pid, "nobody waits for this process any more");
            }
            return;
        }
        if self.unclaimed.len() >= KEPT {
            let oldest = self.unclaimed.iter().min_by_key(|(_, (_, at))| *at).map(|(pid, _)| *pid);
            if let Some(oldest) = oldest {
                self.unclaimed.remove(&oldest);
            }
        }
        self.unclaimed.insert(pid, (exit, boot_nanos));
    }

    fn claim(&mut self, pid: u32, since_nanos: u64) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        match self.unclaimed.remove(&pid) {
            Some((exit, at)) if at >= since_nanos => {
                if sender.send(exit).is_err() {
                    tracing::debug!(pid, "the claim was dropped at once");
                }
            }
            Some(_) | None => {
                self.claimed.insert(pid, sender);
            }
        }
        receiver
    }
}

impl Reaper {
    /// Starts reaping, for as long as the runtime lives.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut children = signal(SignalKind::child())?;
        let handle = Arc::clone(&reaper);
        tokio::spawn(async move {
            loop {
                handle.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Receives the exit of process `pid`, which did not exist before `since_nanos` (CLOCK_BOOTTIME); at once if it has
    /// ended.
    pub(crate) fn claim(&self, pid: u32, since_nanos: u64) -> oneshot::Receiver<Exit> {
        self.lock().claim(pid, since_nanos)
    }

    /// Sends a signal to a claimed process that has not been reaped.
    pub(crate) fn signal(&self, pid: u32, signal: u32) -> Result<(), SignalError> {
        let table = self.lock();
        if !table.claimed.contains_key(&pid) {
            return Err(SignalError::Ended { pid });
        }
        send(pid, signal)
    }

    fn reap(&self) {
        let mut table = self.lock();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let exit = Exit { status: shell_status(status), at_nanos: clock::now_nanos() };
                    let pid = pid_number(pid);
                    tracing::trace!(pid, status = exit.status, "reaped");
                    table.ended(pid, exit, clock::boot_nanos());
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// kill(2) by signal number: real-time signals have no name in rustix or nix.
pub(crate) fn send(pid: u32, signal: u32) -> Result<(), SignalError> {
    // The kernel's signals are 1 to 64, signal(7).
    let number = i32::try_from(signal).ok().filter(|n| (1..=64).contains(n));
    let number = number.ok_or(SignalError::BadSignal { signal })?;
    let target = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or(SignalError::Ended { pid })?;
    match syscalls::kill(target, number) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::ESRCH) => Err(SignalError::Ended { pid }),
        Err(source) => Err(SignalError::Send { signal, pid, source }),
    }
}

fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn shell_status(status: WaitStatus) -> u32 {
    let number = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        // Neither: the process was stopped or continued, for which waitpid(2) was not asked.
        (None, None) => 255,
    };
    u32::try_from(number).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> Exit {
        Exit { status, at_nanos: 1 }
    }

    #[test]
    fn a_claim_before_the_exit_receives_it() {
        let mut table = Table::default();
        let mut claim = table.claim(7, 0);
        assert!(claim.try_recv().is_err());
        table.ended(7, exit(3), 10);
        assert_eq!(claim.try_recv(), Ok(exit(3)));
        assert!(table.claimed.is_empty() && table.unclaimed.is_empty());
    }

    #[test]
    fn an_exit_before_its_claim_is_kept() {
        let mut table = Table::default();
        table.ended(7, exit(3), 10);
        assert_eq!(table.claim(7, 10).try_recv(), Ok(exit(3)));
    }

    #[test]
    fn a_claim_ignores_an_older_process_with_the_same_pid() {
        let mut table = Table::default();
        table.ended(7, exit(3), 10);
        let mut claim = table.claim(7, 11);
        assert!(claim.try_recv().is_err());
        table.ended(7, exit(4), 12);
        assert_eq!(claim.try_recv(), Ok(exit(4)));
    }

    #[test]
    fn unclaimed_exits_are_bounded_and_the_oldest_are_dropped() {
        let mut table = Table::default();
        for pid in 0..1000 {
            table.ended(pid, exit(0), u64::from(pid));
        }
        assert_eq!(table.unclaimed.len(), KEPT);
        assert!(table.unclaimed.contains_key(&999) && !table.unclaimed.contains_key(&0));
    }

    #[test]
    fn a_dropped_claim_does_not_disturb_the_reaper() {
        let mut table = Table::default();
        drop(table.claim(7, 0));
        table.ended(7, exit(0), 1);
        assert!(table.claimed.is_empty());
    }

    #[test]
    fn only_signal_numbers_and_real_pids_are_sent() {
        for signal in [0, 65, u32::MAX] {
            assert!(matches!(send(99_999_999, signal), Err(SignalError::BadSignal { .. })), "{signal}");
        }
        for pid in [0, 1, u32::MAX] {
            assert!(matches!(send(pid, 9), Err(SignalError::Ended { .. })), "{pid}");
        }
    }

    /// Set in a process that runs one test and nothing else.
    const ALONE: &str = "BULKHEAD_TEST_ALONE";

    /// In a process of its own: a reaper takes every child of its process, those of other tests, too.
    #[test]
    fn real_children_are_reaped_with_code_and_signal() {
        if std::env::var_os(ALONE).is_some() {
            return tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(reap_real_children());
        }
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::reaper::tests::real_children_are_reaped_with_code_and_signal"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
    }

    async fn reap_real_children() {
        let reaper = Reaper::start().unwrap();
        let since = clock::boot_nanos();
        let spawn =
            |script: &str| std::process::Command::new("sh").args(["-c", script]).spawn().unwrap().id();
        let code = reaper.claim(spawn("exit 5"), since).await.unwrap();
        assert_eq!(code.status, 5);
        assert!(code.at_nanos > 0);
        let pid = spawn("exec sleep 60");
        let end = reaper.claim(pid, since);
        reaper.signal(pid, 9).unwrap();
        assert_eq!(end.await.unwrap().status, 137);
        assert!(matches!(reaper.signal(pid, 9), Err(SignalError::Ended { .. })));
        let pid = spawn("kill -RTMIN $$");
        assert_eq!(reaper.claim(pid, since).await.unwrap().status, 128 + 34);
    }
}

//! Kills an exec with the processes that it has started, as containerd needs for a probe that takes too long.
//! libcontainer makes each exec the leader of a session, and its children stay in the session unless they leave it on
//! purpose.

use nix::unistd::{Pid as RawPid, getsid};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::{Cgroup, CgroupError};

/// How often processes are listed again, to find those that were forked meanwhile.
const ROUNDS: usize = 16;

/// Kills the processes of the cgroup that are in the session of `leader`, which is killed by the caller.
pub(super) fn kill(cgroup: &Cgroup, leader: u32) -> Result<(), CgroupError> {
    for _ in 0..ROUNDS {
        let killed = cgroup.pids()?.into_iter().filter(|pid| *pid != leader && kill_member(*pid, leader));
        if killed.count() == 0 {
            break;
        }
    }
    Ok(())
}

/// Kills a process if it is in the session; returns whether it was. The process is held by a pidfd before its session
/// is read, so that a reused pid is not taken for it.
fn kill_member(pid: u32, leader: u32) -> bool {
    let number = |pid: u32| i32::try_from(pid).ok().and_then(Pid::from_raw);
    let (Some(pid), Some(leader)) = (number(pid), number(leader)) else { return false };
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    session(pid) == Some(leader) && pidfd_send_signal(&held, Signal::KILL).is_ok()
}

/// The leader of a process's session, if it is in this pid namespace. A process that has not made a session yet may be
/// in one from outside (the kernel's, for children of PID 1); getsid(2) returns 0 then, which rustix does not expect.
fn session(pid: Pid) -> Option<Pid> {
    let leader = getsid(Some(RawPid::from_raw(pid.as_raw_pid()))).ok()?;
    Pid::from_raw(leader.as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    /// A child that is killed when dropped, so that a failing test does not leave it behind.
    struct Sleeper(Child);

    impl Sleeper {
        fn start(command: &mut Command) -> Self {
            Self(command.spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn only_members_of_the_session_are_killed() {
        let mut leader = Sleeper::start(Command::new("setsid").args(["sleep", "1000"]));
        let mut stranger = Sleeper::start(Command::new("sleep").arg("1000"));
        let number = Pid::from_child(&leader.0);
        while session(number) != Some(number) {
            std::thread::yield_now();
        }
        assert!(!kill_member(stranger.0.id(), leader.0.id()), "a stranger is a member of {number:?}");
        assert!(kill_member(leader.0.id(), leader.0.id()), "the leader: {:?}", leader.0.try_wait());
        assert_eq!(leader.0.wait().unwrap().signal(), Some(9));
        assert_eq!(stranger.0.try_wait().unwrap(), None, "another session's process lives on");
        assert!(!kill_member(leader.0.id(), leader.0.id()), "it is no more");
        assert!(!kill_member(0, 0));
    }

    /// Processes of PID 1 are in a session of the kernel, whose leader has no pid in their namespace.
    #[test]
    fn a_session_from_outside_of_the_pid_namespace_has_no_leader() {
        let this = std::env::current_exe().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]).arg(this);
        let name = "container::session::tests::only_members_of_the_session_are_killed";
        let output = command.args(["--exact", name]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

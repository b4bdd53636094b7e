//! Ends an exec with what it has started, as a probe that takes too long must (fact 3.11): libcontainer makes each
//! exec the leader of a session, and its children stay in that unless they leave it on purpose.

use rustix::process::{Pid, PidfdFlags, Signal, getsid, pidfd_open, pidfd_send_signal};

use crate::cgroup::{Cgroup, CgroupError};

/// How often it is looked for processes that were forked meanwhile.
const ROUNDS: usize = 16;

/// Kills the processes of the cgroup that are in the session of `leader`, which is dead or about to be.
pub(super) fn kill(cgroup: &Cgroup, leader: u32) -> Result<(), CgroupError> {
    for _ in 0..ROUNDS {
        let killed = cgroup.pids()?.into_iter().filter(|pid| *pid != leader && kill_member(*pid, leader));
        if killed.count() == 0 {
            break;
        }
    }
    Ok(())
}

/// Whether there was such a process. One that ends meanwhile is none, and its number may be another's: so it is held
/// by a descriptor before it is looked at.
fn kill_member(pid: u32, leader: u32) -> bool {
    let number = |pid: u32| i32::try_from(pid).ok().and_then(Pid::from_raw);
    let (Some(pid), Some(leader)) = (number(pid), number(leader)) else { return false };
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    getsid(Some(pid)) == Ok(leader) && pidfd_send_signal(&held, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_members_of_the_session_are_killed() {
        let mut leader = Command::new("setsid").args(["sleep", "60"]).spawn().unwrap();
        let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
        let session = Pid::from_child(&leader);
        while getsid(Some(session)) != Ok(session) {
            std::thread::yield_now();
        }
        assert!(!kill_member(stranger.id(), leader.id()));
        assert!(kill_member(leader.id(), leader.id()));
        assert!(!leader.wait().unwrap().success());
        assert!(stranger.try_wait().unwrap().is_none(), "another session's process lives on");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(!kill_member(leader.id(), leader.id()), "it is no more");
        assert!(!kill_member(0, 0));
    }
}

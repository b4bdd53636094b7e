//! A guest that hangs: nothing in it can be ended but all of it.
//!
//! Silence alone is not death (decision 4). But a container that is to end, and whose guest does not even take the
//! signal, would keep its pod for ever: StopContainer and StopPodSandbox fail as often as they are tried. Then the VM is
//! ended, and everything takes the way of a VM that died.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, warn};

use crate::error::TaskError;
use crate::guest::vmm::Vmm;

/// How long a guest may take to take a signal: longer than one that is starved and well, shorter than the two minutes
/// that kubelet gives a call.
pub(super) const AFTER: Duration = Duration::from_secs(60);

/// What has become of a signal that was sent since `asked`, once a guest that hangs is ended for it.
///
/// # Errors
/// As `sent`, while the guest may still take it.
pub(super) async fn ended_by(
    vmm: Option<&Vmm>,
    sent: Result<(), TaskError>,
    asked: Instant,
) -> Result<(), TaskError> {
    let silent = matches!(sent, Err(TaskError::AgentSilent { .. } | TaskError::AgentUnreachable { .. }));
    let Some(vmm) = vmm.filter(|_| silent && asked.elapsed() >= AFTER) else { return sent };
    error!(waited = ?AFTER, "the guest takes no signal, and a container of it is to end: its VM is ended");
    if let Err(error) = vmm.kill() {
        warn!(%error, "the VMM cannot be ended");
        return sent;
    }
    vmm.ended().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_guest_that_was_silent_for_long_is_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let start = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
        let vmm = Vmm::open(child.id(), start).unwrap();
        let silent = || Err(TaskError::AgentSilent { act: "kill" });
        let asked = Instant::now();

        assert!(ended_by(Some(&vmm), silent(), asked).await.is_err(), "it may be slow");
        tokio::time::advance(AFTER).await;
        ended_by(Some(&vmm), Ok(()), asked).await.unwrap();
        assert!(ended_by(Some(&vmm), Err(TaskError::Crashed), asked).await.is_err(), "it has answered");
        assert!(ended_by(None, silent(), asked).await.is_err());
        assert!(child.try_wait().unwrap().is_none(), "it was ended without need");

        ended_by(Some(&vmm), silent(), asked).await.unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}

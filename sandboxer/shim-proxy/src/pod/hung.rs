//! A guest that hangs: no process in it can be ended, only the whole VM.
//!
//! Silence alone does not mean that a guest is dead (decision 4). But if the guest does not even take the signal that
//! is to end a container, its pod stays for ever: StopContainer and StopPodSandbox fail each time. So the VM is killed,
//! and everything proceeds as for a VM that died.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, warn};

use crate::error::TaskError;
use crate::guest::vmm::Vmm;

/// How long a guest may take to take a signal: longer than a healthy guest that is starved needs, shorter than the two
/// minutes that kubelet gives a call.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// The result of sending a signal since `asked`, after the VM of a guest that hangs has been killed.
///
/// # Errors
/// As `sent`, as long as the guest may still take the signal.
pub(super) async fn end_vm_if_hung(
    vmm: Option<&Vmm>,
    sent: Result<(), TaskError>,
    asked: Instant,
) -> Result<(), TaskError> {
    let silent = matches!(sent, Err(TaskError::AgentSilent { .. } | TaskError::AgentUnreachable { .. }));
    let Some(vmm) = vmm.filter(|_| silent && asked.elapsed() >= TIMEOUT) else { return sent };
    error!(waited = ?TIMEOUT, "the guest takes no signal, and a container of it is to end: its VM is ended");
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
    async fn only_a_guest_that_was_silent_until_the_timeout_is_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let start = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
        let vmm = Vmm::open(child.id(), start).unwrap();
        let silent = || Err(TaskError::AgentSilent { act: "kill" });
        let asked = Instant::now();

        assert!(end_vm_if_hung(Some(&vmm), silent(), asked).await.is_err(), "it may be slow");
        tokio::time::advance(TIMEOUT).await;
        end_vm_if_hung(Some(&vmm), Ok(()), asked).await.unwrap();
        assert!(end_vm_if_hung(Some(&vmm), Err(TaskError::Crashed), asked).await.is_err(), "it has answered");
        assert!(end_vm_if_hung(None, silent(), asked).await.is_err());
        assert!(child.try_wait().unwrap().is_none(), "it was ended without need");

        end_vm_if_hung(Some(&vmm), silent(), asked).await.unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}

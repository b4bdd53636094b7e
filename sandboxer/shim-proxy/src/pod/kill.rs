//! Signals.

use bulkhead_protocol::SIGKILL;
use bulkhead_protocol::agent::SignalRequest;
use tokio::time::{Instant, timeout_at};

use super::process::ProcessRef;
use super::run::detached;
use super::{PodHandle, hung, without_deadline};
use crate::error::{CLEANUP_TIMEOUT, TaskError};
use crate::lifecycle::{Event, State};

/// A signal, and whether it is for every process of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal {
    /// Its number, signal(7).
    pub(crate) number: u32,
    /// For every process of the container.
    pub(crate) all: bool,
}

impl PodHandle {
    /// Sends a signal to a process, or to every process of its container. An exec whose start is under way gets it as
    /// soon as it runs. A guest that does not take the signal for an init process is ended itself ([`super::hung`]).
    ///
    /// # Errors
    /// Not found when the process has ended.
    pub(crate) async fn kill(
        &self,
        process: &ProcessRef,
        signal: Signal,
        until: Instant,
    ) -> Result<(), TaskError> {
        let settled = process.until(|state| !matches!(state, State::Starting { pid: 0 }));
        timeout_at(until, settled).await.map_err(|_elapsed| TaskError::AgentSilent { act: "kill" })?;
        self.feed(process, Event::SignalAsked).await?;
        let (pod, process) = (self.clone(), process.clone());
        detached("kill", until, async move {
            let asked = Instant::now();
            if !process.is_init() {
                return send_signal(&pod, &process, signal, until).await;
            }
            let sent = send_signal(&pod, &process, signal, asked + hung::TIMEOUT).await;
            hung::end_vm_if_hung(pod.vmm().await.as_deref(), sent, asked).await
        })
        .await
    }
}

async fn send_signal(
    pod: &PodHandle,
    process: &ProcessRef,
    signal: Signal,
    until: Instant,
) -> Result<(), TaskError> {
    let request = SignalRequest {
        container_id: process.container_id().to_owned(),
        exec_id: process.exec_id().to_owned(),
        signal: signal.number,
        all: signal.all,
        ..Default::default()
    };
    let call = pod
        .links()
        .agent
        .call("kill", until, |agent| async move { agent.signal(without_deadline(), &request).await });
    call.await.map(drop)
}

/// Sends SIGKILL to every process of a container that containerd has given up.
///
/// # Errors
/// What failed.
pub(super) async fn kill_all(pod: &PodHandle, process: &ProcessRef) -> Result<(), TaskError> {
    let signal = Signal { number: SIGKILL, all: true };
    send_signal(pod, process, signal, Instant::now() + CLEANUP_TIMEOUT).await
}

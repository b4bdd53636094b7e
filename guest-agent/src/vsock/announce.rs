//! The announcement that the guest is up: one connection to the host, one frame.
//!
//! A connection may be dropped early in a guest's life (Kata Containers issue 8150), and one that nobody accepts takes
//! the kernel two seconds. So there are only a few attempts: afterwards the host can still connect to the agent.

use std::io;
use std::time::Duration;

use bulkhead_protocol::agent::Announce;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::version::{MAX_VERSION, MIN_VERSION};
use bulkhead_protocol::{ANNOUNCE_PORT, frame};
use tokio::io::AsyncReadExt;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// Attempts before giving up.
const ATTEMPTS: u32 = 8;
/// Pause after the first failed attempt; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long the host may take to read the frame and close.
const LINGER: Duration = Duration::from_secs(5);

/// The announcement could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnnounceError {
    #[error("dial the host on vsock port {ANNOUNCE_PORT}")]
    Dial(#[source] io::Error),
    #[error("send the announcement")]
    Send(#[source] io::Error),
}

/// Connects once and announces.
pub(crate) async fn announce() -> Result<(), AnnounceError> {
    let host = VsockAddr::new(VMADDR_CID_HOST, ANNOUNCE_PORT);
    let mut stream = VsockStream::connect(host).await.map_err(AnnounceError::Dial)?;
    let message = announcement();
    frame::write_message(&mut stream, &message).await.map_err(AnnounceError::Send)?;
    tracing::info!(boot_millis = message.boot_nanos / 1_000_000, "announced to the host");
    // A close can overtake the frame, so the host closes first.
    tokio::spawn(async move {
        let closed = tokio::time::timeout(LINGER, stream.read_u8()).await;
        tracing::debug!(in_time = closed.is_ok(), "announcement connection ends");
    });
    Ok(())
}

/// Tries again after a first attempt that failed, with growing pauses.
pub(crate) async fn retry(first: AnnounceError) {
    let mut error = first;
    for (attempt, pause) in (2..=ATTEMPTS).zip(pauses()) {
        tracing::warn!(attempt, error = %chain(&error), "announcement failed, dialling again");
        tokio::time::sleep(pause).await;
        match announce().await {
            Ok(()) => return,
            Err(again) => error = again,
        }
    }
    tracing::error!(error = %chain(&error), "the host accepts no announcement, serving without it");
}

fn pauses() -> impl Iterator<Item = Duration> {
    (0..).map(|n| FIRST_PAUSE.saturating_mul(1 << n.min(10)))
}

fn announcement() -> Announce {
    Announce {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        agent_build: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: kernel_release(),
        boot_nanos: crate::kernel::clock::boot_nanos(),
        ..Default::default()
    }
}

/// As uname(2) has it.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_attempts_end_within_seconds() {
        let total: Duration = pauses().take(ATTEMPTS as usize - 1).sum();
        assert!(total < Duration::from_secs(5), "{total:?}");
    }

    #[test]
    fn the_announcement_has_version_kernel_and_boot_time() {
        let message = announcement();
        assert!(message.boot_nanos > 0);
        assert!(!message.kernel_release.is_empty());
        assert_eq!(message.max_version, MAX_VERSION);
    }
}

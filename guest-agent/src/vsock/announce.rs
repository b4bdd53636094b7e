//! Saying that the guest is up: one dial to the host, one frame.
//!
//! Dials may be dropped early in a guest's life (Kata's issue 8150), and a dial that nobody takes costs the
//! kernel's two seconds, so a few are made and then no more: the host can still dial us.

use std::io;
use std::time::Duration;

use bulkhead_protocol::agent::Announce;
use bulkhead_protocol::error::chain;
use bulkhead_protocol::version::{MAX_VERSION, MIN_VERSION};
use bulkhead_protocol::{ANNOUNCE_PORT, frame};
use tokio::io::AsyncReadExt;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// Dials before giving up.
const ATTEMPTS: u32 = 8;
/// Pause after the first failed dial; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long the host has to take the frame and close.
const LINGER: Duration = Duration::from_secs(5);

/// A dial or the frame on it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnnounceError {
    #[error("dial the host on vsock port {ANNOUNCE_PORT}")]
    Dial(#[source] io::Error),
    #[error("send the announcement")]
    Send(#[source] io::Error),
}

/// Dials once and announces.
pub(crate) async fn once() -> Result<(), AnnounceError> {
    let host = VsockAddr::new(VMADDR_CID_HOST, ANNOUNCE_PORT);
    let mut stream = VsockStream::connect(host).await.map_err(AnnounceError::Dial)?;
    let message = announcement();
    frame::write_message(&mut stream, &message).await.map_err(AnnounceError::Send)?;
    tracing::info!(boot_millis = message.boot_nanos / 1_000_000, "announced to the host");
    // A close may overtake the frame: the host closes first.
    tokio::spawn(async move {
        let closed = tokio::time::timeout(LINGER, stream.read_u8()).await;
        tracing::debug!(in_time = closed.is_ok(), "announcement connection ends");
    });
    Ok(())
}

/// Goes on after a first dial that failed, with growing pauses.
pub(crate) async fn retry(first: AnnounceError) {
    let mut error = first;
    for (attempt, pause) in (2..=ATTEMPTS).zip(pauses()) {
        tracing::warn!(attempt, error = %chain(&error), "announcement failed, dialling again");
        tokio::time::sleep(pause).await;
        match once().await {
            Ok(()) => return,
            Err(again) => error = again,
        }
    }
    tracing::error!(error = %chain(&error), "the host takes no announcement, serving without");
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
    fn the_pauses_are_bounded_in_sum() {
        let total: Duration = pauses().take(ATTEMPTS as usize - 1).sum();
        assert!(total < Duration::from_secs(5), "{total:?}");
    }

    #[test]
    fn the_announcement_says_who_and_since_when() {
        let message = announcement();
        assert!(message.boot_nanos > 0);
        assert!(!message.kernel_release.is_empty());
        assert_eq!(message.max_version, MAX_VERSION);
    }
}

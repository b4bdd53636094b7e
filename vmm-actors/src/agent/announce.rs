//! The socket on which a guest announces itself, once.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocol::agent::Announce;
use bulkhead_protocol::hybrid_vsock::listener_path;
use bulkhead_protocol::{ANNOUNCE_PORT, frame};
use tokio::net::UnixListener;

use crate::host::socket;

/// How long a guest may take from its connection to the end of its announcement: it sends both at once.
const SENT_WITHIN: Duration = Duration::from_secs(10);

/// Listens for one announcement; its file goes with it.
#[derive(Debug)]
pub struct AnnounceSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AnnounceSocket {
    /// The path that a guest's dial to [`ANNOUNCE_PORT`] arrives on, for the hybrid vsock socket `vsock`.
    #[must_use]
    pub fn path(vsock: &Path) -> PathBuf {
        listener_path(vsock, ANNOUNCE_PORT)
    }

    /// Listens for the guest behind `vsock`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What making the socket says.
    pub fn bind(vsock: &Path) -> io::Result<Self> {
        let path = Self::path(vsock);
        let listener = socket::listen(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path })
    }

    /// Waits for the announcement, takes it, and removes the socket.
    ///
    /// # Errors
    /// When what the first connection carries is no announcement, `TimedOut` when it comes too slowly.
    pub async fn announced(self) -> io::Result<Announce> {
        let (mut stream, _) = self.listener.accept().await?;
        drop(self);
        let read = tokio::time::timeout(SENT_WITHIN, frame::read_message(&mut stream)).await;
        read.map_err(|elapsed| io::Error::new(io::ErrorKind::TimedOut, elapsed))?
    }
}

impl Drop for AnnounceSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the announcement's socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn one_announcement_is_taken_and_the_socket_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let vsock = dir.path().join("vsock.sock");
        let socket = AnnounceSocket::bind(&vsock).unwrap();
        let path = dir.path().join("vsock.sock_1023");
        let sent = Announce { max_version: 1, boot_nanos: 7, ..Announce::default() };
        let mut guest = UnixStream::connect(&path).await.unwrap();
        frame::write_message(&mut guest, &sent).await.unwrap();
        assert_eq!(socket.announced().await.unwrap(), sent);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = AnnounceSocket::bind(&dir.path().join("v")).unwrap();
        let mut guest = UnixStream::connect(dir.path().join("v_1023")).await.unwrap();
        guest.write_all(&[0xff; 64]).await.unwrap();
        assert_eq!(socket.announced().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

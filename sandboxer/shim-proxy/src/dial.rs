//! Connections to ports of the guest through a hybrid vsock socket, as Cloud Hypervisor, Firecracker and
//! vhost-device-vsock offer it: connect to the unix socket, say `CONNECT <port>`, read `OK <number>`.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest answer to CONNECT: "OK " and a port number of 10 digits, with room to spare.
const LONGEST_ANSWER: usize = 32;
/// How long the guest may take to accept.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to a port of the guest.
///
/// # Errors
/// What connect(2) says; `TimedOut` after 5 s; `ConnectionRefused` when nothing listens on that port;
/// `InvalidData` for an answer that is none.
pub(crate) async fn guest_port(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    match tokio::time::timeout(PATIENCE, handshake(vsock, port)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "the guest did not accept within 5 s")),
    }
}

async fn handshake(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(LONGEST_ANSWER);
    loop {
        // Byte by byte: what follows the newline belongs to the guest's protocol.
        let byte = match stream.read_u8().await {
            Ok(byte) => byte,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = format!("nothing listens on port {port} of the guest");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
            }
            Err(error) => return Err(error),
        };
        match byte {
            b'\n' if answer.starts_with(b"OK ") => return Ok(stream),
            b'\n' => break,
            byte if answer.len() < LONGEST_ANSWER => answer.push(byte),
            _ => break,
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT is not OK"))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 1025\n");
            stream.write_all(answer).await.unwrap();
        });
        guest_port(&path, 1025).await
    }

    #[tokio::test]
    async fn bytes_after_the_answer_are_the_guests() {
        let mut stream = answered(b"OK 1073741824\nhi").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"hi");
    }

    #[tokio::test]
    async fn a_closed_port_and_nonsense_are_told_apart() {
        assert_eq!(answered(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(answered(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(answered(&[b'O'; 100]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

//! Hybrid vsock: the ports of a guest behind a unix socket of the host, as several VMMs and
//! vhost-device-vsock offer it.
//!
//! The host reaches a guest's port by connecting to the socket: it writes `CONNECT <port>\n` and reads
//! `OK <number>\n`. A port of the host that the guest dials is a second unix socket, named after the first one and the
//! port ([`listener_path`]).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest answer to CONNECT, in bytes: "OK", a blank and a port number of 10 digits, with room to spare.
const MAX_ANSWER: usize = 32;

/// Connects to a port of the guest behind `socket`.
///
/// # Errors
/// What connect(2) says; `TimedOut` when the guest has not accepted within `deadline`; `ConnectionRefused` when nothing
/// in the guest listens on the port; `InvalidData` for any other answer.
pub async fn dial(socket: &Path, port: u32, deadline: Duration) -> io::Result<UnixStream> {
    match tokio::time::timeout(deadline, connect(socket, port)).await {
        Ok(result) => result,
        Err(_elapsed) => {
            let text = format!("the guest did not accept within {} s", deadline.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let answer = read_answer(&mut stream, port).await?;
    if answer.strip_prefix(b"OK ").is_some_and(|number| number.iter().all(u8::is_ascii_digit)) {
        return Ok(stream);
    }
    let text = format!("the answer to CONNECT is {:?}", String::from_utf8_lossy(&answer));
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Reads the first line byte by byte: what follows it belongs to the protocol of the port.
async fn read_answer(stream: &mut UnixStream, port: u32) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MAX_ANSWER);
    while line.len() < MAX_ANSWER {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(line),
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = format!("nothing listens on port {port} of the guest");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT has no end"))
}

/// Where the host listens for what a guest dials: the unix socket of a port of the host, for the hybrid vsock socket
/// `socket`.
#[must_use]
pub fn listener_path(socket: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(format!("_{port}"));
    path.into()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    async fn dial_answered_with(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1025\n");
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(dial(&path, 1025, SOON), server).0
    }

    #[tokio::test]
    async fn bytes_after_the_answer_stay_in_the_connection() {
        let mut stream = dial_answered_with(b"OK 1073741824\nhello").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_closed_port_and_an_invalid_answer_are_told_apart() {
        assert_eq!(dial_answered_with(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(dial_answered_with(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(dial_answered_with(b"OK x\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(dial_answered_with(&[b'O'; 100]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let endless = dial_answered_with(b"OK 111111111111111111111111111111111111111").await.unwrap_err();
        assert!(endless.to_string().contains("no end"), "{endless}");
    }

    #[tokio::test]
    async fn a_guest_that_does_not_accept_is_given_up_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = dial(&path, 1025, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_port_of_the_host_is_a_socket_beside_the_first_one() {
        assert_eq!(listener_path(Path::new("/d/vsock.sock"), 1023), Path::new("/d/vsock.sock_1023"));
    }
}

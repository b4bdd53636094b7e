//! Hybrid vsock: a guest's port behind a unix socket of the host.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest answer to a dial, in bytes: "OK", a blank, a 32-bit number, a line feed.
const MAX_ANSWER: usize = 16;

/// Opens a connection to a port of the guest behind `socket`.
///
/// # Errors
/// `ConnectionRefused` when nobody in the guest listens on the port, `InvalidData` for an answer that is none, else
/// what the socket says.
pub async fn dial(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let answer = first_line(&mut stream).await?;
    if answer.strip_prefix(b"OK ").is_some_and(|number| number.iter().all(u8::is_ascii_digit)) {
        return Ok(stream);
    }
    let text = format!("the answer to a dial is {:?}", String::from_utf8_lossy(&answer));
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Reads byte by byte: what follows the line belongs to the connection.
async fn first_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() <= MAX_ANSWER {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(line),
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = "nobody in the guest takes the connection";
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to a dial has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn answered_with(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(dial(&path, 1024), server).0
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_left_in_the_connection() {
        let mut stream = answered_with(b"OK 1073741824\nhello").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_closed_connection_is_a_refusal_and_anything_else_no_answer() {
        assert_eq!(answered_with(b"").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(answered_with(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let endless = answered_with(b"OK 1111111111111111111111").await.unwrap_err();
        assert!(endless.to_string().contains("no end"), "{endless}");
    }
}

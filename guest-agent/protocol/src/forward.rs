//! Copies the two directions of a forwarded TCP connection, for both of its ends; [`stream`](crate::stream) has the
//! format.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::stream::{END, MAX_CHUNK};

/// Bytes taken from a TCP connection at once.
const CHUNK: usize = 16 * 1024;

/// Which side of a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The TCP connection.
    #[error("the TCP connection broke")]
    Tcp(#[source] io::Error),
    /// The stream between host and guest.
    #[error("the stream between host and guest broke")]
    Stream(#[source] io::Error),
}

/// Copies from TCP into the stream, the end included.
///
/// # Errors
/// [`CopyError`].
pub async fn into_stream<R, W>(tcp: &mut R, stream: &mut W) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let mut frame = Vec::with_capacity(END.len() + CHUNK);
        frame.extend(END);
        let read = tcp.read_buf(&mut frame).await.map_err(CopyError::Tcp)?;
        let length = u32::try_from(read).unwrap_or_default();
        if let Some(head) = frame.first_chunk_mut() {
            *head = length.to_le_bytes();
        }
        // At the end of TCP the frame is empty, which ends the direction.
        stream.write_all(&frame).await.map_err(CopyError::Stream)?;
        if length == 0 {
            return stream.flush().await.map_err(CopyError::Stream);
        }
    }
}

/// Copies from the stream into TCP, the end included.
///
/// # Errors
/// [`CopyError`].
pub async fn from_stream<R, W>(stream: &mut R, tcp: &mut W) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let length = stream.read_u32_le().await.map_err(CopyError::Stream)?;
        if length == 0 {
            return tcp.shutdown().await.map_err(CopyError::Tcp);
        }
        if length > MAX_CHUNK {
            let text = format!("a chunk of {length} bytes, at most {MAX_CHUNK} are allowed");
            return Err(CopyError::Stream(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
        stream.read_exact(&mut chunk).await.map_err(CopyError::Stream)?;
        tcp.write_all(&chunk).await.map_err(CopyError::Tcp)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_and_end_arrive_at_the_other_side() {
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut wire, mut came) = (Vec::new(), Vec::new());
        into_stream(&mut sent.as_slice(), &mut wire).await.unwrap();
        assert!(wire.ends_with(&END));
        from_stream(&mut wire.as_slice(), &mut came).await.unwrap();
        assert_eq!(came, sent);
    }

    #[tokio::test]
    async fn a_stream_that_closes_without_an_end_is_an_error() {
        let mut wire = Vec::new();
        into_stream(&mut b"abc".as_slice(), &mut wire).await.unwrap();
        wire.truncate(wire.len() - 1);
        let error = from_stream(&mut wire.as_slice(), &mut Vec::new()).await.unwrap_err();
        assert!(matches!(error, CopyError::Stream(error) if error.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[tokio::test]
    async fn an_oversized_chunk_is_refused_before_memory_is_taken() {
        let wire = u32::MAX.to_le_bytes();
        let error = from_stream(&mut wire.as_slice(), &mut Vec::new()).await.unwrap_err();
        assert!(matches!(error, CopyError::Stream(error) if error.kind() == io::ErrorKind::InvalidData));
    }
}

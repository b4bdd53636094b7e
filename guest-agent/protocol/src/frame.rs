//! Length-prefixed frames: a `u32` in little-endian order, then that many bytes.
//!
//! Used on raw connections: for the guest's announcement, the header of a stream and the stream's data.

use std::io;

use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame that carries a message, in bytes. Checked before the body is read, so that a guest cannot make the
/// host take memory.
pub const MAX_MESSAGE: u32 = 64 * 1024;

/// Writes one message as one frame.
///
/// # Errors
/// `InvalidInput` when the message is larger than [`MAX_MESSAGE`], else what the connection says.
pub async fn write_message<W, M>(writer: &mut W, message: &M) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    let body = message.write_to_bytes().map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).ok().filter(|n| *n <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    writer.write_all(&frame).await?;
    writer.flush().await
}

/// Reads one frame as one message.
///
/// # Errors
/// `InvalidData` when the frame is larger than [`MAX_MESSAGE`] or no such message; `UnexpectedEof` when the
/// connection ends within it.
pub async fn read_message<R, M>(reader: &mut R) -> io::Result<M>
where
    R: AsyncRead + Unpin,
    M: Message,
{
    let length = reader.read_u32_le().await?;
    if length > MAX_MESSAGE {
        let text = format!("a frame of {length} bytes, at most {MAX_MESSAGE} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; length as usize];
    reader.read_exact(&mut body).await?;
    M::parse_from_bytes(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Announce;

    #[tokio::test]
    async fn a_message_is_the_same_after_the_wire() {
        let sent = Announce { max_version: 3, kernel_release: "6.1".into(), ..Default::default() };
        let mut wire = Vec::new();
        write_message(&mut wire, &sent).await.unwrap();
        let received: Announce = read_message(&mut wire.as_slice()).await.unwrap();
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_before_its_body_is_read() {
        let wire = u32::MAX.to_le_bytes();
        let error = read_message::<_, Announce>(&mut wire.as_slice()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_truncated_frame_is_an_unexpected_end() {
        let wire = [9, 0, 0, 0, 1];
        let error = read_message::<_, Announce>(&mut wire.as_slice()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

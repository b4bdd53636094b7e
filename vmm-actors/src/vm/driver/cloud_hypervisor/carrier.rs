//! A connection on which a descriptor goes along with the first bytes (`SCM_RIGHTS`, unix(7)): where the server takes
//! descriptors, it takes those that come with the request.

use std::error::Error as StdError;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Sends a request, with the descriptor beside its first bytes.
///
/// # Errors
/// What connect(2), sendmsg(2) or the exchange says.
pub(super) async fn send(
    socket: &Path,
    request: Request<Full<Bytes>>,
    descriptor: OwnedFd,
) -> Result<Response<Incoming>, Box<dyn StdError + Send + Sync>> {
    let carrier = Carrier { stream: UnixStream::connect(socket).await?, descriptor: Some(descriptor) };
    let (mut sender, connection) = http1::handshake(TokioIo::new(carrier)).await?;
    // Ends with the exchange; what goes wrong there, the exchange tells.
    tokio::spawn(connection);
    Ok(sender.send_request(in_origin_form(request)?).await?)
}

/// A request as a server wants it, which is not a proxy: the path alone, and the host in a header.
fn in_origin_form(mut request: Request<Full<Bytes>>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let path = request.uri().path().to_owned();
    *request.uri_mut() = Uri::builder().path_and_query(path).build()?;
    request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("localhost"));
    Ok(request)
}

#[derive(Debug)]
struct Carrier {
    stream: UnixStream,
    /// Until the first bytes have gone.
    descriptor: Option<OwnedFd>,
}

impl Carrier {
    /// Sends bytes and the descriptor in one message, or nothing.
    fn send_both(&self, bytes: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
        let rights = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&rights)) {
            return Err(io::Error::other("no room for one descriptor"));
        }
        self.stream.try_io(Interest::WRITABLE, || {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags)?)
        })
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(descriptor) = &self.descriptor else {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        };
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.send_both(bytes, descriptor) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    // The kernel has its own now.
                    self.descriptor = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

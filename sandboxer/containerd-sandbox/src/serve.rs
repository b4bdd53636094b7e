//! The server's life: accept, serve, answer what waits, end.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::Sandboxer;
use crate::generated::controller_server::ControllerServer;
use crate::service::Service;
use crate::traced::{SpanOf, Tracing};

/// Largest message containerd's client takes and sends, in bytes (containerd, `defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE: usize = 16 << 20;

/// Pause after accept(2) failed for want of something (EMFILE, ENOMEM), before it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("the Sandbox Controller server ended")]
pub struct ServeError {
    #[from]
    source: tonic::transport::Error,
}

/// Serves the Controller API on `listener` until `end` completes, each call within the span that `span_of` makes.
///
/// Then nothing new is accepted, pending Waits are answered `Unavailable`, and calls under way have `grace` to end.
/// A Create or Start that is still under way after that is abandoned when the caller drops the runtime.
///
/// # Errors
/// [`ServeError`] when the transport fails as a whole.
pub async fn serve<S: Sandboxer>(
    sandboxer: Arc<S>,
    listener: UnixListener,
    grace: Duration,
    span_of: SpanOf,
    end: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (ending, mut ended) = watch::channel(false);
    let service = ControllerServer::new(Service::new(sandboxer, ended.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let stop_accepting = async move {
        if ended.wait_for(|ended| *ended).await.is_err() {
            tracing::debug!("the server was dropped");
        }
    };
    let serving = Server::builder()
        .layer(Tracing(span_of))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming(listener), stop_accepting);
    let bounded_end = async {
        end.await;
        ending.send_replace(true);
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        result = serving => Ok(result?),
        () = bounded_end => {
            tracing::warn!(grace_secs = grace.as_secs(), "calls were still under way at the end");
            Ok(())
        }
    }
}

/// Connections for ever: an accept that fails is tried again, because ending would end the service of every pod.
pub fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + Send + 'static {
    stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

//! The Prometheus endpoint: `GET /metrics` on a unix socket or a loopback address, off unless set. What has been counted
//! comes from [`Telemetry`]; what is so now is looked at when somebody asks.

mod collect;

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_protocol::error::chain;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::TextEncoder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmm_actors::{Sandboxes, Telemetry};

use crate::sockets::{self, SocketError};

/// How long a client may take: whoever scrapes is quick, and comes again.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a failed accept(2), above all for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two attempts to get the address.
const RETRY: Duration = Duration::from_secs(30);
/// Connections at a time: one scraper has one, and anybody on the node may open more.
const CONNECTIONS: usize = 8;

/// Why there is no endpoint yet.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    /// The unix socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address.
    #[error("cannot listen on it")]
    Bind(#[from] io::Error),
}

/// Where clients come from.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Serves until the runtime ends, if the settings name a place. One that cannot be had is tried for again and again: pods
/// need the service, and not its figures.
pub(crate) fn start(listen: String, sandboxes: Sandboxes, telemetry: Telemetry) {
    if listen.is_empty() {
        return;
    }
    tokio::spawn(async move {
        let listener = loop {
            match Listener::bind(&listen).await {
                Ok(listener) => break listener,
                Err(error) => tracing::error!(listen, error = chain(&error), "no metrics for now"),
            }
            tokio::time::sleep(RETRY).await;
        };
        tracing::info!(listen, "serving metrics");
        serve(listener, sandboxes, telemetry).await;
    });
}

impl Listener {
    async fn bind(listen: &str) -> Result<Self, ListenError> {
        Ok(if listen.starts_with('/') {
            Self::Unix(sockets::listen(Path::new(listen))?)
        } else {
            Self::Tcp(TcpListener::bind(listen).await?)
        })
    }
}

async fn serve(listener: Listener, sandboxes: Sandboxes, telemetry: Telemetry) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let Ok(one) = Arc::clone(&free).acquire_owned().await else { return };
        let (sandboxes, telemetry) = (sandboxes.clone(), telemetry.clone());
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(answer(stream, sandboxes, telemetry, one));
            }),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(answer(stream, sandboxes, telemetry, one));
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot take a client of the metrics");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    sandboxes: Sandboxes,
    telemetry: Telemetry,
    _one: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (sandboxes, telemetry) = (sandboxes.clone(), telemetry.clone());
        async move { Ok::<_, Infallible>(respond(&request, &sandboxes, &telemetry).await) }
    });
    // One request each: a connection that waits for the next would take the place of another, and be cut in its midst.
    let mut http = hyper::server::conn::http1::Builder::new();
    let connection = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client of the metrics went away"),
        Err(_) => tracing::debug!("a client of the metrics took too long"),
    }
}

async fn respond(
    request: &Request<Incoming>,
    sandboxes: &Sandboxes,
    telemetry: &Telemetry,
) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is /metrics\n".to_owned());
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, String::new());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return response;
    }
    let text = collect::all(sandboxes, telemetry).await;
    match text.and_then(|families| TextEncoder::new().encode_to_string(&families)) {
        Ok(text) => plain(StatusCode::OK, text),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(prometheus::TEXT_FORMAT);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

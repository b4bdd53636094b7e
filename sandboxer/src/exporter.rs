//! The Prometheus endpoint: `GET /metrics` on a unix socket or a loopback address, off unless set. What has been counted
//! comes from [`Telemetry`]; what is so now is looked at when somebody asks.

mod collect;

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::TextEncoder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use vmm_actors::{Sandboxes, Telemetry};

use crate::sockets::{self, SocketError};

/// How long a client may take for all its requests: whoever scrapes is quick, and comes again.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a failed accept(2), above all for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExporterError {
    /// The unix socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address.
    #[error("cannot listen on {listen} for metrics")]
    Bind {
        /// As the settings have it.
        listen: String,
        /// Why not.
        source: io::Error,
    },
    /// A metric that Prometheus does not allow.
    #[error("cannot make the metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Where clients come from.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Serves until the runtime ends, if the settings name a place.
///
/// # Errors
/// [`ExporterError`] when that place cannot be had.
pub(crate) async fn start(
    listen: &str,
    sandboxes: Sandboxes,
    telemetry: Telemetry,
) -> Result<(), ExporterError> {
    let listener = match listen {
        "" => return Ok(()),
        path if path.starts_with('/') => Listener::Unix(sockets::listen(Path::new(path))?),
        address => {
            let bound = TcpListener::bind(address).await;
            Listener::Tcp(bound.map_err(|source| ExporterError::Bind { listen: listen.to_owned(), source })?)
        }
    };
    tracing::info!(listen, "serving metrics");
    tokio::spawn(serve(listener, sandboxes, telemetry));
    Ok(())
}

async fn serve(listener: Listener, sandboxes: Sandboxes, telemetry: Telemetry) {
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(answer(stream, sandboxes.clone(), telemetry.clone()));
            }),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(answer(stream, sandboxes.clone(), telemetry.clone()));
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
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (sandboxes, telemetry) = (sandboxes.clone(), telemetry.clone());
        async move { Ok::<_, Infallible>(respond(&request, &sandboxes, &telemetry).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
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

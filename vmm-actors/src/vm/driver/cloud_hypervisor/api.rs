//! Cloud Hypervisor's API: HTTP on a unix socket. Its server serves ten connections and answers one request after the
//! other, so every request has a connection of its own, which goes with the answer.

use std::error::Error as StdError;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyperlocal::{UnixClientExt, UnixConnector, Uri};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::carrier;
use super::error::CloudHypervisorError;

/// How long a request may take that makes or boots a VM: the VMM reads kernel and image meanwhile, and asks the host for
/// memory.
const BOOT_WITHIN: Duration = Duration::from_secs(60);
/// How long any other may take. The VMM opens a disk of the host meanwhile.
const WITHIN: Duration = Duration::from_secs(20);

/// What a request failed of, below its deadline.
type Failed = Box<dyn StdError + Send + Sync>;

/// The API of one VMM.
#[derive(Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`CloudHypervisorError`], with what the VMM says if it says something.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        request: &'static str,
    ) -> Result<T, CloudHypervisorError> {
        let ask = self.client().request(self.request(Method::GET, request, None)?);
        let answer = answered(request, WITHIN, async { whole(ask.await?).await }).await?;
        serde_json::from_slice(&answer).map_err(|source| CloudHypervisorError::Answer { request, source })
    }

    /// Has something done.
    ///
    /// # Errors
    /// [`CloudHypervisorError`], with what the VMM says if it says something.
    pub(super) async fn put(
        &self,
        request: &'static str,
        body: Option<&Value>,
    ) -> Result<(), CloudHypervisorError> {
        let ask = self.client().request(self.request(Method::PUT, request, body)?);
        answered(request, deadline(request), async { whole(ask.await?).await }).await.map(drop)
    }

    /// Has something done with a descriptor, which goes beside the request.
    ///
    /// # Errors
    /// [`CloudHypervisorError`], with what the VMM says if it says something.
    pub(super) async fn put_with(
        &self,
        request: &'static str,
        body: &Value,
        descriptor: OwnedFd,
    ) -> Result<(), CloudHypervisorError> {
        let ask = self.request(Method::PUT, request, Some(body))?;
        let sent = async { whole(carrier::send(&self.socket, ask, descriptor).await?).await };
        answered(request, deadline(request), sent).await.map(drop)
    }

    /// A client for one request: it keeps a connection only for as long as it is there itself.
    fn client(&self) -> Client<UnixConnector, Full<Bytes>> {
        Client::unix()
    }

    fn request(
        &self,
        method: Method,
        request: &'static str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, CloudHypervisorError> {
        let uri: hyper::Uri = Uri::new(&self.socket, &format!("/api/v1/{request}")).into();
        let built = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, "application/json");
        let body = body.map(Value::to_string).unwrap_or_default();
        built
            .body(Full::from(body))
            .map_err(|error| CloudHypervisorError::Unreachable { request, source: error.into() })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

fn deadline(request: &str) -> Duration {
    if matches!(request, "vm.create" | "vm.boot") { BOOT_WITHIN } else { WITHIN }
}

async fn whole(answer: Response<Incoming>) -> Result<(StatusCode, Bytes), Failed> {
    let (head, body) = answer.into_parts();
    Ok((head.status, body.collect().await?.to_bytes()))
}

async fn answered(
    request: &'static str,
    within: Duration,
    answer: impl Future<Output = Result<(StatusCode, Bytes), Failed>>,
) -> Result<Bytes, CloudHypervisorError> {
    let answer =
        timeout(within, answer).await.map_err(|_elapsed| CloudHypervisorError::Late { request, within })?;
    let (status, body) = answer.map_err(|source| CloudHypervisorError::Unreachable { request, source })?;
    if status.is_success() {
        return Ok(body);
    }
    Err(CloudHypervisorError::Refused { request, status, reason: words(&body) })
}

/// What an answer says went wrong: a list of causes, the outermost first (53), or plain text (before).
fn words(body: &[u8]) -> String {
    if let Ok(causes) = serde_json::from_slice::<Vec<String>>(body) {
        return causes.join(": ");
    }
    let text =
        serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).trim().to_owned());
    if text.is_empty() { "it gives no reason".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vmms_words_are_kept_in_whatever_form_they_come() {
        assert_eq!(
            words(br#"["Error from API","The disk could not be added","No such file"]"#),
            "Error from API: The disk could not be added: No such file"
        );
        assert_eq!(words(br#""Not Found""#), "Not Found");
        assert_eq!(words(b"VmCreate(VmAlreadyCreated)\n"), "VmCreate(VmAlreadyCreated)");
        assert_eq!(words(b""), "it gives no reason");
    }
}

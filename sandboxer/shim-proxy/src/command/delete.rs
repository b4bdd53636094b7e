//! containerd's `delete` (facts 1.7, 1.8, 6). containerd runs it when it has given a container up, or after it has
//! deleted the container in the ordinary way. It answers how the container ended, and has the pod's proxy kill and
//! delete it, as other runtimes' `delete` does. It is quick, and does not affect the pod's other containers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocol::{KILLED_STATUS, SIGKILL};
use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, KillRequest, StateRequest, StateResponse, Status, WaitRequest,
};
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::command::argv::DeleteArgs;
use crate::runtime::clock;

/// Exit status of a container whose exit is not known.
const UNKNOWN: u32 = 255;
/// How long `delete` may take in all: containerd gives it 5 s, and other pods wait until it is done.
const TIMEOUT: Duration = Duration::from_millis(900);
/// How long the proxy may take to answer from memory.
const STATE_TIMEOUT: Duration = Duration::from_millis(300);

/// The serialised answer to `delete`: the exit that the proxy knows, otherwise 255 and now.
pub(crate) fn answer(args: &DeleteArgs) -> Vec<u8> {
    let known = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(delete(args)),
        Err(_) => None,
    };
    let response = known.unwrap_or_else(|| DeleteResponse {
        exit_status: UNKNOWN,
        exited_at: Some(clock::timestamp(clock::now_nanos())).into(),
        ..Default::default()
    });
    // A message without required fields can always be encoded, and containerd takes empty bytes for an answer, too.
    response.write_to_bytes().unwrap_or_default()
}

async fn delete(args: &DeleteArgs) -> Option<DeleteResponse> {
    let address = endpoint(&args.bundle)?;
    let stream = timeout(STATE_TIMEOUT, UnixStream::connect(address)).await.ok()?.ok()?;
    let client = TaskClient::new(Client::new(Socket::from(stream)));
    let request = StateRequest { id: args.id.clone(), ..Default::default() };
    let state = client.state(context::with_duration(STATE_TIMEOUT), &request).await.ok()?;
    match timeout(TIMEOUT - STATE_TIMEOUT, kill_and_delete(&client, &args.id, &state)).await {
        Ok(Some(response)) => Some(response),
        Ok(None) | Err(_) => Some(exit_so_far(&state)),
    }
}

/// Kills the container if it runs, and deletes it. What is not done in time, the proxy does by itself once the bundle
/// is gone.
async fn kill_and_delete(client: &TaskClient, id: &str, state: &StateResponse) -> Option<DeleteResponse> {
    if !is_stopped(state) {
        let kill = KillRequest { id: id.to_owned(), signal: SIGKILL, all: true, ..Default::default() };
        client.kill(context::with_timeout(0), &kill).await.ok()?;
        let wait = WaitRequest { id: id.to_owned(), ..Default::default() };
        client.wait(context::with_timeout(0), &wait).await.ok()?;
    }
    let delete = DeleteRequest { id: id.to_owned(), ..Default::default() };
    client.delete(context::with_timeout(0), &delete).await.ok()
}

fn is_stopped(state: &StateResponse) -> bool {
    state.status.enum_value() == Ok(Status::STOPPED)
}

/// The answer that needs no waiting: how the container ended, or that it has just been killed.
fn exit_so_far(state: &StateResponse) -> DeleteResponse {
    let (exit_status, exited_at) = if is_stopped(state) {
        (state.exit_status, state.exited_at.clone())
    } else {
        let now = clock::timestamp(clock::now_nanos());
        (KILLED_STATUS, Some(now).into())
    };
    DeleteResponse { pid: state.pid, exit_status, exited_at, ..Default::default() }
}

/// The Task API socket of the pod, which containerd has written into the bundle (fact 3.3).
fn endpoint(bundle: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(bundle.join("bootstrap.json")).ok()?;
    let bootstrap: serde_json::Value = serde_json::from_str(&text).ok()?;
    let address = bootstrap.get("address")?.as_str()?;
    // containerd writes it without its "ttrpc+".
    let address = address.rsplit_once('+').map_or(address, |(_, address)| address);
    let path = PathBuf::from(address.strip_prefix("unix://")?);
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_read_from_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bootstrap.json");
        assert_eq!(endpoint(dir.path()), None);
        for (text, expected) in [
            (
                r#"{"version":3,"address":"unix:///run/s/task.sock","protocol":"ttrpc"}"#,
                Some("/run/s/task.sock"),
            ),
            (r#"{"address":"ttrpc+unix:///t"}"#, Some("/t")),
            (r#"{"address":"vsock://3:4"}"#, None),
            (r#"{"address":7}"#, None),
            ("no json", None),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(endpoint(dir.path()), expected.map(PathBuf::from), "{text}");
        }
    }

    #[test]
    fn without_a_proxy_the_exit_is_unknown_and_now() {
        let bytes = answer(&DeleteArgs { id: "c".into(), bundle: "/nonexistent".into() });
        let response = DeleteResponse::parse_from_bytes(&bytes).unwrap();
        assert_eq!(response.exit_status, UNKNOWN);
        assert!(response.exited_at.seconds > 1_600_000_000);
    }
}

//! A shim proxy that is a test program, executed again.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_protocol::pod::{Nothing, Version};
use bulkhead_protocol::shim::{AttachRequest, ContainerView, ObserveResponse, VmGoneRequest};
use bulkhead_protocol::shim_ttrpc::{Shim, create_shim};
use bulkhead_protocol::version::pod_hello;
use bulkhead_protocol::{SHIM_SOCKET, SHIM_SOCKET_FD, TASK_SOCKET, TASK_SOCKET_FD};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio::sync::Notify;
use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

use super::write_program;

/// Set in the environment of a test program that is to be a shim proxy: the ids of the containers it holds.
const ROLE: &str = "BULKHEAD_FAKE_SHIM";

/// How long the answer to Shutdown may take to be on its way.
const LAST_WORD: Duration = Duration::from_millis(20);

/// A shim proxy that answers every call and holds these containers. It ends when it is told to. `test` is the full name
/// of a test of the calling program that awaits [`serve_as_shim_when_told_to`].
///
/// # Errors
/// When it cannot be written.
pub fn fake_shim(dir: &Path, test: &str, containers: &[&str]) -> io::Result<PathBuf> {
    let test_program = std::env::current_exe()?;
    let script = format!(
        "{ROLE}='{}' exec '{}' --exact {test} --nocapture --test-threads=1",
        containers.join(","),
        test_program.display()
    );
    write_program(dir, "shim", &script)
}

/// Serves as a shim proxy until it is told to end, in a process that [`fake_shim`] has started; else returns at once.
///
/// # Errors
/// When the inherited sockets are not those of a pod.
pub async fn serve_as_shim_when_told_to() -> io::Result<()> {
    let Some(containers) = std::env::var_os(ROLE) else { return Ok(()) };
    let containers = containers.to_string_lossy().into_owned();
    let (task, shim) = (inherited(TASK_SOCKET_FD, TASK_SOCKET)?, inherited(SHIM_SOCKET_FD, SHIM_SOCKET)?);
    shim.set_nonblocking(true)?;
    let shim = tokio::net::UnixListener::from_std(shim)?;
    let streams = futures::stream::unfold(shim, |shim| async {
        Some((shim.accept().await.map(|(stream, _)| stream), shim))
    });
    let told_to_end = Arc::new(Notify::new());
    let containers = containers.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
    let service = FakeShim { told_to_end: Arc::clone(&told_to_end), containers };
    let mut server =
        Server::new().add_listener(Listener::new(streams)).register_service(create_shim(Arc::new(service)));
    server.start().await.map_err(io::Error::other)?;
    told_to_end.notified().await;
    tokio::time::sleep(LAST_WORD).await;
    drop(task);
    Ok(())
}

/// A descriptor that was handed over, by asking the kernel for a copy: no promise to the compiler is needed.
fn inherited(number: i32, name: &str) -> io::Result<UnixListener> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fd: OwnedFd = pidfd_getfd(this, number, PidfdGetfdFlags::empty())?;
    let listener = UnixListener::from(fd);
    let address = listener.local_addr()?;
    if address.as_pathname().is_some_and(|path| path.ends_with(name)) {
        return Ok(listener);
    }
    Err(io::Error::other(format!("descriptor {number} is {address:?} instead of {name}")))
}

struct FakeShim {
    told_to_end: Arc<Notify>,
    containers: Vec<String>,
}

#[async_trait]
impl Shim for FakeShim {
    async fn hello(&self, _: &TtrpcContext, _: Version) -> ttrpc::Result<Version> {
        Ok(pod_hello())
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<Nothing> {
        println!("attached to {} behind {}", request.vmm_pid, request.vsock);
        Ok(Nothing::default())
    }

    async fn vm_gone(&self, _: &TtrpcContext, request: VmGoneRequest) -> ttrpc::Result<Nothing> {
        println!("vm gone ({}): {}", request.exit_status, request.reason);
        Ok(Nothing::default())
    }

    async fn observe(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<ObserveResponse> {
        let container = |id: &String| ContainerView {
            container_id: id.clone(),
            status: "running".to_owned(),
            ..ContainerView::default()
        };
        Ok(ObserveResponse {
            containers: self.containers.iter().map(container).collect(),
            open_connections: 1,
            ..ObserveResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<Nothing> {
        self.told_to_end.notify_one();
        Ok(Nothing::default())
    }
}

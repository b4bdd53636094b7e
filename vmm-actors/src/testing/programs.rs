//! Stand-ins for the programs that a pod needs.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes an executable shell script into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn write_program(dir: &Path, name: &str, script: &str) -> io::Result<PathBuf> {
    let path = dir.join(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o755).open(&path)?;
    io::Write::write_all(&mut file, format!("#!/bin/sh\n{script}\n").as_bytes())?;
    Ok(path)
}

/// A file server that serves nothing.
///
/// # Errors
/// When it cannot be written.
pub fn fake_virtiofsd(dir: &Path) -> io::Result<PathBuf> {
    write_program(dir, "virtiofsd", "exec sleep 3600")
}

#[cfg(test)]
pub use shim::fake_shim;

#[cfg(test)]
mod shim {
    //! A shim proxy that is this test program, executed again.

    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use async_trait::async_trait;
    use bulkhead_protocol::pod::{Nothing, Version};
    use bulkhead_protocol::shim::{AttachRequest, ContainerView, ObserveResponse, VmGoneRequest};
    use bulkhead_protocol::shim_ttrpc::{Shim, create_shim};
    use bulkhead_protocol::version::pod_hello;
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    use tokio::sync::Notify;
    use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

    use super::{Path, PathBuf, io, write_program};

    /// Set in the environment of a test program that is to be a shim proxy.
    const ROLE: &str = "BULKHEAD_FAKE_SHIM";

    /// A shim proxy that answers every call and knows one container, "c1". It ends when it is told to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fake_shim(dir: &Path) -> io::Result<PathBuf> {
        let test_program = std::env::current_exe()?;
        let test = "testing::programs::shim::be_a_shim_proxy_when_told_to";
        let script =
            format!("{ROLE}=1 exec '{}' --exact {test} --nocapture --test-threads=1", test_program.display());
        write_program(dir, "shim", &script)
    }

    struct FakeShim {
        told_to_end: Arc<Notify>,
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
            println!("vm gone: {}", request.reason);
            Ok(Nothing::default())
        }

        async fn observe(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<ObserveResponse> {
            let container = ContainerView {
                container_id: "c1".to_owned(),
                status: "running".to_owned(),
                ..ContainerView::default()
            };
            Ok(ObserveResponse {
                containers: vec![container],
                open_connections: 1,
                ..ObserveResponse::default()
            })
        }

        async fn shutdown(&self, _: &TtrpcContext, _: Nothing) -> ttrpc::Result<Nothing> {
            self.told_to_end.notify_one();
            Ok(Nothing::default())
        }
    }

    #[tokio::test]
    async fn be_a_shim_proxy_when_told_to() {
        if std::env::var_os(ROLE).is_none() {
            return;
        }
        let (task, shim) = (inherited(3), inherited(4));
        assert!(task.local_addr().unwrap().as_pathname().unwrap().ends_with("task.sock"));
        shim.set_nonblocking(true).unwrap();
        let shim = tokio::net::UnixListener::from_std(shim).unwrap();
        let streams = futures::stream::unfold(shim, |shim| async {
            Some((shim.accept().await.map(|(stream, _)| stream), shim))
        });
        let told_to_end = Arc::new(Notify::new());
        let service = FakeShim { told_to_end: Arc::clone(&told_to_end) };
        let mut server = Server::new()
            .add_listener(Listener::new(streams))
            .register_service(create_shim(Arc::new(service)));
        server.start().await.unwrap();
        told_to_end.notified().await;
        // The answer to Shutdown is on its way.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    /// A descriptor that was handed over, by asking the kernel for a copy: no promise to the compiler is needed.
    fn inherited(number: i32) -> UnixListener {
        let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let fd: OwnedFd = pidfd_getfd(this, number, PidfdGetfdFlags::empty()).unwrap();
        UnixListener::from(fd)
    }
}

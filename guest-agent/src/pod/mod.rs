//! Setup: the guest becomes one pod.

mod network;
mod pid_namespace;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bulkhead_protocol::agent::SetupRequest;
use bulkhead_protocol::{PID_NAMESPACE, SHARE_DIR};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use tokio::sync::watch;

use crate::kernel::clock::{self, SetClock};
use crate::kernel::mount::is_mounted;
use crate::kernel::sysctl::{self, SysctlError};
use crate::process::reaper::Reaper;
use network::NetworkError;
use pid_namespace::PidNamespaceError;

/// Files that are bound into containers that do not mount their own.
pub(crate) const ETC_DIR: &str = "/run/bulkhead/etc";
/// The pod's shared memory, bound at `/dev/shm` of its containers.
pub(crate) const SHM_DIR: &str = "/run/bulkhead/shm";
/// Size of the shared memory when Setup names none, in bytes: the default of other runtimes.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// Why Setup failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("this guest is sandbox {is} already, set up with another content")]
    Different { is: String },
    #[error("set the host name {name:?}")]
    Hostname { name: String, source: Errno },
    #[error("write {path}")]
    WriteFile { path: String, source: io::Error },
    #[error("mount {what} at {target}")]
    Mount { what: String, target: &'static str, source: io::Error },
    #[error("make the pod's pid namespace")]
    PidNamespace { source: PidNamespaceError },
    #[error(transparent)]
    Network(Box<NetworkError>),
    #[error(transparent)]
    Sysctl(SysctlError),
    #[error(transparent)]
    Clock(SetClock),
}

/// The one pod of this guest.
#[derive(Debug)]
pub(crate) struct Pod {
    reaper: Arc<Reaper>,
    done: tokio::sync::Mutex<Option<SetupRequest>>,
    set_up: watch::Sender<bool>,
}

impl Pod {
    /// A guest without a pod yet.
    pub(crate) fn new(reaper: Arc<Reaper>) -> Self {
        Self { reaper, done: tokio::sync::Mutex::new(None), set_up: watch::Sender::new(false) }
    }

    /// Does what Setup asks for. Idempotent: the same request again completes what failed before.
    pub(crate) async fn set_up(self: Arc<Self>, request: SetupRequest) -> Result<(), SetupError> {
        let mut done = self.done.lock().await;
        if request.host_time_nanos != 0 {
            let stepped = clock::step_to(request.host_time_nanos).map_err(SetupError::Clock)?;
            tracing::debug!(stepped, "clock compared with the host's");
        }
        match done.as_ref() {
            Some(earlier) if same_pod(earlier, &request) => return Ok(()),
            Some(earlier) => return Err(SetupError::Different { is: earlier.sandbox_id.clone() }),
            None => {}
        }
        apply(&self.reaper, &request).await?;
        tracing::info!(sandbox = request.sandbox_id, "the guest is a pod");
        *done = Some(request);
        self.set_up.send_replace(true);
        Ok(())
    }

    /// Waits until Setup has succeeded.
    pub(crate) async fn wait_set_up(&self) {
        // This fails only when the sender is dropped, and `self` owns it.
        self.set_up.subscribe().wait_for(|set_up| *set_up).await.ok();
    }
}

/// Compares everything but the time, which differs with every repeat.
fn same_pod(earlier: &SetupRequest, request: &SetupRequest) -> bool {
    SetupRequest { host_time_nanos: 0, ..earlier.clone() }
        == SetupRequest { host_time_nanos: 0, ..request.clone() }
}

async fn apply(reaper: &Reaper, request: &SetupRequest) -> Result<(), SetupError> {
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes())
            .map_err(|source| SetupError::Hostname { name: request.hostname.clone(), source })?;
    }
    write_files(request)?;
    if !request.share_tag.is_empty() {
        // No `nosuid`: root file systems come from there, and set-user-ID programs in them must work.
        mount_once((&request.share_tag, SHARE_DIR, "virtiofs"), MountFlags::empty(), "")?;
    }
    let shm = format!("mode=1777,size={}", shm_bytes(request));
    mount_once(("shm", SHM_DIR, "tmpfs"), MountFlags::NOSUID, &shm)?;
    network::apply(request).await.map_err(|error| SetupError::Network(Box::new(error)))?;
    for (name, value) in &request.sysctls {
        sysctl::set(name, value).map_err(SetupError::Sysctl)?;
    }
    if request.shared_pid_namespace {
        pid_namespace::make(reaper, Path::new(PID_NAMESPACE))
            .await
            .map_err(|source| SetupError::PidNamespace { source })?;
    }
    Ok(())
}

fn shm_bytes(request: &SetupRequest) -> u64 {
    if request.shm_bytes == 0 { DEFAULT_SHM_BYTES } else { request.shm_bytes }
}

/// The files of a pod: name below [`ETC_DIR`] and content. One with empty content is not written.
fn files(request: &SetupRequest) -> [(&'static str, String); 3] {
    let hostname =
        if request.hostname.is_empty() { String::new() } else { format!("{}\n", request.hostname) };
    [("hostname", hostname), ("resolv.conf", request.resolv_conf.clone()), ("hosts", request.hosts.clone())]
}

fn write_files(request: &SetupRequest) -> Result<(), SetupError> {
    let fail = |path: &Path| {
        let path = path.display().to_string();
        move |source| SetupError::WriteFile { path, source }
    };
    let dir = Path::new(ETC_DIR);
    std::fs::create_dir_all(dir).map_err(fail(dir))?;
    for (name, content) in files(request) {
        if !content.is_empty() {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(fail(&path))?;
        }
    }
    Ok(())
}

/// Mounts `(what, target, file system)` unless something is mounted there.
fn mount_once(
    (what, target, fs): (&str, &'static str, &str),
    flags: MountFlags,
    data: &str,
) -> Result<(), SetupError> {
    let fail = |source| SetupError::Mount { what: what.to_owned(), target, source };
    std::fs::create_dir_all(target).map_err(fail)?;
    if is_mounted(target) {
        return Ok(());
    }
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(what, target, fs, flags, Some(data.as_c_str())).map_err(|errno| fail(errno.into()))
}

/// Whether the pod's shared memory is mounted.
pub(crate) fn has_shm() -> bool {
    is_mounted(SHM_DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SetupRequest {
        SetupRequest {
            sandbox_id: "a".into(),
            hostname: "web-0".into(),
            resolv_conf: "nameserver 10.96.0.10\n".into(),
            ..Default::default()
        }
    }

    #[test]
    fn setup_with_another_time_is_the_same_setup() {
        let later = SetupRequest { host_time_nanos: 7, ..request() };
        assert!(same_pod(&request(), &later));
        let other = SetupRequest { hostname: "web-1".into(), ..request() };
        assert!(!same_pod(&request(), &other));
    }

    #[test]
    fn files_without_content_are_not_written() {
        let [hostname, resolv, hosts] = files(&request());
        assert_eq!(hostname, ("hostname", "web-0\n".into()));
        assert_eq!(resolv.1, "nameserver 10.96.0.10\n");
        assert_eq!(hosts.1, "");
    }

    #[test]
    fn shared_memory_has_a_default_size() {
        assert_eq!(shm_bytes(&request()), 64 << 20);
        assert_eq!(shm_bytes(&SetupRequest { shm_bytes: 4096, ..request() }), 4096);
    }
}

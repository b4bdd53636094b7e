//! Why a spec cannot become a container in a VM.

use std::path::PathBuf;

/// The container is refused; the text says what to change. All of these are the caller's (invalid argument), none is
/// worth repeating.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON, or not an OCI runtime spec.
    #[error("config.json is not an OCI runtime spec")]
    Parse {
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The rewritten spec could not be written as JSON.
    #[error("the guest's spec cannot be written as JSON")]
    Write {
        /// What serde says.
        source: serde_json::Error,
    },
    /// `process` is missing.
    #[error("config.json has no process, so there is nothing to run")]
    NoProcess,
    /// `root` is missing.
    #[error("config.json has no root file system")]
    NoRoot,
    /// `linux` is missing.
    #[error("config.json has no linux section: only Linux containers run in the guest")]
    NotLinux,
    /// Mappings or a user namespace.
    #[error("user namespaces (hostUsers: false) are not supported in a VM pod; set hostUsers: true")]
    UserNamespace,
    /// No pid namespace: the host's was meant.
    #[error("the host's pid namespace (hostPID) cannot be given to a VM; set hostPID: false")]
    HostPid,
    /// The host's shared memory.
    #[error("the host's /dev/shm (hostIPC) cannot be given to a VM; set hostIPC: false")]
    HostShm,
    /// A namespace of the host, by path.
    #[error("{kind} namespace {path} is the host's and cannot be joined from a VM")]
    HostNamespace {
        /// Kind of namespace, as the OCI spec spells it.
        kind: String,
        /// Its path on the host.
        path: PathBuf,
    },
    /// A device that the container did not ask for: all of the host's were added.
    #[error(
        "host device {path} ({kind} {major}:{minor}) is not asked for by a device rule, as when a privileged container \
         is to have every device of the host, and a VM cannot; set privileged_without_host_devices = true for this \
         runtime in containerd's settings"
    )]
    EveryHostDevice {
        /// Path in the container.
        path: PathBuf,
        /// `c`, `b`, `u` or `p`.
        kind: String,
        /// Major number on the host.
        major: i64,
        /// Minor number on the host.
        minor: i64,
    },
    /// A device node that is neither a block device nor one that every container has.
    #[error(
        "host device {path} ({kind} {major}:{minor}) cannot be given to a VM: of the host's devices only block \
         devices can; take it out of the pod"
    )]
    HostDevice {
        /// Path in the container.
        path: PathBuf,
        /// `c`, `b`, `u` or `p`.
        kind: String,
        /// Major number on the host.
        major: i64,
        /// Minor number on the host.
        minor: i64,
    },
    /// A network device of the host.
    #[error("host network device {name} cannot be moved into a VM's container")]
    NetDevice {
        /// Name on the host.
        name: String,
    },
    /// A hook: a program of the host, meant to run beside the container.
    #[error(
        "{kind} hook {path} is a program of the host and cannot run for a container in a VM; remove the hook"
    )]
    Hook {
        /// Kind of hook, as the OCI spec spells it.
        kind: &'static str,
        /// The program.
        path: PathBuf,
    },
    /// seccomp notifications go to a socket of the host.
    #[error("seccomp listener {path} is a socket of the host and cannot be reached from a VM")]
    SeccompListener {
        /// The socket.
        path: PathBuf,
    },
    /// A mount that is neither a bind nor a kernel file system.
    #[error("mount at {destination} has type {kind:?}, and only binds and kernel file systems work in a VM")]
    MountType {
        /// The type, as the spec says it.
        kind: String,
        /// Where in the container.
        destination: PathBuf,
    },
    /// A bind mount without an absolute, normalised source.
    #[error("bind mount at {destination} names {source_path:?}: an absolute host path without .. is needed")]
    BindSource {
        /// What it names.
        source_path: PathBuf,
        /// Where in the container.
        destination: PathBuf,
    },
    /// `rshared`: mounts of the container should appear on the host.
    #[error(
        "mount at {destination} asks for Bidirectional propagation: mounts made in a VM cannot reach the host"
    )]
    PropagationToHost {
        /// Where in the container.
        destination: PathBuf,
    },
    /// Id-mapped mount.
    #[error("mount at {destination} is id-mapped (user namespaces), which is not supported in a VM pod")]
    IdMappedMount {
        /// Where in the container.
        destination: PathBuf,
    },
}

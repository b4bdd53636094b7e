//! What can go wrong with containers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::CgroupError;
use crate::forward::host_sockets::HostSocketError;
use crate::hotplug::DiskError;
use crate::process::helper::LaunchError;
use crate::process::reaper::SignalError;
use crate::stdio::StdioError;

/// A call about a container that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("container {id:?} does not exist")]
    NoContainer { id: String },
    #[error("container {id} has no exec {exec:?}")]
    NoExec { id: String, exec: String },
    #[error("container {id} exists already")]
    ContainerExists { id: String },
    #[error("container {id} has an exec {exec} already")]
    ExecExists { id: String, exec: String },
    #[error("{id:?} cannot be an id: letters, digits and _.-+ only, at most 128")]
    BadId { id: String },
    #[error("process {process} has not been started")]
    NotStarted { process: String },
    #[error("process {process} has ended")]
    HasEnded { process: String },
    #[error("process {process} was deleted and never ran")]
    WasDeleted { process: String },
    #[error("process {process} is still running")]
    StillRuns { process: String },
    #[error("process {process} has no terminal")]
    NoTerminal { process: String },
    #[error("the spec of container {id} is no OCI runtime spec")]
    ParseSpec { id: String, source: serde_json::Error },
    #[error("the spec of container {id} has no {part}")]
    IncompleteSpec { id: String, part: &'static str },
    #[error("the process of exec {exec} in container {id} is no OCI process")]
    ParseProcess { id: String, exec: String, source: serde_json::Error },
    #[error("{entry:?} in the environment of {process} is no variable: it needs a name, = and a value")]
    BadVariable { process: String, entry: String },
    #[error("the resources for container {id} are no OCI resources")]
    ParseResources { id: String, source: serde_json::Error },
    #[error("the root file system {path} of container {id} is not there")]
    NoRootfs { id: String, path: PathBuf, source: io::Error },
    #[error("the source {path} of container {id}'s mount at {destination} is not there")]
    NoMountSource { id: String, path: PathBuf, destination: PathBuf, source: io::Error },
    #[error("the working directory {path} of container {id} is not there and cannot be made")]
    MakeWorkDir { id: String, path: PathBuf, source: io::Error },
    #[error("container {id} wants the pod's pid namespace, and the pod was set up without one")]
    NoPidNamespace { id: String },
    #[error("the block device for {path} cannot be used")]
    Disk { path: PathBuf, source: DiskError },
    #[error("the block device for {path} cannot be used: the path is not absolute")]
    DiskPath { path: PathBuf },
    #[error("make the node of the block device for {path}")]
    DiskNode { path: PathBuf, source: io::Error },
    #[error("mount {fs_type} at {target}")]
    Mount { fs_type: String, target: PathBuf, source: io::Error },
    #[error("make the volume in memory {name:?}")]
    Memory { name: String, source: io::Error },
    #[error("write {path}")]
    WriteFile { path: PathBuf, source: io::Error },
    #[error("remove {path}")]
    RemoveFile { path: PathBuf, source: io::Error },
    #[error("make container {id}")]
    Create { id: String, source: LaunchError },
    #[error("start container {id}")]
    Start { id: String, source: libcontainer::error::LibcontainerError },
    #[error("start exec {exec} in container {id}")]
    StartExec { id: String, exec: String, source: LaunchError },
    #[error("container {id} did not end within {limit:?} of being killed")]
    Unkillable { id: String, limit: Duration },
    #[error(transparent)]
    Streams(#[from] StdioError),
    #[error(transparent)]
    Socket(#[from] HostSocketError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("resize the terminal of process {process}")]
    Resize { process: String, source: crate::stdio::terminal::PtyError },
    #[error("change the state of process {process}")]
    Transition { process: String, source: super::state::InvalidTransition },
}

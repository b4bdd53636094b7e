//! The containers' part of a sandbox's record.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::disks::Disks;
use crate::id::ContainerId;

/// What a successor must know of a pod's containers. Its fields lie flat in the sandbox's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainersRecord {
    /// Containers whose mounts exist or may exist.
    #[serde(rename = "containers")]
    pub by_id: BTreeMap<ContainerId, ContainerRecord>,
    /// Block devices of the host that are, or may be, attached to the VM.
    #[serde(default)]
    pub disks: Disks,
}

impl ContainersRecord {
    /// Everything was released.
    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.disks.clear();
    }
}

/// One container of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRecord {
    /// containerd's bundle.
    pub bundle: PathBuf,
    /// The container's stdio as containerd named it: stdin, stdout, stderr; empty where there is none.
    pub stdio: [String; 3],
    /// Pid of its init in the guest, once it runs.
    pub guest_pid: Option<u32>,
}

//! Mounts as containerd asks for them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One mount of a root file system, as containerd's snapshotters give it (`containerd.types.Mount`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootfsMount {
    /// `overlay`, `bind`, …
    pub kind: String,
    /// A directory, a device, or a mere name.
    pub source: String,
    /// Below the root file system; empty: the root file system itself.
    #[serde(default)]
    pub target: String,
    /// As in fstab(5).
    #[serde(default)]
    pub options: Vec<String>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// File or directory of the host; links are followed as mount(8) does.
    pub source: PathBuf,
    /// The volume is `<container>/mounts/<number>` in the share.
    pub number: u32,
    /// As in the OCI runtime spec: `rbind`, `ro`, `rslave`, …
    #[serde(default)]
    pub options: Vec<String>,
}

//! What a later instance of this service must know of a VM to take it over.

use std::fmt;

use bulkhead_config::{Hypervisor, Machine};
use serde::{Deserialize, Serialize};

use crate::host::process::ProcessIdentity;
use crate::pod_dir::PodDir;

/// How guest instructions are run, as it turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// By the processor.
    Kvm,
    /// By emulation: slow.
    Tcg,
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A running VM, for the durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The driver that started it.
    pub hypervisor: Hypervisor,
    /// How its guest runs.
    pub acceleration: Acceleration,
    /// Its machine type. None in records of releases that did not write it: the VMM knows.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// Whether it takes block devices of the host. Those of releases that did not write it do.
    #[serde(default = "always")]
    pub block_volumes: bool,
    /// The VMM.
    pub vmm: ProcessIdentity,
    /// The vsock helper; none for a VMM that serves vsock itself.
    pub vsock_helper: Option<ProcessIdentity>,
    /// Where its sockets and output files are.
    pub dir: PodDir,
}

fn always() -> bool {
    true
}

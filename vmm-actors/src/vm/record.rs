//! What a later instance of this service must know of a VM to take it over.

use std::fmt;

use bulkhead_config::Hypervisor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::host::process::ProcessIdentity;
use crate::runtime_dir::VmDir;

/// How guest instructions are run, as it turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acceleration {
    /// By the processor (KVM).
    #[serde(rename = "kvm")]
    Hardware,
    /// By emulation: slow. Records spell it as the first release did.
    #[serde(rename = "tcg", alias = "emulation")]
    Emulation,
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "kvm",
            Self::Emulation => "emulation",
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
    /// The VMM.
    pub vmm: ProcessIdentity,
    /// The vsock helper; none for a VMM that serves vsock itself.
    pub vsock_helper: Option<ProcessIdentity>,
    /// Where its sockets and output files are.
    pub dir: VmDir,
    /// What only its driver reads. It lies flat beside the others, as releases wrote it that had one driver.
    #[serde(flatten)]
    pub state: DriverState,
}

/// What a driver keeps with a VM for itself, for example the machine type. Opaque to everybody else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriverState(Map<String, Value>);

impl DriverState {
    /// Packs a driver's own type, which must serialize to a map.
    #[must_use]
    pub fn pack(own: &impl Serialize) -> Self {
        match serde_json::to_value(own) {
            Ok(Value::Object(map)) => Self(map),
            Ok(_) | Err(_) => Self::default(),
        }
    }

    /// Unpacks it again. What is missing or does not read becomes the default.
    #[must_use]
    pub fn unpack<T: DeserializeOwned + Default>(&self) -> T {
        serde_json::from_value(Value::Object(self.0.clone())).unwrap_or_default()
    }
}

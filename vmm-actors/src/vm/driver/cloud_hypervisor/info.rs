//! What the VMM tells of itself and its VM.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::api::Api;
use super::error::CloudHypervisorError;
use crate::vm::{GuestState, Size, Sizes};

/// `vmm.ping`.
#[derive(Debug, Deserialize)]
pub(super) struct Ping {
    /// `53.0.0`.
    pub(super) version: String,
}

/// `vm.info`, as far as it is of interest.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    state: String,
    config: Config,
    /// What the guest has, in bytes: the memory that it began with, and what it has taken since.
    memory_actual_size: u64,
    /// Every device, by id. Not there before the boot.
    #[serde(default)]
    device_tree: Option<BTreeMap<String, IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct Config {
    cpus: Cpus,
    memory: Memory,
}

/// Processors: those that the guest is to have, and how many there can be.
#[derive(Debug, Deserialize)]
struct Cpus {
    boot_vcpus: NonZeroU32,
    max_vcpus: NonZeroU32,
}

/// Memory in bytes: what the VM began with, and how much more it can get.
#[derive(Debug, Deserialize)]
struct Memory {
    size: u64,
    #[serde(default)]
    hotplug_size: Option<u64>,
}

impl Info {
    pub(super) async fn of(api: &Api) -> Result<Self, CloudHypervisorError> {
        api.get("vm.info").await
    }

    pub(super) fn guest_state(&self) -> GuestState {
        match self.state.as_str() {
            "Running" => GuestState::Running,
            other => GuestState::Stopped(other.to_lowercase()),
        }
    }

    pub(super) fn has_device(&self, id: &str) -> bool {
        self.device_tree.as_ref().is_some_and(|devices| devices.contains_key(id))
    }

    pub(super) fn sizes(&self) -> Sizes {
        let Config { cpus, memory } = &self.config;
        let most = memory.size.saturating_add(memory.hotplug_size.unwrap_or(0));
        Sizes {
            now: Size { vcpus: cpus.boot_vcpus, memory_mib: mib(self.memory_actual_size) },
            limit: Size { vcpus: cpus.max_vcpus, memory_mib: mib(most) },
        }
    }

    /// The memory that the VM began with, below which it cannot come.
    pub(super) fn first_memory_mib(&self) -> NonZeroU32 {
        mib(self.config.memory.size)
    }
}

fn mib(bytes: u64) -> NonZeroU32 {
    u32::try_from(bytes >> 20).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(rest: &str) -> Info {
        let text = format!(
            r#"{{"config": {{"cpus": {{"boot_vcpus": 2, "max_vcpus": 8, "nested": false}},
                "memory": {{"size": 268435456, "hotplug_size": 134217728, "hotplugged_size": null}}}},
                "memory_actual_size": 335544320, {rest}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_vm_is_as_large_as_what_its_guest_has_taken() {
        let info = info(r#""state": "Running", "device_tree": {"disk0": {"id": "disk0"}}"#);
        let size = |vcpus: u32, mib: u32| Size {
            vcpus: vcpus.try_into().unwrap(),
            memory_mib: mib.try_into().unwrap(),
        };
        assert_eq!(info.sizes(), Sizes { now: size(2, 320), limit: size(8, 384) });
        assert_eq!(info.guest_state(), GuestState::Running);
        assert!(info.has_device("disk0") && !info.has_device("disk1"));
    }

    #[test]
    fn a_vm_that_does_not_run_is_what_the_vmm_calls_it() {
        let info = info(r#""state": "Paused""#);
        assert_eq!(info.guest_state(), GuestState::Stopped("paused".into()));
        assert!(!info.has_device("disk0"));
    }
}

//! Settings of the VMMs, one file for each: its table, its checks, and what it needs of the host.

mod cloud_hypervisor;
mod qemu;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::finding::{Findings, Program};

pub use cloud_hypervisor::CloudHypervisor;
pub use qemu::{Accelerator, Machine, Qemu};

/// A VMM driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// QEMU over QMP.
    #[default]
    Qemu,
    /// Cloud Hypervisor over its HTTP API.
    CloudHypervisor,
}

/// The settings of every VMM, and which of them runs the VMs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vmms<'a> {
    pub(crate) chosen: Hypervisor,
    pub(crate) qemu: &'a Qemu,
    pub(crate) cloud_hypervisor: &'a CloudHypervisor,
}

/// Every path among the VMMs' settings, by key.
pub(crate) fn paths(vmms: Vmms<'_>) -> Vec<(&'static str, &Path)> {
    let mut paths = qemu::paths(vmms.qemu).to_vec();
    paths.extend(cloud_hypervisor::paths(vmms.cloud_hypervisor));
    paths
}

/// Arguments that are handed to VMMs as they are, by key.
pub(crate) fn arguments(vmms: Vmms<'_>) -> Vec<(&'static str, &[String])> {
    vec![qemu::arguments(vmms.qemu), cloud_hypervisor::arguments(vmms.cloud_hypervisor)]
}

/// Programs that the chosen VMM needs.
pub(crate) fn programs(vmms: Vmms<'_>) -> Vec<Program<'_>> {
    match vmms.chosen {
        Hypervisor::Qemu => qemu::programs(vmms.qemu).to_vec(),
        Hypervisor::CloudHypervisor => cloud_hypervisor::programs(vmms.cloud_hypervisor).to_vec(),
    }
}

/// What else the chosen VMM needs of the host.
pub(crate) fn host(vmms: Vmms<'_>, findings: &mut Findings) {
    match vmms.chosen {
        Hypervisor::Qemu => qemu::host(vmms.qemu, findings),
        Hypervisor::CloudHypervisor => cloud_hypervisor::host(findings),
    }
}

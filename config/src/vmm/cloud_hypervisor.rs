//! `[cloud_hypervisor]`: settings of the Cloud Hypervisor driver.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::finding::{Findings, Program};

/// `[cloud_hypervisor]`: the Cloud Hypervisor driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudHypervisor {
    /// `cloud-hypervisor`, version 50 or newer.
    pub path: PathBuf,
    /// Arguments behind ours.
    pub extra_args: Vec<String>,
}

impl Default for CloudHypervisor {
    fn default() -> Self {
        Self { path: "/usr/bin/cloud-hypervisor".into(), extra_args: Vec::new() }
    }
}

pub(super) fn paths(settings: &CloudHypervisor) -> [(&'static str, &Path); 1] {
    [("cloud_hypervisor.path", &settings.path)]
}

pub(super) fn arguments(settings: &CloudHypervisor) -> (&'static str, &[String]) {
    ("cloud_hypervisor.extra_args", &settings.extra_args)
}

pub(super) fn programs(settings: &CloudHypervisor) -> [Program<'_>; 1] {
    let remedy = "install Cloud Hypervisor 50 or newer (github.com/cloud-hypervisor/cloud-hypervisor/releases) or name \
                  where it is";
    [("cloud_hypervisor.path", &settings.path, remedy)]
}

/// It has no emulation: without KVM there is no VM.
pub(super) fn host(findings: &mut Findings) {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        let wrong = format!("it needs KVM, and /dev/kvm cannot be opened: {error}");
        let right = "load the kvm_intel or kvm_amd module; or \"qemu\", which can do without KVM";
        findings.add("vm.hypervisor", "\"cloud-hypervisor\"".into(), wrong, right);
    }
}

//! Settings of the VMMs, one file for each: its table, its checks, and what it needs of the host.

mod qemu;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Settings;
use crate::check::Findings;

pub use qemu::{Accelerator, Machine, Qemu};

/// A VMM driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// QEMU over QMP.
    #[default]
    Qemu,
}

/// A key, the program that it names, and what to do where the host has none.
pub(crate) type Program<'a> = (&'static str, &'a Path, &'static str);

/// Every path among the VMMs' settings, by key.
pub(crate) fn paths(settings: &Settings) -> Vec<(&'static str, &Path)> {
    qemu::paths(&settings.qemu).to_vec()
}

/// Arguments that are handed to VMMs as they are, by key.
pub(crate) fn arguments(settings: &Settings) -> Vec<(&'static str, &[String])> {
    vec![qemu::arguments(&settings.qemu)]
}

/// Programs that the chosen VMM needs.
pub(crate) fn programs(settings: &Settings) -> Vec<Program<'_>> {
    match settings.vm.hypervisor {
        Hypervisor::Qemu => qemu::programs(&settings.qemu).to_vec(),
    }
}

/// What else the chosen VMM needs of the host.
pub(crate) fn host(settings: &Settings, findings: &mut Findings) {
    match settings.vm.hypervisor {
        Hypervisor::Qemu => qemu::host(&settings.qemu, findings),
    }
}

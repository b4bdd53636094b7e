//! `[qemu]`: settings of the QEMU driver.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::finding::{Findings, Program};

/// `[qemu]`: the QEMU driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qemu {
    /// `qemu-system-x86_64`.
    pub path: PathBuf,
    /// The machine type.
    pub machine: Machine,
    /// KVM, TCG, or whichever works.
    pub accelerator: Accelerator,
    /// `vhost-device-vsock`, the host side of the guest's vsock.
    pub vsock_path: PathBuf,
    /// Arguments behind ours.
    pub extra_args: Vec<String>,
}

/// A QEMU machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// PCI Express, hotplug: VMs grow with their pods.
    Q35,
    /// virtio-mmio only: boots faster, no hotplug.
    #[default]
    Microvm,
}

/// How guest instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation; an error where it does not work.
    Kvm,
    /// Emulation: slow, works everywhere.
    Tcg,
    /// KVM where a trial VM runs, else TCG with a warning.
    #[default]
    Auto,
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            path: "/usr/bin/qemu-system-x86_64".into(),
            machine: Machine::Microvm,
            accelerator: Accelerator::Auto,
            vsock_path: "/usr/bin/vhost-device-vsock".into(),
            extra_args: Vec::new(),
        }
    }
}

pub(super) fn paths(qemu: &Qemu) -> [(&'static str, &Path); 2] {
    [("qemu.path", &qemu.path), ("qemu.vsock_path", &qemu.vsock_path)]
}

pub(super) fn arguments(qemu: &Qemu) -> (&'static str, &[String]) {
    ("qemu.extra_args", &qemu.extra_args)
}

pub(super) fn programs(qemu: &Qemu) -> [Program<'_>; 2] {
    [
        ("qemu.path", &qemu.path, "install QEMU (Debian: qemu-system-x86) or name where it is"),
        ("qemu.vsock_path", &qemu.vsock_path, "install vhost-device-vsock or name where it is"),
    ]
}

pub(super) fn host(qemu: &Qemu, findings: &mut Findings) {
    if qemu.accelerator == Accelerator::Kvm
        && File::options().read(true).write(true).open("/dev/kvm").is_err()
    {
        let right = "auto, or tcg; or load the kvm_intel or kvm_amd module";
        findings.add("qemu.accelerator", "\"kvm\"".into(), "/dev/kvm cannot be opened", right);
    }
}

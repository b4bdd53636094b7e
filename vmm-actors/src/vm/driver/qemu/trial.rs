//! A guest that shows whether QEMU runs guests on KVM here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::args::KVM_CPU;
use crate::vm::driver::kvm_trial::{CONSOLE, OnPanic, TrialVmm};

/// The banner is a notice; what comes after it would be an exit of the VM for each character. A panic resets the VM, and
/// that ends QEMU.
const CMDLINE: &str = "console=ttyS0 loglevel=6 earlyprintk=serial panic=-1 reboot=t";
/// The banner, which is all that has to be seen, is the first thing that a kernel prints.
const OUTPUT_LIMIT: u64 = 64 * 1024;

pub(super) fn vmm(qemu: PathBuf, kernel: &Path) -> TrialVmm {
    let mut args: Vec<OsString> =
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(Into::into).to_vec();
    args.extend(["-machine", "microvm,accel=kvm", "-cpu", KVM_CPU, "-m", "128M", "-serial"].map(Into::into));
    args.extend([format!("file:{CONSOLE}").into(), "-kernel".into(), kernel.into()]);
    args.extend(["-append", CMDLINE].map(Into::into));
    let name = "bulkhead-kvm-trial";
    TrialVmm { name, program: qemu, args, panic: OnPanic::Ends, output_limit: OUTPUT_LIMIT }
}

//! A guest that shows whether Cloud Hypervisor runs guests on KVM here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::vm::driver::kvm_trial::{CONSOLE, CpuBudget, OnPanic, TrialVmm};

/// The other choice is no pod at all, and KVM may be nested, and slow. On hardware it takes a tenth and half a second.
pub(super) const BUDGET: CpuBudget = CpuBudget::LONG.busy(3);
/// The banner is a notice; what comes after it would be an exit of the VM for each character. A reset would boot the guest
/// anew, so it stays in its panic.
const CMDLINE: &str = "console=ttyS0 loglevel=6 earlyprintk=serial panic=0";
/// Its panic, which has to be seen, is the last thing that a kernel prints.
const OUTPUT_LIMIT: u64 = 256 * 1024;

pub(super) fn vmm(program: PathBuf, kernel: &Path) -> TrialVmm {
    let mut args: Vec<OsString> =
        ["--memory", "size=128M", "--console", "off", "--serial"].map(Into::into).to_vec();
    args.extend([format!("file={CONSOLE}").into(), "--kernel".into(), kernel.into()]);
    args.extend(["--cmdline", CMDLINE].map(Into::into));
    let name = "bulkhead-cloud-hypervisor-trial";
    TrialVmm { name, program, args, panic: OnPanic::GoesOn, output_limit: OUTPUT_LIMIT }
}

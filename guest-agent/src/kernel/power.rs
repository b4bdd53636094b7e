//! Switching the VM off.

use std::path::Path;

use bulkhead_protocol::SHARE_DIR;
use rustix::system::{RebootCommand, reboot};

/// How this machine is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PowerOff {
    /// ACPI's soft off.
    PowerOff,
    /// A reset: a machine without ACPI cannot switch its power off. The host configures every VMM to end the VM on a
    /// reset.
    Restart,
}

impl PowerOff {
    fn of_this_machine() -> Self {
        if Path::new("/sys/firmware/acpi/tables").exists() { PowerOff::PowerOff } else { PowerOff::Restart }
    }

    fn command(self) -> RebootCommand {
        match self {
            PowerOff::PowerOff => RebootCommand::PowerOff,
            PowerOff::Restart => RebootCommand::Restart,
        }
    }
}

/// Writes dirty data back and switches the VM off. Returns only when the kernel refuses.
pub(crate) fn power_off() {
    let how = PowerOff::of_this_machine();
    tracing::info!(?how, "the guest ends");
    rustix::fs::sync();
    // So that virtiofsd closes what the guest had open.
    if let Err(error) = super::mount::detach(SHARE_DIR) {
        tracing::warn!(%error, "the share stays mounted");
    }
    for how in [how, PowerOff::Restart] {
        if let Err(error) = reboot(how.command()) {
            tracing::error!(%error, ?how, "the kernel refuses to end the guest");
        }
    }
}

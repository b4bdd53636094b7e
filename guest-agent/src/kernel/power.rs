//! The end of the VM.

use std::path::Path;

use bulkhead_protocol::SHARE_DIR;
use rustix::system::{RebootCommand, reboot};

/// How this machine is turned off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// ACPI's soft off.
    PowerOff,
    /// A reset: without ACPI there is no power to switch off. The host has every VMM take a reset for the end of the VM.
    Restart,
}

impl Ending {
    fn of_this_machine() -> Self {
        if Path::new("/sys/firmware/acpi/tables").exists() { Ending::PowerOff } else { Ending::Restart }
    }

    fn command(self) -> RebootCommand {
        match self {
            Ending::PowerOff => RebootCommand::PowerOff,
            Ending::Restart => RebootCommand::Restart,
        }
    }
}

/// Writes back what is dirty and ends the VM. Returns only when the kernel refuses.
pub(crate) fn power_off() {
    let ending = Ending::of_this_machine();
    tracing::info!(?ending, "the guest ends");
    rustix::fs::sync();
    // virtiofsd closes what the guest had open.
    if let Err(error) = super::mount::detach(SHARE_DIR) {
        tracing::warn!(%error, "the share stays mounted");
    }
    for ending in [ending, Ending::Restart] {
        if let Err(error) = reboot(ending.command()) {
            tracing::error!(%error, ?ending, "the kernel refuses to end the guest");
        }
    }
}

//! The end of the VM.

use std::path::Path;

use rustix::system::{RebootCommand, reboot};

/// How this machine is turned off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// ACPI's soft off.
    PowerOff,
    /// A reset. The VMM runs with `-no-reboot`, or takes a reset for the end by itself: without ACPI there is no
    /// power to switch off.
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
    crate::pod::leave_share();
    for ending in [ending, Ending::Restart] {
        if let Err(error) = reboot(ending.command()) {
            tracing::error!(%error, ?ending, "the kernel refuses to end the guest");
        }
    }
}

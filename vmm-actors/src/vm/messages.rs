//! What the Vm actor hears and tells.

use std::fmt;
use std::time::Duration;

use actix::Message;
use serde::{Deserialize, Serialize};

use super::{Acceleration, Device, GuestState, LaunchSpec, Size, Sizes, VmError, VmRecord};
use crate::ask::Command;
use crate::host::process::Exit;

/// Starts the VM. Legal once, before anything else.
#[derive(Debug)]
pub struct Boot {
    /// What to start.
    pub spec: Box<LaunchSpec>,
}

impl Command for Boot {
    /// Answered when the processes run.
    type Answer = Booted;
    type Error = VmError;
}

/// The processes run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booted {
    /// To be made durable before [`Keep`].
    pub record: VmRecord,
}

impl Booted {
    /// How the guest runs, for Status.
    #[must_use]
    pub fn acceleration(&self) -> Acceleration {
        self.record.acceleration
    }
}

/// The record is durable: the processes outlive this actor from now on. Without effect before [`Boot`] has answered.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Keep;

/// Lets the guest end by itself within `grace` (the agent has been told), then ends the VMM with SIGTERM and at last
/// with SIGKILL; at once where `grace` is zero. A VM that is being started is ended, too. A repeat joins; an ended VM answers
/// at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long the guest may take.
    pub grace: Duration,
}

impl Command for Shutdown {
    /// Answered when every process of the VM is gone, or with [`VmError::StillAlive`] 10 s after SIGKILL.
    type Answer = Exit;
    type Error = VmError;
}

/// Plugs a device into the running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddDevice {
    /// The device.
    pub device: Device,
}

impl Command for AddDevice {
    /// Answered when the VMM has it.
    type Answer = ();
    type Error = VmError;
}

/// Unplugs a device that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveDevice {
    /// The id it was added with.
    pub id: String,
}

impl Command for RemoveDevice {
    /// Answered when the VMM has let go of it.
    type Answer = ();
    type Error = VmError;
}

/// Asks how large the running VM is, and can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure;

impl Command for Measure {
    /// What the VMM says.
    type Answer = Sizes;
    type Error = VmError;
}

/// Changes the size of the running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resize {
    /// The new size.
    pub to: Size,
}

impl Command for Resize {
    /// Answered when the VMM says that it is so, with the size.
    type Answer = Size;
    type Error = VmError;
}

/// Asks what the actor knows and what the VMM says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe;

impl Command for Observe {
    /// Never an error of its own: what is not known is missing.
    type Answer = VmView;
    type Error = VmError;
}

/// A VM as its actor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmView {
    /// cold, booting, up, ending or gone.
    pub state: &'static str,
    /// The driver and the machine type, of a VM that runs.
    pub driver: Option<String>,
    /// The VMM's pid while it runs.
    pub vmm_pid: Option<u32>,
    /// How the guest runs.
    pub acceleration: Option<Acceleration>,
    /// What the VMM says of the guest; none when it was not or could not be asked.
    pub guest: Option<GuestState>,
    /// How the VM ended.
    pub exited: Option<VmmExited>,
}

/// The VM has ended: no process of it runs any more. Told once, whether it was asked to end or not. One that SIGKILL
/// does not end may be left; the next [`Shutdown`] says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Message)]
#[rtype(result = "()")]
pub struct VmmExited {
    /// How the VMM ended; unknown for one that an earlier instance had started, or that SIGKILL has not ended yet.
    pub exit: Exit,
    /// Why.
    pub cause: EndCause,
    /// The last lines that the process at fault printed; may be empty.
    pub last_words: String,
    /// The last lines of the guest's console; may be empty.
    pub console_tail: String,
}

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndCause {
    /// We were asked to end it.
    Asked,
    /// The VMM went: the guest powered off or crashed, or the VMM was killed.
    VmmEnded,
    /// The vsock helper went, so the VMM was killed.
    VsockHelperEnded(Exit),
}

impl fmt::Display for VmmExited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            EndCause::Asked => write!(f, "the VM was ended")?,
            EndCause::VmmEnded => write!(f, "the VMM ended ({})", self.exit)?,
            EndCause::VsockHelperEnded(exit) => {
                write!(f, "the VM was ended because its vsock helper ended ({exit})")?;
            }
        }
        for (what, text) in [("last words", &self.last_words), ("console", &self.console_tail)] {
            if !text.is_empty() {
                write!(f, "; {what}: {text}")?;
            }
        }
        Ok(())
    }
}

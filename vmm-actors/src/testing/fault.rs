//! What can go wrong with a fake VM.

/// What goes wrong with a VM, and when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Launching fails: nothing was started.
    LaunchFails,
    /// Launching never ends.
    LaunchHangs,
    /// The VMM prints these words and ends with code 3.
    VmmExits(String),
    /// The VMM wants this much memory, in MiB, as soon as there is a file named after [`EAT`] in the VM's directory.
    Eats(u32),
    /// The guest never announces itself.
    NeverAnnounces,
    /// What the guest sends as its announcement is none.
    AnnouncesGarbage,
    /// The guest's agent speaks no version of ours.
    ForeignAgent,
    /// The guest's agent speaks our version and has no feature.
    OldAgent,
    /// The VMM takes no disk whose host path ends in this.
    RefusesDisk(String),
    /// The VMM keeps every disk.
    KeepsDisks,
    /// The guest refuses to become a pod.
    SetupFails,
    /// The guest never answers to Setup.
    SetupHangs,
    /// The guest answers no Ping.
    IgnoresPings,
    /// The guest does not end when it is told to.
    IgnoresShutdown,
    /// The guest uses none of the processors that its VM is given.
    TakesNoCpus,
    /// The guest takes no memory that its VM is given.
    TakesNoMemory,
}

/// Name of the file that makes a VMM with [`Fault::Eats`] begin.
pub const EAT: &str = "eat";

//! The map of sandboxes.
//!
//! - **Owns**: one [`Sandbox`](crate::sandbox) actor per pod; the only address that lives as long as the process.
//! - **Hears**: [`Create`], [`Lookup`], [`List`], and from each sandbox that it has left.
//! - **Tells**: nobody.
//! - **Ends when**: the process does. The sandboxes' VMs live on.
//! - **Queue**: every request of the node passes here once, and no handler waits for anything: 1024 covers a node's
//!   worth of pods asked for at once.
//!
//! A sandbox actor that ends without having left has panicked. It is rebuilt from its record, as after a restart of
//! the service: the pod goes on.

mod actor;
mod messages;
mod recovery;

pub use actor::Registry;
pub use messages::{Create, List, Lookup};
pub use recovery::RecoveryReport;

pub(crate) use recovery::recover;

//! One pod's sandbox: its life cycle, its durable record, its children.
//!
//! - **Owns**: the record, the state machine, the callers that wait, and one child of each kind: `Cgroup`, `Monitor`,
//!   `Network`, `Containers`, `Mounts`, `Virtiofsd`, `Vm`, `Agent`, `Shim`.
//! - **Hears**: [`Start`], [`Stop`], [`Shutdown`], [`Wait`], [`Observe`], [`Abandon`], [`Orphan`], [`Metrics`],
//!   [`Update`], [`PrepareContainer`], and what else it passes on to `Containers`; the ends of VMM, virtiofsd and shim
//!   proxy; new versions of its children's parts of the record.
//! - **Tells**: its children, the callers that wait, and the registry when nothing is left of it.
//! - **Ends when**: everything is released and the record is deleted.
//! - **Queue**: 256. No handler waits: long work is a future whose result comes back as a message.
//!
//! The life cycle is the table in [`state`]; what a successor does with a record is decided in [`verdict`].

mod actor;
mod bring_up;
mod child_events;
mod children;
mod containers;
mod error;
mod messages;
mod metrics;
mod observe;
mod origin;
pub mod record;
mod recorder;
mod release;
mod request;
pub mod state;
mod timeline;
mod update;
pub mod verdict;

pub use actor::Sandbox;
pub use children::NodeContext;
pub use error::SandboxError;
pub use messages::{
    Abandon, Exited, Metrics, Observe, Orphan, PodMetrics, PrepareContainer, Shutdown, Snapshot, Start,
    Started, StepTime, Stop, Update, Wait,
};
pub use origin::Origin;

pub use request::CreateSandbox;

pub(crate) use origin::{Left, Place};

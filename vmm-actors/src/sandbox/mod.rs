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
//! | folder | what is in it |
//! |---|---|
//! | `lifecycle/` | the table of [`state`]s, the [`verdict`] on what a predecessor left, the way up, the way down |
//! | `record/` | the durable [`record`], its file, and the order in which its versions are saved |
//! | `actor/` | the actor: what it does about each request, each event, each word of a child |

mod actor;
mod children;
mod error;
pub mod lifecycle;
mod messages;
pub mod record;

pub use actor::{Origin, Sandbox};
pub use children::NodeContext;
pub use error::SandboxError;
pub use lifecycle::timeline::StepTime;
pub use lifecycle::{state, verdict};
pub use messages::{
    Abandon, Exited, Metrics, Observe, Orphan, PodMetrics, PrepareContainer, Shutdown, Snapshot, Start,
    Started, Stop, Update, Wait,
};
pub use record::CreateSandbox;

pub(crate) use actor::{Left, Place};

//! The session to PID 1 of one guest.
//!
//! | | |
//! |---|---|
//! | Owns | the socket on which the guest announces itself, the session to its agent, the heartbeat |
//! | Hears | [`Listen`], [`AwaitGuest`], [`Setup`], [`Grow`], [`Ping`], [`Shutdown`], [`Observe`] |
//! | Tells | [`AgentSilent`], once for each silence, to its parent |
//! | Ends when | its parent drops the address |
//! | Queue | 16: one parent that has at most a few commands under way |
//!
//! The guest dials once, to announce itself; that socket exists from [`Listen`] until the announcement. Every session
//! is dialled from here. A session that breaks is dialled again by the next heartbeat.

mod actor;
mod announce;
mod clock;
mod messages;
mod session;

pub use actor::Agent;
pub use announce::AnnounceSocket;
pub use messages::{
    AgentError, AgentSilent, AgentView, AwaitGuest, Capacity, Grow, Guest, Listen, Observe, Ping, Setup,
    Shutdown,
};
pub use session::Session;

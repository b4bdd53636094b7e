//! The trait behind the server.

use std::time::Duration;

use async_trait::async_trait;

use crate::{Create, Exit, Failure, Metric, Platform, Started, Status, Step, Update};

/// Owns sandboxes. Every id that arrives here has passed [`crate::check_id`].
///
/// Create, Start, Stop, Shutdown and Update are never dropped half-way: the server drives them to their end, client or
/// no client. Wait, Status, Platform and Metrics may be dropped at any await.
#[async_trait]
pub trait Sandboxer: Send + Sync + 'static {
    /// Makes a sandbox known. On error nothing of it is left.
    ///
    /// # Errors
    /// `AlreadyExists` for a known id, `InvalidArgument` for options it cannot follow.
    async fn create(&self, request: Create) -> Result<(), Failure>;

    /// Starts a created sandbox and answers once its Task API accepts connections. On error nothing of it is left.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it was started before.
    async fn start(&self, id: &str) -> Result<Started, Failure>;

    /// The client left Create or Start (cancelled, deadline, connection gone) before it had the answer: the sandbox
    /// must go, as after an error. Called at most once for each such call, after `create` or `start` began and maybe
    /// while it still runs.
    async fn abandoned(&self, id: &str, step: Step);

    /// What the sandbox's containers run on.
    ///
    /// # Errors
    /// `NotFound`.
    async fn platform(&self, id: &str) -> Result<Platform, Failure>;

    /// Ends a sandbox and gives back everything of the pod's network; it stays known until `shutdown`. `timeout`:
    /// how long it has to end by itself, `None` for the sandboxer's own choice. An unknown id is fine.
    ///
    /// # Errors
    /// Whatever kept it from ending. The caller repeats.
    async fn stop(&self, id: &str, timeout: Option<Duration>) -> Result<(), Failure>;

    /// Answers when the sandbox has ended, at once if it has.
    ///
    /// # Errors
    /// `NotFound`. Every other error reaches the client as `Unavailable`, and it asks again.
    async fn wait(&self, id: &str) -> Result<Exit, Failure>;

    /// The state of the sandbox now. Must be cheap and wait for nothing.
    ///
    /// # Errors
    /// `NotFound`.
    async fn status(&self, id: &str, verbose: bool) -> Result<Status, Failure>;

    /// Ends the sandbox if it still runs and forgets it. An unknown id is fine.
    ///
    /// # Errors
    /// Whatever kept it from being released. The caller repeats.
    async fn shutdown(&self, id: &str) -> Result<(), Failure>;

    /// What the sandbox uses now.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` while there is nothing to measure. containerd makes any other error one of the node.
    async fn metrics(&self, id: &str) -> Result<Metric, Failure>;

    /// Changes the sandbox.
    ///
    /// # Errors
    /// `NotFound`; `Unimplemented` for a change it cannot make.
    async fn update(&self, request: Update) -> Result<(), Failure>;
}

//! A process under an actor, from before its start to after its end: the states, the end by request, and what is told
//! of an end that nobody asked for.
//!
//! | state | what is true | leaves it |
//! |---|---|---|
//! | cold | nothing was started | up, failed |
//! | failed | the start failed; there is no second one | – |
//! | up | it runs | ending when it is asked to end; gone |
//! | ending | it was asked to end and has not yet | gone |
//! | gone | it has ended, and its parent has been told | – |
//!
//! A process that SIGKILL does not end is [`StillAlive`]: whoever asked for its end hears of it, the state stays
//! *ending*, its end is noticed whenever it comes, and the next request asks again.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Exit, OwnedProcess, ProcessError, ProcessIdentity, StillAlive};

/// How long a process may take before the next, harder step of its end. SIGKILL is the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    /// To end by itself: somebody has asked it to.
    pub by_itself: Duration,
    /// To end by SIGTERM.
    pub by_sigterm: Duration,
}

impl Grace {
    /// SIGKILL at once.
    pub const NONE: Self = Self { by_itself: Duration::ZERO, by_sigterm: Duration::ZERO };
}

/// How a process, or one that serves it, came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How the main process ended; unknown for one that is not our child or that SIGKILL has not ended yet.
    pub exit: Exit,
    /// What began the end.
    pub by: EndedBy,
}

/// What began the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// A request.
    Request,
    /// The main process: it ended by itself, or somebody else ended it.
    Main,
    /// The same of its helper, so the main process was killed.
    Helper(Exit),
}

/// A process, and perhaps a helper of it: each is of no use without the other, so the end of one is the end of both.
/// Dropping it ends them, unless they are kept.
#[derive(Debug)]
pub struct Processes {
    main: OwnedProcess,
    helper: Option<OwnedProcess>,
    asked: AtomicBool,
}

impl Processes {
    /// Processes that run.
    #[must_use]
    pub fn new(main: OwnedProcess, helper: Option<OwnedProcess>) -> Self {
        Self { main, helper, asked: AtomicBool::new(false) }
    }

    /// Takes over processes that an earlier instance of this service started and kept, and keeps them. `None` when
    /// one is gone; the other one has been ended then. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What [`OwnedProcess::adopt`] says; nothing has been ended then.
    pub fn adopt(
        main: &ProcessIdentity,
        helper: Option<&ProcessIdentity>,
    ) -> Result<Option<Self>, ProcessError> {
        let adopted = OwnedProcess::adopt(main)?;
        let helped = match helper.map(OwnedProcess::adopt).transpose() {
            Ok(helped) => helped,
            Err(unknown) => {
                adopted.iter().for_each(OwnedProcess::keep);
                return Err(unknown);
            }
        };
        let whole = match (adopted, helped) {
            (Some(main), None) => Self::new(main, None),
            (Some(main), Some(Some(helper))) => Self::new(main, Some(helper)),
            (None, None | Some(None)) => return Ok(None),
            (main, helper) => {
                let left: Vec<u32> = main
                    .iter()
                    .chain(helper.iter().flatten())
                    .map(|process| process.identity().pid)
                    .collect();
                tracing::warn!(?left, "one of two recorded processes is gone, ending the other");
                return Ok(None);
            }
        };
        whole.keep();
        Ok(Some(whole))
    }

    fn keep(&self) {
        self.main.keep();
        self.helper.iter().for_each(OwnedProcess::keep);
    }

    fn alive(&self) -> bool {
        self.main.ended().is_none() || self.helper.as_ref().is_some_and(|helper| helper.ended().is_none())
    }

    /// Waits for the first end, ends the other process, and says how it was. Does not wait for ever for a process
    /// that SIGKILL does not end, unless it is the only one.
    async fn ended(&self) -> Ended {
        let helper_ended = async {
            match &self.helper {
                Some(helper) => helper.wait().await,
                None => std::future::pending().await,
            }
        };
        let by = tokio::select! {
            biased;
            _ = self.main.wait() => EndedBy::Main,
            exit = helper_ended => EndedBy::Helper(exit),
        };
        if let Err(left) = self.kill().await {
            tracing::error!(%left, "a process is left");
        }
        let by = if self.asked.load(Ordering::Acquire) { EndedBy::Request } else { by };
        Ended { exit: self.main.ended().unwrap_or(Exit::Unknown), by }
    }

    /// Ends both. The helper serves until the main process has ended or has to be killed.
    async fn end(&self, grace: Grace) -> Result<Exit, StillAlive> {
        if !self.ends_by_itself(grace.by_itself).await {
            self.main.terminate(grace.by_sigterm).await;
        }
        self.kill().await
    }

    async fn ends_by_itself(&self, grace: Duration) -> bool {
        if grace.is_zero() {
            return false;
        }
        let ended = tokio::time::timeout(grace, self.main.wait()).await.is_ok();
        if !ended {
            let (pid, grace_ms) = (self.main.identity().pid, grace.as_millis());
            tracing::info!(pid, grace_ms, "process does not end by itself, sending SIGTERM");
        }
        ended
    }

    async fn kill(&self) -> Result<Exit, StillAlive> {
        let helper = async {
            match &self.helper {
                Some(helper) => helper.kill().await.map(drop),
                None => Ok(()),
            }
        };
        let (main, helper) = tokio::join!(self.main.kill(), helper);
        let exit = main?;
        helper.map(|()| exit)
    }
}

/// A process in one of the states above; `X` is what its parent was told of its end.
#[derive(Debug)]
pub struct Supervised<X> {
    state: State<X>,
}

#[derive(Debug)]
enum State<X> {
    Cold,
    Failed,
    Up(Arc<Processes>),
    Gone {
        exit: Exit,
        told: X,
        /// When one of two did not go with the other.
        left: Option<Arc<Processes>>,
    },
}

impl<X> Supervised<X> {
    /// A process that has not been started.
    #[must_use]
    pub fn cold() -> Self {
        Self { state: State::Cold }
    }

    /// A process that runs.
    #[must_use]
    pub fn up(processes: Processes) -> Self {
        Self { state: State::Up(Arc::new(processes)) }
    }

    /// A process whose start failed.
    #[must_use]
    pub fn failed() -> Self {
        Self { state: State::Failed }
    }

    /// Name of the state.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.state {
            State::Cold => "cold",
            State::Failed => "failed",
            State::Up(processes) if processes.asked.load(Ordering::Acquire) => "ending",
            State::Up(_) => "up",
            State::Gone { left: Some(left), .. } if left.alive() => "ending",
            State::Gone { .. } => "gone",
        }
    }

    /// Whether it can be started.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        matches!(self.state, State::Cold)
    }

    /// Whether it runs and nobody has asked it to end.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(&self.state, State::Up(processes) if !processes.asked.load(Ordering::Acquire))
    }

    /// The main process's pid, while it is there.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let main = match &self.state {
            State::Up(processes) => &processes.main,
            State::Gone { left: Some(left), .. } if left.main.ended().is_none() => &left.main,
            State::Cold | State::Failed | State::Gone { .. } => return None,
        };
        Some(main.identity().pid)
    }

    /// What its parent was told of its end.
    #[must_use]
    pub fn told(&self) -> Option<&X> {
        match &self.state {
            State::Gone { told, .. } => Some(told),
            State::Cold | State::Failed | State::Up(_) => None,
        }
    }

    /// Leaves what runs running when this is dropped.
    pub fn keep(&self) {
        if let State::Up(processes) = &self.state {
            processes.keep();
        }
    }

    /// Waits for the end of what runs. To be spawned by its actor once, when it is up; [`gone`](Self::gone) takes
    /// what comes of it.
    pub fn watch(&self) -> Option<impl Future<Output = Ended> + use<X>> {
        let State::Up(processes) = &self.state else { return None };
        let processes = Arc::clone(processes);
        Some(async move { processes.ended().await })
    }

    /// It has ended, and this is what its parent is told.
    pub fn gone(&mut self, exit: Exit, told: X) {
        let before = std::mem::replace(&mut self.state, State::Failed);
        let left = match before {
            State::Up(processes) if processes.alive() => Some(processes),
            State::Cold | State::Failed | State::Up(_) | State::Gone { .. } => None,
        };
        self.state = State::Gone { exit, told, left };
    }

    /// Ends it, whatever state it is in, and answers when nothing of it is left. One that never ran answers at once,
    /// and so does one that is gone. A repeat joins; one with less grace cuts the other short. The state is *ending*
    /// from this call on.
    ///
    /// # Errors
    /// [`StillAlive`] when something of it is there 10 s after SIGKILL.
    pub fn end(&self, grace: Grace) -> impl Future<Output = Result<Exit, StillAlive>> + use<X> {
        let (exit, processes) = match &self.state {
            State::Cold | State::Failed => (Exit::Unknown, None),
            State::Up(processes) => (Exit::Unknown, Some(Arc::clone(processes))),
            State::Gone { exit, left, .. } => (*exit, left.clone()),
        };
        if let Some(processes) = &processes {
            processes.asked.store(true, Ordering::Release);
        }
        async move {
            match processes {
                Some(processes) => processes.end(grace).await,
                None => Ok(exit),
            }
        }
    }
}

#[cfg(test)]
mod tests;

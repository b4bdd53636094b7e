//! How long a stream waits for its two sides, in each phase of its process.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long, in all, an ended process's stream may keep us waiting for its end mark: the guest sends it as soon as
/// the process is reaped and the pipe empty, unless the guest is starved or lies.
pub(super) const SILENT_AFTER_EXIT: Duration = Duration::from_secs(10);
/// The same for each read once the VM is gone: what has reached the host is there already.
const SILENT_AFTER_CUT: Duration = Duration::from_millis(200);
/// How long a reader of ours may hold up the last bytes of a VM that is gone.
const STUCK_AFTER_CUT: Duration = Duration::from_secs(5);

/// What may still come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything: the process lives.
    Alive,
    /// The rest of the output: the process has ended.
    Ending,
    /// What has reached the host: the VM is gone.
    Cut,
}

/// A stream's patience. It follows the phase, and runs out only where waiting is in vain.
#[derive(Debug)]
pub(super) struct Patience {
    phase: watch::Receiver<Phase>,
    spent: Duration,
}

impl Patience {
    /// The patience of a stream whose process is in this phase.
    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase, spent: Duration::ZERO }
    }

    /// The phase now.
    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits for output of the guest; none when it keeps us waiting in vain. What it makes us wait after the exit
    /// adds up, so that no trickle holds a stream open.
    pub(super) async fn guest<F: Future>(&mut self, work: F) -> Option<F::Output> {
        tokio::pin!(work);
        loop {
            let phase = *self.phase.borrow_and_update();
            let limit = match phase {
                Phase::Alive => None,
                Phase::Ending => Some(SILENT_AFTER_EXIT.saturating_sub(self.spent)),
                Phase::Cut => Some(SILENT_AFTER_CUT),
            };
            let begun = Instant::now();
            let turn = self.turn(limit, work.as_mut()).await;
            if phase == Phase::Ending {
                self.spent += begun.elapsed();
            }
            match turn {
                Turn::Done(done) => return Some(done),
                Turn::Changed => {}
                Turn::Over => return None,
            }
        }
    }

    /// Waits for a reader on the host: as long as it takes, unless the VM is gone.
    pub(super) async fn host<F: Future>(&mut self, work: F) -> Option<F::Output> {
        self.while_phase(work, |phase| match phase {
            Phase::Alive | Phase::Ending => None,
            Phase::Cut => Some(STUCK_AFTER_CUT),
        })
        .await
    }

    /// Waits for something that matters only while the process lives.
    pub(super) async fn alive<F: Future>(&mut self, work: F) -> Option<F::Output> {
        self.while_phase(work, |phase| match phase {
            Phase::Alive => None,
            Phase::Ending | Phase::Cut => Some(Duration::ZERO),
        })
        .await
    }

    async fn while_phase<F: Future>(
        &mut self,
        work: F,
        limit: fn(Phase) -> Option<Duration>,
    ) -> Option<F::Output> {
        tokio::pin!(work);
        loop {
            let limit = limit(*self.phase.borrow_and_update());
            match self.turn(limit, work.as_mut()).await {
                Turn::Done(done) => return Some(done),
                Turn::Changed => {}
                Turn::Over => return None,
            }
        }
    }

    async fn turn<F: Future>(&mut self, limit: Option<Duration>, work: F) -> Turn<F::Output> {
        let over = async {
            match limit {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = work => Turn::Done(done),
            () = over => Turn::Over,
            changed = self.phase.changed() => if changed.is_ok() { Turn::Changed } else { Turn::Over },
        }
    }
}

enum Turn<T> {
    Done(T),
    Changed,
    Over,
}

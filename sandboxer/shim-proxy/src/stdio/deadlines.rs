//! How long a stream waits for its two sides, in each phase of its process.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long, in all, the stream of an ended process waits for its end mark: the guest sends it as soon as the process
/// is reaped and the pipe empty, unless the guest is starved or lies.
pub(super) const SILENT_AFTER_EXIT: Duration = Duration::from_secs(10);
/// The same for each read once the VM is gone: what has reached the host is there already.
const SILENT_AFTER_CUT: Duration = Duration::from_millis(200);
/// How long a reader on the host may hold up the last bytes of a VM that is gone.
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

/// The deadlines of one stream. They follow the phase, and pass only where waiting is in vain.
#[derive(Debug)]
pub(super) struct Deadlines {
    phase: watch::Receiver<Phase>,
    spent: Duration,
}

impl Deadlines {
    /// The deadlines of a stream whose process is in this phase.
    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase, spent: Duration::ZERO }
    }

    /// The present phase.
    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits for output of the guest; none when the deadline passes. All waiting after the exit counts together, so a
    /// guest that sends a byte at a time cannot hold a stream open.
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
            let waited = self.wait(limit, work.as_mut()).await;
            if phase == Phase::Ending {
                self.spent += begun.elapsed();
            }
            match waited {
                Waited::Done(done) => return Some(done),
                Waited::PhaseChanged => {}
                Waited::TimedOut => return None,
            }
        }
    }

    /// Waits for a reader on the host: as long as it takes, unless the VM is gone.
    pub(super) async fn host<F: Future>(&mut self, work: F) -> Option<F::Output> {
        self.within(work, |phase| match phase {
            Phase::Alive | Phase::Ending => None,
            Phase::Cut => Some(STUCK_AFTER_CUT),
        })
        .await
    }

    /// Waits for something that matters only while the process lives.
    pub(super) async fn alive<F: Future>(&mut self, work: F) -> Option<F::Output> {
        self.within(work, |phase| match phase {
            Phase::Alive => None,
            Phase::Ending | Phase::Cut => Some(Duration::ZERO),
        })
        .await
    }

    async fn within<F: Future>(
        &mut self,
        work: F,
        limit: fn(Phase) -> Option<Duration>,
    ) -> Option<F::Output> {
        tokio::pin!(work);
        loop {
            let limit = limit(*self.phase.borrow_and_update());
            match self.wait(limit, work.as_mut()).await {
                Waited::Done(done) => return Some(done),
                Waited::PhaseChanged => {}
                Waited::TimedOut => return None,
            }
        }
    }

    async fn wait<F: Future>(&mut self, limit: Option<Duration>, work: F) -> Waited<F::Output> {
        let timed_out = async {
            match limit {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = work => Waited::Done(done),
            () = timed_out => Waited::TimedOut,
            changed = self.phase.changed() => {
                if changed.is_ok() { Waited::PhaseChanged } else { Waited::TimedOut }
            }
        }
    }
}

enum Waited<T> {
    Done(T),
    PhaseChanged,
    TimedOut,
}

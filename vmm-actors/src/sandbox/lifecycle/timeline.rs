//! How long each step of coming up took: shown in Status, printed by the bench.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tracing::{Instrument, Span};

use crate::telemetry::Telemetry;
use crate::trace;

/// One step of coming up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepTime {
    /// Name of the step.
    pub step: &'static str,
    /// From Create to the step's begin, in microseconds.
    pub begin_micros: u64,
    /// How long it took, in microseconds.
    pub micros: u64,
}

/// Steps of one sandbox, shared by the futures that take them.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct Timeline {
    began: Instant,
    steps: Arc<Mutex<Vec<StepTime>>>,
    telemetry: Telemetry,
    call: Span,
}

impl Timeline {
    pub(in crate::sandbox) fn begin(telemetry: Telemetry) -> Self {
        Self { began: Instant::now(), steps: Arc::default(), telemetry, call: Span::none() }
    }

    /// The same for the steps of a call, which hold its span.
    pub(in crate::sandbox) fn of_call(&self, call: Option<Span>) -> Self {
        Self { call: call.unwrap_or_else(Span::none), ..self.clone() }
    }

    /// The sandbox runs.
    pub(in crate::sandbox) fn started(&self) {
        self.telemetry.started(self.began.elapsed());
    }

    /// Runs a step and notes its times, whether it succeeds or not.
    pub(in crate::sandbox) async fn step<T, E>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        E: std::error::Error + 'static,
    {
        let begin = self.began.elapsed();
        let work = work.instrument(tracing::debug_span!("step", name = step));
        let output = trace::step(&self.call, step, work).await;
        let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let end = self.began.elapsed();
        self.telemetry.step(step, end.saturating_sub(begin));
        let time = StepTime { step, begin_micros: micros(begin), micros: micros(end.saturating_sub(begin)) };
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(time);
        output
    }

    pub(in crate::sandbox) fn steps(&self) -> Vec<StepTime> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

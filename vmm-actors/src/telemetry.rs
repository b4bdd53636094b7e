//! What the sandboxes of this process have been counted and timed by, for a Prometheus endpoint. Names and units follow
//! Prometheus' conventions; `docs/observability.md` lists them.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts};

use crate::cause::Class;

/// In seconds: a step is a system call or two, or the boot of an emulated guest.
const BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Counters and histograms, shared by all sandboxes. Clones count into the same.
#[derive(Debug, Clone)]
pub struct Telemetry {
    steps: HistogramVec,
    starts: Histogram,
    failed_starts: IntCounterVec,
    ends: IntCounterVec,
    recovered: IntCounterVec,
}

impl Telemetry {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// A name or label that Prometheus does not allow, which is a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        let timed = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let counted =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let made = Self {
            steps: HistogramVec::new(
                timed("bulkhead_sandbox_start_step_seconds", "Time that a step of starting a sandbox took."),
                &["step"],
            )?,
            starts: Histogram::with_opts(timed(
                "bulkhead_sandbox_start_seconds",
                "Time from containerd's Create of a sandbox to the answer of its Start.",
            ))?,
            failed_starts: counted(
                "bulkhead_sandbox_start_failures_total",
                "Sandboxes that did not start, by cause.",
                "cause",
            )?,
            ends: counted("bulkhead_sandbox_ends_total", "Sandboxes that have ended, by cause.", "cause")?,
            recovered: counted(
                "bulkhead_recovered_sandboxes_total",
                "Sandboxes that this process found recorded when it started, by what became of them.",
                "outcome",
            )?,
        };
        // A series that is not there yet cannot be told from one that has no reason to be.
        for class in Class::ALL {
            made.failed_starts.with_label_values(&[class.name()]);
            made.ends.with_label_values(&[class.name()]);
        }
        Ok(made)
    }

    /// All of them, to be registered.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.steps.clone()),
            Box::new(self.starts.clone()),
            Box::new(self.failed_starts.clone()),
            Box::new(self.ends.clone()),
            Box::new(self.recovered.clone()),
        ]
    }

    pub(crate) fn step(&self, step: &str, took: Duration) {
        self.steps.with_label_values(&[step]).observe(took.as_secs_f64());
    }

    pub(crate) fn started(&self, took: Duration) {
        self.starts.observe(took.as_secs_f64());
    }

    pub(crate) fn did_not_start(&self, class: Class) {
        self.failed_starts.with_label_values(&[class.name()]).inc();
    }

    pub(crate) fn ended(&self, class: Class) {
        self.ends.with_label_values(&[class.name()]).inc();
    }

    pub(crate) fn recovered(&self, outcome: &str, count: usize) {
        self.recovered.with_label_values(&[outcome]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_there_from_the_start() {
        let telemetry = Telemetry::new().unwrap();
        telemetry.ended(Class::Lost);
        let families: Vec<_> =
            telemetry.collectors().iter().flat_map(|collector| collector.collect()).collect();
        let ends = families.iter().find(|family| family.name() == "bulkhead_sandbox_ends_total").unwrap();
        let value = |class: Class| {
            let metrics = ends.get_metric().iter();
            let mut found =
                metrics.filter(|metric| metric.get_label().iter().any(|l| l.value() == class.name()));
            found.next().unwrap().get_counter().get_value()
        };
        assert_eq!(Class::ALL.map(value), [0.0, 0.0, 0.0, 0.0, 1.0]);
    }
}

//! What was measured: series with medians, single values, and how both are printed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use bulkhead_tests::steps::Step;

/// A thing measured several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Series {
    BareBoot,
    RunPod,
    Cni,
    FirstByte,
    Exec,
    StopPod,
    DailyExec,
    RuncExec,
    DailyFirstByte,
    RuncFirstByte,
}

impl Series {
    const fn name(self) -> &'static str {
        match self {
            Self::BareBoot => "bare boot (same VMM command, until the agent announces itself)",
            Self::RunPod => "RunPodSandbox, CNI included",
            Self::Cni => "CNI's part of it (containerd's log)",
            Self::FirstByte => "StartContainer to first byte in the log",
            Self::Exec => "exec round trip (true)",
            Self::StopPod => "StopPodSandbox with a running container",
            Self::DailyExec => "exec round trip, turn about with runc",
            Self::RuncExec => "exec round trip: runc",
            Self::DailyFirstByte => "StartContainer to first byte, turn about with runc",
            Self::RuncFirstByte => "StartContainer to first byte: runc",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Figures {
    machine: BTreeMap<&'static str, String>,
    series: BTreeMap<Series, Vec<f64>>,
    values: Vec<(String, f64, &'static str)>,
    /// Begin and duration in milliseconds of each step, a pair a pod.
    steps: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Figures {
    pub(crate) const fn new(machine: BTreeMap<&'static str, String>) -> Self {
        Self { machine, series: BTreeMap::new(), values: Vec::new(), steps: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, series: Series, took: Duration) {
        self.series.entry(series).or_default().push(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn add_steps(&mut self, steps: Vec<Step>) {
        for Step { name, begin, took } in steps {
            let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
            self.steps.entry(name).or_default().push((millis(begin), millis(took)));
        }
    }

    pub(crate) fn set(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.values.push((name.into(), value, unit));
    }

    pub(crate) fn slowest_of_many(&mut self, slowest: Duration) {
        let millis = slowest.as_secs_f64() * 1e3;
        self.set("10 pods at once: slowest RunPodSandbox", millis, "ms");
        self.set("10 pods at once: slowest ÷ bare boot", millis / self.median(Series::BareBoot), "");
    }

    fn median(&self, series: Series) -> f64 {
        median(self.series.get(&series).map_or(&[], Vec::as_slice))
    }

    /// What follows from the series that were measured.
    fn derived(&self) -> Vec<(String, f64, &'static str)> {
        let ratio = |of: Series, to: Series| self.median(of) / self.median(to);
        let own = self.median(Series::RunPod) - self.median(Series::BareBoot) - self.median(Series::Cni);
        let all = [
            ("RunPodSandbox ÷ bare boot", ratio(Series::RunPod, Series::BareBoot), ""),
            ("RunPodSandbox − bare boot − CNI", own, "ms"),
            ("exec ÷ runc", ratio(Series::DailyExec, Series::RuncExec), ""),
            ("StartContainer to first byte ÷ runc", ratio(Series::DailyFirstByte, Series::RuncFirstByte), ""),
        ];
        let measured = all.into_iter().filter(|(_, value, _)| value.is_finite());
        measured.map(|(name, value, unit)| (name.to_owned(), value, unit)).collect()
    }

    pub(crate) fn machine(&self) -> String {
        self.machine.iter().fold(String::new(), |mut text, (key, value)| {
            writeln!(text, "{key:<12} {value}").expect("write to a string");
            text
        })
    }

    /// As Markdown, fit for `docs/performance.md`.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from("\n| what | median | min | max | n |\n|---|---:|---:|---:|---:|\n");
        for (series, values) in &self.series {
            let (low, high) = range(values);
            let (name, mid, count) = (series.name(), median(values), values.len());
            writeln!(text, "| {name} | {mid:.1} ms | {low:.1} | {high:.1} | {count} |")
                .expect("write to a string");
        }
        for (name, value, unit) in self.derived().iter().chain(&self.values) {
            let digits = if unit.is_empty() { 2 } else { 1 };
            writeln!(text, "| {name} | {value:.digits$} {unit} | | | |").expect("write to a string");
        }
        text
    }

    /// Where the time of coming up goes: medians of each step, in the order of their begins.
    fn spans(&self) -> Vec<(&str, f64, f64)> {
        let mut spans: Vec<_> = self
            .steps
            .iter()
            .map(|(name, times)| {
                let (begins, lengths): (Vec<f64>, Vec<f64>) = times.iter().copied().unzip();
                (name.as_str(), median(&begins), median(&lengths))
            })
            .collect();
        spans.sort_by(|one, other| one.1.total_cmp(&other.1));
        spans
    }

    /// The steps as Markdown.
    pub(crate) fn spans_table(&self) -> String {
        let mut text = String::from("\n| step of Create | begins at | takes |\n|---|---:|---:|\n");
        for (name, begin, length) in self.spans() {
            writeln!(text, "| {name} | {begin:.1} ms | {length:.1} ms |").expect("write to a string");
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let series: serde_json::Map<String, serde_json::Value> = self
            .series
            .iter()
            .map(|(series, values)| {
                (
                    series.name().to_owned(),
                    serde_json::json!({ "median_ms": median(values), "all_ms": values }),
                )
            })
            .collect();
        let derived = self.derived();
        let values: serde_json::Map<String, serde_json::Value> = derived
            .iter()
            .chain(&self.values)
            .map(|(name, value, unit)| (name.clone(), serde_json::json!({ "value": value, "unit": unit })))
            .collect();
        let steps: serde_json::Map<String, serde_json::Value> = self
            .spans()
            .into_iter()
            .map(|(name, begin, length)| {
                (name.to_owned(), serde_json::json!({ "begin_ms": begin, "median_ms": length }))
            })
            .collect();
        let all = serde_json::json!({
            "machine": self.machine,
            "series": series,
            "values": values,
            "steps": steps,
        });
        serde_json::to_string_pretty(&all).expect("figures are JSON")
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}

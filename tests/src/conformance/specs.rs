//! What the suite's report says of each spec.

use std::path::Path;

use serde::Deserialize;

/// How a spec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed(Failure),
    /// It was left out, with the reason.
    Skipped(String),
}

impl Outcome {
    /// A failure of which only this is known.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(Failure { message: message.into(), node: String::new() })
    }
}

/// Why a spec failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The suite's message, which often says only what it waited for in vain.
    pub message: String,
    /// What the node said meanwhile: kubelet's warnings, as far as the suite printed them.
    pub node: String,
}

impl Failure {
    /// Whether suite or node said this.
    #[must_use]
    pub fn says(&self, words: &str) -> bool {
        self.message.contains(words) || self.node.contains(words)
    }

    /// Both, the node first: it is nearer to the cause.
    #[must_use]
    pub fn told(&self) -> String {
        match (self.node.as_str(), self.message.as_str()) {
            ("", message) => message.to_owned(),
            (node, "") => node.to_owned(),
            (node, message) => format!("{node}; {message}"),
        }
    }
}

/// One spec of a run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its full name, without tags that say nothing here.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// Specs that a program does not run, and says so.
#[derive(Debug)]
pub struct LeftOut {
    /// What their names hold; an expression as ginkgo reads it must say the same, so no special characters but `.`.
    pub names: &'static str,
    /// Why.
    pub why: &'static str,
}

/// How a report is read.
#[derive(Debug)]
pub struct Reading {
    /// Parts of names that say nothing here.
    pub tags: &'static [&'static str],
    /// What was not run on purpose; empty when only some specs were asked for.
    pub left_out: &'static [LeftOut],
    /// Whether a spec with these labels belongs to what the program chooses from the suite.
    pub chosen: fn(&[String]) -> bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    container_hierarchy_labels: Option<Vec<Option<Vec<String>>>>,
    #[serde(default)]
    leaf_node_labels: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Message,
    #[serde(default)]
    captured_ginkgo_writer_output: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Message {
    #[serde(default)]
    message: String,
}

/// The specs of a ginkgo JSON report, sorted by name; those that were not selected are left out.
#[must_use]
pub fn read(report: &Path, reading: &Reading) -> Vec<Spec> {
    let text = std::fs::read_to_string(report)
        .unwrap_or_else(|error| panic!("the suite left no {}: {error}", report.display()));
    parse(&text, reading)
}

fn parse(text: &str, reading: &Reading) -> Vec<Spec> {
    let reports: Vec<Report> = serde_json::from_str(text).expect("the suite's report is what ginkgo writes");
    let entries = reports.into_iter().flat_map(|report| report.spec_reports);
    let mut specs: Vec<Spec> = entries.filter_map(|entry| spec(entry, reading)).collect();
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    specs
}

fn spec(entry: Entry, reading: &Reading) -> Option<Spec> {
    let message = one_line(&entry.failure.message);
    let is_spec = entry.leaf_node_type == "It";
    let name = name(&entry, reading.tags);
    let outcome = match entry.state.as_str() {
        "passed" if !is_spec => return None,
        "passed" => Outcome::Passed,
        // A spec outside the selection is skipped without a word.
        "skipped" if message.is_empty() => {
            let left_out = reading.left_out.iter().find(|one| name.contains(one.names))?;
            if !(reading.chosen)(&labels(&entry)) {
                return None;
            }
            Outcome::Skipped(left_out.why.to_owned())
        }
        "skipped" => Outcome::Skipped(message),
        state => Outcome::Failed(Failure {
            message: if message.is_empty() { state.to_owned() } else { message },
            node: warnings(&entry.captured_ginkgo_writer_output),
        }),
    };
    Some(Spec { name, outcome })
}

fn name(entry: &Entry, tags: &[&str]) -> String {
    let leaf = if entry.leaf_node_type == "It" { &entry.leaf_node_text } else { &entry.leaf_node_type };
    let mut parts = entry.container_hierarchy_texts.clone().unwrap_or_default();
    parts.push(leaf.clone());
    let mut name = parts.join(" ");
    for tag in tags {
        name = name.replace(tag, "");
    }
    one_line(&name)
}

fn labels(entry: &Entry) -> Vec<String> {
    let outer = entry.container_hierarchy_labels.iter().flatten().flatten().flatten();
    outer.chain(entry.leaf_node_labels.iter().flatten()).cloned().collect()
}

/// Reasons of kubelet's events that say why a pod or container did not start.
const WARNINGS: &[&str] = &["FailedCreatePodSandBox: ", "} Failed: ", "FailedMount: ", "FailedKillPod: "];

/// Of the events that the suite prints after a failure, what says most: the first that names a cause.
fn warnings(output: &str) -> String {
    let lines = || output.lines().filter(|line| line.contains(" - event for "));
    let found = WARNINGS.iter().find_map(|reason| lines().find_map(|line| Some(line.split_once(reason)?.1)));
    found.map(one_line).unwrap_or_default()
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Reading = Reading {
        tags: &["[k8s.io] ", " [Conformance]"],
        left_out: &[LeftOut { names: "Armor on", why: "no AppArmor" }],
        chosen: |labels| labels.iter().any(|label| label == "Wanted"),
    };

    const REPORT: &str = r#"[{"SpecReports": [
        {"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
        {"ContainerHierarchyTexts": ["[k8s.io] Pod", "is"], "LeafNodeType": "It",
         "LeafNodeText": "up [Conformance]", "State": "passed"},
        {"ContainerHierarchyTexts": ["[k8s.io] Image"], "LeafNodeType": "It", "LeafNodeText": "pulled",
         "State": "failed", "Failure": {"Message": "no\n   registry"}},
        {"ContainerHierarchyTexts": ["[k8s.io] Armor"], "LeafNodeType": "It", "LeafNodeText": "on",
         "State": "skipped", "Failure": {"Message": "disabled"}},
        {"ContainerHierarchyTexts": null, "LeafNodeType": "It", "LeafNodeText": "benchmark",
         "State": "skipped"}
    ]}]"#;

    #[test]
    fn names_and_outcomes_are_read() {
        let specs = parse(REPORT, &READING);
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["Armor on", "Image pulled", "Pod is up"]);
        assert_eq!(specs[0].outcome, Outcome::Skipped("disabled".into()));
        assert_eq!(specs[1].outcome, Outcome::failed("no registry"));
        assert_eq!(specs[2].outcome, Outcome::Passed);
    }

    #[test]
    fn a_broken_set_up_of_the_suite_is_a_failure() {
        let text = r#"[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "panicked"}]}]"#;
        assert_eq!(parse(text, &READING)[0].outcome, Outcome::failed("panicked"));
    }
    #[test]
    fn what_was_left_out_on_purpose_is_told() {
        let entry = |labels: &str| {
            format!(
                r#"[{{"SpecReports": [{{"ContainerHierarchyTexts": ["Armor"], "ContainerHierarchyLabels": [null],
                "LeafNodeType": "It", "LeafNodeText": "on", "LeafNodeLabels": {labels}, "State": "skipped"}}]}}]"#
            )
        };
        assert_eq!(
            parse(&entry(r#"["Wanted"]"#), &READING)[0].outcome,
            Outcome::Skipped("no AppArmor".into())
        );
        assert!(parse(&entry("[]"), &READING).is_empty());
    }

    #[test]
    fn the_node_is_heard() {
        let output = "I: At 1 - event for pod-a: {kubelet n} Pulled: done\n\
            I: At 2 - event for pod-a: {kubelet n} Failed: Error: no such file\n\
            I: At 3 - event for pod-a: {kubelet n} FailedCreatePodSandBox: refused:  a VM\n";
        assert_eq!(warnings(output), "refused: a VM");
        assert_eq!(warnings("event for nobody"), "");
        let failure = Failure { message: "timed out".into(), node: "refused".into() };
        assert_eq!(failure.told(), "refused; timed out");
        assert!(failure.says("timed") && failure.says("refused") && !failure.says("else"));
    }
}

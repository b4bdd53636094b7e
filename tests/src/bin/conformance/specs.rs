//! What the suite's report says of each spec.

use std::path::Path;

use serde::Deserialize;

/// How a spec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passed.
    Passed,
    /// It failed, with the suite's message.
    Failed(String),
    /// The suite left it out, with the suite's reason.
    Skipped(String),
}

/// One spec of a run.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
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
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// The specs of a ginkgo JSON report, sorted by name; those that were not selected are left out.
pub(crate) fn read(report: &Path) -> Vec<Spec> {
    let text = std::fs::read_to_string(report)
        .unwrap_or_else(|error| panic!("the suite left no {}: {error}", report.display()));
    parse(&text)
}

fn parse(text: &str) -> Vec<Spec> {
    let reports: Vec<Report> = serde_json::from_str(text).expect("the suite's report is what ginkgo writes");
    let entries = reports.into_iter().flat_map(|report| report.spec_reports);
    let mut specs: Vec<Spec> = entries.filter_map(spec).collect();
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    specs
}

fn spec(entry: Entry) -> Option<Spec> {
    let message = one_line(&entry.failure.message);
    let is_spec = entry.leaf_node_type == "It";
    let outcome = match entry.state.as_str() {
        "passed" if !is_spec => return None,
        "passed" => Outcome::Passed,
        // A spec outside the selection is skipped without a word.
        "skipped" if message.is_empty() => return None,
        "skipped" => Outcome::Skipped(message),
        state => Outcome::Failed(if message.is_empty() { state.to_owned() } else { message }),
    };
    let mut parts = entry.container_hierarchy_texts.unwrap_or_default();
    parts.push(if is_spec { entry.leaf_node_text } else { entry.leaf_node_type });
    let name =
        parts.join(" ").replace("[k8s.io] ", "").replace(" [Conformance]", "").replace(" [Serial]", "");
    Some(Spec { name, outcome })
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let specs = parse(REPORT);
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["Armor on", "Image pulled", "Pod is up"]);
        assert_eq!(specs[0].outcome, Outcome::Skipped("disabled".into()));
        assert_eq!(specs[1].outcome, Outcome::Failed("no registry".into()));
        assert_eq!(specs[2].outcome, Outcome::Passed);
    }

    #[test]
    fn a_broken_set_up_of_the_suite_is_a_failure() {
        let text = r#"[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "panicked"}]}]"#;
        assert_eq!(parse(text)[0].outcome, Outcome::Failed("panicked".into()));
    }
}

//! What the two conformance programs have in common: a suite of Kubernetes' own, run by ginkgo once on a node with runc
//! as control and once on a node with Bulkhead, and both runs side by side.

pub mod ginkgo;
pub mod images;
pub mod selection;
pub mod specs;
pub mod table;
pub mod verdict;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::audit::Snapshot;
use crate::node::Node;
use crate::{peers, wait};

use specs::{Outcome, Spec};
use table::Table;
use verdict::Rules;

/// Prints both runs side by side, leaves the table in `folder`, and says by the exit code whether Bulkhead lost a spec.
#[must_use]
pub fn conclude(rules: &Rules, runc: &[Spec], bulkhead: &[Spec], folder: &Path) -> ExitCode {
    let table = Table::new(rules, runc, bulkhead);
    println!("\n{}", table.markdown());
    let to = folder.join("table.md");
    std::fs::write(&to, table.markdown()).expect("write the table");
    println!("also in {}, with JUnit files and logs beside it\n", shown(&to).display());
    println!("{}", table.result());
    if table.lost() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says why the suite cannot run.
#[must_use]
pub fn cannot(why: &str) -> ExitCode {
    eprintln!("the conformance suite cannot run here: {why}");
    ExitCode::from(2)
}

/// A path as a person in the repository's root writes it.
pub(crate) fn shown(path: &Path) -> &Path {
    path.strip_prefix(peers::root()).unwrap_or(path)
}

/// What the whole run has left on the node, as one more spec. What holds one of the words in `not_ours` is the suite's.
pub async fn audit(node: &Node, before: &Snapshot, not_ours: &[String]) -> Spec {
    let mut left = String::new();
    let clean = wait::until(Duration::from_secs(20), async || {
        let leaked = before.leaked(&Snapshot::take(node).await);
        let ours = leaked
            .lines()
            .map(str::trim)
            .filter(|line| !not_ours.iter().any(|word| line.contains(word.as_str())));
        left = ours.collect::<Vec<_>>().join("; ");
        left.is_empty().then_some(())
    })
    .await;
    let outcome = clean.map_or_else(|| Outcome::failed(left), |()| Outcome::Passed);
    Spec { name: "Audit after the suite nothing is left on the node".into(), outcome }
}

//! One run of a suite by ginkgo, inside a node.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::shown;
use super::specs::{self, Spec};
use crate::node::{Node, remove_default_cgroup};
use crate::report;

/// A suite, and how it is run.
#[derive(Debug)]
pub struct Run<'a> {
    /// ginkgo of the suite's own version: both sides of its protocol have to be the same.
    pub ginkgo: &'a Path,
    /// The suite's test binary.
    pub suite: &'a Path,
    /// Arguments of ginkgo's own, which select specs.
    pub select: &'a [String],
    /// Arguments of the suite.
    pub arguments: &'a [String],
    /// Environment, beside `TMPDIR`.
    pub environment: &'a [(String, String)],
    /// How many specs at a time.
    pub at_once: usize,
    /// How long all of them may take, as ginkgo spells it.
    pub limit: &'a str,
    /// Where reports and log go.
    pub folder: &'a Path,
    /// What their names begin with: the runtime.
    pub name: &'a str,
    /// What is told from the report besides outcomes.
    pub reading: &'a specs::Reading,
}

/// The suite's scratch folder. What it leaves there goes with the node.
#[must_use]
pub fn scratch(node: &Node) -> PathBuf {
    let folder = node.dir().join("tmp");
    std::fs::create_dir_all(&folder).expect("make the suite's scratch folder");
    folder
}

impl Run<'_> {
    /// Runs it; what failed is in the specs, whatever ginkgo's exit code.
    pub async fn go(&self, node: &Node) -> Vec<Spec> {
        let results = self.folder.join(format!("{}.json", self.name));
        if results.exists() {
            std::fs::remove_file(&results).expect("remove the results of an earlier run");
        }
        let log = self.folder.join(format!("{}.log", self.name));
        let output = std::fs::File::create(&log).expect("make the run's log");
        println!("{}: running; progress is in {}", self.name, shown(&log).display());
        let mut command = node.enter();
        // ginkgo panics when it is started in "/".
        command.args(["env", "--chdir"]).arg(self.folder);
        command.arg(format!("TMPDIR={}", scratch(node).display()));
        command.args(self.environment.iter().map(|(key, value)| format!("{key}={value}")));
        command.arg(self.ginkgo).arg("run");
        command.arg(format!("--procs={}", self.at_once)).arg(format!("--timeout={}", self.limit));
        command.args(["--no-color", "--output-dir"]).arg(self.folder);
        command
            .arg(format!("--json-report={}.json", self.name))
            .arg(format!("--junit-report={}.junit.xml", self.name));
        command.args(self.select).arg(self.suite).arg("--").args(self.arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("share the log")).stderr(output);
        tokio::process::Command::from(command).status().await.expect("run the suite");
        remove_default_cgroup();
        if !results.exists() {
            report::tail(&log, 60);
        }
        specs::read(&results, self.reading)
    }
}

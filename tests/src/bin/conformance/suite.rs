//! critest itself: where it is, which specs, one run of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::node::{Node, remove_default_cgroup};
use bulkhead_tests::{peers, report};

use crate::specs::{self, Outcome, Spec};

/// Specs of which `--quick` runs those that match. Left out: images, which are containerd's alone, and mounts that are
/// to reach the host.
const QUICK: &str = "Streaming|Networking|Multiple Containers|NamespaceOption|Security Context bucket|SupplementalGroups\
    |Seccomp|NoNewPrivs|rprivate|rslave|Readonly|OOM|sysctls|Runtime info|Idempotence|PodSandbox\
    |basic operations on container|adding volume|runtime should support log";

const USAGE: &str = "usage: conformance [--quick | --focus REGEX]";

/// Which specs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Every spec of the suite.
    Whole,
    /// A sub-set for every change.
    Quick,
    /// Those whose name matches.
    Focus(String),
}

impl Selection {
    /// From the command line; the error is the usage.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, &'static str> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Ok(Self::Whole),
            ["--quick"] => Ok(Self::Quick),
            ["--focus", regex] => Ok(Self::Focus((*regex).to_owned())),
            _ => Err(USAGE),
        }
    }

    fn focus(&self) -> Option<&str> {
        match self {
            Self::Whole => None,
            Self::Quick => Some(QUICK),
            Self::Focus(regex) => Some(regex),
        }
    }
}

/// The suite's programs, and where its results go.
#[derive(Debug)]
pub(crate) struct Suite {
    bin: PathBuf,
    folder: PathBuf,
    selection: Selection,
}

impl Suite {
    /// Finds what `make setup` has built.
    pub(crate) fn find(selection: Selection) -> Result<Self, String> {
        let bin = peers::cri_tools()?;
        let folder = peers::root().join("target/conformance");
        std::fs::create_dir_all(&folder).expect("make the folder of the results");
        Ok(Self { bin, folder, selection })
    }

    /// As `crictl`, built from the same module, says.
    pub(crate) fn version(&self) -> String {
        let output = Command::new(self.bin.join("crictl")).arg("--version").output().expect("run crictl");
        String::from_utf8_lossy(&output.stdout).trim().replace("crictl version ", "")
    }

    /// Which specs, in words.
    pub(crate) fn selection(&self) -> String {
        match &self.selection {
            Selection::Whole => "every spec".into(),
            Selection::Quick => "the quick sub-set".into(),
            Selection::Focus(regex) => format!("specs that match {regex:?}"),
        }
    }

    /// Results, JUnit files and logs of the runs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What stands in for nginx and its like in the suite's images.
    pub(crate) fn helper(&self) -> PathBuf {
        self.bin.join("suite-helper")
    }

    /// Runs the selected specs on the node, `at_once` at a time.
    pub(crate) async fn run(&self, node: &Node, handler: &str, at_once: usize) -> Vec<Spec> {
        let results = self.folder.join(format!("{handler}.json"));
        if results.exists() {
            std::fs::remove_file(&results).expect("remove the results of an earlier run");
        }
        let log = self.folder.join(format!("{handler}.log"));
        let output = std::fs::File::create(&log).expect("make the run's log");
        let shown = log.strip_prefix(peers::root()).unwrap_or(&log);
        println!("{handler}: running; progress is in {}", shown.display());
        let mut command = node.enter();
        // What the suite leaves behind goes with the node; ginkgo panics when it is started in "/".
        let scratch = scratch(node);
        std::fs::create_dir_all(&scratch).expect("make the suite's scratch folder");
        command.args(["env", "--chdir"]).arg(&self.folder).arg(format!("TMPDIR={}", scratch.display()));
        command.arg(self.bin.join("ginkgo")).arg("run");
        command.arg(format!("--procs={at_once}"));
        command.args(["--no-color", "--timeout=3h", "--output-dir"]).arg(&self.folder);
        command
            .arg(format!("--json-report={handler}.json"))
            .arg(format!("--junit-report={handler}.junit.xml"));
        if let Some(focus) = self.selection.focus() {
            command.arg(format!("--focus={focus}"));
        }
        command.arg(self.bin.join("critest.test")).arg("--").args(["--config", "/dev/null"]);
        command.arg(format!("--runtime-endpoint=unix://{}", node.containerd_socket().display()));
        command.arg(format!("--runtime-handler={handler}"));
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("share the log")).stderr(output);
        // It fails when a spec fails; what failed is in the report.
        tokio::process::Command::from(command).status().await.expect("run the suite");
        remove_default_cgroup();
        if !results.exists() {
            report::tail(&log, 60);
        }
        specs::read(&results)
    }
}

fn scratch(node: &Node) -> PathBuf {
    node.dir().join("tmp")
}

/// What the whole run has left on the node, as one more spec.
pub(crate) async fn audit(node: &Node, before: &Snapshot) -> Spec {
    // A spec that fails half-way leaves mounts of its own in its scratch folder.
    let scratch = scratch(node).display().to_string();
    let mut left = String::new();
    let clean = bulkhead_tests::wait::until(Duration::from_secs(20), async || {
        let leaked = before.leaked(&Snapshot::take(node).await);
        let ours = leaked.lines().map(str::trim).filter(|line| !line.contains(&scratch));
        left = ours.collect::<Vec<_>>().join("; ");
        left.is_empty().then_some(())
    })
    .await;
    let outcome = clean.map_or_else(|| Outcome::Failed(left), |()| Outcome::Passed);
    Spec { name: "Audit after the suite nothing is left on the node".into(), outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_selects() {
        let parse =
            |words: &[&str]| Selection::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&[]), Ok(Selection::Whole));
        assert_eq!(parse(&["--quick"]), Ok(Selection::Quick));
        assert_eq!(parse(&["--focus", "OOM"]), Ok(Selection::Focus("OOM".into())));
        assert_eq!(parse(&["--focus"]), Err(USAGE));
        assert_eq!(parse(&["--all"]), Err(USAGE));
    }
}

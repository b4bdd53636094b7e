//! critest itself: where it is, which specs, one run of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::conformance::ginkgo::Run;
use bulkhead_tests::conformance::selection::Selection;
use bulkhead_tests::conformance::specs::{Reading, Spec};
use bulkhead_tests::node::Node;
use bulkhead_tests::peers;

pub(crate) use bulkhead_tests::conformance::ginkgo::scratch;

/// Specs of which `--quick` runs those that match. Left out: images, which are containerd's alone, and mounts that are
/// to reach the host.
const QUICK: &str = "Streaming|Networking|Multiple Containers|NamespaceOption|Security Context bucket|SupplementalGroups\
    |Seccomp|NoNewPrivs|rprivate|rslave|Readonly|OOM|sysctls|Runtime info|Idempotence|PodSandbox\
    |basic operations on container|adding volume|runtime should support log";

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
        self.selection.words()
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
        let select: Vec<String> =
            self.selection.focus(QUICK).map(|focus| format!("--focus={focus}")).into_iter().collect();
        let arguments = [
            "--config=/dev/null".to_owned(),
            format!("--runtime-endpoint=unix://{}", node.containerd_socket().display()),
            format!("--runtime-handler={handler}"),
        ];
        let run = Run {
            ginkgo: &self.bin.join("ginkgo"),
            suite: &self.bin.join("critest.test"),
            select: &select,
            arguments: &arguments,
            environment: &[],
            at_once,
            limit: "3h",
            folder: &self.folder,
            name: handler,
            reading: &Reading {
                tags: &["[k8s.io] ", " [Conformance]", " [Serial]"],
                left_out: &[],
                chosen: |_| true,
            },
        };
        run.go(node).await
    }
}

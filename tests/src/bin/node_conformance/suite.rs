//! The suite itself: where it is, how it and its kubelet are started, one run of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::conformance::ginkgo::Run;
use bulkhead_tests::conformance::selection::Selection;
use bulkhead_tests::conformance::specs::{Reading, Spec};
use bulkhead_tests::node::Node;
use bulkhead_tests::peers::{self, KubernetesPrograms};

use crate::machine;
use crate::specs::{self, LEFT_OUT, QUICK, TAGS};

/// The node's name towards the API server.
pub(crate) const NAME: &str = "test-node";

/// The suite's programs, and where its results go.
#[derive(Debug)]
pub(crate) struct Suite {
    programs: KubernetesPrograms,
    folder: PathBuf,
    selection: Selection,
}

impl Suite {
    /// Finds what `tests/peers/build.sh kubernetes` has built.
    pub(crate) fn find(selection: Selection) -> Result<Self, String> {
        let programs = peers::kubernetes()?;
        let folder = peers::root().join("target/node-conformance");
        std::fs::create_dir_all(&folder).expect("make the folder of the results");
        Ok(Self { programs, folder, selection })
    }

    /// As kubelet says.
    pub(crate) fn version(&self) -> String {
        let output = Command::new(self.program("kubelet")).arg("--version").output().expect("run kubelet");
        String::from_utf8_lossy(&output.stdout).trim().replace("Kubernetes ", "")
    }

    /// Which specs, in words.
    pub(crate) fn selection(&self) -> String {
        self.selection.words()
    }

    /// Results, JUnit files and logs of the runs.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of the programs that come with the suite.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.suite.join(name)
    }

    /// What stands in for nginx.
    pub(crate) fn web_server(&self) -> PathBuf {
        self.programs.cri_tools.join("suite-helper")
    }

    /// The shell of the images.
    pub(crate) fn bash(&self) -> PathBuf {
        self.programs.bash.clone()
    }

    /// Runs the selected specs on the node, `at_once` at a time.
    pub(crate) async fn run(&self, node: &Node, handler: &str, at_once: usize) -> Vec<Spec> {
        let logs = self.logs(handler);
        std::fs::create_dir_all(&logs).expect("make the folder of the run's logs");
        let mut select = vec!["--silence-skips".to_owned(), format!("--label-filter={}", specs::filter())];
        select.extend(LEFT_OUT.iter().map(|group| format!("--skip={}", group.names)));
        select.extend(self.selection.focus(QUICK).map(|focus| format!("--focus={focus}")));
        let arguments = self.arguments(node, &logs);
        let whole = self.selection == Selection::Whole;
        let run = Run {
            ginkgo: &self.program("ginkgo"),
            suite: &machine::working_folder(node).join(machine::SUITE),
            select: &select,
            arguments: &arguments,
            environment: &[("PATH".to_owned(), machine::path(node))],
            at_once,
            limit: "6h",
            folder: &self.folder,
            name: handler,
            reading: &Reading {
                tags: TAGS,
                left_out: if whole { LEFT_OUT } else { &[] },
                chosen: specs::chosen,
            },
        };
        run.go(node).await
    }

    /// What the suite is told of the node, whether it runs specs or not.
    pub(crate) fn arguments(&self, node: &Node, logs: &Path) -> Vec<String> {
        let socket = format!("unix://{}", node.containerd_socket().display());
        vec![
            format!("--node-name={NAME}"),
            format!("--container-runtime-endpoint={socket}"),
            format!("--image-service-endpoint={socket}"),
            // There is no registry: images::import has brought them.
            "--prepull-images=false".to_owned(),
            format!("--report-dir={}", logs.display()),
            format!("--kubelet-flags={}", kubelet_flags(node).join(" ")),
        ]
    }

    /// Whether a check of Bulkhead's own with this name is selected.
    pub(crate) fn selects(&self, check: &str) -> bool {
        self.selection.selects_check(check)
    }

    /// Keeps what the node's daemons have logged.
    pub(crate) fn keep_logs(&self, node: &Node, handler: &str) {
        for log in ["containerd.log", "sandboxer.log"] {
            let from = node.dir().join("log").join(log);
            if from.exists() {
                std::fs::copy(&from, self.logs(handler).join(log)).expect("keep a log");
            }
        }
    }

    /// The folder of a run's logs.
    pub(crate) fn logs(&self, handler: &str) -> PathBuf {
        self.folder.join(handler)
    }
}

/// What kubelet is told beyond what the suite tells it.
fn kubelet_flags(node: &Node) -> Vec<String> {
    let parent = node.cgroup_parent();
    vec![
        // The test machine may have cgroup v1, and swap.
        "--fail-cgroupv1=false".into(),
        "--fail-swap-on=false".into(),
        format!("--hostname-override={NAME}"),
        // It would ask a name server for the node's address, and a test node has no way to one. While it waits, its
        // retries for other objects of the node grow longer than the suite has patience.
        format!("--node-ip={}", machine::ADDRESS),
        // All its cgroups are below the node's, and with them they go. kubelet moves to the system's whatever has no
        // cgroup and is of its own pid namespace: the suite's programs.
        format!("--cgroup-root={parent}"),
        format!("--kubelet-cgroups={parent}/kubelet"),
        format!("--runtime-cgroups={}", machine::runtime_cgroup(node)),
        format!("--system-cgroups={parent}/system"),
        format!("--volume-plugin-dir={}", node.dir().join("plugins").display()),
    ]
}

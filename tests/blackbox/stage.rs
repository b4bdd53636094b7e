//! What every test begins and ends with: a slot, a node, a look before and a look after.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::{Deref, DerefMut};

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::cri::{Cri, Pod};
use bulkhead_tests::node::{Node, Options};
use bulkhead_tests::processes::{self, Process};
use bulkhead_tests::{node_pool, report, slots};
use tokio::sync::SemaphorePermit;

/// The node of a stage, which the pool gets back if it is one of the pool's and its test passes.
pub(crate) struct Lent {
    /// Taken only by the drop.
    node: Option<Node>,
    /// What lay in its directory, if it is one of the pool's.
    of_the_pool: Option<BTreeSet<OsString>>,
}

impl Deref for Lent {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().expect("the node is there until the drop")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Node {
        self.node.as_mut().expect("the node is there until the drop")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(found), false) = (&self.of_the_pool, std::thread::panicking()) {
            self.node.take().into_iter().for_each(|node| node_pool::give_back(node, found));
        }
    }
}

/// A node under test.
pub(crate) struct Stage {
    pub(crate) node: Lent,
    before: Snapshot,
    _slot: SemaphorePermit<'static>,
}

/// Name of the running test.
fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Whether containerd's own runtime is judged by tests that any runtime must pass.
pub(crate) fn control_run() -> bool {
    std::env::var_os("BULKHEAD_TEST_CONTROL").is_some_and(|value| value == "1")
}

/// Whether there are none in this run; says so aloud.
fn no_vms() -> bool {
    if control_run() {
        report::skipped(&test_name(), "needs VMs, and this is the control run");
    }
    control_run()
}

impl Stage {
    /// A node for what any runtime must do; `None` after saying why there is none.
    pub(crate) async fn any(options: Options) -> Option<Self> {
        let bulkhead = options.bulkhead && !control_run();
        Self::own(Options { bulkhead, ..options }, slots::take().await).await
    }

    /// A node for what only pods in VMs do.
    pub(crate) async fn vm(options: Options) -> Option<Self> {
        if no_vms() { None } else { Self::own(options, slots::take().await).await }
    }

    /// A node with the usual options for what any runtime must do, which the test leaves as it found it: daemons,
    /// settings and images stay.
    pub(crate) async fn shared() -> Option<Self> {
        let slot = slots::take().await;
        Self::set(node_pool::take(!control_run()).await, true, slot).await
    }

    /// The same for what only pods in VMs do.
    pub(crate) async fn shared_vm() -> Option<Self> {
        if no_vms() { None } else { Self::shared().await }
    }

    /// A node for many VMs at once, while no other test has any.
    pub(crate) async fn alone(options: Options) -> Option<Self> {
        if no_vms() { None } else { Self::own(options, slots::take_all().await).await }
    }

    async fn own(options: Options, slot: SemaphorePermit<'static>) -> Option<Self> {
        Self::set(Node::start(options).await, false, slot).await
    }

    async fn set(
        node: Result<Node, String>,
        of_the_pool: bool,
        slot: SemaphorePermit<'static>,
    ) -> Option<Self> {
        match node {
            Ok(node) => {
                let before = Snapshot::take(&node).await;
                let of_the_pool = of_the_pool.then(|| node_pool::contents(&node));
                Some(Self { node: Lent { node: Some(node), of_the_pool }, before, _slot: slot })
            }
            Err(why) => {
                report::skipped(&test_name(), &why);
                None
            }
        }
    }

    pub(crate) fn cri(&self) -> &Cri {
        self.node.cri()
    }

    /// Takes the look before anew, for tests that change what the node has on purpose.
    pub(crate) async fn look_again(&mut self) {
        self.before = Snapshot::take(&self.node).await;
    }

    /// Nothing may be left, and the node stays for more.
    pub(crate) async fn expect_clean(&self) {
        self.before.expect_nothing_left(&self.node).await;
    }

    /// Makes the default parent cgroup exist, which may stay, and looks anew.
    pub(crate) async fn warm_up(&mut self) {
        let pod = self.cri().try_run_pod(self.cri().pod_config_without_cgroup("warm-up")).await.unwrap();
        self.cri().end_pod(&pod).await;
        self.look_again().await;
    }

    /// Stops and removes the pod; nothing may be left.
    pub(crate) async fn end(&self, pod: &Pod) {
        self.cri().end_pod(pod).await;
        self.expect_clean().await;
    }

    /// Every process of the node that runs `program`.
    pub(crate) fn running(&self, program: &str) -> Vec<Process> {
        let all = processes::of_node(self.node.init());
        all.into_iter().filter(|process| process.state != 'Z' && process.program() == program).collect()
    }

    /// The one process of the node that runs `program`.
    pub(crate) fn the_one(&self, program: &str) -> Process {
        let mut found = self.running(program);
        assert_eq!(found.len(), 1, "processes running {program}: {found:?}");
        found.remove(0)
    }

    /// The VMM of a pod: its arguments name only the VM, its cgroup names the sandbox.
    pub(crate) fn vmm_of(&self, pod: &Pod) -> Process {
        let its = |process: &Process| {
            let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid));
            cgroups.is_ok_and(|cgroups| cgroups.contains(&pod.id))
        };
        self.running(VMM).into_iter().find(its).expect("the pod has a VMM")
    }
}

/// Ends the test quietly when there is no stage: why was said aloud.
macro_rules! stage {
    ($made:expr) => {
        match $made.await {
            Some(stage) => stage,
            None => return,
        }
    };
}
pub(crate) use stage;

/// Name of the VMM's program.
pub(crate) const VMM: &str = "qemu-system-x86_64";

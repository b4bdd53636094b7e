//! Restarts of everything that is not the pod: no container and no log line is lost.

use std::time::{Duration, Instant};

use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::loop_device::LoopDevice;
use bulkhead_tests::node::Options;
use bulkhead_tests::processes::Process;
use bulkhead_tests::{report, wait};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use crate::stage::{Stage, VMM, stage};

/// Counts, twenty lines a second, for ever.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); usleep 50000; done";

pub(crate) struct Counting {
    pod: Pod,
    container: Container,
}

impl Counting {
    pub(crate) async fn start(stage: &Stage) -> Self {
        let pod = stage.cri().run_pod("counting").await;
        let container = stage.cri().start(&pod, Cri::shell("counter", COUNTER)).await;
        let counting = Self { pod, container };
        counting.expect_more(5).await;
        counting
    }

    /// The numbers so far; none may be missing or doubled.
    fn numbers(&self) -> usize {
        let text = self.container.log().stdout;
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        for (index, line) in complete.lines().enumerate() {
            assert_eq!(line, index.to_string(), "a log line is lost or doubled");
        }
        complete.lines().count()
    }

    pub(crate) async fn expect_more(&self, more: usize) {
        let start = self.numbers();
        wait::expect("the container goes on counting", Duration::from_secs(60), async || {
            (self.numbers() >= start + more).then_some(())
        })
        .await;
    }

    /// The pod is as good as before: ready, exec, a second container, counting.
    pub(crate) async fn expect_well(&self, stage: &Stage) {
        let cri = stage.cri();
        // containerd dials a sandboxer that was away again after up to 3 s.
        wait::expect("containerd reaches the sandboxer", Duration::from_secs(10), async || {
            cri.pod_status(&self.pod.id).await.ok()
        })
        .await;
        assert!(cri.pod_ready(&self.pod.id).await);
        let status = cri.container_status(&self.container.id).await;
        assert_eq!(status.state(), api::ContainerState::ContainerRunning, "{status:?}");
        assert_eq!(cri.exec(&self.container.id, "echo well").await, "well\n");
        self.expect_more(5).await;
        let second =
            cri.start(&self.pod, Cri::shell(&format!("second{}", self.numbers()), "echo new; exit 6")).await;
        assert_eq!(cri.wait_exit(&second.id).await.exit_code, 6);
        assert_eq!(second.log().stdout, "new\n");
    }

    /// The counter is stopped, its whole log is there, nothing is left.
    pub(crate) async fn end(self, stage: &Stage) {
        stage.cri().stop(&self.container.id, 0).await;
        let status = stage.cri().wait_exit(&self.container.id).await;
        assert_eq!(status.exit_code, 137, "{status:?}");
        self.numbers();
        stage.end(&self.pod).await;
    }
}

async fn sandboxer_ends_by(signal: Signal) {
    let mut stage = stage!(Stage::vm(Options::default()));
    let counting = Counting::start(&stage).await;
    let vmm = stage.the_one(VMM);
    for round in 0..2 {
        stage.node.stop_sandboxer(signal).await;
        counting.expect_more(10).await;
        let exec = stage.cri().exec(&counting.container.id, "echo without the sandboxer").await;
        assert_eq!(exec, "without the sandboxer\n", "round {round}");
        let start = Instant::now();
        stage.node.start_sandboxer().await;
        eprintln!("listening again after {:?}", start.elapsed());
        assert_eq!(stage.the_one(VMM).pid, vmm.pid);
        counting.expect_well(&stage).await;
    }
    counting.end(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxer_kill_9_costs_no_container_and_no_log_line() {
    sandboxer_ends_by(Signal::SIGKILL).await;
}

/// Another machine type, larger VMs, another runtime directory: they are for pods that are made from now on.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_stays_what_it_is_when_the_settings_change() {
    let mut stage = stage!(Stage::vm(Options::default().with("vm", "block_volumes", "false")));
    let counting = Counting::start(&stage).await;
    let old = stage.the_one(VMM);
    stage.node.stop_sandboxer(Signal::SIGTERM).await;
    let run_dir = stage.node.dir().join("r2");
    stage.node.set("sandboxer", "run_dir", format!("\"{}\"", run_dir.display()));
    stage.node.set("qemu", "machine", "\"q35\"");
    stage.node.set("vm", "memory_mib", "384");
    stage.node.set("vm", "vcpus", "2");
    stage.node.set("vm", "block_volumes", "true");
    stage.node.start_sandboxer().await;
    assert_eq!(stage.the_one(VMM).pid, old.pid);
    // Its second container asks the sandboxer at the place that its shim proxy knows.
    counting.expect_well(&stage).await;
    let cri = stage.cri();
    let limits =
        |mib: i64| api::LinuxContainerResources { memory_limit_in_bytes: mib << 20, ..Default::default() };
    let refused = cri.try_resize_pod(&counting.pod.id, limits(64)).await.unwrap_err();
    for part in ["memory from 256 to 320 MiB", "qemu/microvm cannot resize a running VM"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }

    let new = cri.run_pod("new").await;
    let machine = |process: &Process| process.args.iter().any(|arg| arg.starts_with("q35,"));
    assert!(machine(&stage.vmm_of(&new)) && !machine(&stage.vmm_of(&counting.pod)));
    assert!(run_dir.join("s").join(&new.id).exists(), "a new pod lies where the settings say");

    // What a VM was made without it does not get, and says so; whether the device exists is asked before.
    match LoopDevice::make(&stage.node.dir().join("disk"), 1 << 20, &[]) {
        Ok(disk) => {
            let host_path = disk.path().display().to_string();
            let device =
                api::Device { container_path: "/dev/xvda".into(), host_path, permissions: "mrw".into() };
            let config = api::ContainerConfig { devices: vec![device], ..Cri::shell("block", "true") };
            let container = cri.try_create(&counting.pod, config).await.expect("it is made at its start");
            let refused = cri.try_start(&container.id).await.unwrap_err();
            assert!(refused.message().contains("block_volumes = false; set it to true"), "{refused:?}");
            cri.remove(&container.id).await;
        }
        Err(why) => report::skipped("block volumes of a pod that was made without", &why),
    }
    cri.end_pod(&new).await;
    counting.end(&stage).await;
    for directory in ["s", "vm"] {
        let left: Vec<_> = std::fs::read_dir(run_dir.join(directory)).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn containerd_ends_by(signal: Signal) {
    let mut stage = stage!(Stage::any(Options::default()));
    let counting = Counting::start(&stage).await;
    for _ in 0..2 {
        stage.node.stop_containerd(signal).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        stage.node.start_containerd().await;
        counting.expect_well(&stage).await;
    }
    counting.end(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_restart_costs_no_container_and_no_log_line() {
    containerd_ends_by(Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_kill_9_costs_no_container_and_no_log_line() {
    containerd_ends_by(Signal::SIGKILL).await;
}

/// Not so with runc: its shim names no process of an ended task, and containerd then drops it (exit code 255).
#[tokio::test(flavor = "multi_thread")]
async fn an_exit_while_containerd_is_down_keeps_its_code() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let pod = stage.cri().run_pod("absent").await;
    let container = stage.cri().start(&pod, Cri::shell("main", "sleep 2; echo last words; exit 9")).await;
    stage.node.stop_containerd(Signal::SIGKILL).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    stage.node.start_containerd().await;
    let status = stage.cri().wait_exit(&container.id).await;
    assert_eq!(status.exit_code, 9, "{status:?}");
    assert_eq!(container.log().stdout, "last words\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_be_stopped_right_after_a_restart_of_both() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let counting = Counting::start(&stage).await;
    stage.node.stop_containerd(Signal::SIGKILL).await;
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    stage.node.start_sandboxer().await;
    stage.node.start_containerd().await;
    counting.numbers();
    stage.end(&counting.pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_while_a_pod_starts_leaves_nothing() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    for delay in [50, 300, 1000] {
        let start = stage.cri().try_run_pod(stage.cri().pod_config_without_cgroup("halfway"));
        let killer = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let pid = stage.node.sandboxer_pid().unwrap();
            bulkhead_tests::processes::signal(pid, Signal::SIGKILL);
        };
        let (started, ()) = tokio::join!(undone(start), killer);
        eprintln!("{delay} ms into the start: {started:?}");
        stage.node.stop_sandboxer(Signal::SIGKILL).await;
        stage.node.start_sandboxer().await;
        if let Some(pod) = started {
            stage.cri().end_pod(&pod).await;
        }
        stage.expect_clean().await;
    }
    let pod = stage.cri().run_pod("after").await;
    stage.end(&pod).await;
}

/// A start that may fail.
async fn undone(start: impl Future<Output = Result<Pod, tonic::Status>>) -> Option<Pod> {
    start.await.map_err(|status| eprintln!("as it should: {status:?}")).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_every_old_pod_is_not_ready_and_removable() {
    let mut stage = stage!(Stage::any(Options::default()));
    let one = stage.cri().run_pod("one").await;
    let two = stage.cri().run_pod("two").await;
    let container = stage.cri().start(&one, Cri::shell("main", "sleep 1000")).await;
    stage.node.reboot().await;
    for pod in [&one, &two] {
        stage.cri().expect_not_ready(&pod.id).await;
    }
    let status = stage.cri().wait_exit(&container.id).await;
    assert_ne!(status.exit_code, 0, "a container that lost its node did not end well");
    for pod in [&one, &two] {
        stage.cri().try_stop_pod(&pod.id).await.unwrap();
        stage.cri().try_remove_pod(&pod.id).await.unwrap();
    }
    assert!(stage.cri().list_pods().await.is_empty());
    stage.expect_clean().await;
    let pod = stage.cri().run_pod("fresh").await;
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_49_sandboxer_restart_adopts_running_pods() {
        sandboxer_ends_by(Signal::SIGTERM).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_49_the_vmm_dies_while_the_sandboxer_is_away() {
        let mut stage = stage!(Stage::vm(Options::default()));
        let pod = stage.cri().run_pod("orphan").await;
        let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
        let vmm = stage.the_one(VMM);
        stage.node.stop_sandboxer(Signal::SIGKILL).await;
        bulkhead_tests::processes::signal(vmm.pid, Signal::SIGKILL);
        stage.node.start_sandboxer().await;
        stage.cri().expect_not_ready(&pod.id).await;
        assert_eq!(stage.cri().wait_exit(&container.id).await.exit_code, 137);
        stage.end(&pod).await;
    }
}

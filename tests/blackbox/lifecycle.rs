//! Calls that cross, repeat, or are taken back, and containers that never come up: the pod's end leaves nothing.

use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::{processes, wait};
use futures::future::join_all;
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;
use tonic::Request;

use crate::stage::{Stage, stage};
use crate::streams::{expect_flat, footprint, full};

const SOON: Duration = Duration::from_secs(60);

async fn stop_container(cri: &Cri, id: &str) -> Result<(), tonic::Status> {
    let request = api::StopContainerRequest { container_id: id.into(), timeout: 1 };
    cri.runtime().stop_container(request).await.map(drop)
}

async fn remove_container(cri: &Cri, id: &str) -> Result<(), tonic::Status> {
    let request = api::RemoveContainerRequest { container_id: id.into() };
    cri.runtime().remove_container(request).await.map(drop)
}

/// kubelet tries again until it works.
async fn insist(what: &str, call: impl AsyncFn() -> Result<(), tonic::Status>) {
    wait::expect(what, SOON, async || {
        let answer = call().await;
        answer.inspect_err(|status| eprintln!("{what}: {status:?}")).ok()
    })
    .await;
}

async fn end(stage: &Stage, pod: &Pod) {
    let cri = stage.cri();
    insist("StopPodSandbox works", async || cri.try_stop_pod(&pod.id).await).await;
    insist("RemovePodSandbox works", async || cri.try_remove_pod(&pod.id).await).await;
    // And the pod's cgroup, as kubelet does.
    cri.remove_pod(pod).await;
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_a_pod_while_a_container_starts() {
    // With runc a shim can be left.
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    for pause in [0, 60] {
        let pod = cri.run_pod("crossing").await;
        let container = cri.create(&pod, Cri::shell("late", "sleep 1000")).await;
        let stop = async {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            cri.try_stop_pod(&pod.id).await
        };
        let (started, stopped) = tokio::join!(cri.try_start(&container.id), stop);
        eprintln!("after {pause} ms: start {started:?}, stop {stopped:?}");
        insist("StopPodSandbox works", async || cri.try_stop_pod(&pod.id).await).await;
        let status = cri.container_status(&container.id).await;
        assert_ne!(status.state(), api::ContainerState::ContainerRunning, "{status:?}");
        end(&stage, &pod).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_pod_while_it_stops() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("impatient").await;
    cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    let (stopped, removed, again) =
        tokio::join!(cri.try_stop_pod(&pod.id), cri.try_remove_pod(&pod.id), cri.try_stop_pod(&pod.id));
    eprintln!("stop {stopped:?}, remove {removed:?}, stop {again:?}");
    end(&stage, &pod).await;
}

/// A client that does not wait for the answer.
const SOON_GONE: Duration = Duration::from_millis(30);

/// Makes a call and goes away from it.
async fn taken_back<T: std::fmt::Debug, U>(
    limit: Duration,
    message: T,
    call: impl AsyncFnOnce(Request<T>) -> Result<tonic::Response<U>, tonic::Status>,
) {
    let what = format!("{message:?} within {limit:?}");
    let mut request = Request::new(message);
    request.set_timeout(limit);
    eprintln!("{what}: {:?}", call(request).await.map(drop));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_taken_back_half_way() {
    // With runc a cgroup can be left.
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("wavering").await;
    let witness = cri.start(&pod, Cri::shell("witness", "sleep 1000")).await;
    let mut left: Vec<Container> = Vec::new();
    for millis in [5, 40, 120] {
        let name = format!("late{millis}");
        let container = cri.create(&pod, Cri::shell(&name, "sleep 1000")).await;
        let mut start = Request::new(api::StartContainerRequest { container_id: container.id.clone() });
        start.set_timeout(Duration::from_millis(millis));
        eprintln!("start within {millis} ms: {:?}", cri.runtime().start_container(start).await.map(drop));
        let mut exec = Request::new(api::ExecSyncRequest {
            container_id: witness.id.clone(),
            cmd: vec!["/bin/sleep".into(), "4343".into()],
            timeout: 0,
        });
        exec.set_timeout(Duration::from_millis(millis));
        assert!(cri.runtime().exec_sync(exec).await.is_err());
        left.push(container);
    }
    for container in left {
        let id = container.id;
        let stop = api::StopContainerRequest { container_id: id.clone(), timeout: 1 };
        taken_back(SOON_GONE, stop, async |request| cri.runtime().stop_container(request).await).await;
        insist("StopContainer works", async || stop_container(cri, &id).await).await;
        insist("RemoveContainer works", async || remove_container(cri, &id).await).await;
    }
    let execs = "ps -o args | grep -c '[s]leep 4343' || true";
    wait::expect(
        "the processes of execs that nobody waits for are gone",
        Duration::from_secs(4),
        async || (cri.exec(&witness.id, execs).await == "0\n").then_some(()),
    )
    .await;
    // The end of the pod itself, a little further each time.
    for millis in [2, 20, 60, 150] {
        let id = pod.id.clone();
        let limit = Duration::from_millis(millis);
        let stop = api::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        taken_back(limit, stop, async |request| cri.runtime().stop_pod_sandbox(request).await).await;
    }
    let remove = api::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    taken_back(SOON_GONE, remove, async |request| cri.runtime().remove_pod_sandbox(request).await).await;
    end(&stage, &pod).await;
}

/// kubelet's evented PLEG lives by it.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_told_in_containerds_events() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let mut runtime = cri.runtime();
    let (heard, mut events) = tokio::sync::mpsc::unbounded_channel();
    // The answer begins with the first event.
    let listening = tokio::spawn(async move {
        let mut stream = runtime.get_container_events(api::GetEventsRequest {}).await.unwrap().into_inner();
        while let Ok(Some(event)) = stream.message().await {
            drop(heard.send((event.container_id.clone(), event.container_event_type())));
        }
    });
    // It is subscribed once an event has come.
    let first = wait::expect("an event", SOON, async || {
        let pod = cri.run_pod("first").await;
        cri.end_pod(&pod).await;
        events.try_recv().ok()
    });
    first.await;
    let pod = cri.run_pod("told").await;
    let container = cri.start(&pod, Cri::shell("main", "exit 3")).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 3);
    cri.remove(&container.id).await;
    cri.end_pod(&pod).await;
    use api::ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let life = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    let mut told = Vec::new();
    wait::expect("the pod's whole life is told", SOON, async || {
        while let Ok(event) = events.try_recv() {
            told.push(event);
        }
        let of = |id: &str| told.iter().filter(|(of, _)| of == id).map(|(_, kind)| *kind).collect::<Vec<_>>();
        (of(&pod.id) == life && of(&container.id) == life).then_some(())
    })
    .await;
    listening.abort();
    stage.expect_clean().await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_every_call_may_be_repeated_and_doubled() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("again").await;
        let deaf = "trap '' TERM; echo ready; while :; do usleep 50000; done";
        let container = cri.create(&pod, Cri::shell("main", deaf)).await;
        let starts = join_all((0..3).map(|_| cri.try_start(&container.id))).await;
        assert_eq!(starts.iter().filter(|start| start.is_ok()).count(), 1, "{starts:?}");
        assert!(cri.try_start(&container.id).await.is_err(), "a running container cannot be started");
        wait::expect("it runs", SOON, async || container.log().stdout.contains("ready").then_some(())).await;
        for stop in join_all((0..3).map(|_| stop_container(cri, &container.id))).await {
            stop.unwrap();
        }
        stop_container(cri, &container.id).await.unwrap();
        assert_eq!(cri.wait_exit(&container.id).await.exit_code, 137);
        assert!(cri.try_start(&container.id).await.is_err(), "an ended container cannot be started");
        drop(join_all((0..3).map(|_| remove_container(cri, &container.id))).await);
        insist("RemoveContainer works", async || remove_container(cri, &container.id).await).await;
        remove_container(cri, &container.id).await.unwrap();
        drop(join_all((0..3).map(|_| cri.try_stop_pod(&pod.id))).await);
        cri.stop_pod(&pod).await;
        cri.stop_pod(&pod).await;
        drop(join_all((0..3).map(|_| cri.try_remove_pod(&pod.id))).await);
        end(&stage, &pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_5246_containerd_killed_while_a_pod_starts_leaves_nothing() {
        let mut stage = stage!(Stage::vm(Options::default()));
        stage.warm_up().await;
        for pause in [150, 900] {
            let config = stage.cri().pod_config_without_cgroup("cut");
            let kill = async {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                processes::signal(stage.node.containerd_pid().unwrap(), Signal::SIGKILL);
            };
            let (started, ()) = tokio::join!(stage.cri().try_run_pod(config), kill);
            eprintln!("{pause} ms into the start: {started:?}");
            stage.node.stop_containerd(Signal::SIGKILL).await;
            stage.node.start_containerd().await;
            for pod in stage.cri().list_pods().await {
                let cri = stage.cri();
                insist("StopPodSandbox works", async || cri.try_stop_pod(&pod.id).await).await;
                insist("RemovePodSandbox works", async || cri.try_remove_pod(&pod.id).await).await;
            }
            stage.expect_clean().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_12748_a_crash_loop_makes_nothing_grow() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("crashing").await;
        let main = cri.start(&pod, Cri::shell("main", "sleep 100000")).await;
        let crash = async |number: u32| {
            let mut config = Cri::shell("crash", "exit 3");
            config.metadata.as_mut().unwrap().attempt = number;
            let missing = number.is_multiple_of(2);
            if missing {
                config.command = vec!["/bin/not-there".into()];
            }
            let container = cri.create(&pod, config).await;
            let started = cri.try_start(&container.id).await;
            assert_eq!(started.is_err(), missing, "{started:?}");
            if !missing {
                assert_eq!(cri.wait_exit(&container.id).await.exit_code, 3);
            }
            cri.remove(&container.id).await;
        };
        for number in 0..4 {
            crash(number).await;
        }
        let before = footprint(&stage, &main).await;
        for number in 4..if full() { 504 } else { 34 } {
            crash(number).await;
        }
        expect_flat(&stage, &main, &before).await;
        stage.end(&pod).await;
    }
}

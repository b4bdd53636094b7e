//! Many pods at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bulkhead_tests::cri::{Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::{processes, steps, wait};
use futures::future::join_all;

use crate::stage::{Stage, stage};
use crate::streams::full;

/// Most of the starts of a crowd are much alike; a dial that is lost costs a guest's kernel two seconds at least, and
/// cost others ten.
const SLOWEST_TO_MEDIAN: f64 = 2.0;

/// inotify(7).
const MAX_INOTIFY_INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";

/// How many start at once: the reports are of 12 to 28.
fn crowd() -> usize {
    if full() { 24 } else { 12 }
}

/// Guests as small as they come up with; on few cores a crowd of them boots for longer than one.
fn small() -> Options {
    let boot_timeout = 300 * wait::patience();
    Options::default().with("vm", "memory_mib", "96").with(
        "guest",
        "boot_timeout_secs",
        boot_timeout.to_string(),
    )
}

/// Slowest and median.
fn extremes(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() - 1], times[times.len() / 2])
}

fn expect_alike(what: &str, times: Vec<Duration>) {
    let (slowest, median) = extremes(times);
    eprintln!("{what}: median {median:?}, slowest {slowest:?}");
    let ratio = slowest.as_secs_f64() / median.as_secs_f64();
    assert!(ratio <= SLOWEST_TO_MEDIAN, "{what}: one stalled, slowest {slowest:?}, median {median:?}");
}

/// What guest and shim proxy wrote: each dialled the other side once, and was heard. The sandboxer's own dials are
/// never repeated.
fn expect_dialled_once(stage: &Stage, pod: &Pod) {
    let read = |path: std::path::PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let console = read(stage.node.vm_dir(&pod.id).join("console.log"));
    let shim = read(stage.node.pod_dir(&pod.id).join("shim.stderr"));
    assert_eq!(console.matches("announced to the host").count(), 1, "{console}");
    for log in [console, shim] {
        assert!(!log.contains("dialling again"), "{log}");
    }
}

/// Nobody's end and no line of anybody's log is lost.
#[tokio::test(flavor = "multi_thread")]
async fn containers_that_start_at_once_in_one_pod_say_all_and_end_well() {
    const AT_ONCE: usize = 12;
    const ROUNDS: usize = 3;
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("many").await;
    for round in 0..ROUNDS {
        let run = async |number: usize| {
            let name = format!("r{round}n{number}");
            let container = cri
                .start(
                    &pod,
                    Cri::shell(
                        &name,
                        &format!("for n in $(seq 20); do echo {name}-$n; done; echo {name} >&2"),
                    ),
                )
                .await;
            let status = cri.wait_exit(&container.id).await;
            let lines: String = (1..=20).map(|line| format!("{name}-{line}\n")).collect();
            let log = container.log();
            let found = (status.exit_code, log.stdout, log.stderr);
            assert_eq!(found, (0, lines, format!("{name}\n")), "{}: {}", status.reason, status.message);
            cri.remove(&container.id).await;
        };
        join_all((0..AT_ONCE).map(run)).await;
    }
    stage.end(&pod).await;
}

/// Their number is bounded for each user, everything is root's, and the bound (128 as a rule) was the number of pods.
/// It holds for the whole machine, so it is lowered only where that is the test's own, in the node VM. The processes
/// looked at are Bulkhead's alone.
#[tokio::test(flavor = "multi_thread")]
async fn pods_take_no_inotify_instance() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("watched").await;
    stage.cri().start(&pod, Cri::shell("main", "sleep 100000")).await;
    let mut looked_at = Vec::new();
    for process in processes::of_node(stage.node.init()) {
        // What containerd watches does not grow with its pods; it does at its start.
        if process.state == 'Z' || process.program() == "containerd" {
            continue;
        }
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten();
        let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let watches = links.filter(|link| link.to_string_lossy().contains("inotify")).count();
        assert_eq!(watches, 0, "{}", process.describe());
        looked_at.push(process.program().to_owned());
    }
    for program in ["bulkhead-sandboxer", "containerd-shim-bulkhead-v2"] {
        assert!(looked_at.iter().any(|seen| seen == program), "{program} is not in {looked_at:?}");
    }
    if std::env::var_os("BULKHEAD_OWN_MACHINE").is_some() {
        let before = std::fs::read_to_string(MAX_INOTIFY_INSTANCES).unwrap();
        std::fs::write(MAX_INOTIFY_INSTANCES, "0").unwrap();
        let other = stage.cri().run_pod("unwatched").await;
        let main = stage.cri().start(&other, Cri::shell("main", "sleep 100000")).await;
        assert_eq!(stage.cri().exec(&main.id, "echo here").await, "here\n");
        stage.cri().end_pod(&other).await;
        std::fs::write(MAX_INOTIFY_INSTANCES, before).unwrap();
    }
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_8150_no_start_of_a_crowd_stalls() {
        let stage = stage!(Stage::alone(small()));
        let cri = stage.cri();
        let start = async |number: usize| {
            let begin = Instant::now();
            let pod = cri.run_pod(&format!("crowd{number}")).await;
            (pod, begin.elapsed())
        };
        let (pods, times): (Vec<Pod>, Vec<Duration>) =
            join_all((0..crowd()).map(start)).await.into_iter().unzip();
        expect_alike("starts", times);
        let mut took: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
        for pod in &pods {
            assert!(cri.pod_ready(&pod.id).await, "{} is not ready", pod.id);
            for step in steps::of(&stage.node, pod).await {
                took.entry(step.name).or_default().push(step.took);
            }
        }
        for (name, took) in took {
            let (slowest, median) = extremes(took);
            eprintln!("{name}: median {median:?}, slowest {slowest:?}");
        }
        // And every guest is dialled: for Create, for Start and for each stream.
        let run = async |pod: &Pod| {
            let begin = Instant::now();
            let main = cri.start(pod, Cri::shell("main", "sleep 100000")).await;
            assert_eq!(cri.exec(&main.id, "echo here").await, "here\n");
            begin.elapsed()
        };
        expect_alike("a container and an exec in it", join_all(pods.iter().map(run)).await);
        for pod in &pods {
            expect_dialled_once(&stage, pod);
        }
        join_all(pods.iter().map(|pod| cri.end_pod(pod))).await;
        stage.expect_clean().await;
    }
}

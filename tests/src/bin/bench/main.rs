//! `make bench`: what a pod costs beside the VM itself, as a table and as JSON.
//!
//! With the argument `start` or `daily` only that half: how pods start and what they weigh, or what containers do
//! all day beside runc.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a bench: a step that fails ends it by saying so"
)]

mod bare;
mod daily;
mod figures;
mod machine;
mod memory;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::cri::{Cri, Pod};
use bulkhead_tests::node::{Node, Options};
use bulkhead_tests::peers;

use figures::{Figures, Series};

/// How often each thing is measured.
const ROUNDS: usize = 12;
/// How many pods start at once.
const TOGETHER: usize = 10;

#[tokio::main]
async fn main() -> ExitCode {
    let quiet = Options::default().with("sandboxer", "log_level", "\"info\"").with(
        "guest",
        "agent_log_level",
        "\"info\"",
    );
    let node = match Node::start(quiet).await {
        Ok(node) => node,
        Err(why) => {
            eprintln!("the bench cannot run here: {why}");
            return ExitCode::from(2);
        }
    };
    let mut figures = Figures::new(machine::describe(&node).await);
    println!("{}", figures.machine());
    let before = Snapshot::take(&node).await;
    let recipe = warm_up(&node).await;
    let part = std::env::args().nth(1);
    if part.as_deref() != Some("daily") {
        one_by_one(&node, &recipe, &mut figures).await;
        memory::measure(&node, &mut figures).await;
        together(&node, &mut figures).await;
    }
    if part.as_deref() != Some("start") {
        daily::measure(&node, &mut figures).await;
    }
    before.expect_nothing_left(&node).await;
    println!("{}{}", figures.table(), figures.spans_table());
    let to = std::env::var_os("BULKHEAD_BENCH_JSON").map_or_else(
        || peers::root().join("target/bench.json"),
        |path| peers::root().join(PathBuf::from(path)),
    );
    std::fs::write(&to, figures.json()).expect("write the figures");
    println!("\nalso in {}", to.display());
    ExitCode::SUCCESS
}

/// The first pod fills caches, and shows how its VM was started.
async fn warm_up(node: &Node) -> bare::Recipe {
    let pod = node.cri().run_pod("warm-up").await;
    let recipe = bare::Recipe::read(node, &pod.id);
    let container = node.cri().start(&pod, Cri::shell("main", "echo up; sleep 1000")).await;
    node.cri().exec(&container.id, "true").await;
    node.cri().end_pod(&pod).await;
    recipe
}

async fn one_by_one(node: &Node, recipe: &bare::Recipe, figures: &mut Figures) {
    for round in 0..ROUNDS {
        // Turn about, so that a machine that slows down slows both.
        let boot = recipe.boot(node).await;
        figures.add(Series::BareBoot, boot);
        let cri = node.cri();
        let config = cri.pod_config("bench");
        let (run, pod) = timed(cri.try_run_pod(config)).await;
        let pod = pod.unwrap_or_else(|status| panic!("RunPodSandbox: {status:?}"));
        figures.add(Series::RunPod, run);
        figures.add(Series::Cni, cni_time(node, &pod));
        figures.add_steps(bulkhead_tests::steps::of(node, &pod).await);
        let (container, took) = first_byte(node, &pod).await;
        figures.add(Series::FirstByte, took);
        for _ in 0..3 {
            let (exec, _) = timed(cri.exec(&container, "true")).await;
            figures.add(Series::Exec, exec);
        }
        let (stop, ()) = timed(cri.stop_pod(&pod)).await;
        figures.add(Series::StopPod, stop);
        cri.remove_pod(&pod).await;
        eprintln!("round {} of {ROUNDS}: bare boot {boot:?}, RunPodSandbox {run:?}", round + 1);
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let start = Instant::now();
    let done = work.await;
    (start.elapsed(), done)
}

/// From StartContainer to the first byte in the container's log file; the container runs on.
async fn first_byte(node: &Node, pod: &Pod) -> (String, Duration) {
    let cri = node.cri();
    let container = cri.create(pod, Cri::shell("main", "echo up; sleep 1000")).await;
    // A log is appended to; the first byte shall be this container's.
    std::fs::remove_file(&container.log).ok();
    let start = Instant::now();
    let started = cri.try_start(&container.id);
    let written = async {
        while std::fs::metadata(&container.log).map_or(0, |file| file.len()) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        start.elapsed()
    };
    let (started, first) = tokio::join!(started, written);
    started.unwrap_or_else(|status| panic!("StartContainer: {status:?}"));
    (container.id, first)
}

/// What CNI took of a RunPodSandbox, by containerd's own log.
fn cni_time(node: &Node, pod: &Pod) -> Duration {
    let log = std::fs::read_to_string(node.dir().join("log/containerd.log")).expect("read containerd's log");
    let time = |message: &str| {
        let line = log.lines().find(|line| line.contains(message) && line.contains(&pod.id));
        let line = line.unwrap_or_else(|| panic!("containerd's log has no {message:?} for {}", pod.id));
        machine::time_of_day(line)
    };
    time("cni result").saturating_sub(time("begin cni setup"))
}

async fn together(node: &Node, figures: &mut Figures) {
    let cri = node.cri();
    let start = Instant::now();
    let runs = (0..TOGETHER).map(|_| async { timed(cri.run_pod("together")).await });
    let pods = futures::future::join_all(runs).await;
    figures.set("10 pods at once: until the last is up", start.elapsed().as_secs_f64() * 1e3, "ms");
    let slowest = pods.iter().map(|(took, _)| *took).max().expect("there are pods");
    figures.slowest_of_many(slowest);
    let ends = pods.iter().map(|(_, pod)| cri.end_pod(pod));
    futures::future::join_all(ends).await;
}

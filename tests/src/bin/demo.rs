//! `make demo`: a pod in a VM of its own, through stock containerd, told step by step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a demo: a step that fails ends it by saying so"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::cri::{Cri, DEADLINE};
use bulkhead_tests::node::{Node, Options};
use bulkhead_tests::{processes, wait};

/// Says what happens and how long it took.
struct Story {
    step: Instant,
}

impl Story {
    fn tell(&mut self, text: &str) {
        println!("{:>7.2} s  {text}", self.step.elapsed().as_secs_f64());
        self.step = Instant::now();
    }

    fn show(text: &str) {
        for line in text.trim_end().lines() {
            println!("           | {line}");
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    println!("Bulkhead: a Kubernetes pod in a VM of its own, through unmodified containerd.\n");
    let mut story = Story { step: Instant::now() };
    let node = match Node::start(Options::default()).await {
        Ok(node) => node,
        Err(why) => {
            eprintln!("the demo cannot run here: {why}");
            return ExitCode::from(2);
        }
    };
    let version = node.base().containerd.display().to_string();
    let version =
        tokio::process::Command::new(version).arg("--version").output().await.expect("ask containerd");
    let version =
        String::from_utf8_lossy(&version.stdout).split_whitespace().nth(2).unwrap_or("?").to_owned();
    story.tell(&format!(
        "containerd {version} and bulkhead-sandboxer run, in a network namespace of their own"
    ));
    let before = Snapshot::take(&node).await;
    story.step = Instant::now();

    let pod = node.cri().run_pod("demo").await;
    let ip = node.cri().pod_ips(&pod).await[0];
    story.tell(&format!("RunPodSandbox: a VM booted, CNI gave it {ip}"));
    let all = processes::of_node(node.init());
    for process in all.iter().filter(|process| process.program().starts_with("qemu-system")) {
        let arguments = process.args.join(" ");
        let start: String = arguments.chars().take(86).collect();
        Story::show(&format!("pid {} {start}…", process.pid));
    }
    story.step = Instant::now();

    let web = Cri::shell("web", "echo serving on port 80; httpd -f -v -p 80 -h /www");
    let web = node.cri().start(&pod, web).await;
    story.tell("CreateContainer, StartContainer: busybox httpd in the pod");
    let page = node.http_get((ip, 80).into(), "/", Duration::from_secs(30)).await;
    story.tell(&format!("GET http://{ip}/ from the node"));
    Story::show(&page);

    let guest = node.cri().exec(&web.id, "uname -r").await;
    story.tell("exec in the container: uname -r");
    Story::show(&format!("guest  {guest}node   {}", node.run(&["uname", "-r"]).await));
    story.step = Instant::now();
    let log = wait::until(DEADLINE, async || {
        let log = web.log();
        log.stderr.contains("200").then_some(log)
    })
    .await;
    let log = log.unwrap_or_else(|| web.log());
    story.tell("the container's log, as kubectl logs would read it");
    Story::show(&format!("{}{}", log.stdout, log.stderr));
    story.step = Instant::now();

    node.cri().stop_pod(&pod).await;
    story.tell("StopPodSandbox");
    node.cri().remove_pod(&pod).await;
    story.tell("RemovePodSandbox");
    before.expect_nothing_left(&node).await;
    story.tell(
        "audit: no process, mount, link, tc filter, netns, cgroup, file or open file is left of the pod",
    );
    println!("\nThe node ran in {} and is gone now too.", node.dir().display());
    ExitCode::SUCCESS
}

//! What a container does all day, beside the same under runc on the same machine: start, exec, output, files, stats.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_tests::cri::{Cri, Pod, mount};
use bulkhead_tests::node::{Node, Options};
use k8s_cri::v1 as api;

use super::figures::{Figures, Series, median};
use super::{ROUNDS, first_byte, timed};

/// Bytes of output and of the large file, in MiB.
const MEGABYTES: u32 = 64;
/// How many small files.
const FILES: u32 = 500;
/// How often the heavier things are measured; a median wants an odd number.
const FEW: usize = 5;
/// Containers of the pod whose stats are asked for.
const CONTAINERS: usize = 50;
/// The program that sends from inside the guest, beside this one.
const FLOOD: &str = "vsock_flood";
/// Where it sends to; the ports of Bulkhead's own are below.
const PORT: u32 = 5000;
/// How often namespaces are made inside the guest in one measurement.
const UNSHARES: u32 = 20;

pub(crate) async fn measure(node: &Node, figures: &mut Figures) {
    let control =
        Node::start(Options::control()).await.unwrap_or_else(|why| panic!("no control node: {why}"));
    let (ours, theirs) = (Side::new(node, false).await, Side::new(&control, true).await);
    latencies(&ours, &theirs, figures).await;
    inside(&ours, figures).await;
    for (what, unit, script) in [
        ("output to the container's log", "MiB/s", None),
        ("large file written and synced", "MiB/s", Some(Work::Write)),
        ("large file read", "MiB/s", Some(Work::Read)),
        ("small files made and synced", "files/s", Some(Work::Small)),
    ] {
        let (mut our, mut their) = (Vec::new(), Vec::new());
        for _ in 0..FEW {
            for (side, rates) in [(&ours, &mut our), (&theirs, &mut their)] {
                rates.push(match script {
                    None => side.output().await,
                    Some(work) => side.files(work).await,
                });
            }
        }
        let (our, their) = (median(&our), median(&their));
        figures.set(what, our, unit);
        figures.set(format!("{what}: runc"), their, unit);
        figures.set(format!("{what} ÷ runc"), our / their, "");
    }
    against_vsock(&ours, figures).await;
    stats(&ours, figures).await;
    ours.end().await;
    theirs.end().await;
}

/// Work on the shared volume.
#[derive(Debug, Clone, Copy)]
enum Work {
    Write,
    Read,
    Small,
}

/// One runtime with a pod, a container and a volume of the host's.
struct Side<'a> {
    node: &'a Node,
    pod: Pod,
    container: String,
    is_control: bool,
}

impl<'a> Side<'a> {
    async fn new(node: &'a Node, is_control: bool) -> Self {
        let mut pod = node.cri().pod_config("daily");
        let security = pod.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        security.expect("a pod has a security context").privileged = true;
        let pod = node.cri().try_run_pod(pod).await;
        let pod = pod.unwrap_or_else(|status| panic!("RunPodSandbox: {status:?}"));
        let volume = node.dir().join("volume");
        std::fs::create_dir(&volume).expect("make the volume");
        let mut config = Cri::shell("daily", "sleep 100000");
        config.mounts = vec![mount(&volume, "/volume")];
        // What vsock_flood is linked to, and itself.
        let flood = std::env::current_exe().expect("this program has a path").with_file_name(FLOOD);
        config.mounts.push(mount(&flood, "/bin/vsock_flood"));
        config.mounts.extend(["/lib64", "/lib/x86_64-linux-gnu"].map(|path| mount(Path::new(path), path)));
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        security.expect("a shell has a security context").privileged = true;
        let container = node.cri().start(&pod, config).await.id;
        Self { node, pod, container, is_control }
    }

    async fn exec(&self) -> Duration {
        timed(self.node.cri().exec(&self.container, "true")).await.0
    }

    /// From StartContainer to the first byte, of a container of its own.
    async fn first_byte(&self) -> Duration {
        let (container, took) = first_byte(self.node, &self.pod).await;
        self.node.cri().stop(&container, 0).await;
        self.node.cri().remove(&container).await;
        took
    }

    /// MiB/s from StartContainer until containerd has it all in the log and says exited.
    async fn output(&self) -> f64 {
        let cri = self.node.cri();
        let script = format!("dd if=/dev/zero bs=64k count={} 2>/dev/null", MEGABYTES * 16);
        let container = cri.create(&self.pod, Cri::shell("output", &script)).await;
        let start = Instant::now();
        cri.try_start(&container.id).await.unwrap_or_else(|status| panic!("StartContainer: {status:?}"));
        let status = cri.wait_exit(&container.id).await;
        assert_eq!(status.exit_code, 0, "{status:?}");
        let took = start.elapsed();
        cri.remove(&container.id).await;
        std::fs::remove_file(&container.log).expect("remove a large log");
        f64::from(MEGABYTES) / took.as_secs_f64()
    }

    /// MiB/s or files/s on the volume, by the clock of the machine that does the work.
    async fn files(&self, work: Work) -> f64 {
        let (amount, script) = match work {
            Work::Write => (
                MEGABYTES,
                format!("dd if=/dev/zero of=/volume/large bs=1M count={MEGABYTES} conv=fsync 2>/dev/null"),
            ),
            Work::Read => (MEGABYTES, "cat /volume/large >/dev/null".to_owned()),
            Work::Small => (
                FILES,
                format!(
                    "mkdir /volume/s; i=0; while [ $i -lt {FILES} ]; do echo $i >/volume/s/$i; i=$((i+1)); done; sync"
                ),
            ),
        };
        // The guest's page cache is emptied, so that its reads reach the host, whose own stays warm for both.
        let forget = if self.is_control { "true" } else { "echo 3 >/proc/sys/vm/drop_caches" };
        let clear = format!("rm -rf /volume/s; sync; {forget}");
        let script = format!("{clear}; {}", clocked(&script));
        let answer = self.node.cri().exec(&self.container, &script).await;
        f64::from(amount) / between(&answer)
    }

    /// MiB/s that a program in the guest gets through vsock, with nothing of ours between the two ends.
    async fn raw_vsock(&self) -> f64 {
        let dir = std::fs::File::open(self.node.vm_dir(&self.pod.id)).expect("open the VM's directory");
        // By descriptor: the whole path is too long for a socket.
        let socket = format!("/proc/self/fd/{}/vsock.sock_{PORT}", dir.as_raw_fd());
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("listen where the guest dials");
        let drain = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().expect("the guest dials");
            let start = Instant::now();
            let taken = std::io::copy(&mut stream, &mut std::io::sink()).expect("read from the guest");
            assert_eq!(taken, u64::from(MEGABYTES) << 20, "bytes were lost");
            start.elapsed()
        });
        self.node.cri().exec(&self.container, &format!("vsock_flood {PORT} {MEGABYTES}")).await;
        let took = drain.await.expect("the reader does not panic");
        std::fs::remove_file(&socket).expect("remove the bench's socket");
        f64::from(MEGABYTES) / took.as_secs_f64()
    }

    async fn end(self) {
        self.node.cri().end_pod(&self.pod).await;
    }
}

/// A script that prints the time before and after another.
fn clocked(script: &str) -> String {
    format!("read a _ </proc/uptime; {script}; read b _ </proc/uptime; echo $a $b")
}

/// Seconds between the two readings of `/proc/uptime`, at least one of its ticks.
fn between(answer: &str) -> f64 {
    let times: Vec<f64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [begin, end] = times[..] else { panic!("not two times: {answer:?}") };
    (end - begin).max(0.01)
}

async fn latencies(ours: &Side<'_>, theirs: &Side<'_>, figures: &mut Figures) {
    for _ in 0..ROUNDS {
        figures.add(Series::DailyExec, ours.exec().await);
        figures.add(Series::RuncExec, theirs.exec().await);
        figures.add(Series::DailyFirstByte, ours.first_byte().await);
        figures.add(Series::RuncFirstByte, theirs.first_byte().await);
    }
}

/// Output as a container writes it, and what the same guest sends over vsock without us, turn about.
async fn against_vsock(ours: &Side<'_>, figures: &mut Figures) {
    let (mut raw, mut output) = (Vec::new(), Vec::new());
    for _ in 0..FEW {
        raw.push(ours.raw_vsock().await);
        output.push(ours.output().await);
    }
    figures.set("raw vsock, guest to host", median(&raw), "MiB/s");
    let pipe = format!("dd if=/dev/zero bs=64k count={} 2>/dev/null | cat >/dev/null", MEGABYTES * 16);
    let answer = ours.node.cri().exec(&ours.container, &clocked(&pipe)).await;
    figures.set("a pipe inside the guest", f64::from(MEGABYTES) / between(&answer), "MiB/s");
    figures.set("output to the container's log ÷ raw vsock", median(&output) / median(&raw), "");
}

/// What the same guest takes to make a container's namespaces and run a program in them, without any runtime.
async fn inside(ours: &Side<'_>, figures: &mut Figures) {
    let script =
        format!("i=0; while [ $i -lt {UNSHARES} ]; do unshare -m -u -i -n -p -f true; i=$((i+1)); done");
    let answer = ours.node.cri().exec(&ours.container, &clocked(&script)).await;
    figures.set(
        "unshare of five namespaces inside the guest",
        between(&answer) * 1e3 / f64::from(UNSHARES),
        "ms",
    );
}

async fn stats(ours: &Side<'_>, figures: &mut Figures) {
    let cri = ours.node.cri();
    for number in 1..CONTAINERS {
        cri.start(&ours.pod, Cri::shell(&format!("idle-{number}"), "sleep 100000")).await;
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let request = api::ListContainerStatsRequest { filter: None };
        let (took, answer) = timed(cri.runtime().list_container_stats(request)).await;
        let stats =
            answer.unwrap_or_else(|status| panic!("ListContainerStats: {status:?}")).into_inner().stats;
        assert_eq!(stats.len(), CONTAINERS, "stats of some containers are missing");
        times.push(took.as_secs_f64() * 1e3);
    }
    figures.set("ListContainerStats of 50 containers", median(&times), "ms");
}

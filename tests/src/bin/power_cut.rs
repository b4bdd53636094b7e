//! A power cut in the middle of life, for a machine that may really lose its power: the node VM.
//!
//! The first run starts pods and resets the machine, without a sync. The second, after the boot, looks at what
//! kubelet and an operator would see: every old pod is NotReady and can be removed, nothing is left, a new pod runs.
//! And what a container had synced is on the disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: a step that fails panics"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::cri::{Cri, mount};
use bulkhead_tests::node::{BootId, Node, Options};
use bulkhead_tests::wait;

/// Where the first run leaves what the second needs, on the node VM's disk. Its presence tells them apart.
const MEMORY: &str = "/nodes/power-cut";
/// One byte, [`NOT_YET`] or [`SYNCED`]: whether the container had synced when the machine was reset. A machine that
/// resets itself before that says nothing about what a container syncs.
const PROGRESS: &str = "/nodes/power-cut.progress";
const NOT_YET: &[u8] = b"0";
const SYNCED: &[u8] = b"1";
/// Set by who knows that this machine is there to be reset.
const MAY_RESET: &str = "BULKHEAD_MAY_RESET_MACHINE";

#[tokio::main]
async fn main() {
    assert!(std::env::var_os(MAY_RESET).is_some(), "this resets the machine; set {MAY_RESET} if it may");
    match std::fs::read_to_string(MEMORY) {
        Err(_first) => before().await,
        Ok(memory) => after(&memory).await,
    }
}

fn options() -> Options {
    Options { boot_id: BootId::Machine, ..Options::default() }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Memory {
    node: PathBuf,
    /// The node before there was a pod.
    empty: Snapshot,
    /// Pod and container that ran at the cut.
    running: (String, String),
}

/// Two files of one MiB in the volume. What the second is told to be on disk must be; the first may be lost.
const WRITES: &str = "yes lost | head -c 1048576 >/volume/lost;
    yes kept | head -c 1048576 | dd of=/volume/kept bs=64k conv=fsync 2>/dev/null";

/// fsync in a container means the host's disk. The other file shows that nothing else has put it there.
fn expect_synced_only(volume: &Path) {
    let whole = |name: &str| {
        let read = std::fs::read_to_string(volume.join(name));
        println!("{name}: {:?} of {} bytes", read.as_ref().map(String::len), 1 << 20);
        let text = read.unwrap_or_default();
        text.len() == 1 << 20 && text.lines().all(|line| name.starts_with(line))
    };
    assert!(whole("kept"), "what a container synced was lost");
    if whole("lost") {
        println!(
            "skipped: what fsync does, because what nobody synced is there as well (a slow machine wrote it back)"
        );
    }
}

/// Whether the record of a second sandbox lies on the disk.
fn second_recorded(node: &Node) -> bool {
    let files = std::fs::read_dir(node.state_dir().join("sandboxes")).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|kind| kind == "json")).count() > 1
}

/// Overwrites the byte in place, for which the file system commits nothing of what else is under way.
fn note_synced() -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(PROGRESS)?;
    file.write_all(SYNCED)?;
    file.sync_data()
}

async fn before() {
    let node = Node::start(options()).await.unwrap_or_else(|why| panic!("no node: {why}"));
    let empty = Snapshot::take(&node).await;
    let pod = node.cri().run_pod("one").await;
    let mut config = Cri::shell("main", "sleep 1000");
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume).expect("make the volume");
    config.mounts = vec![mount(&volume, "/volume")];
    let container = node.cri().start(&pod, config).await;
    let id = container.id.clone();
    let memory = Memory { node: node.dir().to_owned(), empty, running: (pod.id, container.id) };
    let memory = serde_json::to_string(&memory).expect("plain data");
    std::fs::write(MEMORY, memory).expect("write down what the second run needs");
    std::fs::write(PROGRESS, NOT_YET).expect("write down how far the first run is");
    // For containerd's images and this program's notes. What Bulkhead writes after this it must sync by itself.
    nix::unistd::sync();
    let cut = async {
        // The second pod is caught while its VM boots.
        while !second_recorded(&node) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("the container writes, and the power is cut");
        node.cri().exec(&id, WRITES).await;
        note_synced().expect("write down that the container has synced");
        std::fs::write("/proc/sysrq-trigger", "b").expect("reset the machine");
        std::future::pending::<()>().await;
    };
    tokio::join!(node.cri().run_pod("two"), cut);
}

/// containerd forgets the addresses of a pod that it was still creating; they are not Bulkhead's to give back.
fn give_back_leases(node: &Node) {
    for lease in std::fs::read_dir(node.dir().join("leases/bulkhead-test")).expect("list leases").flatten() {
        let name = lease.file_name().to_string_lossy().into_owned();
        if name.parse::<std::net::IpAddr>().is_ok() {
            println!("containerd left the address {name}");
            std::fs::remove_file(lease.path()).expect("remove a lease");
        }
    }
}

async fn after(memory: &str) {
    let memory: Memory = serde_json::from_str(memory).expect("what the first run wrote down");
    let node = Node::boot_again(&memory.node, options()).await.unwrap_or_else(|why| panic!("no node: {why}"));
    let log = node.sandboxer_log();
    let told = log.lines().rfind(|line| line.contains("read the records"));
    println!("booted again: {}", told.expect("the sandboxer tells what it found"));
    if std::fs::read(PROGRESS).expect("how far the first run was") == SYNCED {
        expect_synced_only(&node.dir().join("volume"));
    } else {
        println!(
            "skipped: what fsync does, because the machine reset itself before the container had synced"
        );
    }
    // The trial of KVM is a process of the node's, too, while it lasts.
    wait::expect("the trial of KVM ends", Duration::from_secs(120), async || {
        node.sandboxer_log().matches("guests run on KVM").nth(1).map(|_| ())
    })
    .await;
    let cri = node.cri();
    let (pod, container) = &memory.running;
    cri.expect_not_ready(pod).await;
    let status = cri.wait_exit(container).await;
    assert_ne!(status.exit_code, 0, "a container that lost its node did not end well");
    for pod in cri.list_pods().await {
        println!("removing {}", pod.id);
        cri.try_stop_pod(&pod.id).await.expect("stop a pod of before the cut");
        cri.try_remove_pod(&pod.id).await.expect("remove a pod of before the cut");
    }
    give_back_leases(&node);
    memory.empty.expect_nothing_left(&node).await;
    let pod = cri.run_pod("fresh").await;
    cri.end_pod(&pod).await;
    memory.empty.expect_nothing_left(&node).await;
    println!("power cut: every old pod was NotReady and is removed, a new pod ran");
}

//! What a guest can make grow on the host ends at a bound, whether or not the service runs.

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use nix::sys::signal::Signal;

use crate::stage::{Stage, stage};

/// Most that one pod may keep in its directory, in bytes (docs/architecture.md).
const BOUND: usize = 4 << 20;

/// The kernel keeps the bound, so a flood from the host's side is as good as one from the guest.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_directory_is_full_works_and_goes_without_a_trace() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let pod = stage.cri().run_pod("full").await;
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    let dir = stage.node.pod_dir(&pod.id);
    let flood = std::fs::write(dir.join("console.log"), vec![b'x'; 2 * BOUND]).unwrap_err();
    assert_eq!(flood.kind(), std::io::ErrorKind::StorageFull, "{flood}");
    assert!(std::fs::read(dir.join("console.log")).unwrap().len() <= BOUND);
    stage.node.start_sandboxer().await;

    let container = stage.cri().start(&pod, Cri::shell("main", "echo still here; sleep 1000")).await;
    assert_eq!(stage.cri().exec(&container.id, "echo and there").await, "and there\n");
    assert!(stage.cri().pod_ready(&pod.id).await);
    stage.end(&pod).await;
}

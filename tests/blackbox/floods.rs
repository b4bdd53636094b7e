//! What a guest can make grow on the host ends at a bound, whether or not the service runs; and daily work makes
//! nothing grow.

use bulkhead_tests::cri::{Cri, mount};
use bulkhead_tests::node::Options;
use nix::sys::signal::Signal;

use crate::stage::{Stage, stage};

/// Most that one VM may keep in its directory, in bytes (docs/architecture.md).
const BOUND: usize = 4 << 20;

/// The kernel keeps the bound, so a flood from the host's side is as good as one from the guest.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_directory_is_full_works_and_goes_without_a_trace() {
    let mut stage = stage!(Stage::vm(Options::default()));
    let pod = stage.cri().run_pod("full").await;
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    let dir = stage.node.vm_dir(&pod.id);
    let flood = std::fs::write(dir.join("console.log"), vec![b'x'; 2 * BOUND]).unwrap_err();
    assert_eq!(flood.kind(), std::io::ErrorKind::StorageFull, "{flood}");
    assert!(std::fs::read(dir.join("console.log")).unwrap().len() <= BOUND);
    stage.node.start_sandboxer().await;

    let container = stage.cri().start(&pod, Cri::shell("main", "echo still here; sleep 1000")).await;
    assert_eq!(stage.cri().exec(&container.id, "echo and there").await, "and there\n");
    assert!(stage.cri().pod_ready(&pod.id).await);
    // What the service writes of a new volume needs no room.
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "of the volume\n").unwrap();
    let mut config = Cri::shell("volume", "sleep 1000");
    config.mounts = vec![mount(volume.path(), "/volume")];
    let container = stage.cri().start(&pod, config).await;
    assert_eq!(stage.cri().exec(&container.id, "cat /volume/file").await, "of the volume\n");
    stage.end(&pod).await;
}

/// A probe that executes something every ten seconds may not use up in days what is there for the unusual.
#[tokio::test(flavor = "multi_thread")]
async fn execs_add_no_line_to_the_files_of_their_pod() {
    let options = Options::default().with("guest", "agent_log_level", "\"info\"");
    let stage = stage!(Stage::vm(options));
    let pod = stage.cri().run_pod("probed").await;
    let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
    let (vm, of_pod) = (stage.node.vm_dir(&pod.id), stage.node.pod_dir(&pod.id));
    let files = || {
        let names = ["console.log", "virtiofsd.stderr", "vmm.stderr", "vsock.stderr"];
        let paths = names.map(|name| vm.join(name)).into_iter().chain([of_pod.join("shim.stderr")]);
        paths.map(|path| (std::fs::read_to_string(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    stage.cri().exec(&container.id, "echo out; echo err >&2").await;
    let before = files();
    for _ in 0..10 {
        stage.cri().exec(&container.id, "echo out; echo err >&2").await;
    }
    for ((before, path), (after, _)) in before.into_iter().zip(files()) {
        let added = after.strip_prefix(&before).expect("it is only added to");
        assert_eq!(added, "", "{}", path.display());
    }
    stage.end(&pod).await;
}

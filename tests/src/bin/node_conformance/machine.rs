//! What a node needs beyond containerd for a kubelet to run on it, and what is left when kubelet has gone.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bulkhead_tests::conformance::images;
use bulkhead_tests::node::{Daemon, Node, make_cgroup, move_to_cgroup, remove_default_cgroup};

use crate::suite::Suite;

/// The suite's test binary.
pub(crate) const SUITE: &str = "e2e_node.test";

/// The node's address, of a network for documentation (RFC 5737).
pub(crate) const ADDRESS: &str = "192.0.2.10";

/// The registry that the suite's images are named after, and where it is served on a node.
const REGISTRY: &str = "registry.k8s.io";
const REGISTRY_ADDRESS: &str = "127.0.0.1:5000";

/// A registry that specs name to pull in vain.
const NO_REGISTRY: &str = "invalid.registry.k8s.io";

/// Run inside the node, with the node's directory as `$1` and its address as `$2`. kubelet and the suite need a default
/// route; nobody answers at its end. kubelet's folders are on a disk, as on a real node, and out of the machine's own.
/// kubelet's cAdvisor finds containerd only where it usually is.
const PREPARE: &str = r#"
set -e
ip link add up0 type veth peer name up1
ip addr add "$2/24" dev up0
ip link set up0 up
ip link set up1 up
ip route add default via 192.0.2.1
mkdir -p "$1/kubelet" "$1/var-log" /var/lib/kubelet /run/containerd
ln -s "$1/c.sock" /run/containerd/containerd.sock
mount --bind "$1/kubelet" /var/lib/kubelet
mount --bind "$1/var-log" /var/log
"#;

/// Where containerd is, as on a node with systemd it is in the cgroup of its unit: kubelet reports what it uses.
pub(crate) fn runtime_cgroup(node: &Node) -> String {
    format!("{}/runtime", node.cgroup_parent())
}

/// Makes the node one that kubelet and the suite can run on, and starts the registry on it.
pub(crate) async fn prepare(node: &Node, suite: &Suite) -> Daemon {
    let runtime = runtime_cgroup(node);
    make_cgroup(&runtime);
    move_to_cgroup(&runtime, node.containerd_pid().expect("containerd runs"));
    let dir = node.dir().display().to_string();
    node.run(&["bash", "-c", PREPARE, "prepare", &dir, ADDRESS]).await;
    let folder = working_folder(node);
    std::fs::create_dir_all(&folder).expect("make the suite's working folder");
    for program in [SUITE, "kubelet"] {
        symlink(suite.program(program), folder.join(program)).expect("link a program of the suite");
    }
    programs_without_systemd(&programs(node));
    start_registry(node, suite).await
}

/// Specs pull images that the node has, under the name of a registry that a test node has no way to. What they pull in
/// vain is refused at once, as by a registry: nobody answers a node's question for an address.
async fn start_registry(node: &Node, suite: &Suite) -> Daemon {
    for name in [REGISTRY, NO_REGISTRY] {
        let hosts = node.registries().join(name);
        std::fs::create_dir_all(&hosts).expect("make the registry's folder");
        let text = format!("server = \"http://{REGISTRY_ADDRESS}\"\n");
        std::fs::write(hosts.join("hosts.toml"), text).expect("say who serves the registry");
    }
    let (program, layout) =
        (suite.program("registry").display().to_string(), images::layout(node).display().to_string());
    let line = [program.as_str(), &layout, REGISTRY, REGISTRY_ADDRESS];
    node.start_daemon(Path::new("/"), &node.dir().join("log/registry.log"), &path(node), &line).await
}

/// Where the suite's binary lies and works: beside it it expects kubelet, and leaves kubelet's configuration.
pub(crate) fn working_folder(node: &Node) -> PathBuf {
    node.dir().join("suite-run")
}

/// The `PATH` of the suite.
pub(crate) fn path(node: &Node) -> String {
    programs(node).display().to_string()
}

fn programs(node: &Node) -> PathBuf {
    node.dir().join("programs")
}

/// Links to the machine's programs. The suite starts kubelet by `systemd-run` where it finds it, whether systemd runs
/// or not, and on a test node it does not.
fn programs_without_systemd(folder: &Path) {
    std::fs::create_dir(folder).expect("make the folder of programs");
    for from in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let to = folder.join(&name);
            if !name.to_string_lossy().starts_with("system") && to.symlink_metadata().is_err() {
                symlink(entry.path(), to).expect("link a program");
            }
        }
    }
}

/// Removes the pods that kubelet had not yet removed when the suite ended it.
pub(crate) async fn remove_pods(node: &Node) {
    for pod in node.cri().list_pods().await {
        for result in [node.cri().try_stop_pod(&pod.id).await, node.cri().try_remove_pod(&pod.id).await] {
            if let Err(status) = result {
                eprintln!("pod {} of the suite is left: {}", pod.id, status.message());
            }
        }
    }
    // Where containerd puts pods for which kubelet names no cgroup.
    remove_default_cgroup();
}

/// Words in the names of what the suite and kubelet leave on a node.
pub(crate) fn not_ours(node: &Node) -> Vec<String> {
    let cgroups = node.cgroup_parent();
    vec![
        working_folder(node).display().to_string(),
        bulkhead_tests::conformance::ginkgo::scratch(node).display().to_string(),
        node.dir().join("kubelet").display().to_string(),
        "/var/lib/kubelet".into(),
        format!("{cgroups}/kubelet"),
        format!("{cgroups}/kubepods"),
        format!("{cgroups}/system"),
    ]
}

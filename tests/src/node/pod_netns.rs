//! A pod's network namespace without containerd: as CNI's bridge plugin would have left it.

use super::Node;

impl Node {
    /// Makes network namespace `name` with an eth0 on the node's bridge at 10.88.200.`host`/16; its path in the node.
    pub async fn make_pod_netns(&self, name: &str, host: u8) -> String {
        let script = format!(
            "set -e\n\
             ip netns add {name}\n\
             ip link add v{name} type veth peer name eth0 netns {name}\n\
             ip link set v{name} master bh0 up\n\
             ip -n {name} addr add 10.88.200.{host}/16 dev eth0\n\
             ip -n {name} link set lo up\n\
             ip -n {name} link set eth0 up\n\
             ip -n {name} route add default via 10.88.0.1 2>/dev/null || ip -n {name} route add default dev eth0\n"
        );
        self.run(&["sh", "-c", &script]).await;
        format!("/run/netns/{name}")
    }

    /// Removes what [`Node::make_pod_netns`] made.
    pub async fn remove_pod_netns(&self, name: &str) {
        self.run(&["ip", "netns", "delete", name]).await;
        self.run(&["sh", "-c", &format!("ip link delete v{name} 2>/dev/null || true")]).await;
    }
}

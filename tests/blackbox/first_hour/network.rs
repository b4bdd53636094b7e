//! Links, routes, netfilter and modules of a pod.

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;

use crate::stage::{Stage, stage};

/// Two more networks, there before the first: their links have the lower indices, one MAC address (as those of ipvlan)
/// and one subnet. The other ends of the links are down, and no part of the pod.
const TWO_MORE: &str = "
for n in 1 2; do
    ip link add eth$n address 02:00:00:00:00:11 type veth peer name peer$n
    ip address add 10.99.0.$n/16 dev eth$n
    ip link set eth$n mtu 1300 up
done
";

#[tokio::test(flavor = "multi_thread")]
async fn more_networks_come_up_in_any_order_and_with_any_address() {
    let options = Options { cni_commands: TWO_MORE.to_owned(), ..Options::default() };
    let stage = stage!(Stage::any(options));
    let cri = stage.cri();
    let pod = cri.run_pod("wired").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    for n in [1, 2] {
        let link = cri.exec(&container.id, &format!("ip addr show eth{n}")).await;
        for part in ["02:00:00:00:00:11", "mtu 1300", &format!("10.99.0.{n}/16")] {
            assert!(link.contains(part), "eth{n} has no {part}: {link}");
        }
    }
    let first = cri.exec(&container.id, "ip addr show eth0").await;
    let ip = cri.pod_ips(&pod).await[0].to_string();
    assert!(first.contains(&ip) && first.contains("mtu 1450"), "{ip}: {first}");
    let routes = cri.exec(&container.id, "ip route").await;
    assert!(routes.contains("default via 10.88.0.1"), "{routes}");
    stage.end(&pod).await;
}

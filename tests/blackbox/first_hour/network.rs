//! Links, routes, netfilter and modules of a pod.

use std::path::Path;
use std::process::Command;

use bulkhead_tests::cri::{Cri, mount};
use bulkhead_tests::node::Options;
use k8s_cri::v1 as api;

use crate::stage::{Stage, control_run, stage};

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

/// What a service mesh's init container does, with each kind of iptables: user 7's connections to port 81 end at 80. Then
/// every kind of link, rule and queue whose module Debian's cloud kernel has.
const NETFILTER: [&str; 26] = [
    "iptables-legacy -t nat -A OUTPUT -p tcp --dport 81 -m owner --uid-owner 7 -j REDIRECT --to-ports 80",
    "ip6tables-legacy -t nat -A OUTPUT -p tcp --dport 81 -j REDIRECT --to-ports 80",
    "iptables-legacy -A INPUT -m conntrack --ctstate INVALID -m comment --comment mesh -j DROP",
    "ip6tables-legacy -A INPUT -p tcp -m multiport --dports 1,2 -m limit --limit 1/s -j REJECT --reject-with tcp-reset",
    "iptables-legacy -t mangle -A PREROUTING -m mark --mark 1 -j CONNMARK --save-mark",
    "iptables-legacy -t raw -A PREROUTING -p udp --dport 9 -j CT --notrack",
    "iptables-nft -t nat -A OUTPUT -p tcp --dport 82 -m owner ! --uid-owner 7 -j REDIRECT --to-ports 80",
    "ip6tables-nft -t nat -A POSTROUTING -s fd00::/8 -j MASQUERADE",
    "iptables-nft -t mangle -A PREROUTING -p tcp --dport 83 -j MARK --set-mark 1",
    "iptables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP",
    "iptables-nft -A FORWARD -m statistic --mode random --probability 0.5 -j LOG",
    "ip link add v1 type veth peer name v2",
    "ip link add d1 type dummy",
    "ip link add link eth0 vl1 type vlan id 5",
    "ip link add b1 type bridge vlan_filtering 1",
    "ip link add link eth0 ipv1 type ipvlan mode l2",
    "ip link add link v1 mv1 type macvlan mode bridge",
    "ip link add wg1 type wireguard",
    "ip link add vx1 type vxlan id 7 dev eth0 dstport 4789",
    "ip link add gre1 type gretap local 127.0.0.1 remote 127.0.0.2",
    "ip link add bo1 type bond",
    "ip link add vrf1 type vrf table 7",
    "ip link add ifb9 type ifb",
    "tc qdisc add dev eth0 root handle 1: htb default 1",
    "tc qdisc add dev v1 root fq_codel",
    "ip xfrm state add src 10.1.1.1 dst 10.1.1.2 proto esp spi 1 mode tunnel \
        enc 'cbc(aes)' 0x00112233445566778899aabbccddeeff auth 'hmac(sha256)' 0x00112233445566778899aabbccddeeff",
];

/// Whether this machine's kernel can do it; a control's container has no other one.
fn host_can(commands: &[&str], command: &str) -> bool {
    // Later commands build on earlier ones.
    let before: String =
        commands.iter().take_while(|one| **one != command).map(|one| format!("{one} 2>/dev/null;")).collect();
    let script = format!("ip link add eth0 type veth peer name far; {before} {command}");
    Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn netfilter_links_queues_and_tunnels_work_for_who_may_make_them() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("mesh").await;
    let script = "mkdir -p /run; echo here > /www/index.html; httpd -p 80 -h /www; echo up; sleep 1000";
    let mut config = Cri::shell("main", script);
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.capabilities = Some(api::Capability {
        add_capabilities: vec!["NET_ADMIN".into(), "NET_RAW".into()],
        ..Default::default()
    });
    // The machine's own programs: no image here has them.
    config.mounts = ["/usr", "/lib", "/lib64"].map(|path| mount(Path::new(path), path)).into();
    for mount in &mut config.mounts {
        mount.readonly = true;
    }
    let container = cri.start(&pod, config).await;
    bulkhead_tests::wait::expect("httpd", std::time::Duration::from_secs(20), async || {
        (container.log().stdout == "up\n").then_some(())
    })
    .await;
    let script: String = NETFILTER
        .iter()
        .enumerate()
        .map(|(number, command)| format!("{command} >/tmp/said 2>&1 || echo {number} $(cat /tmp/said)\n"))
        .collect();
    // Not by busybox, which would take its own ip and tc.
    let command = ["/usr/bin/sh", "-c", &format!("PATH=/usr/bin:/usr/sbin\n{script}")];
    let (_, out, error) = cri.try_exec(&container.id, &command).await.unwrap();
    for line in out.lines() {
        let (number, why) = line.split_once(' ').expect(line);
        let failed = NETFILTER[number.parse::<usize>().expect(line)];
        assert!(control_run() && !host_can(&NETFILTER, failed), "{failed}: {why}");
        println!("skipped: this machine's kernel cannot do it, so neither can the control's: {failed}");
    }
    assert_eq!(error, "");
    // A static busybox does not get on with the machine's libraries.
    let get = |port| {
        format!("exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3")
    };
    let user = async |uid: &str, port: u16| {
        let command = ["/usr/bin/setpriv", "--reuid", uid, "/usr/bin/bash", "-c", &get(port)];
        let (_, out, _) = cri.try_exec(&container.id, &command).await.unwrap();
        out.ends_with("\r\nhere\n")
    };
    assert_eq!((user("0", 81).await, user("7", 81).await), (false, true), "legacy");
    assert_eq!((user("0", 82).await, user("7", 82).await), (true, false), "nft");
    stage.end(&pod).await;
}

/// What CNI plugins (`tuning`, `sbr`) and others leave beside addresses and routes of the main table.
const LEFT_BY_CNI: &str = "
ip link add eth1 type veth peer name peer1
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1000 > /proc/sys/net/core/somaxconn
echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra
echo 1 > /proc/sys/net/ipv4/conf/eth1/arp_filter
ip address add 10.99.0.1/24 dev eth1
ip address add 10.50.0.1/32 dev lo
ip address add fd50::1/128 dev lo
ip link set lo up
ip link set eth1 up
ip neighbour add 10.99.0.7 lladdr 02:00:00:00:00:07 dev eth1 nud permanent
ip route add default via 10.99.0.254 dev eth1 table 100
ip route add 10.65.0.0/16 via 10.98.0.1 dev eth1 onlink table 1000
ip route add blackhole 10.66.0.0/16
ip route add unreachable 10.67.0.0/16
ip route add prohibit 10.68.0.0/16 table 100
ip -6 route add unreachable fd66::/64
ip route add local 10.69.0.0/16 dev lo
ip rule add from 10.99.0.1 table 100 priority 1000
ip rule add not fwmark 7 to 10.65.0.0/16 table 1000 priority 1001
ip -6 rule add to fd66::/64 prohibit priority 1002
";

/// How a pod shows it, each by the command before.
const SHOWN: [(&str, &[&str]); 9] = [
    ("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/core/somaxconn", &["1\n1000\n"]),
    ("cat /proc/sys/net/ipv6/conf/default/accept_ra /proc/sys/net/ipv4/conf/eth1/arp_filter", &["0\n1\n"]),
    ("ip addr show lo", &["127.0.0.1/8", "10.50.0.1/32", "fd50::1/128"]),
    ("ip neigh", &["10.99.0.7 dev eth1 lladdr 02:00:00:00:00:07", "PERMANENT"]),
    ("ip route", &["blackhole 10.66.0.0/16", "unreachable 10.67.0.0/16", "10.99.0.0/24 dev eth1"]),
    ("ip -6 route", &["unreachable fd66::/64"]),
    ("ip route show table 100", &["default via 10.99.0.254 dev eth1", "prohibit 10.68.0.0/16"]),
    ("ip route show table 1000", &["10.65.0.0/16 via 10.98.0.1 dev eth1"]),
    (
        "ip rule",
        &["1000:\tfrom 10.99.0.1 lookup 100", "1001:\tfrom all to 10.65.0.0/16 fwmark 0x7 lookup 1000"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cni_leaves_in_the_namespace_is_in_the_pod() {
    let stage = stage!(Stage::any(Options { cni_commands: LEFT_BY_CNI.to_owned(), ..Options::default() }));
    let cri = stage.cri();
    let pod = cri.run_pod("tuned").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    for (command, parts) in SHOWN {
        let shown = cri.exec(&container.id, command).await;
        for part in parts {
            assert!(shown.contains(part), "{command} lacks {part:?}: {shown}");
        }
    }
    // Another node's, so to speak: it is local to the pod.
    cri.exec(&container.id, "ping -c 1 -W 5 10.69.1.2").await;
    let rules = cri.exec(&container.id, "ip -6 rule").await;
    assert!(rules.contains("1002:\tfrom all to fd66::/64 lookup unspec prohibit"), "{rules}");
    stage.end(&pod).await;
}

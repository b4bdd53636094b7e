use super::*;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use actix::Actor;
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ask::ask;
use crate::host::netns::Netns;

/// A network namespace of this test. Nothing is mounted; it goes with this.
struct TestNetns(File);

impl TestNetns {
    fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(make).join().unwrap())
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    fn run(&self, command: &str) -> String {
        let mut words = command.split_whitespace();
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(words.by_ref())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn socket(&self, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        let netns = Netns::open(&self.path()).unwrap();
        netns.run(move || UdpSocket::bind(address).unwrap()).await.unwrap()
    }

    /// Everything tc holds in here, but for what the kernel gives every device.
    fn tc(&self) -> String {
        let qdiscs = self.run("tc qdisc show");
        let mut found: Vec<String> =
            qdiscs.lines().filter(|line| line.contains("ingress")).map(str::to_owned).collect();
        for device in self.run("ip -o link").lines().filter_map(|line| line.split([':', '@']).nth(1)) {
            let filters = self.run(&format!("tc filter show dev {} ingress", device.trim()));
            found.extend(filters.lines().map(str::to_owned));
        }
        found.join("\n")
    }
}

/// One more link of the pod, down.
fn add_link(pod: &TestNetns, host: &TestNetns, name: &str, options: &str) {
    pod.run(&format!("ip link add {name} {options} type veth peer name p-{name}"));
    pod.run(&format!("ip link set p-{name} netns {}", host.path().display()));
}

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what} does not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const POD_MAC: &str = "0a:58:0a:09:00:02";
const HOST_MAC: &str = "0a:58:0a:09:00:01";

/// A pod's namespace with one link, as CNI leaves it, and the other end's namespace.
fn pod() -> (TestNetns, TestNetns) {
    let (pod, host) = (TestNetns::new(), TestNetns::new());
    host.run(&format!("ip link add veth0 address {HOST_MAC} mtu 1400 type veth peer name peer0"));
    host.run(&format!("ip link set peer0 address {POD_MAC} mtu 1400 netns {}", pod.path().display()));
    pod.run("ip link set peer0 name eth0");
    pod.run("ip link set lo up");
    for (netns, device, last) in [(&pod, "eth0", 2), (&host, "veth0", 1)] {
        netns.run(&format!("ip link set {device} up"));
        netns.run(&format!("ip address add 10.9.0.{last}/24 dev {device}"));
        netns.run(&format!("ip address add fd09::{last}/64 dev {device} nodad"));
    }
    pod.run("ip route add default via 10.9.0.1 dev eth0");
    pod.run("ip route add default via fd09::1 dev eth0 metric 7");
    pod.run("ip route add 10.77.0.0/16 via 10.9.0.9 dev eth0 onlink mtu 1300 src 10.9.0.2");
    pod.run("ip route add 10.78.0.1/32 dev eth0 scope link");
    pod.run("ip route add 10.79.0.0/16 dev eth0 table 100");
    pod.run(&format!("ip neighbour add 10.9.0.1 lladdr {HOST_MAC} dev eth0 nud permanent"));
    pod.run("ip neighbour add 10.9.0.77 lladdr 0a:00:00:00:00:01 dev eth0 nud stale");
    for address in ["10.9.0.2", "fd09::2"] {
        host.run(&format!("ip neighbour replace {address} lladdr {POD_MAC} dev veth0 nud permanent"));
    }
    (pod, host)
}

/// Length of a `virtio_net_hdr` (virtio 1.2, 5.1.6) as the tap driver has it by default.
const HEADER: usize = 10;

/// Plays the guest: waits for a UDP datagram with this payload and sends it back where it came from.
fn echo(tap: &mut File, payload: &[u8]) {
    let start = Instant::now();
    let mut buffer = [0; 2048];
    while start.elapsed() < Duration::from_secs(5) {
        let mut fds = [PollFd::new(&*tap, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        if !fds[0].revents().contains(PollFlags::IN) {
            continue;
        }
        let length = tap.read(&mut buffer).unwrap();
        let frame = &mut buffer[HEADER..length];
        if !frame.ends_with(payload) {
            continue;
        }
        let ip = match (frame[12], frame[13]) {
            (0x08, 0x00) => (26, 4, 34),
            (0x86, 0xdd) => (22, 16, 54),
            other => panic!("ethertype {other:?}"),
        };
        // Source and destination change places, which no checksum notices.
        let (source, size, ports) = ip;
        swap(frame, 0, 6);
        swap(frame, source, size);
        swap(frame, ports, 2);
        buffer[..HEADER].fill(0);
        tap.write_all(&buffer[..length]).unwrap();
        return;
    }
    panic!("no datagram came through the tap");
}

fn swap(frame: &mut [u8], at: usize, size: usize) {
    let (a, b) = frame[at..at + 2 * size].split_at_mut(size);
    a.swap_with_slice(b);
}

async fn assert_traffic_flows(host: &TestNetns, tap: &mut File) {
    for (from, to) in [("10.9.0.1:0", "10.9.0.2:5000"), ("[fd09::1]:0", "[fd09::2]:5000")] {
        let socket = host.socket(from).await;
        let payload = format!("through {to}");
        socket.send_to(payload.as_bytes(), to).unwrap();
        echo(tap, payload.as_bytes());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = [0; 64];
        let (length, sender) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(&answer[..length], payload.as_bytes());
        assert_eq!(sender, to.parse().unwrap());
    }
}

#[tokio::test]
async fn traffic_flows_both_ways_and_nothing_is_left() {
    let (pod, host) = pod();
    let start = Instant::now();
    let mut prepared = prepare(&pod.path()).await.unwrap();
    println!("prepared in {:?}", start.elapsed());
    let link = prepared.links.remove(0);
    assert!(prepared.links.is_empty());
    assert_eq!((link.mtu, link.guest_name.as_str()), (1400, "eth0"));
    assert_eq!(link.mac, [0x0a, 0x58, 0x0a, 9, 0, 2]);
    let tap_name = prepared.record.links[0].tap.clone();
    assert!(pod.run(&format!("ip -o link show {tap_name}")).contains("mtu 1400"));
    assert_eq!(pod.run(&format!("ip -6 -o address show dev {tap_name}")), "");
    let mut tap = File::from(link.tap);
    assert_traffic_flows(&host, &mut tap).await;
    let counted = stats(&prepared.record).await.unwrap();
    assert_eq!(counted.len(), 1);
    assert!(counted[0].rx_packets >= 2 && counted[0].tx_packets >= 2, "{counted:?}");
    assert!(counted[0].rx_bytes >= 100 && counted[0].tx_bytes >= 100, "{counted:?}");
    let start = Instant::now();
    release(&prepared.record).await.unwrap();
    println!("released in {:?}", start.elapsed());
    assert_eq!(pod.tc(), "");
    assert!(!pod.run("ip -o link").contains(&tap_name));
    // The link works for the namespace itself again.
    let socket = pod.socket("10.9.0.2:5001").await;
    host.socket("10.9.0.1:0").await.send_to(b"back", "10.9.0.2:5001").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 4);
    release(&prepared.record).await.unwrap();
}

#[tokio::test]
async fn the_guest_is_told_what_cni_made() {
    let (pod, _host) = pod();
    let prepared = prepare(&pod.path()).await.unwrap();
    let told = &prepared.description;
    assert_eq!(told.interfaces.len(), 1);
    let interface = &told.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mac.as_str(), interface.mtu), ("eth0", POD_MAC, 1400));
    assert_eq!(interface.addresses, ["10.9.0.2/24", "fd09::2/64"]);
    let addresses: Vec<String> = told.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.9.0.2", "fd09::2"]);
    let mut routes: Vec<String> = told
        .routes
        .iter()
        .map(|r| {
            assert_eq!((r.device.as_str(), r.kind), ("eth0", 1));
            let flags = (r.scope, r.family, r.metric, r.mtu, r.onlink, r.table);
            format!("{} via {} from {} {flags:?}", r.destination, r.gateway, r.source)
        })
        .collect();
    let mut with_gateway = routes.split_off(2);
    routes.sort();
    let on_link = [
        "10.78.0.1/32 via  from  (253, 4, 0, 0, false, 254)",
        "10.79.0.0/16 via  from  (253, 4, 0, 0, false, 100)",
    ];
    assert_eq!(routes, on_link, "they come first");
    with_gateway.sort();
    assert_eq!(
        with_gateway,
        [
            " via 10.9.0.1 from  (0, 4, 0, 0, false, 254)",
            " via fd09::1 from  (0, 6, 7, 0, false, 254)",
            "10.77.0.0/16 via 10.9.0.9 from 10.9.0.2 (0, 4, 0, 1300, true, 254)",
        ]
    );
    let neighbours: Vec<_> =
        told.neighbours.iter().map(|n| (n.address.as_str(), n.mac.as_str(), n.device.as_str())).collect();
    assert_eq!(neighbours, [("10.9.0.1", HOST_MAC, "eth0")]);
    assert_eq!(
        (&told.sysctls, &told.rules, &told.loopback_addresses),
        (&vec![], &vec![], &vec![]),
        "as in any namespace"
    );
}

#[tokio::test]
async fn the_guest_is_told_what_else_was_set() {
    let (pod, _host) = pod();
    pod.run("sysctl -q -w net.core.somaxconn=77 net.ipv4.conf.eth0.arp_filter=1 net.ipv4.ip_forward=1");
    pod.run("ip rule add not from 10.9.0.2 table 100 priority 5");
    pod.run("ip address add 10.50.0.1/32 dev lo");
    pod.run("ip route add local 10.51.0.0/16 dev lo");
    pod.run("ip route add throw 10.52.0.0/16 table 100");
    pod.run("ip -6 route add blackhole fd52::/64");
    let told = prepare(&pod.path()).await.unwrap().description;
    let sysctls: Vec<_> = told.sysctls.iter().map(|one| (one.name.as_str(), one.value.as_str())).collect();
    for expected in
        [("net/core/somaxconn", "77"), ("net/ipv4/conf/eth0/arp_filter", "1"), ("net/ipv4/ip_forward", "1")]
    {
        assert!(sysctls.contains(&expected), "{expected:?} is not in {sysctls:?}");
    }
    // linux/fib_rules.h: family, lengths, TOS, table, two reserved, action, flags; FR_ACT_TO_TBL is 1, FIB_RULE_INVERT 2.
    assert_eq!(told.rules.len(), 1);
    assert_eq!(told.rules[0][..12], [2, 0, 32, 0, 100, 0, 0, 1, 2, 0, 0, 0]);
    assert_eq!(told.loopback_addresses, ["10.50.0.1/32"]);
    let odd = told.routes.iter().filter(|route| route.device != "eth0");
    let mut odd: Vec<_> = odd.map(|r| (r.destination.as_str(), r.device.as_str(), r.kind, r.table)).collect();
    odd.sort_unstable();
    assert_eq!(
        odd,
        [("10.51.0.0/16", "lo", 2, 255), ("10.52.0.0/16", "", 9, 100), ("fd52::/64", "", 6, 254)]
    );
}

#[tokio::test]
async fn preparing_again_replaces_what_was_left() {
    let (pod, host) = pod();
    // The first VM is gone, so its tap is; the redirect leads nowhere.
    drop(prepare(&pod.path()).await.unwrap());
    // A child that another test is about to start may hold a copy of the descriptor until it is executed.
    wait_for("the tap's end", || !pod.run("ip -o link").contains("_bh")).await;
    let dead = pod.tc();
    assert!(dead.contains("800::bd") && !dead.contains("tap"), "{dead}");
    // The second one's tap is still held by somebody.
    let held = prepare(&pod.path()).await.unwrap();
    let prepared = prepare(&pod.path()).await.unwrap();
    let tc = pod.tc();
    assert_eq!(tc.matches("order 1: mirred").count(), 2, "{tc}");
    assert_eq!(tc.matches("qdisc ingress").count(), 2, "{tc}");
    let mut tap = File::from(prepared.links.into_iter().next().unwrap().tap);
    assert_traffic_flows(&host, &mut tap).await;
    drop(held);
    release(&plan(&pod.path())).await.unwrap();
    assert_eq!(pod.tc(), "");
}

#[tokio::test]
async fn what_others_have_on_a_link_stays() {
    let (pod, host) = pod();
    pod.run("tc qdisc add dev eth0 clsact");
    pod.run("tc filter add dev eth0 ingress pref 49000 protocol 802_3 u32 match u32 0 0");
    let before = pod.tc() + &pod.run("tc qdisc show dev eth0");
    let prepared = prepare(&pod.path()).await.unwrap();
    let mut tap = File::from(prepared.links.into_iter().next().unwrap().tap);
    assert_traffic_flows(&host, &mut tap).await;
    release(&prepared.record).await.unwrap();
    assert_eq!(pod.tc() + &pod.run("tc qdisc show dev eth0"), before);
}

#[tokio::test]
async fn only_links_of_the_pod_get_a_tap() {
    let (pod, host) = pod();
    add_link(&pod, &host, "down0", "");
    add_link(&pod, &host, "net1", "");
    pod.run("ip link set net1 up");
    add_link(&pod, &host, "port0", "");
    pod.run("ip link add br0 type bridge");
    pod.run("ip link set port0 master br0 up");
    let prepared = prepare(&pod.path()).await.unwrap();
    let names: Vec<_> = prepared.links.iter().map(|link| link.guest_name.as_str()).collect();
    assert_eq!(names, ["eth0", "net1"]);
    let taps: Vec<_> = prepared.record.links.iter().map(|link| link.tap.clone()).collect();
    assert!(taps[0] != taps[1] && taps.iter().all(|tap| pod.run("ip -o link").contains(tap)), "{taps:?}");
    release(&prepared.record).await.unwrap();
    assert_eq!(pod.tc(), "");
}

#[tokio::test]
async fn a_failure_half_way_leaves_nothing() {
    let (pod, host) = pod();
    // One byte more than a device name may have: the second tap cannot be made.
    add_link(&pod, &host, "net1", "index 1000000000");
    pod.run("ip link set net1 up");
    let error = prepare(&pod.path()).await.unwrap_err();
    assert!(matches!(error, NetworkError::CreateTap(_)), "{error}");
    assert!(error.to_string().contains("tap1000000000_bh"), "{error}");
    assert!(!pod.run("ip -o link").contains("_bh"));
    assert_eq!(pod.tc(), "");
}

#[tokio::test]
async fn a_namespace_that_is_gone_is_released_but_cannot_be_prepared() {
    let gone = plan(Path::new("/run/netns/nonexistent-bulkhead-test"));
    release(&gone).await.unwrap();
    let error = prepare(&gone.netns).await.unwrap_err();
    assert!(error.to_string().contains("nonexistent-bulkhead-test does not exist"), "{error}");
}

#[actix::test]
async fn the_actor_answers_and_lets_the_namespace_go() {
    let (pod, host) = pod();
    let network = Network::new(plan(&pod.path())).start();
    let (first, second) = tokio::join!(ask(&network, Prepare), ask(&network, Prepare),);
    drop(first.unwrap());
    let prepared = second.unwrap();
    let counted = ask(&network, Stats).await.unwrap();
    assert_eq!(counted.len(), 1);
    ask(&network, Release).await.unwrap();
    drop(prepared);
    assert_eq!(pod.tc(), "");
    // The host's end goes when the pod's end does, and that goes with the namespace's last user.
    drop(pod);
    wait_for("the namespace's end", || !host.run("ip -o link").contains("veth0")).await;
}

#[test]
fn links_with_one_address_are_told_apart() {
    let link =
        |index, mac| describe::CniLink { index, name: format!("eth{index}"), mac, found_by: mac, mtu: 1500 };
    let (one, other) = ([2, 0, 0, 0, 0, 1], [0x02, b'b', b'h', 0, 0, 3]);
    let mut links = [link(2, one), link(3, one), link(4, other), link(5, one)];
    describe::tell_apart(&mut links);
    let found: Vec<[u8; 6]> = links.iter().map(|link| link.found_by).collect();
    assert_eq!(found[0], one);
    assert_eq!(found[2], other, "a link of its own address keeps it");
    let unique: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(unique.len(), 4, "{found:?}");
    let interface = describe::interface(&links[1], &[]);
    assert_eq!(interface.new_mac, "02:00:00:00:00:01");
    assert_ne!(interface.mac, interface.new_mac);
    assert_eq!(describe::interface(&links[0], &[]).new_mac, "");
}

//! Pods as a whole: up, network, down, nothing left.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use bulkhead_tests::wait;
use k8s_cri::v1 as api;

use crate::stage::{Stage, VMM, stage};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn pod_up_and_down() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("up").await;
    assert!(cri.pod_ready(&pod.id).await);
    let status = cri.pod_status(&pod.id).await.unwrap();
    let metadata = status.status.unwrap().metadata.unwrap();
    assert_eq!((metadata.name.as_str(), metadata.namespace.as_str()), ("up", "default"));
    let ips = cri.pod_ips(&pod).await;
    assert!(ips.iter().any(IpAddr::is_ipv4) && ips.iter().any(IpAddr::is_ipv6), "{ips:?}");

    cri.stop_pod(&pod).await;
    cri.expect_not_ready(&pod.id).await;
    cri.stop_pod(&pod).await;
    cri.remove_pod(&pod).await;
    assert!(cri.list_pods().await.is_empty());
    cri.try_remove_pod(&pod.id).await.expect("removing a removed pod is fine");
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_one_vm() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("vm").await;
    stage.the_one(VMM);
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    let command_line = cri.exec(&container.id, "cat /proc/cmdline").await;
    assert!(command_line.contains("bulkhead.log="), "not our guest's kernel: {command_line}");
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let guest = cri.exec(&container.id, &format!("cat {boot_id}")).await;
    let host = stage.node.run(&["cat", boot_id]).await;
    assert_ne!(guest, host, "the container sees the host's kernel");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_running_pod_stops_it() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("forced").await;
    cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    cri.remove_pod(&pod).await;
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_cgroup_parent_gets_the_default_one() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let mut config = cri.pod_config("parentless");
    config.linux.as_mut().unwrap().cgroup_parent.clear();
    let pod = cri.try_run_pod(config).await.unwrap();
    let vmm = stage.the_one(VMM);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", vmm.pid)).unwrap();
    let parent = format!("{}/default/", stage.node.cgroup_parent());
    assert!(groups.contains(&parent), "the VMM is not below {parent}: {groups}");
    cri.end_pod(&pod).await;
    // The default parent itself, made on first use, may stay for the next pod.
    let mut stage = stage;
    stage.look_again().await;
    let again = stage.cri().run_pod("second").await;
    stage.end(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_on_the_pod_ip_from_the_node() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("web").await;
    cri.start(&pod, Cri::shell("httpd", "httpd -f -p [::]:80 -h /www")).await;
    for ip in cri.pod_ips(&pod).await {
        let page = stage.node.http_get((ip, 80).into(), "/index.html", SOON).await;
        assert_eq!(page, "hello from the pod\n", "over {ip}");
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_reach_each_other_by_ip() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let (server, client) = tokio::join!(cri.run_pod("server"), cri.run_pod("client"));
    cri.start(&server, Cri::shell("httpd", "httpd -f -p [::]:80 -h /www")).await;
    let shell = cri.start(&client, Cri::shell("shell", "sleep 1000")).await;
    for ip in cri.pod_ips(&server).await {
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let page = cri.exec(&shell.id, &retrying(&format!("wget -q -O - http://{host}/"))).await;
        assert_eq!(page, "hello from the pod\n", "over {ip}");
    }
    cri.end_pod(&client).await;
    stage.end(&server).await;
}

/// A command tried for ten seconds: the other side may still be starting.
pub(crate) fn retrying(command: &str) -> String {
    format!("for i in $(seq 100); do {command} 2>/dev/null && exit 0; usleep 100000; done; {command}")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_containers_see_each_other_on_localhost() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("pair").await;
    cri.start(&pod, Cri::shell("httpd", "httpd -f -p 127.0.0.1:8080 -h /www")).await;
    let other = cri.start(&pod, Cri::shell("other", "sleep 1000")).await;
    let page = cri.exec(&other.id, &retrying("wget -q -O - http://127.0.0.1:8080/")).await;
    assert_eq!(page, "hello from the pod\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostname_dns_and_shared_memory_are_the_pods() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("named").await;
    let one = cri.start(&pod, Cri::shell("one", "sleep 1000")).await;
    let two = cri.start(&pod, Cri::shell("two", "sleep 1000")).await;
    assert_eq!(cri.exec(&one.id, "hostname").await, "named\n");
    let resolv = cri.exec(&one.id, "cat /etc/resolv.conf").await;
    for line in ["nameserver 10.96.0.10", "search default.svc.cluster.local cluster.local", "options ndots:5"]
    {
        assert!(resolv.contains(line), "{line:?} is not in {resolv:?}");
    }
    let hosts = cri.exec(&one.id, "cat /etc/hosts").await;
    assert!(hosts.contains("localhost"), "{hosts:?}");
    cri.exec(&one.id, "echo shared > /dev/shm/note").await;
    assert_eq!(cri.exec(&two.id, "cat /dev/shm/note").await, "shared\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_mtu_and_routes_are_what_cni_gave() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("wired").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    let link = cri.exec(&container.id, "ip addr show eth0").await;
    assert!(link.contains("mtu 1450"), "{link}");
    for ip in cri.pod_ips(&pod).await {
        assert!(link.contains(&ip.to_string()), "{ip} is not on eth0: {link}");
    }
    let routes = cri.exec(&container.id, "ip route; ip -6 route").await;
    assert!(routes.contains("default via 10.88.0.1"), "{routes}");
    assert!(routes.contains("default via fd00:88::1"), "{routes}");
    stage.end(&pod).await;
}

/// How far the pod's clock is ahead of the node's, in seconds. It has whole ones only.
async fn ahead(cri: &Cri, container: &str) -> i64 {
    let told: i64 = cri.exec(container, "date +%s").await.trim().parse().unwrap();
    told - i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn host_network_is_refused() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let mut config = cri.pod_config("hostnet");
    let linux = config.linux.as_mut().unwrap();
    let namespaces = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    namespaces.network = api::NamespaceMode::Node.into();
    let status = cri.try_run_pod(config).await.expect_err("a VM cannot be in the host's network");
    let text = status.message().to_lowercase();
    assert!(text.contains("hostnetwork") || text.contains("host network"), "{status:?}");
    stage.expect_clean().await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_every_process_of_a_pod_is_in_its_cgroup() {
        let stage = stage!(Stage::shared_vm());
        let pod = stage.cri().run_pod("grouped").await;
        let parent = pod.cgroup.clone().unwrap();
        for program in [VMM, "virtiofsd", "vhost-device-vsock", "containerd-shim-bulkhead-v2"] {
            let found = stage.running(program);
            assert!(!found.is_empty(), "no {program} runs for the pod");
            for process in found {
                let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap();
                for controller in ["memory", "cpu", "pids"] {
                    let line = groups.lines().find(|line| {
                        line.split(':')
                            .nth(1)
                            .is_some_and(|names| names.split(',').any(|name| name == controller))
                    });
                    let line = line.or_else(|| groups.lines().find(|line| line.starts_with("0::"))).unwrap();
                    assert!(line.contains(&format!("{parent}/")), "{program} is outside {parent}: {line}");
                }
            }
        }
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_11599_twenty_pods_in_a_row_leave_nothing_behind() {
        let mut stage = stage!(Stage::any(Options::default()));
        for round in 0..20 {
            let cri = stage.cri();
            let start = Instant::now();
            let pod = cri.run_pod("row").await;
            let container = cri.start(&pod, Cri::shell("main", "echo round; sleep 1000")).await;
            assert_eq!(cri.exec(&container.id, "echo hi").await, "hi\n");
            cri.end_pod(&pod).await;
            eprintln!("pod {round}: {:?}", start.elapsed());
            if round == 0 {
                // What is loaded on first use is no leak; from here on everything must stay flat.
                stage.expect_clean().await;
                stage.look_again().await;
            }
        }
        stage.expect_clean().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_runtime_1279_a_clock_that_is_off_is_put_right() {
        let stage = stage!(Stage::shared_vm());
        let cri = stage.cri();
        let pod = cri.run_pod("clock").await;
        let mut config = Cri::shell("main", "sleep 1000");
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        let capabilities =
            api::Capability { add_capabilities: vec!["SYS_TIME".into()], ..Default::default() };
        context.capabilities = Some(capabilities);
        let container = cri.start(&pod, config).await;
        assert!(ahead(cri, &container.id).await.abs() <= 2, "as it came up");
        for off in [3600, -90] {
            cri.exec(&container.id, &format!("date -s @$(($(date +%s) + {off}))")).await;
            assert!((ahead(cri, &container.id).await - off).abs() <= 30, "the test could not set it");
            wait::expect("the node's time", SOON, async || {
                (ahead(cri, &container.id).await.abs() <= 2).then_some(())
            })
            .await;
        }
        stage.end(&pod).await;
    }
}

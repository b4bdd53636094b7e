//! What containers of a pod share and what they do not.

use bulkhead_tests::cri::{Cri, mount};
use bulkhead_tests::node::BULKHEAD;
use k8s_cri::v1 as api;

use crate::stage::{Stage, VMM, stage};

fn with_pid_mode(
    mut config: api::ContainerConfig,
    mode: api::NamespaceMode,
    target: &str,
) -> api::ContainerConfig {
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let options = context.namespace_options.as_mut().unwrap();
    options.pid = mode.into();
    options.target_id = target.to_owned();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_network_ipc_and_host_name_but_not_processes() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let mut config = cri.pod_config("apart");
    let sysctls =
        [("kernel.shm_rmid_forced", "1"), ("net.ipv4.tcp_syncookies", "0"), ("kernel/msgmax", "12345")];
    config.linux.as_mut().unwrap().sysctls =
        sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let pod = cri.try_run_pod(config).await.unwrap();
    let one = cri.start(&pod, Cri::shell("one", "sleep 1111")).await;
    let two = cri.start(&pod, Cri::shell("two", "sleep 2222")).await;
    let namespaces = "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done";
    assert_eq!(cri.exec(&one.id, namespaces).await, cri.exec(&two.id, namespaces).await);
    for kind in ["pid", "mnt", "cgroup"] {
        let script = format!("readlink /proc/self/ns/{kind}");
        let same = cri.exec(&one.id, &script).await == cri.exec(&two.id, &script).await;
        // On a node with cgroup v1 runc gives its containers none of their own.
        assert!(!same || kind == "cgroup", "{kind}");
    }
    assert_eq!(cri.exec(&one.id, "cat /proc/1/comm").await, "sleep\n");
    assert_eq!(cri.exec(&two.id, "ps -o args | grep -c '[s]leep 1111' || true").await, "0\n");
    let values =
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/tcp_syncookies /proc/sys/kernel/msgmax";
    assert_eq!(cri.exec(&two.id, values).await, "1\n0\n12345\n");
    // A container without a right to it cannot rename the pod.
    let (code, ..) = cri.try_exec(&one.id, &["/bin/hostname", "other"]).await.unwrap();
    assert_ne!(code, 0);
    assert_eq!(cri.exec(&two.id, "hostname").await, "apart\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_processes_when_the_pod_says_so() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let mut config = cri.pod_config("together");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().pid = api::NamespaceMode::Pod.into();
    let pod = cri.try_run_pod(config).await.unwrap();
    let shared = |name, script| with_pid_mode(Cri::shell(name, script), api::NamespaceMode::Pod, "");
    let one = cri.start(&pod, shared("one", "sleep 1111")).await;
    let two = cri.start(&pod, shared("two", "sleep 2222")).await;
    assert_eq!(cri.exec(&two.id, "ps -o args | grep -c '[s]leep 1111'").await, "1\n");
    // The end of one is not the end of the other, though they are in one namespace.
    cri.exec(&two.id, "kill -9 $(ps -o pid,args | sed -n 's/^ *\\([0-9]*\\) sleep 1111$/\\1/p')").await;
    assert_eq!(cri.wait_exit(&one.id).await.exit_code, 137);
    assert_eq!(cri.exec(&two.id, "ps -o args | grep -c '[s]leep 1111' || true").await.trim(), "0");
    if !stage.running(VMM).is_empty() {
        // Orphans are reaped by the namespace's init process. The pause container of the control does not do it.
        cri.exec(&two.id, "sh -c 'usleep 100000 &'; usleep 500000; ! ps -o stat | grep -q Z").await;
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_sees_the_processes_of_its_target() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("debugged").await;
    let app = cri.start(&pod, Cri::shell("app", "sleep 1111")).await;
    let other = cri.start(&pod, Cri::shell("other", "sleep 2222")).await;
    let config = with_pid_mode(Cri::shell("debug", "sleep 3333"), api::NamespaceMode::Target, &app.id);
    let debug = cri.start(&pod, config).await;
    let seen = cri.exec(&debug.id, "ps -o args").await;
    assert!(seen.contains("sleep 1111") && !seen.contains("sleep 2222"), "{seen}");
    assert_eq!(cri.exec(&debug.id, "cat /proc/1/cmdline | tr '\\0' ' '").await, "sleep 1111 ");
    // It goes without its target, and its target without it.
    cri.stop(&debug.id, 0).await;
    assert_eq!(cri.exec(&app.id, "echo alive").await, "alive\n");
    cri.stop(&app.id, 0).await;
    assert_eq!(cri.exec(&other.id, "echo alive").await, "alive\n");
    stage.end(&pod).await;
}

/// The container's own /etc, as kubelet and the pod's settings make it.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_as_the_pod_says() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("named").await;
    let hosts = stage.node.dir().join("etc-hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.7 backend\n").unwrap();
    let mut config = Cri::shell("kubelet", "sleep 1000");
    config.mounts = vec![mount(&hosts, "/etc/hosts")];
    let kubelets = cri.start(&pod, config).await;
    assert_eq!(cri.exec(&kubelets.id, "cat /etc/hosts").await, std::fs::read_to_string(&hosts).unwrap());
    assert_eq!(cri.exec(&kubelets.id, "cat /etc/hostname; hostname").await, "named\nnamed\n");
    let resolv = cri.exec(&kubelets.id, "cat /etc/resolv.conf").await;
    for line in ["nameserver 10.96.0.10", "search default.svc.cluster.local cluster.local", "options ndots:5"]
    {
        assert!(resolv.contains(line), "{resolv}");
    }
    // Who mounts nothing there gets the pod's own, with the pod's name in it.
    let plain = cri.start(&pod, Cri::shell("plain", "sleep 1000")).await;
    let own = cri.exec(&plain.id, "cat /etc/hosts").await;
    let ip = cri.pod_ips(&pod).await[0].to_string();
    assert!(own.contains("localhost"), "{own}");
    assert!(own.lines().any(|line| line.contains(&ip) && line.contains("named")), "{own}");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_handler_says_it_can_do_is_so() {
    let stage = stage!(Stage::shared_vm());
    let answer =
        stage.cri().runtime().status(api::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let handler = answer.runtime_handlers.into_iter().find(|handler| handler.name == BULKHEAD).unwrap();
    let features = handler.features.expect("features of the handler");
    assert!(!features.user_namespaces, "user namespaces are advertised");
    assert!(features.recursive_read_only_mounts, "recursive read-only mounts are not advertised");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_namespaces_are_refused_with_a_remedy() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let mut config = cri.pod_config("mapped");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let ids = vec![api::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
    context.namespace_options.as_mut().unwrap().userns_options =
        Some(api::UserNamespace { mode: api::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids });
    let status = cri.try_run_pod(config).await.expect_err("a pod in a user namespace");
    assert!(status.message().contains("user namespaces"), "{status:?}");
    assert!(status.message().contains("hostUsers: true"), "{status:?}");
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sysctl_that_is_none_is_named_and_leaves_no_pod() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let mut config = cri.pod_config("mistaken");
    config.linux.as_mut().unwrap().sysctls = [("net.no.such".to_owned(), "7".to_owned())].into();
    let status = cri.try_run_pod(config).await.expect_err("there is no such sysctl");
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    assert!(
        status.message().ends_with("set sysctl net.no.such to \"7\": No such file or directory (os error 2)")
    );
    stage.expect_clean().await;
}

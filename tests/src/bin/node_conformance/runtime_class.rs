//! A check of Bulkhead's own: the RuntimeClass that `bulkhead-sandboxer --print-runtimeclass` prints, with a real API
//! server, and a pod of that class beside a runc pod under one kubelet and one containerd.

use std::fmt::Write;
use std::time::Duration;

use bulkhead_tests::audit::Snapshot;
use bulkhead_tests::conformance::audit;
use bulkhead_tests::conformance::specs::{Outcome, Spec};
use bulkhead_tests::node::{self, Node, Options, RUNC};
use bulkhead_tests::processes;
use bulkhead_tests::wait;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::suite::{NAME as NODE, Suite};
use crate::{images, machine};

/// The check's name in the table.
pub(crate) const NAME: &str = "RuntimeClass as printed: a pod of it runs beside a runc pod";

/// Where results and logs are.
const FOLDER: &str = "runtimeclass";

/// Limits of each pod's one container.
const MEMORY_MIB: u64 = 256;
const CPU_MILLIS: u64 = 500;

/// The two pods: name, and the line of their manifest that makes the difference.
const PODS: [(&str, &str); 2] = [("in-a-vm", "runtimeClassName: bulkhead"), ("with-runc", "")];

const MIB: u64 = 1 << 20;

/// Starts a node with both runtimes, whose default is runc, and runs the check; also what is left on that node.
pub(crate) async fn check(suite: &Suite) -> Result<Vec<Spec>, String> {
    let quiet = Options::default().with("sandboxer", "log_level", "\"info\"");
    let node = Node::start(Options { default_runtime: RUNC, ..quiet }).await?;
    images::import(&node, suite).await;
    let _registry = machine::prepare(&node, suite).await;
    let before = Snapshot::take(&node).await;
    let cluster = Cluster::start(&node, suite, FOLDER).await;
    let result = side_by_side(&node, &cluster).await;
    cluster.stop().await;
    machine::remove_pods(&node).await;
    suite.keep_logs(&node, FOLDER);
    let outcome = match result {
        Ok(report) => {
            println!("{NAME}\n{report}");
            Outcome::Passed
        }
        Err(why) => Outcome::failed(why),
    };
    let mut left = audit(&node, &before, &machine::not_ours(&node)).await;
    left.name = format!("{}, with both runtimes", left.name);
    Ok(vec![Spec { name: NAME.into(), outcome }, left])
}

/// What a pod's cgroup allows, as the host's kernel says it.
#[derive(Debug, PartialEq, Eq)]
struct Allowed {
    memory_mib: u64,
    cpu_millis: u64,
}

async fn side_by_side(node: &Node, cluster: &Cluster<'_>) -> Result<String, String> {
    let class = printed_class(node).await;
    cluster.kubectl(&class, &["apply", "--filename=-"]).await?;
    let class = cluster.object("runtimeclass", "bulkhead").await?;
    let overhead_mib = mebibytes(&class["overhead"]["podFixed"]["memory"])?;
    goes_only_to_labelled_nodes(cluster, &class).await?;
    for (name, line) in PODS {
        cluster.kubectl(&pod(name, line), &["apply", "--filename=-"]).await?;
    }
    for (name, _) in PODS {
        let wait = ["wait", "pod", name, "--for=condition=Ready", "--timeout=180s"];
        if let Err(why) = cluster.kubectl("", &wait).await {
            let told = cluster.kubectl("", &["describe", "pod", name]).await?;
            return Err(format!("{why}: {told}"));
        }
    }
    let mut report = String::new();
    let mut cgroups = Vec::new();
    for (name, class) in PODS {
        let in_vm = !class.is_empty();
        let object = cluster.object("pod", name).await?;
        let own_overhead = &object["spec"]["overhead"]["memory"];
        let overhead = if in_vm { mebibytes(own_overhead)? } else { 0 };
        if in_vm == own_overhead.is_null() || (in_vm && overhead != overhead_mib) {
            return Err(format!("pod {name} has overhead {own_overhead}, the class {overhead_mib} MiB"));
        }
        let group = pod_cgroup(node, &object)?;
        let allowed = allowed(&group)?;
        let wanted = Allowed { memory_mib: MEMORY_MIB + overhead, cpu_millis: CPU_MILLIS };
        if allowed != wanted {
            return Err(format!("cgroup {group} of pod {name} allows {allowed:?}, not {wanted:?}"));
        }
        let kernel = kernel_seen_by(cluster, name, in_vm).await?;
        let programs = programs_in(&group);
        if programs.iter().any(|program| program.starts_with("qemu-system")) != in_vm {
            return Err(format!("in the cgroup of pod {name} run {programs:?}"));
        }
        writeln!(
            report,
            "  {name}: kernel {kernel}; limit {MEMORY_MIB} MiB, overhead {overhead} MiB, its cgroup {} MiB; CPU limit \
             {CPU_MILLIS} m, its cgroup {} m; in the cgroup: {}",
            allowed.memory_mib,
            allowed.cpu_millis,
            programs.join(", ")
        )
        .expect("write to a string");
        cgroups.push(group);
    }
    limit_in_the_guest(cluster).await?;
    for (name, _) in PODS {
        cluster.kubectl("", &["delete", "pod", name, "--timeout=120s"]).await?;
    }
    gone(&cgroups).await?;
    Ok(report)
}

/// What the node's own settings make of it.
async fn printed_class(node: &Node) -> String {
    let program = node.product().bin.join("bulkhead-sandboxer").display().to_string();
    let settings = node.write_settings().display().to_string();
    node.run(&[&program, "--config", &settings, "--print-runtimeclass"]).await
}

/// A node without the class's label does not take its pods; with the label, which the class's first line tells of, it
/// does.
async fn goes_only_to_labelled_nodes(cluster: &Cluster<'_>, class: &Value) -> Result<(), String> {
    let (name, line) = ("too-early", PODS[0].1);
    cluster.kubectl(&pod(name, line), &["apply", "--filename=-"]).await?;
    let refused = ["wait", "pod", name, "--for=jsonpath={.status.phase}=Failed", "--timeout=60s"];
    cluster.kubectl("", &refused).await?;
    let reason = cluster.object("pod", name).await?["status"]["reason"].clone();
    if reason != "NodeAffinity" {
        return Err(format!(
            "a node without the label refused a pod because of {reason}, not of NodeAffinity"
        ));
    }
    cluster.kubectl("", &["delete", "pod", name, "--timeout=60s"]).await?;
    let labels = class["scheduling"]["nodeSelector"].as_object().ok_or("the class selects no nodes")?;
    for (key, value) in labels {
        let label = format!("{key}={}", value.as_str().unwrap_or_default());
        cluster.kubectl("", &["label", "node", NODE, &label]).await?;
    }
    // kubelet must have seen it: it is kubelet that takes the pod or not, and it hears of its node every few seconds.
    for attempt in 0.. {
        let name = format!("try-{attempt}");
        cluster.kubectl(&pod(&name, line), &["apply", "--filename=-"]).await?;
        let taken =
            wait::expect("kubelet takes the pod or refuses it", Duration::from_secs(60), async || {
                let object = cluster.object("pod", &name).await.ok()?;
                let refused = object["status"]["phase"] == "Failed";
                (refused || !object["status"]["startTime"].is_null()).then_some(!refused)
            })
            .await;
        cluster.kubectl("", &["delete", "pod", &name, "--timeout=120s"]).await?;
        if taken {
            return Ok(());
        }
        if attempt == 9 {
            break;
        }
    }
    Err("with the label the node still takes no pod of the class".into())
}

fn pod(name: &str, line: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  {line}
  nodeName: {NODE}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {}
      command: [sh, -c, 'uname -r; exec sleep 3600']
      resources:
        limits: {{cpu: {CPU_MILLIS}m, memory: {MEMORY_MIB}Mi}}
",
        images::BUSYBOX
    )
}

/// The kernel that the container wrote to its log: the host's with runc, another in a VM.
async fn kernel_seen_by(cluster: &Cluster<'_>, name: &str, in_vm: bool) -> Result<String, String> {
    let hosts = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the kernel's release");
    let mut seen = String::new();
    wait::until(Duration::from_secs(60), async || {
        seen = cluster.kubectl("", &["logs", name]).await.unwrap_or_default();
        (!seen.is_empty()).then_some(())
    })
    .await
    .ok_or_else(|| format!("pod {name} has written nothing to its log"))?;
    if (seen == hosts.trim()) == in_vm {
        return Err(format!("pod {name} sees kernel {seen:?}, the host has {:?}", hosts.trim()));
    }
    Ok(seen)
}

/// The container's own limit, which in a VM is one of the guest's cgroups.
async fn limit_in_the_guest(cluster: &Cluster<'_>) -> Result<(), String> {
    let name = PODS[0].0;
    let seen = cluster.kubectl("", &["exec", name, "--", "cat", "/sys/fs/cgroup/memory.max"]).await?;
    if seen == (MEMORY_MIB * MIB).to_string() {
        return Ok(());
    }
    Err(format!("the container of pod {name} sees a memory limit of {seen}, not of {MEMORY_MIB} MiB"))
}

/// A pod whose requests are its limits is `Guaranteed`, and so its cgroup lies directly below kubelet's.
fn pod_cgroup(node: &Node, pod: &Value) -> Result<String, String> {
    let uid = pod["metadata"]["uid"].as_str().ok_or("a pod without UID")?;
    Ok(format!("{}/kubepods/pod{uid}", node.cgroup_parent()))
}

/// In the words of cgroup v1 or v2.
fn allowed(group: &str) -> Result<Allowed, String> {
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let memory = ["memory.limit_in_bytes", "memory.max"];
    let memory = memory.iter().find_map(|file| number(node::cgroup_file(group, file)));
    let cpu = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|file| number(node::cgroup_file(group, file)));
    let cpu = match cpu {
        [Some(quota), Some(period)] => Some((quota, period)),
        _ => node::cgroup_file(group, "cpu.max").and_then(|text| {
            let (quota, period) = text.split_once(' ')?;
            Some((quota.parse().ok()?, period.parse().ok()?))
        }),
    };
    match (memory, cpu) {
        (Some(memory), Some((quota, period))) => {
            Ok(Allowed { memory_mib: memory / MIB, cpu_millis: quota * 1000 / period })
        }
        _ => Err(format!("cgroup {group} has no limits: memory {memory:?}, CPU {cpu:?}")),
    }
}

/// The programs of all processes in the cgroup and below it, by name.
fn programs_in(group: &str) -> Vec<String> {
    let mut programs: Vec<String> = node::cgroup_processes(group)
        .into_iter()
        .filter_map(|pid| Some(processes::read(pid)?.program().to_owned()))
        .collect();
    programs.sort();
    programs.dedup();
    programs
}

/// kubelet removes a deleted pod's cgroup in its next round.
async fn gone(groups: &[String]) -> Result<(), String> {
    let mut left = Vec::new();
    wait::until(Duration::from_secs(60), async || {
        left = groups.iter().filter(|group| node::cgroup_exists(group)).cloned().collect();
        left.is_empty().then_some(())
    })
    .await
    .ok_or_else(|| format!("cgroups of deleted pods are left: {left:?}"))
}

/// `"448Mi"`.
fn mebibytes(quantity: &Value) -> Result<u64, String> {
    let number = quantity.as_str().and_then(|text| text.strip_suffix("Mi")?.parse().ok());
    number.ok_or_else(|| format!("{quantity} is no number of mebibytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        assert_eq!(mebibytes(&Value::from("448Mi")), Ok(448));
        assert!(mebibytes(&Value::from("1Gi")).is_err());
        assert!(mebibytes(&Value::Null).is_err());
    }
}

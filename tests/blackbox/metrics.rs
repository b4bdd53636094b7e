//! The Prometheus endpoint, as a scraper meets it.

use std::collections::BTreeSet;
use std::process::Stdio;

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use bulkhead_tests::peers;
use bulkhead_tests::processes;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;

use crate::stage::{Stage, VMM, stage};

const LISTEN: &str = "127.0.0.1:9464";

async fn scrape(stage: &Stage) -> String {
    stage.node.run(&["busybox", "wget", "-q", "-O", "-", &format!("http://{LISTEN}/metrics")]).await
}

/// The one series that begins so.
fn value(text: &str, series: &str) -> Option<f64> {
    let mut found =
        text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    found.next()
}

/// Every family by name.
fn families(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// Prometheus' own opinion of names, types, units and help texts.
async fn lint(text: &str) {
    let promtool = peers::root().join(".peers/bin/promtool");
    let mut check = tokio::process::Command::new(&promtool);
    let check = check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut check = check.unwrap_or_else(|error| panic!("{}: {error}; run make setup", promtool.display()));
    check.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let said = check.wait_with_output().await.unwrap();
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// The docs have every family of a scrape, and the dashboard asks for no other.
fn expect_documented(text: &str) {
    let docs = std::fs::read_to_string(peers::root().join("docs/observability.md")).unwrap();
    let dashboard = std::fs::read_to_string(peers::root().join("config/grafana/bulkhead.json")).unwrap();
    let families: Vec<&str> = families(text).into_iter().collect();
    for name in &families {
        assert!(docs.contains(&format!("`{name}`")), "docs/observability.md does not have {name}");
    }
    for word in dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let is_known = || families.iter().any(|name| word.strip_prefix(name).is_some_and(is_suffix));
        assert!(!word.starts_with("bulkhead_") || is_known(), "the dashboard asks for {word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_tells_of_starts_failures_ends_and_of_what_pods_use() {
    let mut stage = stage!(Stage::vm(Options::default().with("metrics", "listen", format!("{LISTEN:?}"))));
    let text = scrape(&stage).await;
    assert_eq!(value(&text, r#"bulkhead_sandboxes{state="running"}"#), Some(0.0), "{text}");
    assert_eq!(
        value(&text, r#"bulkhead_sandbox_start_failures_total{cause="invalid"}"#),
        Some(0.0),
        "{text}"
    );

    let pod = stage.cri().run_pod("measured").await;
    let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
    let text = scrape(&stage).await;
    lint(&text).await;
    assert_eq!(value(&text, r#"bulkhead_sandboxes{state="running"}"#), Some(1.0), "{text}");
    assert_eq!(value(&text, "bulkhead_sandbox_start_seconds_count"), Some(1.0), "{text}");
    let boot = r#"bulkhead_sandbox_start_step_seconds_count{step="boot the guest"}"#;
    assert_eq!(value(&text, boot), Some(1.0), "{text}");
    let labels = format!(r#"namespace="default",pod="measured",sandbox="{}""#, pod.id);
    let of_pod =
        |name: &str| value(&text, &format!("{name}{{{labels}}}")).unwrap_or_else(|| panic!("{name}: {text}"));
    assert!(of_pod("bulkhead_pod_memory_working_set_bytes") > f64::from(32 << 20));
    assert!(of_pod("bulkhead_pod_cpu_seconds_total") > 0.0);
    assert!(of_pod("bulkhead_guest_heartbeat_age_seconds") < 60.0);
    for part in ["shim_proxy", "virtiofsd", "vmm", "vsock"] {
        let labels = format!(r#"namespace="default",part="{part}",pod="measured",sandbox="{}""#, pod.id);
        let resident = value(&text, &format!("bulkhead_process_resident_memory_bytes{{{labels}}}"));
        assert!(resident > Some(100_000.0), "{part}: {resident:?}");
    }
    let info = format!(r#"namespace="default",pod="measured",profile="default",sandbox="{}""#, pod.id);
    assert_eq!(value(&text, &format!("bulkhead_pod_info{{{info}}}")), Some(1.0), "{text}");
    let link = format!(r#"interface="eth0",{labels}"#);
    let received = value(&text, &format!("bulkhead_pod_network_receive_bytes_total{{{link}}}"));
    assert!(received > Some(0.0), "{text}");
    expect_documented(&text);

    // A pod that cannot start, a VM that dies, a service that is killed.
    let mut config = stage.cri().pod_config("nowhere");
    config.linux.as_mut().unwrap().cgroup_parent = "no--slice.slice".to_owned();
    stage.cri().try_run_pod(config).await.expect_err("that is no cgroup");
    processes::signal(stage.the_one(VMM).pid, Signal::SIGKILL);
    stage.cri().expect_not_ready(&pod.id).await;
    let text = scrape(&stage).await;
    assert_eq!(
        value(&text, r#"bulkhead_sandbox_start_failures_total{cause="invalid"}"#),
        Some(1.0),
        "{text}"
    );
    assert_eq!(value(&text, r#"bulkhead_sandbox_ends_total{cause="lost"}"#), Some(1.0), "{text}");
    assert!(!text.contains(&labels), "a pod that has ended uses nothing: {text}");
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    stage.node.start_sandboxer().await;
    let text = scrape(&stage).await;
    assert_eq!(value(&text, r#"bulkhead_recovered_sandboxes_total{outcome="stopped"}"#), Some(1.0), "{text}");
    lint(&text).await;
    stage.cri().remove(&container.id).await;
    stage.end(&pod).await;
}

/// Of the series of a histogram.
fn is_suffix(text: &str) -> bool {
    ["", "_bucket", "_count", "_sum"].contains(&text)
}

//! Traces of a pod's life, as a collector gets them, from containerd and from the sandboxer.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::{OTLP, Options};
use bulkhead_tests::otlp::{Collector, Span};
use bulkhead_tests::peers::Line;
use bulkhead_tests::wait;
use nix::sys::signal::Signal;

use crate::stage::{Stage, stage};

const OURS: &str = "bulkhead-sandboxer";

fn traced() -> Options {
    Options::default().with("traces", "endpoint", format!("\"http://{OTLP}\""))
}

/// What a call on the host's side takes, and what goes on when it was answered.
const STEPS: [(&str, bool); 10] = [
    ("record the intent", false),
    ("cgroup", false),
    ("network", false),
    ("share", false),
    ("virtiofsd", false),
    ("shim proxy", false),
    ("listen for the guest", false),
    ("boot the guest", true),
    ("set up the guest", true),
    ("attach the shim proxy", true),
];

async fn ours(collector: &Collector, name: &str, sandbox: &str) -> Span {
    let is_it = |span: &Span| span.name == name && span.attribute("sandbox.id") == sandbox;
    let span = collector.expect(name, is_it).await;
    assert_eq!(span.service(), OURS, "{span:?}");
    span
}

/// Of its ancestors, which are containerd's, the root.
async fn root_at_containerd(collector: &Collector, span: &Span, call: &str) -> Span {
    let mut at = span.clone();
    while !at.parent.is_empty() {
        at = collector.expect(&format!("above {}", at.name), |other| at.is_below(other)).await;
        assert_eq!(at.service(), "containerd", "{at:?}");
    }
    assert!(at.name.ends_with(call), "{at:?}");
    at
}

fn expect_steps(create: &Span, steps: &BTreeMap<String, Span>) {
    for (name, is_later) in STEPS {
        let step = steps.get(name).unwrap_or_else(|| panic!("{name}: {steps:#?}"));
        assert!(step.begin >= create.begin && step.begin <= step.end, "{step:?} {create:?}");
        assert_eq!(step.end > create.end, is_later, "{step:?} {create:?}");
        assert_eq!(step.error, None, "{step:?}");
    }
    assert!(steps.contains_key("launch the VMM"), "{steps:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_life_is_seen_in_the_traces_of_containerd() {
    let options = Options { containerd_traces: true, ..traced() };
    // containerd before 2.3 does not tell sandboxers of its traces.
    let is_told = options.line != Line::V21;
    let stage = stage!(Stage::vm(options));
    let collector = stage.node.collect_traces().unwrap();
    let pod = stage.cri().run_pod("seen").await;
    let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;

    let create = ours(&collector, "sandbox.Create", &pod.id).await;
    let start = ours(&collector, "sandbox.Start", &pod.id).await;
    if is_told {
        let root = root_at_containerd(&collector, &create, "RuntimeService/RunPodSandbox").await;
        assert_eq!(root_at_containerd(&collector, &start, "RuntimeService/RunPodSandbox").await.id, root.id);
    }
    assert_eq!(
        (create.attribute("k8s.namespace.name"), create.attribute("k8s.pod.name")),
        ("default", "seen")
    );
    assert_eq!((create.attribute("rpc.grpc.status_code"), &create.error), ("0", &None));
    expect_steps(&create, &collector.children(&create));
    assert_eq!(start.links, [(create.trace.clone(), create.id.clone())], "{start:?}");
    let recorded = &collector.children(&start)["record running"];
    assert!(recorded.end <= start.end, "{recorded:?} {start:?}");

    let prepare = ours(&collector, "pod.PrepareContainer", &pod.id).await;
    root_at_containerd(&collector, &prepare, "RuntimeService/StartContainer").await;
    assert_eq!(
        (prepare.attribute("container.id"), prepare.attribute("rpc.ttrpc.status_code")),
        (&*container.id, "0")
    );
    let steps = collector.children(&prepare);
    for step in ["read the spec", "record the container", "make its mounts"] {
        assert!(steps.contains_key(step), "{step}: {steps:#?}");
    }

    let mut config = stage.cri().pod_config("refused");
    config.linux.as_mut().unwrap().cgroup_parent = "no--slice.slice".to_owned();
    stage.cri().try_run_pod(config).await.expect_err("that is no cgroup");
    let refused = collector.expect("refused", |span| span.attribute("k8s.pod.name") == "refused").await;
    assert!(refused.error.is_some() && refused.attribute("rpc.grpc.status_code") == "3", "{refused:?}");

    stage.cri().remove(&container.id).await;
    stage.end(&pod).await;
    let stop = ours(&collector, "sandbox.Stop", &pod.id).await;
    if is_told {
        root_at_containerd(&collector, &stop, "RuntimeService/StopPodSandbox").await;
    }
    let release = &collector.children(&stop)["release the sandbox"];
    let parts = collector.children(release);
    for part in ["tell the guest", "the VM", "virtiofsd", "mounts", "network", "cgroup", "directory"] {
        assert!(parts.get(part).is_some_and(|part| part.error.is_none()), "{part}: {parts:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_live_as_ever_where_no_collector_listens() {
    let mut stage = stage!(Stage::vm(traced()));
    let pod = stage.cri().run_pod("unseen").await;
    let container = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
    assert_eq!(stage.cri().exec(&container.id, "echo here").await, "here\n");
    let status = stage.node.stop_sandboxer(Signal::SIGTERM).await;
    assert!(status.success(), "{status}");
    assert_eq!(
        stage.node.sandboxer_log().matches("traces are lost").count(),
        1,
        "{}",
        stage.node.sandboxer_log()
    );
    stage.node.start_sandboxer().await;
    // containerd takes a while until it dials again.
    let dialled = async || stage.cri().pod_status(&pod.id).await.ok();
    wait::expect("containerd reaches the sandboxer", Duration::from_secs(30), dialled).await;
    assert!(stage.cri().pod_ready(&pod.id).await, "it is taken over");
    stage.cri().remove(&container.id).await;
    stage.end(&pod).await;
}

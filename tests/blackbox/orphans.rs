//! Sandboxes that containerd does not know: ended after the grace, without a trace; what it knows stays.

use std::time::Duration;

use bulkhead_tests::controller::{Controller, sandbox_id};
use bulkhead_tests::cri;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Options;
use bulkhead_tests::wait;
use containerd_client::services::v1::sandbox::StoreDeleteRequest;
use containerd_client::services::v1::sandbox::store_client::StoreClient;
use nix::sys::signal::Signal;
use tonic::{Code, Request};

use crate::stage::{Stage, VMM, stage};

fn impatient() -> Options {
    Options::default().with("sandboxer", "orphan_grace_secs", "3")
}

/// containerd forgets the sandbox, and is not asked to do anything about it.
async fn forget(stage: &Stage, id: &str) {
    let mut request = Request::new(StoreDeleteRequest { sandbox_id: id.to_owned() });
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    StoreClient::new(cri::channel(&stage.node.containerd_socket())).delete(request).await.unwrap();
}

async fn expect_gone(stage: &Stage, id: &str) {
    let controller = Controller::new(&stage.node.controller_socket());
    wait::expect("the orphan is gone", Duration::from_secs(60), async || match controller.status(id).await {
        Err(status) => (status.code() == Code::NotFound).then_some(()),
        Ok(status) => (status.state != "SANDBOX_READY").then_some(()),
    })
    .await;
    assert!(stage.node.sandboxer_log().contains("containerd no longer knows this sandbox"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_containerd_never_knew_is_ended_after_the_grace() {
    let mut stage = stage!(Stage::vm(impatient()));
    let known = stage.cri().run_pod("known").await;
    let container = stage.cri().start(&known, Cri::shell("main", "sleep 1000")).await;
    let netns = stage.node.make_pod_netns("stray", 7).await;
    stage.look_again().await;

    let (id, controller) = (sandbox_id(7), Controller::new(&stage.node.controller_socket()));
    let mut config = stage.cri().pod_config("stray");
    config.linux.as_mut().unwrap().cgroup_parent = known.cgroup.clone().unwrap();
    controller.create(Controller::create_request(&id, &netns, &config)).await.unwrap();
    controller.start(&id).await.unwrap();
    assert_eq!(stage.running(VMM).len(), 2);
    expect_gone(&stage, &id).await;
    stage.expect_clean().await;

    assert!(stage.cri().pod_ready(&known.id).await, "a pod that containerd knows was ended with the orphan");
    assert_eq!(stage.cri().exec(&container.id, "echo alive").await, "alive\n");
    stage.cri().end_pod(&known).await;
    stage.node.remove_pod_netns("stray").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_containerd_forgot_while_the_service_was_down_is_ended() {
    let mut stage = stage!(Stage::vm(impatient()));
    let kept = stage.cri().run_pod("kept").await;
    let forgotten = stage.cri().run_pod("forgotten").await;
    let container = stage.cri().start(&forgotten, Cri::shell("main", "sleep 1000")).await;
    stage.node.stop_sandboxer(Signal::SIGKILL).await;
    forget(&stage, &forgotten.id).await;
    stage.node.start_sandboxer().await;
    expect_gone(&stage, &forgotten.id).await;
    stage.cri().expect_not_ready(&forgotten.id).await;
    assert_eq!(stage.cri().wait_exit(&container.id).await.exit_code, 137);
    // CRI keeps its own list; the network that CNI made is its to give back.
    stage.cri().end_pod(&forgotten).await;
    assert!(stage.cri().pod_ready(&kept.id).await, "a pod that containerd knows was ended with the orphan");
    stage.end(&kept).await;
}

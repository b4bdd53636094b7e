//! Calls of the Controller that are wrong, late, doubled or taken back.

use std::time::{Duration, Instant};

use bulkhead_tests::controller::{Controller, sandbox_id};
use bulkhead_tests::node::Options;
use bulkhead_tests::{processes, wait};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::stage::{Stage, VMM, stage};

fn controller(stage: &Stage) -> Controller {
    Controller::new(&stage.node.controller_socket())
}

/// The id works, from Create to Shutdown.
async fn expect_usable(stage: &Stage, id: &str) {
    let (name, controller) = ("usable", controller(stage));
    let netns = stage.node.make_pod_netns(name, 200).await;
    let request = Controller::create_request(id, &netns, &stage.cri().pod_config_without_cgroup("direct"));
    controller.create(request).await.unwrap_or_else(|status| panic!("Create {id} again: {status:?}"));
    let started = controller.start(id).await.unwrap_or_else(|status| panic!("Start {id} again: {status:?}"));
    assert!(started.address.starts_with("ttrpc+unix:///") && started.version == 3, "{started:?}");
    assert_eq!(controller.status(id).await.unwrap().state, "SANDBOX_READY");
    controller.stop(id).await.unwrap();
    controller.shutdown(id).await.unwrap();
    stage.node.remove_pod_netns(name).await;
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_sandbox_is_not_found_and_stopping_it_is_fine() {
    let stage = stage!(Stage::shared_vm());
    let controller = controller(&stage);
    let id = sandbox_id(404);
    for (call, answer) in [
        ("Status", controller.status(&id).await.map(drop)),
        ("Start", controller.start(&id).await.map(drop)),
        ("Wait", controller.wait(&id).await.map(drop)),
        ("Metrics", controller.metrics(&id).await.map(drop)),
    ] {
        let status = answer.expect_err(call);
        assert_eq!(status.code(), Code::NotFound, "{call}: {status:?}");
        assert!(status.message().contains(&id), "{call} does not say which sandbox: {status:?}");
    }
    controller.stop(&id).await.expect("Stop of an unknown sandbox succeeds");
    controller.shutdown(&id).await.expect("Shutdown of an unknown sandbox succeeds");
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_create_of_one_id_is_refused_and_harms_nothing() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    let controller = controller(&stage);
    let (id, config) = (sandbox_id(2), stage.cri().pod_config_without_cgroup("direct"));
    let netns = stage.node.make_pod_netns("twice", 2).await;
    controller.create(Controller::create_request(&id, &netns, &config)).await.unwrap();
    let again = controller.create(Controller::create_request(&id, &netns, &config)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
    controller.start(&id).await.unwrap();
    let again = controller.create(Controller::create_request(&id, &netns, &config)).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "{again:?}");
    assert_eq!(controller.status(&id).await.unwrap().state, "SANDBOX_READY");
    controller.shutdown(&id).await.unwrap();
    let gone = controller.status(&id).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    stage.node.remove_pod_netns("twice").await;
    stage.expect_clean().await;
    expect_usable(&stage, &id).await;
}

/// CRI has but one namespace; a client of containerd's own API may use any, and hears its events there. The Controller
/// called here is Bulkhead's alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_belongs_to_the_namespace_that_its_create_named() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    let (id, controller) = (sandbox_id(7), controller(&stage));
    let netns = stage.node.make_pod_netns("elsewhere", 7).await;
    let request = Controller::create_request(&id, &netns, &stage.cri().pod_config_without_cgroup("direct"));
    controller.create_in("elsewhere", request).await.unwrap();
    controller.start(&id).await.unwrap();
    let shims = stage.running("containerd-shim-bulkhead-v2");
    let told = |line: &[String]| line.windows(2).any(|pair| pair == ["--namespace", "elsewhere"]);
    assert!(shims.len() == 1 && told(&shims[0].args), "{shims:?}");
    // Ids are one for all namespaces: the sandboxer's files and cgroups are.
    let again = controller
        .create(Controller::create_request(&id, &netns, &stage.cri().pod_config_without_cgroup("direct")))
        .await;
    assert_eq!(again.unwrap_err().code(), Code::AlreadyExists);
    controller.stop(&id).await.unwrap();
    controller.shutdown(&id).await.unwrap();
    stage.node.remove_pod_netns("elsewhere").await;
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_no_file_names_are_refused() {
    let stage = stage!(Stage::shared_vm());
    let controller = controller(&stage);
    let config = stage.cri().pod_config_without_cgroup("direct");
    let long = "a".repeat(500);
    for id in ["", ".", "..", "a/b", "../../etc", "/abs", "a\0b", "a b", long.as_str()] {
        let create = controller.create(Controller::create_request(id, "/run/netns/none", &config)).await;
        let status = create.expect_err(id);
        assert_eq!(status.code(), Code::InvalidArgument, "{id:?}: {status:?}");
    }
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_are_no_pod_are_refused() {
    let stage = stage!(Stage::shared_vm());
    let controller = controller(&stage);
    let (id, config) = (sandbox_id(3), stage.cri().pod_config_without_cgroup("direct"));
    let good = Controller::create_request(&id, "/run/netns/none", &config);
    let mut missing = good.clone();
    missing.options = None;
    let mut other_type = good.clone();
    other_type.options.as_mut().unwrap().type_url = "runtimeoptions.v1.Options".into();
    let mut garbage = good.clone();
    garbage.options.as_mut().unwrap().value = vec![0xff; 40];
    for (what, request) in [("missing", missing), ("other type", other_type), ("garbage", garbage)] {
        let status = controller.create(request).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        assert!(status.message().contains("PodSandboxConfig"), "{what}: {status:?}");
    }
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_namespace_that_is_not_there_is_named() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    let controller = controller(&stage);
    let id = sandbox_id(4);
    let request = Controller::create_request(
        &id,
        "/run/netns/not-there",
        &stage.cri().pod_config_without_cgroup("direct"),
    );
    let failed = match controller.create(request).await {
        Err(status) => status,
        Ok(()) => controller.start(&id).await.map(drop).expect_err("there is no network to start with"),
    };
    assert!(failed.message().contains("/run/netns/not-there"), "{failed:?}");
    assert_eq!(stage.running(VMM), Vec::new());
    // containerd calls nothing more after a failure.
    stage.expect_clean().await;
    expect_usable(&stage, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_status_are_answered_while_start_runs() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    let controller = controller(&stage);
    for (number, delay) in [(10_u8, 0_u64), (11, 100), (12, 400)] {
        let (id, name) = (sandbox_id(number.into()), format!("busy{number}"));
        let netns = stage.node.make_pod_netns(&name, number).await;
        controller
            .create(Controller::create_request(&id, &netns, &stage.cri().pod_config_without_cgroup("direct")))
            .await
            .unwrap();
        let start = tokio::spawn({
            let (controller, id) = (controller.clone(), id.clone());
            async move { controller.start(&id).await }
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let asked = Instant::now();
        let status = controller.status(&id).await.unwrap();
        assert!(
            asked.elapsed() < wait::patiently(Duration::from_millis(500)),
            "Status took {:?}",
            asked.elapsed()
        );
        assert_eq!(status.state, "SANDBOX_NOTREADY");
        let asked = Instant::now();
        controller.stop(&id).await.unwrap();
        assert!(
            asked.elapsed() < wait::patiently(Duration::from_secs(10)),
            "Stop took {:?}",
            asked.elapsed()
        );
        let started = start.await.unwrap();
        let status = started.expect_err("a start that was stopped does not succeed");
        eprintln!("start stopped after {delay} ms: {status:?}");
        assert_eq!(stage.running(VMM), Vec::new());
        controller.shutdown(&id).await.unwrap();
        stage.node.remove_pod_netns(&name).await;
        stage.expect_clean().await;
    }
    expect_usable(&stage, &sandbox_id(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_taken_back_leaves_nothing() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    for (number, delay) in [(20_u8, 30_u64), (21, 300), (22, 900)] {
        // A connection of its own, so that hanging up is seen as containerd's cancelling is.
        let controller = controller(&stage);
        let (id, name) = (sandbox_id(number.into()), format!("gone{number}"));
        let netns = stage.node.make_pod_netns(&name, number).await;
        controller
            .create(Controller::create_request(&id, &netns, &stage.cri().pod_config_without_cgroup("direct")))
            .await
            .unwrap();
        let limit = Duration::from_millis(delay);
        let cut = tokio::time::timeout(limit, controller.start(&id)).await;
        assert!(cut.is_err(), "the VM booted within {delay} ms: this test cancels nothing");
        stage.node.remove_pod_netns(&name).await;
        stage.expect_clean().await;
        expect_usable(&stage, &id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_taken_back_leaves_nothing() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    for number in 30..40_u8 {
        let controller = controller(&stage);
        let id = sandbox_id(number.into());
        let request = Controller::create_request(
            &id,
            "/run/netns/none",
            &stage.cri().pod_config_without_cgroup("direct"),
        );
        let limit = Duration::from_micros(u64::from(number - 30) * 300);
        let cut = tokio::time::timeout(limit, controller.create(request)).await;
        if matches!(cut, Ok(Ok(()))) {
            controller.shutdown(&id).await.unwrap();
        }
    }
    stage.expect_clean().await;
    expect_usable(&stage, &sandbox_id(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_deadline_passes_leaves_nothing() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    for millis in [200, 600, 1000] {
        let config = stage.cri().pod_config_without_cgroup("direct");
        let deadline = Duration::from_millis(millis);
        let run = stage.cri().try_run_pod_with(config, "bulkhead", deadline).await;
        let status = run.map(drop).expect_err("no VM boots that fast here");
        eprintln!("{millis} ms: {status:?}");
        stage.expect_clean().await;
    }
    let pod = stage.cri().run_pod("in-time").await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_answers_when_the_sandbox_ends_and_at_once_afterwards() {
    let mut stage = stage!(Stage::vm(Options::default()));
    stage.warm_up().await;
    let controller = controller(&stage);
    let id = sandbox_id(50);
    let netns = stage.node.make_pod_netns("waited", 50).await;
    controller
        .create(Controller::create_request(&id, &netns, &stage.cri().pod_config_without_cgroup("direct")))
        .await
        .unwrap();
    controller.start(&id).await.unwrap();
    let wait = tokio::spawn({
        let (controller, id) = (controller.clone(), id.clone());
        async move { controller.wait(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!wait.is_finished(), "Wait answers though the sandbox runs");
    controller.stop(&id).await.unwrap();
    let answer = wait.await.unwrap().unwrap();
    assert!(answer.exited_at.is_some(), "{answer:?}");
    controller.stop(&id).await.expect("a second Stop is fine");
    let again = controller.wait(&id).await.unwrap();
    assert_eq!(again.exit_status, answer.exit_status);
    assert_eq!(controller.status(&id).await.unwrap().state, "SANDBOX_NOTREADY");
    controller.shutdown(&id).await.unwrap();
    controller.shutdown(&id).await.expect("a second Shutdown is fine");
    stage.node.remove_pod_netns("waited").await;
    stage.expect_clean().await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_6339_the_network_namespace_of_a_killed_pod_serves_the_next() {
        let mut stage = stage!(Stage::vm(Options::default()));
        stage.warm_up().await;
        let controller = controller(&stage);
        let netns = stage.node.make_pod_netns("again", 60).await;
        for number in 60..62 {
            let id = sandbox_id(number);
            controller
                .create(Controller::create_request(
                    &id,
                    &netns,
                    &stage.cri().pod_config_without_cgroup("direct"),
                ))
                .await
                .unwrap();
            controller.start(&id).await.unwrap_or_else(|status| panic!("pod {number} there: {status:?}"));
            processes::signal(stage.the_one(VMM).pid, Signal::SIGKILL);
            assert_eq!(controller.wait(&id).await.unwrap().exit_status, 137);
            if number > 60 {
                // The first is forgotten, as a kubelet that starts the pod anew may do, until all is over.
                controller.shutdown(&id).await.unwrap();
            }
        }
        controller.shutdown(&sandbox_id(60)).await.unwrap();
        stage.node.remove_pod_netns("again").await;
        stage.expect_clean().await;
    }
}

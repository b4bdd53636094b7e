//! containerd's shim protocol, as containerd runs it (facts 1.7, 1.8, 10).

use std::process::Output;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{DeleteResponse, Status};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;
use ttrpc::Code;

use crate::rig::{Rig, code, eventually, soon};

/// `delete`, as containerd runs it, and how long it took.
async fn delete(rig: &Rig, id: &str) -> (DeleteResponse, Duration) {
    let bundle = rig.path(&format!("bundle-{id}"));
    let bundle = bundle.to_str().unwrap();
    let flags = ["-namespace", "k8s.io", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd"];
    let arguments = [&flags[..], &["-id", id, "-bundle", bundle, "delete"]].concat();
    let started = Instant::now();
    // The fakes run on this thread: let them, while the command waits for them.
    let output: Output = tokio::process::Command::new(env!("CARGO_BIN_EXE_containerd-shim-bulkhead-v2"))
        .args(arguments)
        .output()
        .await
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    (DeleteResponse::parse_from_bytes(&output.stdout).unwrap(), started.elapsed())
}

#[tokio::test]
async fn delete_of_a_stopped_container_answers_its_exit() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    rig.agent.end("c", "", 42, false);
    let exit = soon(rig.wait("c", "")).await.unwrap().unwrap();
    rig.agent.stream("c", "", crate::fake_agent::Kind::STDOUT).await;
    let (response, _) = delete(&rig, "c").await;
    assert_eq!((response.exit_status, &response.exited_at), (42, &exit.exited_at));
    assert!(response.pid > 0);
}

#[tokio::test]
async fn delete_of_a_running_container_kills_and_releases_it() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    rig.running("other").await;
    let wait = rig.wait("c", "");
    let (response, took) = delete(&rig, "c").await;
    assert_eq!(response.exit_status, 137);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 137);
    eventually("released", || rig.sandboxer.prepared() == ["other"]).await;
    assert_eq!(rig.status("other").await, Status::RUNNING);
    let (again, _) = delete(&rig, "c").await;
    assert_eq!(again.exit_status, 255, "nobody knows it any more");
    assert!(again.exited_at.seconds > 1_600_000_000);
}

#[tokio::test]
async fn delete_without_a_proxy_answers_an_unknown_exit_quickly() {
    let mut rig = Rig::attached().await;
    rig.running("c").await;
    rig.proxy.kill().unwrap();
    rig.proxy.wait().unwrap();
    let (response, took) = delete(&rig, "c").await;
    assert_eq!(response.exit_status, 255);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn delete_with_a_hung_guest_is_quick() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    rig.agent.hold("signal");
    let (response, took) = delete(&rig, "c").await;
    assert_eq!(response.exit_status, 137);
    assert!(took < Duration::from_secs(2), "{took:?}");
    rig.agent.let_go("signal");
    assert_eq!(soon(rig.wait("c", "")).await.unwrap().unwrap().exit_status, 137);
    assert_ne!(code(rig.kill("c", "", 9, true).await), Code::OK);
}

#[tokio::test]
async fn info_version_and_start_answer_without_a_pod() {
    let rig = Rig::attached().await;
    let info = rig.run(&["-info"]);
    assert!(info.status.success());
    let info = RuntimeInfo::parse_from_bytes(&info.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.bulkhead.v2");
    assert_eq!(info.features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
    let version = rig.run(&["-v"]);
    assert!(String::from_utf8(version.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    let start = rig.run(&["-namespace", "k8s.io", "-id", "x", "start"]);
    assert_eq!(start.status.code(), Some(1));
    assert!(start.stdout.is_empty());
    assert!(String::from_utf8(start.stderr).unwrap().contains("sandboxer = \"bulkhead\""));
    assert_eq!(rig.run(&["fly"]).status.code(), Some(2));
    let serve = rig.run(&["serve", "--id", "x"]);
    assert_eq!(serve.status.code(), Some(2));
    assert!(String::from_utf8(serve.stderr).unwrap().contains("--dir"));
}

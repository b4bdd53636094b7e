//! Faults that must not end a container, and faults that must.

use std::time::Duration;

use bulkhead_protocol::VSOCK_SOCKET;
use bulkhead_protocol::agent::{IoEntry, StatsResponse};
use bulkhead_protocol::pod::Nothing;
use bulkhead_protocol::shim::{AttachRequest, VmGoneRequest};
use containerd_shim_protos::api::*;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use protobuf::Message;
use ttrpc::Code;

use crate::fake_agent::{Kind, say, say_end};
use crate::rig::{Rig, code, eventually, read_all, soon, text, within};

#[tokio::test]
async fn every_process_ends_when_the_vmm_dies() {
    let mut rig = Rig::attached().await;
    let request = rig.running("c").await;
    soon(rig.task.create(within(), &rig.prepare("waiting"))).await.unwrap();
    let waits = [rig.wait("c", ""), rig.wait("waiting", "")];
    let (out, err) = (read_all(&request.stdout), read_all(&request.stderr));
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    say(&mut guest, b"last words").await;
    let started = std::time::Instant::now();
    rig.vmm.kill().unwrap();
    for wait in waits {
        let exit = soon(wait).await.unwrap().unwrap();
        assert_eq!(exit.exit_status, 137);
        assert!(exit.exited_at.seconds > 1_600_000_000);
    }
    // The guest's ends stay open, as with a vsock helper that outlives the VM.
    assert_eq!(soon(out).await.unwrap(), b"last words");
    assert_eq!(soon(err).await.unwrap(), b"");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(rig.status("c").await, Status::STOPPED);
    assert_eq!(code(rig.kill("c", "", 9, true).await), Code::NOT_FOUND);
    assert_eq!(rig.delete("c", "").await.unwrap().exit_status, 137);
    rig.delete("waiting", "").await.unwrap();
    assert_eq!(rig.sandboxer.prepared(), [""; 0]);
    let refused = rig.task.create(within(), &rig.prepare("late")).await;
    assert!(text(refused.clone()).contains("the VM of this pod is gone"));
    assert_eq!(code(refused), Code::UNAVAILABLE);
    drop(guest);
}

#[tokio::test]
async fn every_process_ends_when_the_sandboxer_reports_the_vm_gone() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let wait = rig.wait("c", "");
    let request =
        VmGoneRequest { exit_status: 137, exited_at_nanos: 1_700_000_000_000_000_000, ..Default::default() };
    rig.shim.vm_gone(within(), &request).await.unwrap();
    let exit = soon(wait).await.unwrap().unwrap();
    assert_eq!((exit.exit_status, exit.exited_at.seconds), (137, 1_700_000_000));
    rig.shim.vm_gone(within(), &request).await.unwrap();
    assert_eq!(code(rig.attach().await), Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_process_with_the_vmms_pid_and_another_start_time_is_refused() {
    let rig = Rig::unattached().await;
    let request = AttachRequest {
        vmm_pid: rig.vmm.id(),
        vmm_start_time: 1,
        vsock: rig.path(VSOCK_SOCKET).display().to_string(),
        ..Default::default()
    };
    let refused = rig.shim.attach(within(), &request).await;
    assert!(text(refused).contains("is not running"));
}

#[tokio::test]
async fn a_broken_session_is_dialled_again_and_waits_go_on() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    let wait = rig.wait("c", "");
    rig.agent.called("wait c").await;
    rig.agent.break_sessions().await;
    eventually("asked again", || rig.agent.calls().iter().filter(|call| *call == "wait c").count() == 2)
        .await;
    assert!(!wait.is_finished());
    let out = read_all(&request.stdout);
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    say(&mut guest, b"through it all").await;
    rig.agent.end("c", "", 4, false);
    say_end(guest).await;
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 4);
    assert_eq!(soon(out).await.unwrap(), b"through it all");
}

#[tokio::test]
async fn an_agent_that_sends_noise_is_dialled_again() {
    let mut rig = Rig::attached().await;
    rig.running("c").await;
    let wait = rig.wait("c", "");
    rig.agent.called("wait c").await;
    rig.agent.babble(true);
    rig.agent.break_sessions().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(rig.is_alive());
    assert_eq!(rig.status("c").await, Status::RUNNING);
    rig.agent.babble(false);
    rig.agent.end("c", "", 5, false);
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 5);
}

#[tokio::test]
async fn a_start_whose_session_breaks_is_asked_again() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    let pid = soon(rig.task.create(within(), &request)).await.unwrap().pid;
    rig.agent.hold("start");
    let task = rig.task.clone();
    let starting = tokio::spawn(async move {
        task.start(within(), &StartRequest { id: "c".into(), ..Default::default() }).await
    });
    rig.agent.called("start c").await;
    rig.agent.break_sessions().await;
    rig.agent.let_go("start");
    assert_eq!(soon(starting).await.unwrap().unwrap().pid, pid);
}

#[tokio::test]
async fn an_agent_out_of_reach_for_long_counts_as_gone() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let wait = rig.wait("c", "");
    rig.agent.called("wait c").await;
    let started = std::time::Instant::now();
    rig.agent.die().await;
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 137);
    assert!(started.elapsed() > Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(rig.log().contains("out of reach"));
}

#[tokio::test]
async fn calls_wait_for_a_restart_of_the_sandboxer() {
    let rig = Rig::attached().await;
    rig.running("before").await;
    rig.sandboxer.stop().await;
    assert_eq!(rig.status("before").await, Status::RUNNING);
    rig.agent.end("before", "", 0, false);
    let (task, request) = (rig.task.clone(), rig.prepare("c"));
    let creating = tokio::spawn(async move { task.create(within(), &request).await });
    let task = rig.task.clone();
    let deleting = tokio::spawn(async move {
        task.delete(within(), &DeleteRequest { id: "before".into(), ..Default::default() }).await
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!creating.is_finished() && !deleting.is_finished());
    rig.sandboxer.start().await;
    soon(creating).await.unwrap().unwrap();
    soon(deleting).await.unwrap().unwrap();
    assert_eq!(rig.sandboxer.prepared(), ["c"]);
}

#[tokio::test]
async fn a_sandboxer_that_stays_away_is_named_in_the_error() {
    let rig = Rig::attached().await;
    rig.sandboxer.stop().await;
    let patience = ttrpc::context::with_duration(Duration::from_secs(1));
    let failed = rig.task.create(patience, &rig.prepare("c")).await;
    assert!(text(failed.clone()).contains("is bulkhead-sandboxer running?"), "{failed:?}");
    assert_eq!(code(failed), Code::UNAVAILABLE);
}

#[tokio::test]
async fn a_closed_connection_ends_no_container() {
    let rig = Rig::attached().await;
    let connection = rig.connection().await;
    soon(connection.create(within(), &rig.prepare("c"))).await.unwrap();
    rig.start("c", "").await.unwrap();
    drop(connection);
    let observed = || async { rig.shim.observe(within(), &Nothing::new()).await.unwrap() };
    while observed().await.open_connections > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(rig.status("c").await, Status::RUNNING);
}

#[tokio::test]
async fn a_container_whose_bundle_is_removed_without_delete_is_released() {
    let rig = Rig::attached().await;
    rig.running("other").await;
    let (connection, request) = rig.running_on_its_own("c").await;
    let wait = rig.wait("c", "");
    // As containerd does it: the connection first.
    drop(connection);
    let aside = rig.path(".bundle-c");
    std::fs::rename(&request.bundle, &aside).unwrap();
    std::fs::remove_dir_all(aside).unwrap();
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 137);
    eventually("released", || rig.sandboxer.prepared() == ["other"]).await;
    eventually("deleted", || rig.agent.holds().len() == 1).await;
    assert_eq!(code(rig.state("c", "").await), Code::NOT_FOUND);
    assert_eq!(rig.status("other").await, Status::RUNNING);
}

#[tokio::test]
async fn a_create_whose_bundle_is_removed_is_undone() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    rig.agent.hold("create");
    let (task, create) = (rig.connection().await, request.clone());
    let creating = tokio::spawn(async move { task.create(within(), &create).await });
    rig.agent.called("create c").await;
    // containerd has been killed, and its successor finds nothing it knows.
    creating.abort();
    std::fs::remove_dir_all(&request.bundle).unwrap();
    eventually("it is given up", || rig.log().contains("containerd has given it up")).await;
    rig.agent.let_go("create");
    eventually("it is undone", || rig.agent.holds().is_empty() && rig.sandboxer.prepared().is_empty()).await;
    assert_eq!(code(rig.state("c", "").await), Code::NOT_FOUND);
}

/// containerd may take its time between the end of the connection and that of the bundle: a restart of it, say.
#[tokio::test]
async fn a_bundle_removed_long_after_its_connection_closed_is_noticed() {
    let rig = Rig::attached().await;
    let (connection, request) = rig.running_on_its_own("c").await;
    let (successor, other) = rig.running_on_its_own("other").await;
    drop(connection);
    drop(successor);
    let successor = rig.connection().await;
    let connect = ConnectRequest { id: "other".into(), ..Default::default() };
    soon(successor.connect(within(), &connect)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.status("c").await, Status::RUNNING, "its bundle is there");
    std::fs::remove_dir_all(&request.bundle).unwrap();
    eventually("given up", || rig.agent.holds().len() == 1).await;
    // The bundle of a container with a caller is checked once the caller calls Shutdown for it.
    std::fs::remove_dir_all(&other.bundle).unwrap();
    assert_eq!(rig.status("other").await, Status::RUNNING);
    let shutdown = ShutdownRequest { id: "other".into(), ..Default::default() };
    soon(successor.shutdown(within(), &shutdown)).await.unwrap();
    eventually("given up, too", || rig.agent.holds().is_empty()).await;
}

#[tokio::test]
async fn an_impossible_pid_of_the_guest_fails_create() {
    let rig = Rig::attached().await;
    rig.agent.lie_about_pids();
    let refused = rig.task.create(within(), &rig.prepare("c")).await;
    assert!(text(refused).contains("makes no sense"));
    assert!(rig.agent.holds().is_empty() && rig.sandboxer.prepared().is_empty());
}

/// containerd decodes the metrics of every container of the node: their size must not depend on a guest.
#[tokio::test]
async fn metrics_of_the_guest_are_bounded() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let entry = IoEntry { rbytes: u64::MAX, ..Default::default() };
    let claimed = StatsResponse {
        cpu_usage_usec: u64::MAX,
        memory_usage: u64::MAX,
        memory_usage_limit: u64::MAX,
        memory_stat: (0..10_000).map(|number| (format!("kind {number}"), u64::MAX)).collect(),
        io: vec![entry; 100_000],
        ..Default::default()
    };
    rig.agent.claim(claimed);
    let request = StatsRequest { id: "c".into(), ..Default::default() };
    let stats = soon(rig.task.stats(within(), &request)).await.unwrap().stats.unwrap();
    assert!(stats.value.len() < 64 * 1024, "{} bytes", stats.value.len());
    let metrics = Metrics::parse_from_bytes(&stats.value).unwrap();
    let most = u64::MAX / 2 / 1000;
    assert_eq!(
        (metrics.cpu.usage_usec, metrics.memory.usage, metrics.memory.usage_limit),
        (most, most, u64::MAX)
    );
    assert_eq!((metrics.io.usage.len(), metrics.io.usage[0].rbytes), (512, most));
}

#[tokio::test]
async fn the_text_of_a_guest_that_refuses_hello_is_cut() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let wait = rig.wait("c", "");
    rig.agent.called("wait c").await;
    rig.agent.refuse_hello(format!("no\n{}", "x".repeat(100_000)));
    rig.agent.break_sessions().await;
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 137);
    let refused = text(rig.task.create(within(), &rig.prepare("late")).await);
    assert!(refused.contains("refused Hello") && refused.contains("no xxx"), "{refused}");
    assert!(refused.len() < 2000 && rig.log().len() < 20_000, "{} and {}", refused.len(), rig.log().len());
}

#[tokio::test]
async fn calls_before_attach_wait_for_it() {
    let rig = Rig::unattached().await;
    let (task, request) = (rig.task.clone(), rig.prepare("c"));
    let creating = tokio::spawn(async move { task.create(within(), &request).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    rig.attach().await.unwrap();
    soon(creating).await.unwrap().unwrap();
    rig.attach().await.unwrap();
}

/// For example when the output of a guest has filled the pod's directory.
#[tokio::test]
async fn a_full_log_ends_no_container() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("shim.stderr")).unwrap();
    let mut rig = Rig::within(dir).await;
    rig.attach().await.unwrap();
    rig.running("c").await;
    let wait = rig.wait("c", "");
    rig.agent.end("c", "", 3, false);
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 3);
    rig.delete("c", "").await.unwrap();
    assert!(rig.is_alive());
}

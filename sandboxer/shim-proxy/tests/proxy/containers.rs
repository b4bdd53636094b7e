//! The life of a container, call by call, as containerd makes them (facts 3.6 and 3.7).

use std::time::Duration;

use bulkhead_protocol::pod::Nothing;
use containerd_shim_protos::api::*;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;
use ttrpc::context::with_duration;

use crate::fake_agent::{Kind, say, say_end};
use crate::rig::{Rig, code, eventually, read_all, soon, text, within};

#[tokio::test]
async fn a_container_goes_from_create_to_delete() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    let (out, err) = (read_all(&request.stdout), read_all(&request.stderr));
    let pid = soon(rig.task.create(within(), &request)).await.unwrap().pid;
    assert!(pid > 0);
    let connected =
        rig.task.connect(within(), &ConnectRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    assert_eq!((connected.shim_pid, connected.task_pid), (rig.proxy.id(), pid));
    let wait = rig.wait("c", "");
    let state = rig.state("c", "").await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::CREATED, pid));
    assert_eq!((&state.bundle, &state.stdout), (&request.bundle, &request.stdout));
    assert_eq!(rig.start("c", "").await.unwrap(), pid);
    assert_eq!(rig.status("c").await, Status::RUNNING);
    assert!(!wait.is_finished());

    let mut stdout = rig.agent.stream("c", "", Kind::STDOUT).await;
    say(&mut stdout, b"out\n").await;
    rig.agent.end("c", "", 3, false);
    let exit = soon(wait).await.unwrap().unwrap();
    assert_eq!(exit.exit_status, 3);
    assert!(exit.exited_at.seconds > 1_600_000_000);
    say_end(stdout).await;
    say_end(rig.agent.stream("c", "", Kind::STDERR).await).await;
    assert_eq!(soon(out).await.unwrap(), b"out\n");
    assert_eq!(soon(err).await.unwrap(), b"");

    let state = rig.state("c", "").await.unwrap();
    assert_eq!((state.status.unwrap(), state.exit_status, state.pid), (Status::STOPPED, 3, pid));
    assert_eq!(state.exited_at, exit.exited_at);
    assert_eq!(soon(rig.wait("c", "")).await.unwrap().unwrap(), exit, "a late Wait answers at once");
    assert_eq!(code(rig.kill("c", "", 9, true).await), Code::NOT_FOUND);
    let pids = rig.task.pids(within(), &PidsRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    assert_eq!(pids.processes[0].pid, pid, "Pids names the init process until Delete");
    let deleted = rig.delete("c", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 3));
    assert_eq!(deleted.exited_at, exit.exited_at);
    assert_eq!(code(rig.state("c", "").await), Code::NOT_FOUND);
    assert_eq!(code(rig.delete("c", "").await), Code::NOT_FOUND);

    assert_eq!(rig.agent.holds(), []);
    assert_eq!(rig.sandboxer.prepared(), [""; 0]);
    let calls = rig.agent.calls();
    assert_eq!(calls, ["create c", "wait c", "start c", "delete c"]);
    assert_eq!(rig.sandboxer.calls(), ["prepare c", "started c", "release c"]);
    let topics = soon(rig.containerd.topics(4)).await;
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    let event = &rig.containerd.events()[2];
    assert_eq!((event.namespace.as_str(), event.type_url.as_str()), ("k8s.io", "containerd.events.TaskExit"));
    let told = TaskExit::parse_from_bytes(&event.value).unwrap();
    assert_eq!((told.container_id.as_str(), told.id.as_str(), told.exit_status), ("c", "c", 3));
}

#[tokio::test]
async fn a_second_create_of_a_known_id_is_refused() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    assert_eq!(code(rig.task.create(within(), &request).await), Code::ALREADY_EXISTS);
    assert_eq!(rig.status("c").await, Status::RUNNING);
    assert_eq!(code(rig.start("c", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(rig.delete("c", "").await), Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_create_that_fails_in_the_guest_leaves_nothing_behind() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    rig.agent.fail("create", Code::UNIMPLEMENTED);
    let failed = rig.task.create(within(), &request).await;
    assert!(text(failed.clone()).contains("as the test wishes"));
    assert_eq!(code(failed), Code::INTERNAL, "Unimplemented would make containerd fall back to version 2");
    assert_eq!(code(rig.delete("c", "").await), Code::NOT_FOUND);
    assert_eq!(rig.sandboxer.prepared(), [""; 0]);
    soon(rig.task.create(within(), &request)).await.unwrap();
    assert_eq!(rig.agent.holds().len(), 1);
}

#[tokio::test]
async fn a_create_that_fails_on_the_host_answers_the_cause() {
    let rig = Rig::attached().await;
    let mut request = rig.prepare("c");
    rig.sandboxer.fail(Code::INVALID_ARGUMENT);
    let failed = rig.task.create(within(), &request).await;
    assert!(text(failed.clone()).contains("no such image layer"));
    assert_eq!(code(failed), Code::INVALID_ARGUMENT);
    assert!(rig.agent.calls().is_empty());
    for (stdout, expected) in
        [("binary:///bin/logger", Code::INVALID_ARGUMENT), ("/nonexistent/fifo", Code::NOT_FOUND)]
    {
        request.stdout = stdout.into();
        let failed = rig.task.create(within(), &request).await;
        assert!(text(failed.clone()).contains(stdout));
        assert_eq!(code(failed), expected, "{stdout}");
    }
}

#[tokio::test]
async fn a_create_beyond_its_deadline_is_undone_and_answers_why() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    rig.sandboxer.hold(true);
    let patience = with_duration(Duration::from_secs(1));
    let late = rig.task.create(patience, &request).await;
    assert_eq!(code(late.clone()), Code::DEADLINE_EXCEEDED);
    assert!(text(late).contains("the sandboxer did not answer"), "our reason, not a bare timeout");
    eventually("undone", || rig.sandboxer.calls().contains(&"release c".to_owned())).await;
    assert_eq!(code(rig.delete("c", "").await), Code::NOT_FOUND);
    rig.sandboxer.hold(false);
    soon(rig.task.create(within(), &request)).await.unwrap();
}

#[tokio::test]
async fn a_create_whose_connection_closes_runs_to_its_end() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    rig.sandboxer.hold(true);
    let other = rig.connection().await;
    let gone = tokio::time::timeout(Duration::from_millis(300), other.create(within(), &request)).await;
    assert!(gone.is_err());
    drop(other);
    rig.sandboxer.hold(false);
    rig.agent.called("create c").await;
    let (task, again) = (rig.task.clone(), request.clone());
    let joined = soon(task.create(within(), &again)).await;
    assert!(joined.is_ok() || code(joined) == Code::ALREADY_EXISTS);
    assert_eq!(rig.sandboxer.calls().iter().filter(|call| *call == "prepare c").count(), 1);
}

#[tokio::test]
async fn a_delete_during_create_undoes_it() {
    let rig = Rig::attached().await;
    let request = rig.prepare("c");
    rig.agent.hold("create");
    let (task, create) = (rig.task.clone(), request.clone());
    let creating = tokio::spawn(async move { task.create(within(), &create).await });
    rig.agent.called("create c").await;
    let task = rig.task.clone();
    let deleting = tokio::spawn(async move {
        task.delete(within(), &DeleteRequest { id: "c".into(), ..Default::default() }).await
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(code(rig.state("c", "").await), Code::NOT_FOUND);
    rig.agent.let_go("create");
    assert_eq!(code(soon(deleting).await.unwrap()), Code::NOT_FOUND);
    assert_eq!(code(soon(creating).await.unwrap()), Code::NOT_FOUND);
    assert!(rig.agent.holds().is_empty() && rig.sandboxer.prepared().is_empty());
}

#[tokio::test]
async fn a_container_that_never_started_can_be_deleted() {
    let rig = Rig::attached().await;
    soon(rig.task.create(within(), &rig.prepare("c"))).await.unwrap();
    let wait = rig.wait("c", "");
    assert_eq!(rig.delete("c", "").await.unwrap().exit_status, 137);
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 137);
    assert!(rig.agent.holds().is_empty());
}

#[tokio::test]
async fn a_container_whose_start_failed_can_be_killed_and_deleted() {
    let rig = Rig::attached().await;
    soon(rig.task.create(within(), &rig.prepare("c"))).await.unwrap();
    rig.agent.fail("start", Code::INVALID_ARGUMENT);
    assert_eq!(code(rig.start("c", "").await), Code::INVALID_ARGUMENT);
    assert_eq!(rig.status("c").await, Status::CREATED);
    rig.kill("c", "", 9, false).await.unwrap();
    assert_eq!(soon(rig.wait("c", "")).await.unwrap().unwrap().exit_status, 137);
    rig.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn signals_are_forwarded_to_the_process() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    rig.kill("c", "", 15, false).await.unwrap();
    assert!(rig.agent.calls().contains(&"signal c  15".to_owned()), "{:?}", rig.agent.calls());
    rig.kill("c", "", 9, true).await.unwrap();
    assert_eq!(soon(rig.wait("c", "")).await.unwrap().unwrap().exit_status, 137);
    assert_eq!(code(rig.kill("nobody", "", 9, false).await), Code::NOT_FOUND);
}

#[tokio::test]
async fn pause_update_resize_and_stats_are_forwarded() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let id = || "c".to_owned();
    rig.task.pause(within(), &PauseRequest { id: id(), ..Default::default() }).await.unwrap();
    assert_eq!(rig.status("c").await, Status::PAUSED);
    rig.task.resume(within(), &ResumeRequest { id: id(), ..Default::default() }).await.unwrap();
    assert_eq!(rig.status("c").await, Status::RUNNING);
    let resources = Any { value: b"{\"cpu\":{}}".to_vec(), ..Default::default() };
    let update = UpdateTaskRequest { id: id(), resources: Some(resources).into(), ..Default::default() };
    rig.task.update(within(), &update).await.unwrap();
    let resize = ResizePtyRequest { id: id(), width: 80, height: 24, ..Default::default() };
    rig.task.resize_pty(within(), &resize).await.unwrap();
    let stats = rig.task.stats(within(), &StatsRequest { id: id(), ..Default::default() }).await.unwrap();
    assert_eq!(stats.stats.type_url, "io.containerd.cgroups.v2.Metrics");
    let metrics = Metrics::parse_from_bytes(&stats.stats.value).unwrap();
    assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (4096, u64::MAX));
    let calls = rig.agent.calls();
    for expected in ["pause c", "resume c", "update c {\"cpu\":{}}", "resize c  80x24", "stats c"] {
        assert!(calls.iter().any(|call| call == expected), "{expected} not in {calls:?}");
    }
    assert!(rig.sandboxer.calls().contains(&"update c".to_owned()));
    let checkpoint = CheckpointTaskRequest { id: id(), ..Default::default() };
    assert_eq!(code(rig.task.checkpoint(within(), &checkpoint).await), Code::UNIMPLEMENTED);
}

#[tokio::test]
async fn a_hung_guest_delays_neither_state_nor_stats() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    rig.agent.hold("stats");
    rig.agent.hold("signal");
    let started = std::time::Instant::now();
    let stats = rig.task.stats(within(), &StatsRequest { id: "c".into(), ..Default::default() }).await;
    assert_eq!(code(stats), Code::DEADLINE_EXCEEDED);
    assert!(started.elapsed() < Duration::from_secs(3));
    let patience = with_duration(Duration::from_millis(200));
    let kill = KillRequest { id: "c".into(), signal: 15, ..Default::default() };
    assert!(rig.task.kill(patience, &kill).await.is_err());
    assert_eq!(rig.status("c").await, Status::RUNNING);
}

#[tokio::test]
async fn a_create_under_way_delays_no_call_for_another_container() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let request = rig.prepare("slow");
    rig.agent.hold("create");
    let task = rig.task.clone();
    let creating = tokio::spawn(async move { task.create(within(), &request).await });
    rig.agent.called("create slow").await;
    assert_eq!(rig.status("c").await, Status::RUNNING);
    let state = rig.state("slow", "").await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::CREATED, 0));
    let pids = soon(rig.task.pids(within(), &PidsRequest { id: "c".into(), ..Default::default() })).await;
    assert_eq!(pids.unwrap().processes.len(), 1);
    rig.kill("c", "", 9, true).await.unwrap();
    assert_eq!(soon(rig.wait("c", "")).await.unwrap().unwrap().exit_status, 137);
    assert_eq!(rig.delete("c", "").await.unwrap().exit_status, 137);
    assert!(!creating.is_finished());
    rig.agent.let_go("create");
    soon(creating).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_oom_kill_is_published_before_the_exit() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let wait = rig.wait("c", "");
    rig.agent.end("c", "", 137, true);
    soon(wait).await.unwrap().unwrap();
    let events = rig.containerd.events();
    let oom = events.iter().find(|event| event.topic == "/tasks/oom").expect("told before Wait answers");
    assert_eq!(oom.type_url, "containerd.events.TaskOOM");
    assert_eq!(TaskOOM::parse_from_bytes(&oom.value).unwrap().container_id, "c");
    // containerd 2.3 asks again, by Stats of the ended container.
    rig.agent.fail("stats", Code::NOT_FOUND);
    let stats =
        rig.task.stats(within(), &StatsRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    let metrics = Metrics::parse_from_bytes(&stats.stats.value).unwrap();
    assert_eq!((metrics.memory_events.oom_kill, metrics.memory.usage_limit), (1, u64::MAX));
}

#[tokio::test]
async fn each_oom_kill_in_a_running_container_is_published_once() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    rig.agent.oom("c");
    let topics = soon(rig.containerd.topics(3)).await;
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom"]);
    rig.agent.oom("c");
    assert_eq!(soon(rig.containerd.topics(4)).await[3], "/tasks/oom");
}

#[tokio::test]
async fn shutdown_of_a_container_ends_nothing() {
    let mut rig = Rig::attached().await;
    rig.running("c").await;
    let request = ShutdownRequest { id: "c".into(), now: true, ..Default::default() };
    rig.task.shutdown(within(), &request).await.unwrap();
    assert_eq!(rig.status("c").await, Status::RUNNING);
    assert!(rig.is_alive());
}

/// containerd 2.4 calls it after the deletion of every task, the last one of a pod included.
#[tokio::test]
async fn shutdown_after_a_delete_ends_nothing() {
    let mut rig = Rig::attached().await;
    rig.running("other").await;
    for id in ["c", "other"] {
        let (connection, wait) = (rig.connection().await, rig.wait("other", ""));
        if id == "c" {
            soon(connection.create(within(), &rig.prepare(id))).await.unwrap();
            rig.start(id, "").await.unwrap();
        }
        rig.kill(id, "", 9, true).await.unwrap();
        soon(rig.wait(id, "")).await.unwrap().unwrap();
        let delete = DeleteRequest { id: id.into(), ..Default::default() };
        soon(connection.delete(within(), &delete)).await.unwrap();
        for now in [false, true] {
            let shutdown = ShutdownRequest { id: id.into(), now, ..Default::default() };
            soon(connection.shutdown(within(), &shutdown)).await.unwrap();
        }
        assert_eq!(wait.is_finished(), id == "other", "containers of others live on");
    }
    // The pod is there without containers, too: kubelet starts the next one in it.
    assert!(rig.is_alive());
    rig.running("next").await;
    assert_eq!(rig.status("next").await, Status::RUNNING);
}

#[tokio::test]
async fn the_sandboxer_observes_containers_and_shuts_the_proxy_down() {
    let mut rig = Rig::attached().await;
    let request = rig.running("c").await;
    let seen = rig.shim.observe(within(), &Nothing::new()).await.unwrap();
    assert_eq!(seen.open_connections, 1);
    let view = &seen.containers[0];
    assert_eq!((view.container_id.as_str(), view.status.as_str()), ("c", "running"));
    assert_eq!(view.bundle, request.bundle);
    let wait = rig.wait("c", "");
    while rig.agent.calls().len() < 3 || wait.is_finished() {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.shim.shutdown(within(), &Nothing::new()).await.unwrap();
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 137, "every Wait is answered first");
    let ended = std::time::Instant::now();
    while rig.is_alive() {
        assert!(ended.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(rig.proxy.wait().unwrap().success());
}

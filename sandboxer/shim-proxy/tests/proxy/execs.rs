//! Execs, call by call, as containerd makes them (fact 3.11).

use containerd_shim_protos::api::*;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;

use crate::fake_agent::{Kind, hear, say, say_end};
use crate::rig::{Rig, code, eventually, read_all, soon, within};

fn exec(rig: &Rig, exec: &str) -> ExecProcessRequest {
    let [stdin, stdout, stderr] = rig.fifos(exec);
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: br#"{"args":["true"],"cwd":"/","apparmorProfile":"cri","selinuxLabel":"x"}"#.to_vec(),
        ..Default::default()
    };
    ExecProcessRequest {
        id: "c".into(),
        exec_id: exec.into(),
        stdin,
        stdout,
        stderr,
        spec: Some(spec).into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_exec_goes_from_create_to_delete() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let request = exec(&rig, "e");
    let out = read_all(&request.stdout);
    soon(rig.task.exec(within(), &request)).await.unwrap();
    let state = rig.state("c", "e").await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid, state.exec_id.as_str()), (Status::CREATED, 0, "e"));
    assert_eq!(rig.agent.exec_spec("c", "e"), r#"{"args":["true"],"cwd":"/"}"#, "labels are the host's");
    let wait = rig.wait("c", "e");
    let pid = rig.start("c", "e").await.unwrap();
    assert!(pid > 0);
    assert_eq!(rig.state("c", "e").await.unwrap().status.unwrap(), Status::RUNNING);
    assert!(!wait.is_finished());
    assert_eq!(code(rig.delete("c", "e").await), Code::FAILED_PRECONDITION);
    let pids = rig.task.pids(within(), &PidsRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    assert_eq!(pids.processes.len(), 2);

    let mut stdout = rig.agent.stream("c", "e", Kind::STDOUT).await;
    say(&mut stdout, b"from the exec").await;
    rig.agent.end("c", "e", 7, false);
    assert_eq!(soon(wait).await.unwrap().unwrap().exit_status, 7);
    say_end(stdout).await;
    assert_eq!(soon(out).await.unwrap(), b"from the exec");
    assert_eq!(code(rig.kill("c", "e", 9, false).await), Code::NOT_FOUND);
    say_end(rig.agent.stream("c", "e", Kind::STDERR).await).await;
    let deleted = rig.delete("c", "e").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
    assert_eq!(code(rig.state("c", "e").await), Code::NOT_FOUND);
    assert_eq!(rig.status("c").await, Status::RUNNING);
    let topics = soon(rig.containerd.topics(5)).await;
    let told = ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"];
    assert_eq!(topics, told);
}

#[tokio::test]
async fn an_exec_reads_its_stdin_to_the_end() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let request = exec(&rig, "e");
    soon(rig.task.exec(within(), &request)).await.unwrap();
    rig.start("c", "e").await.unwrap();
    let mut guest = rig.agent.stream("c", "e", Kind::STDIN).await;
    let fifo = request.stdin.clone();
    let write = tokio::task::spawn_blocking(move || std::fs::write(fifo, "typed").unwrap());
    assert_eq!(soon(hear(&mut guest)).await, b"typed");
    soon(write).await.unwrap();
    let close = CloseIORequest { id: "c".into(), exec_id: "e".into(), stdin: true, ..Default::default() };
    rig.task.close_io(within(), &close).await.unwrap();
    assert_eq!(soon(hear(&mut guest)).await, b"");
}

#[tokio::test]
async fn a_terminal_has_one_output() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let request = ExecProcessRequest { terminal: true, ..exec(&rig, "e") };
    soon(rig.task.exec(within(), &request)).await.unwrap();
    let stdio = rig.agent.stdio("c", "e");
    assert!(stdio.terminal && stdio.stdin && stdio.stdout && !stdio.stderr);
    assert_eq!(rig.state("c", "e").await.unwrap().stderr, request.stderr, "State repeats what it was given");
}

#[tokio::test]
async fn an_exec_is_refused_unless_its_container_runs_and_its_id_is_free() {
    let rig = Rig::attached().await;
    assert_eq!(code(rig.task.exec(within(), &exec(&rig, "none")).await), Code::NOT_FOUND);
    soon(rig.task.create(within(), &rig.prepare("c"))).await.unwrap();
    assert_eq!(code(rig.task.exec(within(), &exec(&rig, "early")).await), Code::FAILED_PRECONDITION);
    rig.start("c", "").await.unwrap();
    let first = exec(&rig, "e");
    rig.task.exec(within(), &first).await.unwrap();
    assert_eq!(code(rig.task.exec(within(), &first).await), Code::ALREADY_EXISTS);
    rig.agent.end("c", "", 0, false);
    soon(rig.wait("c", "")).await.unwrap().unwrap();
    assert_eq!(code(rig.task.exec(within(), &exec(&rig, "late")).await), Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_failed_exec_leaves_nothing_behind() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let request = exec(&rig, "e");
    rig.agent.fail("exec", Code::INVALID_ARGUMENT);
    assert_eq!(code(rig.task.exec(within(), &request).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(rig.state("c", "e").await), Code::NOT_FOUND);
    soon(rig.task.exec(within(), &request)).await.unwrap();
    rig.agent.fail("start", Code::NOT_FOUND);
    assert_eq!(code(rig.start("c", "e").await), Code::NOT_FOUND);
    soon(rig.delete("c", "e")).await.unwrap();
    assert_eq!(rig.agent.holds().len(), 1, "the container is still there");
}

#[tokio::test]
async fn deleting_a_container_answers_the_waits_of_its_execs() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    soon(rig.task.exec(within(), &exec(&rig, "e"))).await.unwrap();
    rig.start("c", "e").await.unwrap();
    let wait = rig.wait("c", "e");
    rig.agent.called("wait c e").await;
    rig.agent.end("c", "", 0, false);
    soon(rig.wait("c", "")).await.unwrap().unwrap();
    rig.delete("c", "").await.unwrap();
    soon(wait).await.unwrap().unwrap();
}

/// Starts an exec, lets `end` begin while the start is under way, and the start succeed then.
async fn while_it_starts<T>(rig: &Rig, end: impl Future<Output = T>) -> T {
    soon(rig.task.exec(within(), &exec(rig, "e"))).await.unwrap();
    rig.agent.hold("start");
    let ending = async {
        rig.agent.called("start c e").await;
        let in_a_moment = async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            rig.agent.let_go("start");
        };
        tokio::join!(end, in_a_moment).0
    };
    let (started, ended) = tokio::join!(rig.start("c", "e"), ending);
    started.unwrap();
    ended
}

/// containerd does this when its own caller goes away: it does not wait for the start, and deletes the exec without a
/// pid.
#[tokio::test]
async fn an_exec_deleted_while_it_starts_is_killed() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let deleted = while_it_starts(&rig, rig.delete("c", "e")).await.unwrap();
    assert_eq!(deleted.exit_status, 137);
    assert_eq!(code(rig.state("c", "e").await), Code::NOT_FOUND);
    assert_eq!(rig.agent.holds().len(), 1, "the container is still there");
}

#[tokio::test]
async fn an_exec_killed_while_it_starts_gets_the_signal_once_it_runs() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    while_it_starts(&rig, rig.kill("c", "e", 9, true)).await.unwrap();
    assert_eq!(soon(rig.wait("c", "e")).await.unwrap().unwrap().exit_status, 137);
    rig.delete("c", "e").await.unwrap();
}

/// Abandons an exec as containerd does when its own caller goes away during Exec: it removes the FIFOs and calls no
/// Delete.
fn abandon(request: &ExecProcessRequest) {
    for path in [&request.stdin, &request.stdout, &request.stderr] {
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn an_exec_abandoned_while_it_is_created_is_deleted() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let request = exec(&rig, "e");
    rig.agent.hold("exec");
    let giving_up = async {
        rig.agent.called("exec c e").await;
        abandon(&request);
        rig.agent.let_go("exec");
    };
    let (made, ()) = tokio::join!(soon(rig.task.exec(within(), &request)), giving_up);
    made.unwrap();
    soon(rig.agent.called("delete c e")).await;
    eventually("it is gone", || rig.agent.holds().len() == 1).await;
    let wait = rig.wait("c", "e");
    assert!(soon(wait).await.unwrap().is_err());
    assert_eq!(rig.status("c").await, Status::RUNNING);
    soon(rig.task.exec(within(), &exec(&rig, "other"))).await.unwrap();
}

#[tokio::test]
async fn a_thousand_execs_abandoned_before_their_start_leave_nothing_behind() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", rig.proxy.id())).unwrap().count();
    let before = open();
    for round in 0..20 {
        for number in 0..50 {
            let request = exec(&rig, &format!("{round}-{number}"));
            soon(rig.task.exec(within(), &request)).await.unwrap();
            abandon(&request);
        }
        eventually("they are gone", || rig.agent.holds().len() == 1 && open() <= before).await;
    }
}

#[tokio::test]
async fn an_exec_that_is_started_late_is_not_abandoned() {
    let rig = Rig::attached().await;
    rig.running("c").await;
    soon(rig.task.exec(within(), &exec(&rig, "slow"))).await.unwrap();
    let given_up = exec(&rig, "given up");
    soon(rig.task.exec(within(), &given_up)).await.unwrap();
    abandon(&given_up);
    soon(rig.agent.called("delete c given up")).await;
    rig.start("c", "slow").await.unwrap();
}

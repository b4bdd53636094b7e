//! Calls of the Task API for what is not there, and calls that come twice.

use bulkhead_tests::cri::Cri;
use bulkhead_tests::task::Task;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::{Code, Error, Result};

use crate::stage::{Stage, stage};

fn code<T: std::fmt::Debug>(what: &str, answer: Result<T>) -> Code {
    let error = answer.expect_err(what);
    let Error::RpcStatus(status) = error else { panic!("{what}: not an answer of the other side: {error}") };
    status.code()
}

/// An OCI process that runs `script`.
fn process(script: &str) -> Any {
    let spec = serde_json::json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
    });
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: spec.to_string().into(),
        ..Any::default()
    }
}

fn exec(id: &str, exec_id: &str, script: &str) -> api::ExecProcessRequest {
    api::ExecProcessRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        spec: Some(process(script)).into(),
        ..Default::default()
    }
}

/// Every call that names a process; what it answers when that is `id` and `exec_id`.
async fn every_call(task: &Task, id: &str, exec_id: &str) -> Vec<(&'static str, Result<()>)> {
    let (client, context) = task.plain();
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    macro_rules! answer {
        ($call:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
            let request = api::$request { id: id.clone(), $($field: $value,)* ..Default::default() };
            (stringify!($call), client.$call(context.clone(), &request).await.map(drop))
        }};
    }
    vec![
        answer!(state, StateRequest { exec_id: exec_id.clone() }),
        answer!(start, StartRequest { exec_id: exec_id.clone() }),
        answer!(kill, KillRequest { exec_id: exec_id.clone(), signal: 9 }),
        answer!(resize_pty, ResizePtyRequest { exec_id: exec_id.clone(), width: 80, height: 24 }),
        answer!(close_io, CloseIORequest { exec_id: exec_id.clone(), stdin: true }),
        answer!(wait, WaitRequest { exec_id: exec_id.clone() }),
        answer!(delete, DeleteRequest { exec_id: exec_id.clone() }),
    ]
}

/// Every call that names a container alone.
async fn every_call_of_containers(task: &Task, id: &str) -> Vec<(&'static str, Result<()>)> {
    let (client, context) = task.plain();
    let (id, none) = (id.to_owned(), Any { value: b"{}".to_vec(), ..Any::default() });
    macro_rules! answer {
        ($call:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
            let request = api::$request { id: id.clone(), $($field: $value,)* ..Default::default() };
            (stringify!($call), client.$call(context.clone(), &request).await.map(drop))
        }};
    }
    vec![
        answer!(pids, PidsRequest {}),
        answer!(pause, PauseRequest {}),
        answer!(resume, ResumeRequest {}),
        answer!(update, UpdateTaskRequest { resources: Some(none).into() }),
        answer!(stats, StatsRequest {}),
        answer!(connect, ConnectRequest {}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_by_any_call() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("unknown").await;
    let main = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
    let task = Task::connect(&stage.node.pod_dir(&pod.id).join("task.sock")).await;
    let mut answers = every_call(&task, "nobody", "").await;
    answers.extend(every_call(&task, "nobody", "nothing").await);
    answers.extend(every_call(&task, &main.id, "nothing").await);
    answers.extend(every_call_of_containers(&task, "nobody").await);
    let (client, context) = task.plain();
    answers.push(("exec", client.exec(context, &exec("nobody", "e", "true")).await.map(drop)));
    for (what, answer) in answers {
        assert_eq!(code(what, answer), Code::NOT_FOUND, "{what}");
    }
    assert_eq!(stage.cri().exec(&main.id, "echo well").await, "well\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_an_exec_may_come_twice() {
    let stage = stage!(Stage::shared_vm());
    let pod = stage.cri().run_pod("doubled").await;
    let main = stage.cri().start(&pod, Cri::shell("main", "sleep 1000")).await;
    let task = Task::connect(&stage.node.pod_dir(&pod.id).join("task.sock")).await;
    let (client, context) = task.plain();
    let (id, exec_id) = (main.id.clone(), "twice".to_owned());
    let new = exec(&id, &exec_id, "exec sleep 1234");
    client.exec(context.clone(), &new).await.unwrap();
    assert_eq!(code("exec", client.exec(context.clone(), &new).await), Code::ALREADY_EXISTS);
    let start = api::StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
    client.start(context.clone(), &start).await.unwrap();
    code("a second start", client.start(context.clone(), &start).await);
    let delete = api::DeleteRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
    assert_eq!(code("delete", client.delete(context.clone(), &delete).await), Code::FAILED_PRECONDITION);
    let close =
        api::CloseIORequest { id: id.clone(), exec_id: exec_id.clone(), stdin: true, ..Default::default() };
    for _ in 0..2 {
        client.close_io(context.clone(), &close).await.unwrap();
    }
    let kill =
        api::KillRequest { id: id.clone(), exec_id: exec_id.clone(), signal: 15, ..Default::default() };
    client.kill(context.clone(), &kill).await.unwrap();
    let wait = api::WaitRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
    let ended = [client.wait(context.clone(), &wait).await, client.wait(context.clone(), &wait).await];
    assert!(ended.iter().all(|exit| exit.as_ref().unwrap().exit_status == 143), "{ended:?}");
    assert_eq!(code("kill", client.kill(context.clone(), &kill).await), Code::NOT_FOUND, "it has ended");
    assert_eq!(client.delete(context.clone(), &delete).await.unwrap().exit_status, 143);
    assert_eq!(code("delete", client.delete(context.clone(), &delete).await), Code::NOT_FOUND);
    // The name is free again.
    client.exec(context.clone(), &new).await.unwrap();
    client.delete(context.clone(), &delete).await.unwrap();
    assert_eq!(stage.cri().exec(&id, "ps -o args | grep -c '[s]leep 1234' || true").await, "0\n");
    stage.end(&pod).await;
}

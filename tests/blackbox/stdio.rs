//! Standard input, terminals, attach: through containerd's streaming server.

use bulkhead_tests::cri::Cri;
use bulkhead_tests::node::Node;
use bulkhead_tests::remote_command::{Output, Session};
use k8s_cri::v1 as api;

use crate::stage::{Stage, stage};

async fn attach(node: &Node, id: &str, tty: bool) -> String {
    let request =
        api::AttachRequest { container_id: id.into(), stdin: true, tty, stdout: true, stderr: !tty };
    node.cri().runtime().attach(request).await.unwrap().into_inner().url
}

pub(crate) async fn exec(node: &Node, id: &str, command: &[&str], tty: bool) -> String {
    let request = api::ExecRequest {
        container_id: id.into(),
        cmd: command.iter().map(|&part| part.into()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    node.cri().runtime().exec(request).await.unwrap().into_inner().url
}

/// The session is plain blocking I/O: the runtime is told so.
pub(crate) fn talk(node: &Node, url: &str, conversation: impl FnOnce(Session) -> Output) -> Output {
    tokio::task::block_in_place(|| conversation(Session::open(node, url)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_reads_stdin_to_its_end() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("stdin").await;
    let mut config = Cri::shell("cat", "wc -c; echo done");
    (config.stdin, config.stdin_once) = (true, true);
    let container = cri.start(&pod, config).await;
    let url = attach(&stage.node, &container.id, false).await;
    let much = vec![b'x'; 300_000];
    talk(&stage.node, &url, |mut session| {
        session.stdin(&much);
        session.hang_up()
    });
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 0);
    assert_eq!(container.log().stdout, "300000\ndone\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_a_terminal_of_the_right_size() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("tty").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    let url = exec(&stage.node, &container.id, &["/bin/sh"], true).await;
    let output = talk(&stage.node, &url, |mut session| {
        session.resize(101, 33);
        session
            .stdin(b"for i in $(seq 50); do [ \"$(stty size)\" = '33 101' ] && break; usleep 100000; done\n");
        session.stdin(b"echo size $(stty size) tty $(tty)\n");
        session.read_until("size 33 101 tty /dev/pts/");
        session.stdin(b"exit 3\n");
        session.finish()
    });
    assert!(output.status.contains("\"3\""), "{}", output.status);
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_an_exec_reads_stdin_to_its_end() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("pipe").await;
        let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
        let script = "head -n 1; echo err >&2; wc -c > /tmp/bytes; echo end >> /tmp/bytes";
        let url = exec(&stage.node, &container.id, &["/bin/sh", "-c", script], false).await;
        let output = talk(&stage.node, &url, |mut session| {
            session.stdin(b"one\n");
            session.read_until("one\n");
            session.stdin(&vec![b'x'; 300_000]);
            session.hang_up()
        });
        assert_eq!(output.stdout, b"one\n");
        let wait =
            "for i in $(seq 100); do grep -q end /tmp/bytes && break; usleep 100000; done; cat /tmp/bytes";
        assert_eq!(cri.exec(&container.id, wait).await, "300000\nend\n");
        stage.end(&pod).await;
    }
}

//! Exec and attach as kubelet's clients use them: over WebSocket and SPDY, with and without terminal and input; by
//! FIFOs and by containerd's streaming service.

mod load;

use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri, Pod};
use bulkhead_tests::node::Options;
use bulkhead_tests::peers::Line;
use bulkhead_tests::remote_command::{Output, Session, Transport, Wanted};
use bulkhead_tests::wait;
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use crate::stage::{Stage, stage};
use load::{Flood, execs_given_up_leave_nothing, execs_leave_nothing, log_rotation, much_output};
pub(crate) use load::{expect_flat, footprint, full};

const BOTH: [Transport; 2] = [Transport::WebSocket, Transport::Spdy];
const SOON: Duration = Duration::from_secs(60);

/// A pod with a container that runs on.
struct Streams<'a> {
    stage: &'a Stage,
    pod: Pod,
    main: Container,
}

impl<'a> Streams<'a> {
    async fn start(stage: &'a Stage) -> Self {
        let pod = stage.cri().run_pod("streams").await;
        let main = stage.cri().start(&pod, Cri::shell("main", "sleep 100000")).await;
        Self { stage, pod, main }
    }

    async fn exec(&self, transport: Transport, script: &str, wanted: Wanted) -> Session {
        let request = api::ExecRequest {
            container_id: self.main.id.clone(),
            cmd: ["/bin/sh", "-c", script].map(Into::into).to_vec(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: true,
            stderr: !wanted.tty,
        };
        let url = self.stage.cri().runtime().exec(request).await.unwrap().into_inner().url;
        self.open(transport, &url, wanted)
    }

    async fn attach(&self, transport: Transport, id: &str, wanted: Wanted) -> Session {
        let request = api::AttachRequest {
            container_id: id.into(),
            stdin: wanted.stdin,
            tty: wanted.tty,
            stdout: true,
            stderr: !wanted.tty,
        };
        let url = self.stage.cri().runtime().attach(request).await.unwrap().into_inner().url;
        self.open(transport, &url, wanted)
    }

    fn open(&self, transport: Transport, url: &str, wanted: Wanted) -> Session {
        tokio::task::block_in_place(|| Session::open_over(transport, &self.stage.node, url, wanted))
    }

    /// Waits until no process of the container has `mark` among its arguments.
    async fn expect_no_process(&self, mark: &str) {
        // The pattern does not match itself.
        let (first, rest) = mark.split_at(1);
        let count = format!("ps -o args | grep -c '[{first}]{rest}' || true");
        wait::expect(&format!("{mark} has ended"), SOON, async || {
            (self.stage.cri().exec(&self.main.id, &count).await.trim() == "0").then_some(())
        })
        .await;
    }
}

/// The session is plain blocking I/O: the runtime is told so.
fn talk(session: Session, conversation: impl FnOnce(Session) -> Output) -> Output {
    tokio::task::block_in_place(|| conversation(session))
}

#[expect(clippy::disallowed_methods, reason = "only in conversations, of which the runtime is told")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// What came on standard output, with a terminal's line ends made plain.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n")
}

async fn exec_in_every_way(streams: &Streams<'_>) {
    for transport in BOTH {
        for (stdin, tty) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = format!("{transport:?}, stdin {stdin}, tty {tty}");
            if transport == Transport::WebSocket && tty && !stdin {
                // containerd's server passes no output of these on, with no runtime.
                continue;
            }
            // Pauses: an exec without input must not end with its first output.
            let script = if stdin {
                "read a; echo got $a; usleep 300000; echo err >&2; exit 7"
            } else {
                "echo got nothing; usleep 300000; echo err >&2; usleep 300000; exit 7"
            };
            let session = streams.exec(transport, script, Wanted { stdin, tty }).await;
            let output = talk(session, |mut session| {
                if stdin {
                    session.stdin(b"something\n");
                }
                session.finish()
            });
            let got = if stdin { "got something\n" } else { "got nothing\n" };
            assert!(text(&output).contains(got), "{what}: {output:?}");
            let err = if tty { output.stdout.as_slice() } else { &output.stderr };
            assert!(String::from_utf8_lossy(err).contains("err"), "{what}: {output:?}");
            assert!(output.status.contains("\"7\""), "{what}: {}", output.status);
            if !tty {
                assert_eq!(
                    (text(&output).as_str(), output.stderr.as_slice()),
                    (got, &b"err\n"[..]),
                    "{what}"
                );
            }
        }
    }
}

/// What a client cannot say over WebSocket: its input ends, and the rest of the session goes on.
async fn stdin_ends_alone(streams: &Streams<'_>) {
    let wanted = Wanted { stdin: true, tty: false };
    let session = streams.exec(Transport::Spdy, "wc -c; usleep 300000; echo end; exit 3", wanted).await;
    let output = talk(session, |mut session| {
        session.stdin(&vec![b'x'; 1_000_000]);
        session.close_stdin();
        session.finish()
    });
    assert_eq!(text(&output), "1000000\nend\n");
    assert!(output.status.contains("\"3\""), "{}", output.status);
    // A process that leaves its input unread holds nobody up.
    let session = streams.exec(Transport::Spdy, "usleep 300000; echo bye", wanted).await;
    let output = talk(session, |mut session| {
        session.stdin(&vec![b'x'; 20_000]);
        session.finish()
    });
    assert_eq!(text(&output), "bye\n");
}

async fn attach_to_pipes(streams: &Streams<'_>) {
    let cri = streams.stage.cri();
    for (number, transport) in BOTH.into_iter().enumerate() {
        let name = format!("once{number}");
        let mut config = Cri::shell(&name, "while read a; do echo got $a; done; echo end; echo err >&2");
        (config.stdin, config.stdin_once) = (true, true);
        let container = cri.start(&streams.pod, config).await;
        let session = streams.attach(transport, &container.id, Wanted { stdin: true, tty: false }).await;
        let output = talk(session, |mut session| {
            session.stdin(b"one\n");
            session.read_until("got one");
            session.stdin(b"two\n");
            session.read_until("got two");
            if transport == Transport::Spdy {
                session.close_stdin();
                session.finish()
            } else {
                session.hang_up()
            }
        });
        assert!(text(&output).starts_with("got one\ngot two\n"), "{output:?}");
        assert_eq!(cri.wait_exit(&container.id).await.exit_code, 0);
        let log = container.log();
        assert_eq!((log.stdout.as_str(), log.stderr.as_str()), ("got one\ngot two\nend\n", "err\n"));
    }
}

/// Without `stdin_once` a client's end is not the input's, and who has no input of its own looks on.
async fn attach_again(streams: &Streams<'_>) {
    let cri = streams.stage.cri();
    for (number, transport) in BOTH.into_iter().enumerate() {
        let script = "while read a; do echo got $a; [ $a = end ] && exit 4; done; echo cut";
        let mut config = Cri::shell(&format!("again{number}"), script);
        config.stdin = true;
        let container = cri.start(&streams.pod, config).await;
        let wanted = Wanted { stdin: true, tty: false };
        for word in ["one", "two"] {
            let session = streams.attach(transport, &container.id, wanted).await;
            talk(session, |mut session| {
                session.stdin(format!("{word}\n").as_bytes());
                session.read_until(&format!("got {word}"));
                if transport == Transport::Spdy {
                    session.close_stdin();
                }
                session.hang_up()
            });
        }
        // Over WebSocket containerd ends such a session at once, with any runtime.
        let looker =
            streams.attach(Transport::Spdy, &container.id, Wanted { stdin: false, tty: false }).await;
        let speaker = streams.attach(transport, &container.id, wanted).await;
        let seen = talk(speaker, |mut speaker| {
            std::thread::scope(|scope| {
                let mut looker = looker;
                let looking = scope.spawn(move || {
                    looker.read_until("got look");
                    looker
                });
                while !looking.is_finished() {
                    speaker.stdin(b"look\n");
                    pause(Duration::from_millis(20));
                }
                speaker.stdin(b"end\n");
                drop(speaker.finish());
                looking.join().expect("the looker sees it").finish()
            })
        });
        assert_eq!(cri.wait_exit(&container.id).await.exit_code, 4);
        assert!(text(&seen).ends_with("got look\ngot end\n"), "{seen:?}");
        let log = container.log().stdout;
        assert!(log.starts_with("got one\ngot two\ngot look\n") && log.ends_with("got end\n"), "{log}");
    }
}

async fn attach_to_terminals(streams: &Streams<'_>) {
    let cri = streams.stage.cri();
    for (number, transport) in BOTH.into_iter().enumerate() {
        let name = format!("tty{number}");
        let mut config = Cri::shell(&name, "while read a; do echo size $(stty size) $a; done");
        (config.stdin, config.tty) = (true, true);
        let container = cri.start(&streams.pod, config).await;
        let wanted = Wanted { stdin: true, tty: true };
        // Twice: a client that leaves takes nothing with it.
        for (width, height) in [(77, 22), (88, 33)] {
            let session = streams.attach(transport, &container.id, wanted).await;
            talk(session, |mut session| {
                session.resize(width, height);
                // The new size comes by another way than the text.
                for _ in 0..50 {
                    session.stdin(b"text\n");
                }
                session.read_until(&format!("size {height} {width} text"));
                session.hang_up()
            });
        }
        // Without input: only looks on, and reads what comes once it is there.
        let looker = streams.attach(Transport::Spdy, &container.id, Wanted { stdin: false, tty: true }).await;
        let session = streams.attach(transport, &container.id, wanted).await;
        talk(session, |mut session| {
            std::thread::scope(|scope| {
                let mut looker = looker;
                let looking = scope.spawn(move || {
                    looker.read_until("33 88 look");
                    looker
                });
                while !looking.is_finished() {
                    session.stdin(b"look\n");
                    pause(Duration::from_millis(20));
                }
                session.stdin(b"\x04");
                drop(looking.join().expect("the looker sees it").finish());
            });
            session.finish()
        });
        assert_eq!(cri.wait_exit(&container.id).await.exit_code, 0);
    }
}

/// A client that just goes away leaves no process behind that waits for it.
async fn clients_that_disconnect(streams: &Streams<'_>) {
    for transport in BOTH {
        let wanted = Wanted { stdin: true, tty: false };
        let session = streams.exec(transport, "echo up; exec tail -n 4242", wanted).await;
        let session = tokio::task::block_in_place(|| {
            let mut session = session;
            session.read_until("up");
            session
        });
        drop(session);
        streams.expect_no_process("tail -n 4242").await;
        // And one that has nothing to read, but much to say.
        let session = streams.exec(transport, "yes 4242", Wanted { stdin: false, tty: false }).await;
        let session = tokio::task::block_in_place(|| {
            let mut session = session;
            session.read_until("4242");
            session
        });
        drop(session);
        streams.expect_no_process("yes 4242").await;
    }
}

/// Everything but the load, whatever carries the streams.
async fn every_way(streams: &Streams<'_>) {
    exec_in_every_way(streams).await;
    stdin_ends_alone(streams).await;
    attach_to_pipes(streams).await;
    attach_again(streams).await;
    attach_to_terminals(streams).await;
    clients_that_disconnect(streams).await;
    log_rotation(streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_given_up_before_their_start() {
    for options in [Options::default(), Options::streaming()] {
        let stage = stage!(Stage::vm(options));
        let streams = Streams::start(&stage).await;
        execs_given_up_leave_nothing(&streams, if full() { 1_000 } else { 100 }).await;
        stage.end(&streams.pod).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_by_containerds_streaming_service() {
    let stage = stage!(Stage::vm(Options::streaming()));
    let streams = Streams::start(&stage).await;
    every_way(&streams).await;
    let much =
        Flood { transport: Transport::WebSocket, mebibytes: if full() { 100 } else { 15 }, slow: false };
    let slow = Flood { transport: Transport::Spdy, mebibytes: if full() { 100 } else { 5 }, slow: true };
    much_output(&streams, [much, slow]).await;
    stage.end(&streams.pod).await;
}

/// containerd 2.1 never closes the connections of its streams: we do.
#[tokio::test(flavor = "multi_thread")]
async fn streaming_on_containerd_2_1_through_its_restart() {
    let mut stage = stage!(Stage::vm(Options { line: Line::V21, ..Options::streaming() }));
    let streams = Streams::start(&stage).await;
    execs_leave_nothing(&streams, 40).await;
    execs_given_up_leave_nothing(&streams, 50).await;
    stdin_ends_alone(&streams).await;
    let Streams { pod, main, .. } = streams;
    let cri = stage.cri();
    let script = "i=0; while :; do echo $i; i=$((i+1)); usleep 50000; done";
    let counter = cri.start(&pod, Cri::shell("counter", script)).await;
    let ended = cri
        .start(
            &pod,
            Cri::shell(
                "ended",
                "echo first; while ! [ -e /tmp/go ]; do usleep 50000; done; echo last; exit 5",
            ),
        )
        .await;
    let more = async |stage: &Stage| {
        let start = counter.log().stdout.lines().count();
        wait::expect("the container goes on counting", SOON, async || {
            (counter.log().stdout.lines().count() > start + 10).then_some(())
        })
        .await;
        assert_eq!(stage.cri().exec(&main.id, "echo well").await, "well\n");
    };
    more(&stage).await;
    cri.exec(&ended.id, "(sleep 3; touch /tmp/go) > /dev/null 2>&1 &").await;
    stage.node.stop_containerd(Signal::SIGTERM).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.node.start_containerd().await;
    more(&stage).await;
    // What containerd had taken of a stream and not yet written to its log went with it (docs/architecture.md).
    let log = counter.log().stdout;
    let numbers: Vec<u32> = log.lines().map(|line| line.parse().unwrap()).collect();
    let seams: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(numbers[0] == 0 && seams.len() <= 1, "lines are lost: {seams:?}");
    assert!(seams.iter().all(|pair| pair[1] > pair[0]), "lines are doubled: {seams:?}");
    let status = stage.cri().wait_exit(&ended.id).await;
    assert_eq!((status.exit_code, ended.log().stdout.as_str()), (5, "first\nlast\n"));
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_6455_and_kata_13640_streams_by_fifos() {
        let stage = stage!(Stage::shared());
        let streams = Streams::start(&stage).await;
        every_way(&streams).await;
        let much =
            Flood { transport: Transport::Spdy, mebibytes: if full() { 100 } else { 25 }, slow: false };
        let slow =
            Flood { transport: Transport::WebSocket, mebibytes: if full() { 100 } else { 5 }, slow: true };
        much_output(&streams, [much, slow]).await;
        execs_leave_nothing(&streams, if full() { 1_000 } else { 60 }).await;
        stage.end(&streams.pod).await;
    }
}

//! How much: output by the hundred mebibytes, execs by the thousand, logs that are rotated.

use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri};
use bulkhead_tests::logs::Log;
use bulkhead_tests::remote_command::{Transport, Wanted};
use bulkhead_tests::{processes, wait};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use super::{SOON, Streams, pause, talk};
use crate::stage::{Stage, VMM, control_run};

/// A mebibyte of text, in the container and here.
const MEBIBYTE: &str = "seq 1 200000 | head -c 1048576 > /tmp/mebibyte";
/// `make test` has little time; `BULKHEAD_TEST_FULL=1` gives it all: 1,000 execs, 100 MiB of output.
pub(crate) fn full() -> bool {
    std::env::var_os("BULKHEAD_TEST_FULL").is_some_and(|value| value == "1")
}

/// How much output an exec gives, and whether its reader takes its time.
pub(super) struct Flood {
    pub(super) transport: Transport,
    pub(super) mebibytes: usize,
    pub(super) slow: bool,
}

pub(super) async fn much_output(streams: &Streams<'_>, floods: [Flood; 2]) {
    let cri = streams.stage.cri();
    cri.exec(&streams.main.id, MEBIBYTE).await;
    let whole: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let mebibyte = &whole.as_bytes()[..1 << 20];
    for Flood { transport, mebibytes, slow } in floods {
        let script = format!("for i in $(seq {mebibytes}); do cat /tmp/mebibyte; done");
        let session = streams.exec(transport, &script, Wanted { stdin: false, tty: false }).await;
        let mut total = 0;
        let mut count = 0;
        let output = talk(session, |session| {
            if slow {
                pause(Duration::from_secs(2));
            }
            session.drain(|bytes| {
                total += bytes.len();
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (part, more) = rest.split_at(rest.len().min(mebibyte.len() - count));
                    assert!(part == &mebibyte[count..][..part.len()], "wrong after {count} of a mebibyte");
                    (rest, count) = (more, (count + part.len()) % mebibyte.len());
                }
                if slow && !bytes.is_empty() {
                    pause(Duration::from_micros(100));
                }
            })
        });
        assert_eq!(total, mebibytes << 20, "the end is missing");
        assert!(output.status.contains("Success"), "{}", output.status);
    }
}

pub(super) async fn log_rotation(streams: &Streams<'_>) {
    let cri = streams.stage.cri();
    let script = "i=0; while :; do echo $i; i=$((i+1)); usleep 5000; done";
    let container = cri.start(&streams.pod, Cri::shell("rotated", script)).await;
    let lines = async |path: &std::path::Path, more: usize| {
        wait::expect("lines are logged", SOON, async || {
            (Log::read(path).stdout.lines().count() > more).then_some(())
        })
        .await;
    };
    let mut whole = String::new();
    for round in 0..3 {
        lines(&container.log, 50).await;
        let old = container.log.with_extension(format!("{round}"));
        std::fs::rename(&container.log, &old).unwrap();
        let request = api::ReopenContainerLogRequest { container_id: container.id.clone() };
        cri.runtime().reopen_container_log(request).await.unwrap();
        lines(&container.log, 0).await;
        whole.push_str(&Log::read(&old).stdout);
    }
    cri.stop(&container.id, 0).await;
    cri.wait_exit(&container.id).await;
    whole.push_str(&Log::read(&container.log).stdout);
    for (index, line) in whole.lines().enumerate() {
        assert_eq!(line, index.to_string(), "a log line is lost or doubled by rotation");
    }
}

/// How many clients go at once.
const AT_ONCE: usize = 50;
/// When they go. By then containerd has asked for the exec.
const GONE_AFTER: Duration = Duration::from_millis(500);

/// What comes and goes by itself: workers of the kernel, a connection of containerd.
const NOISE: usize = 12;

/// What could pile up: descriptors of each process of the node and its mounts; tasks and open files of the guest.
pub(crate) async fn footprint(stage: &Stage, container: &Container) -> Vec<(String, usize)> {
    let mut all = Vec::new();
    for process in processes::of_node(stage.node.init()) {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).map_or(0, Iterator::count);
        all.push((process.program().to_owned(), fds));
    }
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", stage.node.init()));
    all.push(("mounts of the node".to_owned(), mounts.expect("read mounts").lines().count()));
    // Without a VM they are the machine's, where others are at work.
    if !control_run() {
        let guest = "cut -d/ -f2 /proc/loadavg | cut -d' ' -f1; cut -f1 /proc/sys/fs/file-nr";
        let guest = stage.cri().exec(&container.id, guest).await;
        let mut lines = guest.lines().map(|line| line.trim().parse().expect("a number"));
        all.push(("tasks in the guest".to_owned(), lines.next().expect("tasks")));
        all.push(("open files in the guest".to_owned(), lines.next().expect("open files")));
    }
    all.sort();
    all
}

/// Waits until the footprint is what it was, but for noise.
pub(crate) async fn expect_flat(stage: &Stage, container: &Container, before: &[(String, usize)]) {
    let mut after = Vec::new();
    let settled = wait::until(SOON, async || {
        after = footprint(stage, container).await;
        let flat = |((_, before), (_, after)): (&(String, usize), &(String, usize))| *after <= before + NOISE;
        let same = before.iter().map(|(name, _)| name).eq(after.iter().map(|(name, _)| name));
        (same && before.iter().zip(&after).all(flat)).then_some(())
    })
    .await;
    assert!(settled.is_some(), "something is left\nbefore: {before:?}\nafter: {after:?}");
}

/// Lets clients give up `count` execs while the guest makes them: containerd never heard that they exist, so it deletes
/// none of them. Nothing may be left.
pub(super) async fn execs_given_up_leave_nothing(streams: &Streams<'_>, count: usize) {
    let Streams { stage, main, .. } = streams;
    let cri = stage.cri();
    let give_up = async |_: usize| {
        let request = api::ExecSyncRequest {
            container_id: main.id.clone(),
            cmd: vec!["/bin/sleep".into(), "4444".into()],
            timeout: 0,
        };
        // No deadline that anybody is told of: the client just goes.
        let mut runtime = cri.runtime();
        let exec = tokio::time::timeout(GONE_AFTER, runtime.exec_sync(request)).await;
        assert!(exec.is_err(), "the guest does not stand still: {exec:?}");
    };
    let before = footprint(stage, main).await;
    let vmm = stage.the_one(VMM).pid;
    for start in (0..count).step_by(AT_ONCE) {
        processes::signal(vmm, Signal::SIGSTOP);
        futures::future::join_all((start..count.min(start + AT_ONCE)).map(give_up)).await;
        processes::signal(vmm, Signal::SIGCONT);
        assert_eq!(cri.exec(&main.id, "echo well").await, "well\n");
    }
    streams.expect_no_process("sleep 4444").await;
    expect_flat(stage, main, &before).await;
}

/// Runs `count` execs, four at a time; nothing may grow with them.
pub(super) async fn execs_leave_nothing(streams: &Streams<'_>, count: usize) {
    assert!(count > 2 * NOISE);
    let cri = streams.stage.cri();
    let run = async |count: usize| {
        let one = async |number: usize| {
            let text = cri.exec(&streams.main.id, &format!("echo {number}; echo err >&2")).await;
            assert_eq!(text, format!("{number}\n"));
        };
        for start in (0..count).step_by(4) {
            futures::future::join_all((start..start + 4).map(one)).await;
        }
    };
    run(8).await;
    let before = footprint(streams.stage, &streams.main).await;
    run(count).await;
    expect_flat(streams.stage, &streams.main, &before).await;
}

//! Stdio through real FIFOs (facts 4.1 to 4.5).

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use containerd_shim_protos::api::*;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::fake_agent::{Kind, hear, say, say_end};
use crate::rig::{Rig, read_all, soon, within};

/// Bytes that show where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from((n / 7 + n / 4096) % 251).unwrap()).collect()
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    let sent = pattern(1024 * 1024);
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    let bytes = sent.clone();
    let talk = tokio::spawn(async move {
        say(&mut guest, &bytes).await;
        guest
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!talk.is_finished(), "nobody reads, so the guest has to wait");
    let fifo = request.stdout.clone();
    let read = spawn_blocking(move || {
        let (mut file, mut all, mut piece) = (File::open(fifo).unwrap(), Vec::new(), vec![0; 5000]);
        loop {
            match file.read(&mut piece).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&piece[..count]),
            }
        }
    });
    let guest = soon(talk).await.unwrap();
    rig.agent.end("c", "", 0, false);
    soon(say_end(guest)).await;
    assert!(soon(read).await.unwrap() == sent);
}

#[tokio::test]
async fn a_stuck_reader_delays_neither_the_exit_nor_the_other_stream() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    let mut stdout = rig.agent.stream("c", "", Kind::STDOUT).await;
    let stuck = tokio::spawn(async move { say(&mut stdout, &[b'x'; 1024 * 1024]).await });
    let err = read_all(&request.stderr);
    let mut stderr = rig.agent.stream("c", "", Kind::STDERR).await;
    say(&mut stderr, b"still here").await;
    say_end(stderr).await;
    assert_eq!(soon(err).await.unwrap(), b"still here");
    rig.agent.end("c", "", 0, false);
    assert_eq!(soon(rig.wait("c", "")).await.unwrap().unwrap().exit_status, 0);
    assert!(!stuck.is_finished());
    stuck.abort();
}

#[tokio::test]
async fn output_is_kept_while_containerd_is_away() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    let fifo = request.stdout.clone();
    let first = spawn_blocking(move || {
        let mut piece = [0; 6];
        File::open(fifo).unwrap().read_exact(&mut piece).unwrap();
        piece
    });
    say(&mut guest, b"before").await;
    assert_eq!(&soon(first).await.unwrap(), b"before");
    // Nobody has the FIFO open now but the proxy.
    say(&mut guest, b"meanwhile").await;
    rig.agent.end("c", "", 0, false);
    soon(say_end(guest)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(soon(read_all(&request.stdout)).await.unwrap(), b"meanwhile");
    soon(rig.delete("c", "")).await.unwrap();
}

#[tokio::test]
async fn a_broken_output_is_dialled_again_and_not_ended() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    let mut out = read_all(&request.stdout);
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    say(&mut guest, b"before ").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(guest);
    let mut guest = soon(rig.agent.stream("c", "", Kind::STDOUT)).await;
    assert!(timeout(Duration::from_millis(200), &mut out).await.is_err(), "no end yet");
    say(&mut guest, b"after").await;
    rig.agent.end("c", "", 0, false);
    say_end(guest).await;
    assert_eq!(soon(out).await.unwrap(), b"before after");
}

#[tokio::test]
async fn a_broken_stdin_is_dialled_again() {
    let rig = Rig::attached().await;
    let request = rig.running("c").await;
    drop(rig.agent.stream("c", "", Kind::STDIN).await);
    let mut guest = soon(rig.agent.stream("c", "", Kind::STDIN)).await;
    let write = spawn_blocking(move || std::fs::write(request.stdin, "typed").unwrap());
    assert_eq!(soon(hear(&mut guest)).await, b"typed");
    soon(write).await.unwrap();
}

#[tokio::test]
async fn a_container_without_stdin_gets_none() {
    let rig = Rig::attached().await;
    let request = CreateTaskRequest { stdin: String::new(), ..rig.prepare("c") };
    soon(rig.task.create(within(), &request)).await.unwrap();
    let stdio = rig.agent.stdio("c", "");
    assert!(!stdio.stdin && stdio.stdout && stdio.stderr && !stdio.terminal);
}

#[tokio::test]
async fn output_is_appended_to_a_plain_file() {
    let rig = Rig::attached().await;
    let file = rig.path("output.log");
    let uri = format!("file://{}", file.display());
    let request = CreateTaskRequest { stdout: uri, stderr: String::new(), ..rig.prepare("c") };
    soon(rig.task.create(within(), &request)).await.unwrap();
    let mut guest = rig.agent.stream("c", "", Kind::STDOUT).await;
    say(&mut guest, b"into a file").await;
    say_end(guest).await;
    assert_eq!(std::fs::read(file).unwrap(), b"into a file");
}

#[tokio::test]
async fn a_guest_that_breaks_the_stream_protocol_affects_no_other_container() {
    let mut rig = Rig::attached().await;
    rig.running("bad").await;
    let request = rig.running("good").await;
    let mut stdout = rig.agent.stream("bad", "", Kind::STDOUT).await;
    stdout.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    // Input only travels the other way: bytes here are nonsense too.
    let mut stdin = rig.agent.stream("bad", "", Kind::STDIN).await;
    stdin.write_all(b"garbage").await.unwrap();
    let out = read_all(&request.stdout);
    let mut guest = rig.agent.stream("good", "", Kind::STDOUT).await;
    say(&mut guest, b"fine").await;
    rig.agent.end("good", "", 0, false);
    soon(say_end(guest)).await;
    assert_eq!(soon(out).await.unwrap(), b"fine");
    assert!(rig.is_alive());
    assert!(rig.log().contains("output ended early"));
}

//! Streams between real FIFOs and a guest that the test plays.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::stream::{END, MAX_CHUNK};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use super::deadlines::SILENT_AFTER_EXIT;
use super::fifo::{FifoReader, FifoWriter};
use super::guest_stream::GuestStream;
use super::input::{Source, input};
use super::output::{Sink, output};
use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A stream for which nobody listens when it is dialled again.
fn stream(dir: &Path, kind: Kind) -> GuestStream {
    GuestStream::new(dir.join("vsock").into(), "c", "", kind)
}

fn fifo(dir: &Path) -> PathBuf {
    let path = dir.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o700), 0).unwrap();
    path
}

/// Reads a FIFO that is opened as containerd opens it: blocking.
fn reader(path: &Path) -> JoinHandle<Vec<u8>> {
    let path = path.to_owned();
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(bytes);
    frame
}

struct Output {
    guest: UnixStream,
    phase: watch::Sender<Phase>,
    task: JoinHandle<()>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn output_to_fifo() -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path());
    let (ours, guest) = UnixStream::pair().unwrap();
    let phase = watch::Sender::new(Phase::Alive);
    let sink = Sink::Fifo(FifoWriter::open(&path).unwrap());
    let stream = stream(dir.path(), Kind::STDOUT);
    let task = tokio::spawn(output(stream, ours, sink, Deadlines::new(phase.subscribe())));
    Output { guest, phase, task, path, _dir: dir }
}

#[tokio::test]
async fn output_arrives_and_its_end_is_acknowledged_after_the_last_byte() {
    let mut it = output_to_fifo();
    let read = reader(&it.path);
    it.guest.write_all(&[chunk(b"hello "), chunk(b"world"), END.to_vec()].concat()).await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, it.guest.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
    assert_eq!(timeout(SOON, read).await.unwrap().unwrap(), b"hello world");
    timeout(SOON, it.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_opens_the_fifo_after_the_end_gets_everything() {
    let mut it = output_to_fifo();
    it.guest.write_all(&[chunk(b"last words"), END.to_vec()].concat()).await.unwrap();
    it.phase.send_replace(Phase::Ending);
    let early = timeout(Duration::from_millis(100), &mut it.task).await;
    assert!(early.is_err(), "nobody has read it yet");
    assert_eq!(timeout(SOON, reader(&it.path)).await.unwrap().unwrap(), b"last words");
    timeout(SOON, it.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_end_without_bytes_needs_no_reader() {
    let mut it = output_to_fifo();
    it.guest.write_all(&END).await.unwrap();
    timeout(SOON, it.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_full_pipe_blocks_the_guest() {
    let mut it = output_to_fifo();
    let piece = chunk(&[b'x'; 32 * 1024]);
    let mut sent = 0;
    while timeout(Duration::from_millis(200), it.guest.write_all(&piece)).await.is_ok() {
        sent += 32 * 1024;
        assert!(sent < 2 * 1024 * 1024, "nothing holds the guest back");
    }
    assert!(sent >= 64 * 1024, "the pipe itself takes 64 KiB");
}

#[tokio::test]
async fn a_broken_stream_keeps_the_fifo_while_the_process_may_live() {
    let mut it = output_to_fifo();
    it.guest.write_all(&chunk(b"before")).await.unwrap();
    let mut read = reader(&it.path);
    drop(it.guest);
    assert!(timeout(Duration::from_millis(100), &mut read).await.is_err(), "no end while the process lives");
    it.phase.send_replace(Phase::Cut);
    assert_eq!(timeout(SOON, read).await.unwrap().unwrap(), b"before");
}

#[tokio::test]
async fn an_oversized_chunk_is_refused_before_its_body() {
    let mut it = output_to_fifo();
    it.guest.write_all(&(MAX_CHUNK + 1).to_le_bytes()).await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, it.guest.read_to_end(&mut rest)).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_part_of_an_unfinished_chunk_is_delivered_when_the_vm_goes() {
    let mut it = output_to_fifo();
    let read = reader(&it.path);
    it.guest.write_all(&chunk(b"half a sentence")[..8]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    it.phase.send_replace(Phase::Cut);
    assert_eq!(timeout(SOON, read).await.unwrap().unwrap(), b"half");
    timeout(SOON, it.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broken_stream_goes_on_with_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join("vsock")).unwrap();
    let sink = Sink::File(File::create(dir.path().join("out")).unwrap());
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let phase = watch::Sender::new(Phase::Alive);
    let stream = stream(dir.path(), Kind::STDOUT);
    let task = tokio::spawn(output(stream, ours, sink, Deadlines::new(phase.subscribe())));
    let cut = [chunk(b"first "), chunk(b"second ")[..6].to_vec()].concat();
    guest.write_all(&cut).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(guest);
    let (mut guest, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let mut connect = [0; 13];
    guest.read_exact(&mut connect).await.unwrap();
    guest.write_all(b"OK 1\n").await.unwrap();
    let header: bulkhead_protocol::agent::StreamHeader =
        bulkhead_protocol::frame::read_message(&mut guest).await.unwrap();
    assert_eq!((header.container_id.as_str(), header.kind.unwrap()), ("c", Kind::STDOUT));
    // The chunk that was not taken whole is sent again.
    guest.write_all(&[chunk(b"second "), chunk(b"third"), END.to_vec()].concat()).await.unwrap();
    timeout(SOON, task).await.unwrap().unwrap();
    assert_eq!(std::fs::read(dir.path().join("out")).unwrap(), b"first second third");
}

#[tokio::test(start_paused = true)]
async fn slow_output_after_the_exit_is_cut_off() {
    let mut it = output_to_fifo();
    it.phase.send_replace(Phase::Ending);
    let started = tokio::time::Instant::now();
    let trickle = async {
        while it.guest.write_all(&chunk(b".")).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    trickle.await;
    assert!(started.elapsed() <= SILENT_AFTER_EXIT + Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn endless_output_after_the_exit_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let sink = Sink::File(File::create(dir.path().join("out")).unwrap());
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let phase = watch::Sender::new(Phase::Ending);
    let stream = stream(dir.path(), Kind::STDOUT);
    let task = tokio::spawn(output(stream, ours, sink, Deadlines::new(phase.subscribe())));
    let piece = chunk(&[b'y'; 64 * 1024]);
    while guest.write_all(&piece).await.is_ok() {}
    timeout(SOON, task).await.unwrap().unwrap();
    assert_eq!(std::fs::metadata(dir.path().join("out")).unwrap().len(), 16 * 1024 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_ends_its_output_cannot_hold_up_an_ended_process() {
    let mut it = output_to_fifo();
    it.phase.send_replace(Phase::Ending);
    let started = tokio::time::Instant::now();
    (&mut it.task).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), SILENT_AFTER_EXIT.as_secs());
}

struct Input {
    guest: UnixStream,
    hold: Option<std::os::fd::OwnedFd>,
    phase: watch::Sender<Phase>,
    task: JoinHandle<()>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn input_from_fifo() -> Input {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path());
    let (ours, guest) = UnixStream::pair().unwrap();
    let phase = watch::Sender::new(Phase::Alive);
    let (fifo, hold) = FifoReader::open(&path).unwrap();
    let stream = stream(dir.path(), Kind::STDIN);
    let task = tokio::spawn(input(stream, Source::Fifo(fifo), ours, Deadlines::new(phase.subscribe())));
    Input { guest, hold: Some(hold), phase, task, path, _dir: dir }
}

/// A FIFO opened for writing as containerd opens it.
fn writer(path: &Path) -> File {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    OpenOptions::new().write(true).custom_flags(nonblocking).open(path).unwrap()
}

async fn frame(guest: &mut UnixStream) -> Vec<u8> {
    let length = timeout(SOON, guest.read_u32_le()).await.unwrap().unwrap();
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    guest.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn stdin_survives_containerds_restart_and_ends_with_close_io() {
    let mut it = input_from_fifo();
    let mut first = writer(&it.path);
    first.write_all(b"one").unwrap();
    assert_eq!(frame(&mut it.guest).await, b"one");
    drop(first);
    let quiet = timeout(Duration::from_millis(100), it.guest.read_u8()).await;
    assert!(quiet.is_err(), "a writer that goes is no end");
    let mut second = writer(&it.path);
    second.write_all(b"two").unwrap();
    assert_eq!(frame(&mut it.guest).await, b"two");
    it.hold = None;
    let quiet = timeout(Duration::from_millis(100), it.guest.read_u8()).await;
    assert!(quiet.is_err(), "CloseIO alone is no end: containerd still holds its side");
    drop(second);
    assert_eq!(frame(&mut it.guest).await, b"");
    let waiting = timeout(Duration::from_millis(100), &mut it.task).await;
    assert!(waiting.is_err(), "the end is not acknowledged yet");
    drop(it.guest);
    timeout(SOON, it.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn stdin_stops_when_the_process_ends() {
    let it = input_from_fifo();
    it.phase.send_replace(Phase::Ending);
    timeout(SOON, it.task).await.unwrap().unwrap();
}

#[test]
fn a_path_that_is_no_fifo_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert_eq!(FifoWriter::open(&plain).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(FifoReader::open(&plain).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let absent = FifoWriter::open(&dir.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_a_guest_break_a_stream(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out");
            let sink = Sink::File(File::create(&path).unwrap());
            let (ours, mut guest) = UnixStream::pair().unwrap();
            let phase = watch::Sender::new(Phase::Cut);
            let stream = stream(dir.path(), Kind::STDOUT);
            let task = tokio::spawn(output(stream, ours, sink, Deadlines::new(phase.subscribe())));
            guest.write_all(&bytes).await.unwrap();
            drop(guest);
            timeout(SOON, task).await.unwrap().unwrap();
            // Never more than the guest sent, and never the frames' own bytes.
            let written = std::fs::read(&path).unwrap();
            assert!(written.len() + 4 <= bytes.len().max(4), "{} of {}", written.len(), bytes.len());
        });
    }
}

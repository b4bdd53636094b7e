use std::time::Duration;

use bulkhead_protocol::agent::stream_header::Kind;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{DuplexStream, Interest};

use super::*;

fn key(kind: Kind) -> StreamKey {
    StreamKey { container: "c".into(), exec: String::new(), kind }
}

struct Output {
    registry: Arc<StreamRegistry<DuplexStream>>,
    writer: Option<OwnedFd>,
    writers_gone: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Output {
    fn new() -> Self {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let end = Arc::new(crate::kernel::syscalls::watch(reader, Interest::READABLE).unwrap());
        let registry = Arc::new(StreamRegistry::default());
        let (writers_gone, receiver) = watch::channel(false);
        let task = tokio::spawn(output(Arc::clone(&registry), key(Kind::STDOUT), end, receiver));
        Self { registry, writer: Some(writer), writers_gone, task }
    }

    fn write(&self, data: &[u8]) {
        assert_eq!(rustix::io::write(self.writer.as_ref().unwrap(), data).unwrap(), data.len());
    }

    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        self.registry.offer(key(Kind::STDOUT), theirs);
        ours
    }
}

async fn frame(connection: &mut DuplexStream) -> Vec<u8> {
    let length = connection.read_u32_le().await.unwrap();
    let mut data = vec![0; length as usize];
    connection.read_exact(&mut data).await.unwrap();
    data
}

#[tokio::test]
async fn output_is_sent_in_frames_until_the_end_of_the_file() {
    let mut output = Output::new();
    output.write(b"early");
    let mut connection = output.connect();
    assert_eq!(frame(&mut connection).await, b"early");
    output.write(b"late");
    assert_eq!(frame(&mut connection).await, b"late");
    output.writer = None;
    assert_eq!(frame(&mut connection).await, b"");
}

#[tokio::test]
async fn the_connection_stays_open_after_the_end_until_the_receiver_closes() {
    let mut output = Output::new();
    output.writer = None;
    let mut connection = output.connect();
    assert_eq!(frame(&mut connection).await, b"");
    let more = tokio::time::timeout(Duration::from_millis(20), connection.read_u8()).await;
    assert!(more.is_err(), "closed before the receiver closed");
}

#[tokio::test]
async fn without_writers_the_stream_ends_with_what_is_in_the_pipe() {
    let output = Output::new();
    output.write(b"last words");
    output.writers_gone.send_replace(true);
    let mut connection = output.connect();
    assert_eq!(frame(&mut connection).await, b"last words");
    assert_eq!(frame(&mut connection).await, b"");
}

#[tokio::test]
async fn a_writer_that_outlives_its_process_cannot_keep_the_stream_open() {
    let output = Output::new();
    let full = vec![7; 64 * 1024];
    output.write(&full);
    output.writers_gone.send_replace(true);
    let mut connection = output.connect();
    assert_eq!(frame(&mut connection).await.len(), full.len());
    // Written after the end was noticed: more than the pipe could hold then.
    assert_eq!(frame(&mut connection).await, b"");
    assert!(rustix::io::write(output.writer.as_ref().unwrap(), b"x").is_err(), "the pipe is still open");
}

#[tokio::test]
async fn after_a_broken_connection_the_next_one_gets_what_was_not_sent() {
    let output = Output::new();
    let mut first = output.connect();
    output.write(b"one");
    assert_eq!(frame(&mut first).await, b"one");
    drop(first);
    output.write(b"two");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut second = output.connect();
    assert_eq!(frame(&mut second).await, b"two");
    output.writers_gone.send_replace(true);
    assert_eq!(frame(&mut second).await, b"");
    drop(second);
    let mut third = output.connect();
    assert_eq!(frame(&mut third).await, b"", "the end is said to every connection");
    assert!(!output.task.is_finished());
}

struct Input {
    reader: OwnedFd,
    connection: DuplexStream,
    registry: Arc<StreamRegistry<DuplexStream>>,
    task: tokio::task::JoinHandle<()>,
}

impl Input {
    fn new() -> Self {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let end = Arc::new(crate::kernel::syscalls::watch(writer, Interest::WRITABLE).unwrap());
        let registry = Arc::new(StreamRegistry::default());
        let (connection, theirs) = tokio::io::duplex(1 << 20);
        registry.offer(key(Kind::STDIN), theirs);
        let task = tokio::spawn(input(Arc::clone(&registry), key(Kind::STDIN), end));
        Self { reader, connection, registry, task }
    }

    async fn send(&mut self, data: &[u8]) {
        self.connection.write_u32_le(u32::try_from(data.len()).unwrap()).await.unwrap();
        self.connection.write_all(data).await.unwrap();
    }
}

async fn read_to_end(reader: OwnedFd) -> Vec<u8> {
    let file = std::fs::File::from(reader);
    let read = move || {
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut { file }, &mut all).map(|_| all)
    };
    tokio::task::spawn_blocking(read).await.unwrap().unwrap()
}

#[tokio::test]
async fn input_reaches_the_process_and_ends_with_the_zero_frame() {
    let mut input = Input::new();
    let large = vec![1; MAX_CHUNK as usize];
    input.send(b"hello ").await;
    input.send(&large).await;
    input.connection.write_all(&END).await.unwrap();
    let got = read_to_end(input.reader).await;
    assert_eq!(got.len(), 6 + large.len());
    assert_eq!(input.connection.read(&mut [0]).await.unwrap(), 0, "the end is answered by a close");
    input.task.await.unwrap();
}

#[tokio::test]
async fn a_broken_connection_does_not_end_the_input() {
    let mut input = Input::new();
    input.send(b"a").await;
    let (again, theirs) = tokio::io::duplex(64);
    drop(std::mem::replace(&mut input.connection, again));
    tokio::time::sleep(Duration::from_millis(20)).await;
    input.registry.offer(key(Kind::STDIN), theirs);
    input.send(b"b").await;
    input.connection.write_all(&END).await.unwrap();
    assert_eq!(read_to_end(input.reader).await, b"ab");
}

#[tokio::test]
async fn input_of_a_process_that_reads_no_more_is_discarded() {
    let mut input = Input::new();
    drop(std::mem::replace(&mut input.reader, std::fs::File::open("/dev/null").unwrap().into()));
    for _ in 0..40 {
        input.send(&vec![0; MAX_CHUNK as usize]).await;
    }
    input.connection.write_all(&END).await.unwrap();
    assert_eq!(input.connection.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn an_oversized_chunk_breaks_the_stream() {
    let mut input = Input::new();
    input.connection.write_u32_le(MAX_CHUNK + 1).await.unwrap();
    assert_eq!(input.connection.read(&mut [0]).await.unwrap(), 0);
    assert!(!input.task.is_finished(), "the process still waits for its input");
}

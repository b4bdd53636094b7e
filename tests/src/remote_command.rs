//! Attach and exec streams: the WebSocket remote-command protocol of Kubernetes, version 4, as far as tests need it.
//!
//! Version 4 cannot end standard input alone: hanging up ends it, and everything else of the session.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::node::Node;

/// Channels of `v4.channel.k8s.io`.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// RFC 6455 opcodes.
const BINARY: u8 = 2;
const END: u8 = 8;

/// What a session brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The final status as JSON.
    pub status: String,
}

/// An open attach or exec session.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    output: Output,
}

impl Session {
    /// Opens the URL that CRI's Attach or Exec answered.
    #[must_use]
    pub fn open(node: &Node, url: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("a plain URL of the streaming server");
        let (host, path) = rest.split_once('/').expect("a URL with a path");
        let address = host.parse().expect("the streaming server listens on an address");
        let mut stream =
            node.connect(address, Duration::from_secs(10)).expect("connect to the streaming server");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YnVsa2hlYWQtYnVsa2hlYQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("ask for the session");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("read the answer's head");
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(head.starts_with("HTTP/1.1 101"), "the streaming server refuses: {head}");
        Self { stream, output: Output::default() }
    }

    /// Sends standard input.
    pub fn stdin(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(16 * 1024) {
            self.send(STDIN, part);
        }
    }

    /// Tells the terminal's size.
    pub fn resize(&mut self, width: u16, height: u16) {
        self.send(RESIZE, format!(r#"{{"Width":{width},"Height":{height}}}"#).as_bytes());
    }

    /// Reads until standard output holds `wanted`.
    pub fn read_until(&mut self, wanted: &str) {
        while !String::from_utf8_lossy(&self.output.stdout).contains(wanted) {
            assert!(self.receive(), "the session ended before {wanted:?}: {:?}", self.output);
        }
    }

    /// Ends the session, and with it standard input.
    pub fn hang_up(mut self) -> Output {
        let end = [0x80 | END, 0x80, 0, 0, 0, 0];
        self.stream.write_all(&end).expect("end the session");
        while self.receive() {}
        self.output
    }

    /// Reads to the end of the session.
    #[must_use]
    pub fn finish(mut self) -> Output {
        while self.receive() {}
        self.output
    }

    /// One masked binary frame with a channel byte in front.
    fn send(&mut self, channel: u8, payload: &[u8]) {
        let length = payload.len() + 1;
        let mut frame = vec![0x80 | BINARY];
        match u16::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | u8::try_from(short).expect("below 126")),
            Ok(long) => {
                frame.push(0x80 | 126);
                frame.extend(long.to_be_bytes());
            }
            Err(_) => panic!("frames are cut smaller than this"),
        }
        // A mask of zeros is a mask: the protocol only wants one to be there.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(payload);
        self.stream.write_all(&frame).expect("write to the session");
    }

    /// Takes one frame in; false at the end.
    fn receive(&mut self) -> bool {
        let mut head = [0; 2];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return false,
            Err(error) => panic!("read from the session: {error}; so far {:?}", self.output),
        }
        let length = match head[1] & 0x7f {
            126 => {
                let mut long = [0; 2];
                self.stream.read_exact(&mut long).expect("read a frame's length");
                usize::from(u16::from_be_bytes(long))
            }
            127 => {
                let mut long = [0; 8];
                self.stream.read_exact(&mut long).expect("read a frame's length");
                usize::try_from(u64::from_be_bytes(long)).expect("a length that fits")
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).expect("read a frame");
        if head[0] & 0x0f == END {
            return false;
        }
        if head[0] & 0x0f == BINARY {
            self.sort(&payload);
        }
        true
    }

    fn sort(&mut self, payload: &[u8]) {
        let Some((channel, bytes)) = payload.split_first() else { return };
        match *channel {
            STDOUT => self.output.stdout.extend(bytes),
            STDERR => self.output.stderr.extend(bytes),
            ERROR => self.output.status.push_str(&String::from_utf8_lossy(bytes)),
            _ => {}
        }
    }
}

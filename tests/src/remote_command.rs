//! Attach and exec streams: the WebSocket remote-command protocol of Kubernetes, version 4, as far as tests need it.
//!
//! Version 4 cannot end standard input alone: hanging up ends it, and everything else of the session.

use crate::node::Node;
use crate::websocket::WebSocket;

/// Channels of `v4.channel.k8s.io`.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

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
    socket: WebSocket,
    output: Output,
}

impl Session {
    /// Opens the URL that CRI's Attach or Exec answered.
    #[must_use]
    pub fn open(node: &Node, url: &str) -> Self {
        Self { socket: WebSocket::open(node, url), output: Output::default() }
    }

    /// Sends standard input.
    pub fn stdin(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(16 * 1024) {
            self.socket.send(STDIN, part);
        }
    }

    /// Tells the terminal's size.
    pub fn resize(&mut self, width: u16, height: u16) {
        self.socket.send(RESIZE, format!(r#"{{"Width":{width},"Height":{height}}}"#).as_bytes());
    }

    /// Reads until standard output holds `wanted`.
    pub fn read_until(&mut self, wanted: &str) {
        while !String::from_utf8_lossy(&self.output.stdout).contains(wanted) {
            assert!(self.receive(), "the session ended before {wanted:?}: {:?}", self.output);
        }
    }

    /// Ends the session, and with it standard input.
    pub fn hang_up(mut self) -> Output {
        self.socket.say_close();
        while self.receive() {}
        self.output
    }

    /// Reads to the end of the session.
    #[must_use]
    pub fn finish(mut self) -> Output {
        while self.receive() {}
        self.output
    }

    /// Takes one message in; false at the end.
    fn receive(&mut self) -> bool {
        let Some((channel, bytes)) = self.socket.receive() else { return false };
        match channel {
            STDOUT => self.output.stdout.extend(bytes),
            STDERR => self.output.stderr.extend(bytes),
            ERROR => self.output.status.push_str(&String::from_utf8_lossy(&bytes)),
            _ => {}
        }
        true
    }
}

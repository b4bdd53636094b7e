//! Attach and exec streams: the remote-command protocol of Kubernetes, version 4, over WebSocket and over SPDY.
//!
//! Over WebSocket standard input cannot end alone: hanging up ends it, and everything else of the session.

use crate::node::Node;
use crate::spdy::Spdy;
use crate::websocket::WebSocket;

/// Channels of `v4.channel.k8s.io`; over SPDY each is a stream of its own.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Names of the channels as SPDY streams.
const NAMES: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];

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

/// How a session travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Frames with a channel byte.
    WebSocket,
    /// Streams, as `kubectl` uses by way of kubelet.
    Spdy,
}

/// Which streams a session has, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// A terminal: a size, and no standard error of its own.
    pub tty: bool,
}

#[derive(Debug)]
enum Wire {
    WebSocket(WebSocket),
    /// With the stream of each channel.
    Spdy(Spdy, Vec<(u8, u32)>),
}

/// An open attach or exec session.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    output: Output,
}

impl Session {
    /// Opens the URL that CRI's Attach or Exec answered, over WebSocket.
    #[must_use]
    pub fn open(node: &Node, url: &str) -> Self {
        Self { wire: Wire::WebSocket(WebSocket::open(node, url)), output: Output::default() }
    }

    /// Opens the URL that CRI's Attach or Exec answered.
    #[must_use]
    pub fn open_over(transport: Transport, node: &Node, url: &str, wanted: Wanted) -> Self {
        if transport == Transport::WebSocket {
            return Self::open(node, url);
        }
        let mut spdy = Spdy::open(node, url, "v4.channel.k8s.io");
        let mut streams = Vec::new();
        for (channel, there) in [
            (ERROR, true),
            (STDIN, wanted.stdin),
            (STDOUT, true),
            (STDERR, !wanted.tty),
            (RESIZE, wanted.tty),
        ] {
            if there {
                streams.push((channel, spdy.create(&[("streamtype", NAMES[usize::from(channel)])])));
            }
        }
        Self { wire: Wire::Spdy(spdy, streams), output: Output::default() }
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) {
        match &mut self.wire {
            Wire::WebSocket(socket) => socket.send(channel, bytes),
            Wire::Spdy(spdy, streams) => spdy.send(stream_of(streams, channel), bytes),
        }
    }

    /// Sends standard input.
    pub fn stdin(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(16 * 1024) {
            self.send(STDIN, part);
        }
    }

    /// Ends standard input, and nothing else; over SPDY only.
    pub fn close_stdin(&mut self) {
        match &mut self.wire {
            Wire::WebSocket(_) => panic!("version 4 cannot say that over WebSocket"),
            Wire::Spdy(spdy, streams) => spdy.finish(stream_of(streams, STDIN)),
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

    /// Gives everything that comes on standard output away instead of keeping it, to the end of the session.
    #[must_use]
    pub fn drain(mut self, mut take: impl FnMut(&[u8])) -> Output {
        loop {
            take(&std::mem::take(&mut self.output.stdout));
            if !self.receive() {
                return self.output;
            }
        }
    }

    /// Ends the session, and with it standard input.
    pub fn hang_up(mut self) -> Output {
        if let Wire::WebSocket(socket) = &mut self.wire {
            socket.say_close();
            while self.receive() {}
        }
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
        let heard = match &mut self.wire {
            Wire::WebSocket(socket) => socket.receive(),
            Wire::Spdy(spdy, streams) => spdy.receive().map(|(id, bytes)| {
                let channel = streams.iter().find(|(_, stream)| *stream == id).map(|(channel, _)| *channel);
                (channel.expect("a stream that we opened"), bytes)
            }),
        };
        let Some((channel, bytes)) = heard else { return false };
        match channel {
            STDOUT => self.output.stdout.extend(bytes),
            STDERR => self.output.stderr.extend(bytes),
            ERROR => self.output.status.push_str(&String::from_utf8_lossy(&bytes)),
            _ => {}
        }
        true
    }
}

fn stream_of(streams: &[(u8, u32)], channel: u8) -> u32 {
    let stream = streams.iter().find(|(known, _)| *known == channel);
    stream.unwrap_or_else(|| panic!("this session has no {}", NAMES[usize::from(channel)])).1
}

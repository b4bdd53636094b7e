//! CRI's PortForward through containerd's streaming server: one port over WebSocket, or many over SPDY.

use std::collections::BTreeMap;

use k8s_cri::v1::PortForwardRequest;

use crate::node::Node;
use crate::spdy::Spdy;
use crate::websocket::WebSocket;

/// Channels of the only port.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// A forwarded connection.
#[derive(Debug)]
pub struct Forwarded {
    socket: WebSocket,
    data: Vec<u8>,
    error: String,
}

impl Forwarded {
    /// Has containerd connect to a port of the pod.
    pub async fn open(node: &Node, pod: &str, port: u16) -> Self {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![i32::from(port)] };
        let answer = node.cri().runtime().port_forward(request).await;
        let url = answer.unwrap_or_else(|status| panic!("PortForward: {status:?}")).into_inner().url;
        let url = format!("{url}?port={port}");
        tokio::task::block_in_place(|| {
            let mut socket = WebSocket::open(node, &url);
            // The port comes first, on both channels.
            let mut greeted = Vec::new();
            while greeted.len() < 2 {
                let (channel, bytes) = socket.receive().expect("the session begins");
                assert_eq!(bytes, port.to_le_bytes(), "channel {channel}");
                greeted.push(channel);
            }
            greeted.sort_unstable();
            assert_eq!(greeted, [DATA, ERROR]);
            Self { socket, data: Vec::new(), error: String::new() }
        })
    }

    /// Sends bytes to the port.
    pub fn send(&mut self, bytes: &[u8]) {
        tokio::task::block_in_place(|| {
            bytes.chunks(16 * 1024).for_each(|part| self.socket.send(DATA, part));
        });
    }

    /// Waits for `length` bytes of the port; all that have come.
    pub fn receive(&mut self, length: usize) -> &[u8] {
        tokio::task::block_in_place(|| {
            while self.data.len() < length {
                assert!(self.take(), "ended after {} bytes: {}", self.data.len(), self.error);
            }
        });
        &self.data
    }

    /// What came from the port until its end, and what containerd says went wrong.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, String) {
        tokio::task::block_in_place(|| while self.take() {});
        (self.data, self.error)
    }

    fn take(&mut self) -> bool {
        let Some((channel, bytes)) = self.socket.receive() else { return false };
        match channel {
            DATA => self.data.extend(bytes),
            ERROR => self.error.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("a message on channel {other}"),
        }
        true
    }

    /// HTTP GET of `/`: the body.
    pub async fn http_get(node: &Node, pod: &str, port: u16) -> Result<String, String> {
        let mut forwarded = Self::open(node, pod, port).await;
        forwarded.send(b"GET / HTTP/1.0\r\n\r\n");
        let (answer, error) = forwarded.finish();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") && error.is_empty() => Ok(body.to_owned()),
            _ => Err(format!("{answer:?}, {error:?}")),
        }
    }
}

/// Many connections to ports of one pod in one session over SPDY, as `kubectl port-forward` has them.
#[derive(Debug)]
pub struct Session {
    spdy: Spdy,
    opened: usize,
    open: BTreeMap<u32, Part>,
    heard: BTreeMap<usize, Heard>,
}

/// Which connection a stream belongs to, and whether it is the one for what goes wrong.
#[derive(Debug, Clone, Copy)]
struct Part {
    connection: usize,
    error: bool,
}

/// What came of one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// From the port.
    pub data: Vec<u8>,
    /// What containerd says went wrong.
    pub error: String,
}

/// A connection that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    number: usize,
    stream: u32,
}

impl Session {
    /// Opens a session.
    pub async fn start(node: &Node, pod: &str) -> Self {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: Vec::new() };
        let answer = node.cri().runtime().port_forward(request).await;
        let url = answer.unwrap_or_else(|status| panic!("PortForward: {status:?}")).into_inner().url;
        let spdy = tokio::task::block_in_place(|| Spdy::open(node, &url, "portforward.k8s.io"));
        Self { spdy, opened: 0, open: BTreeMap::new(), heard: BTreeMap::new() }
    }

    /// Has containerd connect to a port of the pod.
    pub fn connect(&mut self, port: u16) -> Connection {
        let number = self.opened;
        self.opened += 1;
        let (port, request) = (port.to_string(), number.to_string());
        let [_, stream] = ["error", "data"].map(|kind| {
            let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", request.as_str())];
            let stream = tokio::task::block_in_place(|| self.spdy.create(&headers));
            self.open.insert(stream, Part { connection: number, error: kind == "error" });
            stream
        });
        self.heard.insert(number, Heard::default());
        Connection { number, stream }
    }

    /// Sends bytes to the port.
    pub fn send(&mut self, to: Connection, bytes: &[u8]) {
        tokio::task::block_in_place(|| {
            bytes.chunks(16 * 1024).for_each(|part| self.spdy.send(to.stream, part));
        });
    }

    /// What came of one connection until its end. The others go on.
    pub fn finish(&mut self, of: Connection) -> Heard {
        tokio::task::block_in_place(|| {
            while self.open.values().any(|part| part.connection == of.number) {
                let piece = self.spdy.piece().expect("the session goes on");
                let part = *self.open.get(&piece.stream).expect("a stream that we opened");
                let heard = self.heard.get_mut(&part.connection).expect("a connection that we opened");
                if part.error {
                    heard.error.push_str(&String::from_utf8_lossy(&piece.bytes));
                } else {
                    heard.data.extend(piece.bytes);
                }
                if piece.last {
                    self.open.remove(&piece.stream);
                }
            }
        });
        self.heard.remove(&of.number).expect("heard once")
    }
}

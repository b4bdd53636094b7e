//! CRI's PortForward through containerd's streaming server, one port at a time.

use k8s_cri::v1::PortForwardRequest;

use crate::node::Node;
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

//! WebSocket to containerd's streaming server, as far as `v4.channel.k8s.io` needs it: binary messages whose first byte
//! is a channel. Plain blocking I/O.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::node::Node;
use crate::wait;

/// RFC 6455 opcodes.
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// Asks for another protocol at a URL that CRI answered.
pub(crate) fn upgrade(node: &Node, method: &str, url: &str, headers: &str) -> TcpStream {
    let rest = url.strip_prefix("http://").expect("a plain URL of the streaming server");
    let (host, path) = rest.split_once('/').expect("a URL with a path");
    let address = host.parse().expect("the streaming server listens on an address");
    let mut stream = node
        .connect(address, wait::patiently(Duration::from_secs(10)))
        .expect("connect to the streaming server");
    stream.set_read_timeout(Some(wait::patiently(Duration::from_secs(60)))).expect("set a timeout");
    let request = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\n{headers}\r\n"
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
    stream
}

/// An open connection.
#[derive(Debug)]
pub struct WebSocket {
    stream: TcpStream,
}

impl WebSocket {
    /// Opens a URL that CRI answered.
    #[must_use]
    pub fn open(node: &Node, url: &str) -> Self {
        let headers = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: YnVsa2hlYWQtYnVsa2hlYQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n";
        Self { stream: upgrade(node, "GET", url, headers) }
    }

    /// One masked binary frame with a channel byte in front.
    pub fn send(&mut self, channel: u8, payload: &[u8]) {
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

    /// The next message and its channel; none at the end.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut head = [0; 2];
            match self.stream.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
                Err(error) => panic!("read from the session: {error}"),
            }
            let mut payload = vec![0; self.length(head[1] & 0x7f)];
            self.stream.read_exact(&mut payload).expect("read a frame");
            match head[0] & 0x0f {
                CLOSE => return None,
                BINARY if !payload.is_empty() => {
                    let channel = payload.remove(0);
                    return Some((channel, payload));
                }
                _ => {}
            }
        }
    }

    fn length(&mut self, short: u8) -> usize {
        match short {
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
        }
    }

    /// Says that we end; what is under way can still be received.
    pub fn say_close(&mut self) {
        let end = [0x80 | CLOSE, 0x80, 0, 0, 0, 0];
        self.stream.write_all(&end).expect("end the session");
    }
}

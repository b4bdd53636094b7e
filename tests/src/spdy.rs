//! SPDY/3.1 to containerd's streaming server, as kubelet's clients speak it: streams with headers, each direction of
//! which ends by itself. Plain blocking I/O.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::node::Node;
use crate::websocket;

/// Control frames, SPDY/3.1 section 2.6.
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const GOAWAY: u16 = 7;
/// Flag of the last frame of a direction.
const FIN: u8 = 1;

/// An open connection.
#[derive(Debug)]
pub struct Spdy {
    stream: TcpStream,
    next: u32,
    /// What came while a reply was waited for.
    early: VecDeque<Frame>,
}

/// What came.
#[derive(Debug)]
enum Frame {
    Data { stream: u32, bytes: Vec<u8>, last: bool },
    Control { kind: u16, stream: u32 },
}

/// What came on one stream.
#[derive(Debug)]
pub struct Piece {
    /// Which one.
    pub stream: u32,
    /// Bytes, possibly none.
    pub bytes: Vec<u8>,
    /// Nothing more comes.
    pub last: bool,
}

impl Spdy {
    /// Opens a URL that CRI answered.
    #[must_use]
    pub fn open(node: &Node, url: &str, protocol: &str) -> Self {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        Self { stream: websocket::upgrade(node, "POST", url, &headers), next: 1, early: VecDeque::new() }
    }

    /// Opens a stream with these headers and waits until the server has taken it.
    pub fn create(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let block = self.header_block(headers);
        // Stream, associated stream, priority, slot.
        let body = [&id.to_be_bytes()[..], &[0; 4], &[0; 2], &block].concat();
        let length = u32::try_from(body.len()).expect("a short header");
        let head = [&[0x80, 3], &SYN_STREAM.to_be_bytes()[..], &length.to_be_bytes()].concat();
        self.stream.write_all(&[head, body].concat()).expect("open a stream");
        loop {
            match self.frame() {
                Some(Frame::Control { kind: SYN_REPLY, stream }) if stream == id => return id,
                // Of the streams that are there already.
                Some(other) if !matches!(other, Frame::Control { kind: GOAWAY, .. }) => {
                    self.early.push_back(other);
                }
                other => panic!("no reply to stream {id}: {other:?}"),
            }
        }
    }

    /// Names and values in a zlib stream (RFC 1950) that goes on from block to block; nothing in it is compressed.
    fn header_block(&self, headers: &[(&str, &str)]) -> Vec<u8> {
        let number = |length: usize| u32::try_from(length).expect("a short header").to_be_bytes();
        let mut text = number(headers.len()).to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend(number(part.len()));
            text.extend(part.as_bytes());
        }
        let length = u16::try_from(text.len()).expect("a short header");
        let mut block = if self.next == 3 { vec![0x78, 0x01] } else { Vec::new() };
        // A stored block, and an empty one that flushes.
        block.push(0);
        block.extend(length.to_le_bytes());
        block.extend((!length).to_le_bytes());
        block.extend(text);
        block.extend([0, 0, 0, 0xff, 0xff]);
        block
    }

    /// Sends bytes on a stream.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) {
        self.data(stream, bytes, 0).expect("write to the session");
    }

    /// Ends our direction of a stream.
    pub fn finish(&mut self, stream: u32) {
        self.data(stream, &[], FIN).expect("write to the session");
    }

    fn data(&mut self, stream: u32, bytes: &[u8], flags: u8) -> std::io::Result<()> {
        let length = u32::try_from(bytes.len()).expect("a short frame") | u32::from(flags) << 24;
        self.stream.write_all(&[&stream.to_be_bytes()[..], &length.to_be_bytes(), bytes].concat())
    }

    /// The next bytes and their stream; none at the end of the connection.
    pub fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let Piece { stream, bytes, .. } = self.piece()?;
            if !bytes.is_empty() {
                return Some((stream, bytes));
            }
        }
    }

    /// What comes next on any stream; none at the end of the connection.
    pub fn piece(&mut self) -> Option<Piece> {
        loop {
            let frame = match self.early.pop_front() {
                Some(frame) => frame,
                None => self.frame()?,
            };
            match frame {
                Frame::Data { stream, bytes, last } => return Some(Piece { stream, bytes, last }),
                // The server resets what it is done with.
                Frame::Control { kind: RST_STREAM, stream } => {
                    return Some(Piece { stream, bytes: Vec::new(), last: true });
                }
                Frame::Control { kind: GOAWAY, .. } => return None,
                Frame::Control { .. } => {}
            }
        }
    }

    fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("read from the session: {error}"),
        }
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut bytes = vec![0; usize::try_from(word(4) & 0x00ff_ffff).expect("a length that fits")];
        self.stream.read_exact(&mut bytes).expect("read a frame");
        if head[0] & 0x80 == 0 {
            return Some(Frame::Data { stream: word(0), bytes, last: head[4] & FIN != 0 });
        }
        let stream = bytes.first_chunk().map_or(0, |id| u32::from_be_bytes(*id));
        Some(Frame::Control { kind: u16::from_be_bytes([head[2], head[3]]), stream })
    }
}

//! Streams, each on a vsock connection of its own. The host connects to [`crate::STREAM_PORT`] and sends a
//! [`crate::agent::StreamHeader`] as a message frame, which says what it is.
//!
//! # One stdio stream of one process
//!
//! Data travels one way only, guest to host for stdout and stderr, host to guest for stdin, as frames of at
//! most [`MAX_CHUNK`] bytes. A frame of length 0 is the end of the stream; the receiver answers it by closing the
//! connection, and the sender keeps its side open until then. vsock has no half-close, and a close may overtake
//! data that a slow reader has not taken yet: this way the last byte cannot be lost. A connection that closes
//! without the zero frame is a broken stream, never an end.
//!
//! Connections may come before or after the process exists; the agent keeps them until Start, and drops them when
//! the process is deleted.
//!
//! # A forwarded TCP connection
//!
//! The agent dials the port on the guest's loopback, IPv4 then IPv6, and answers with a
//! [`crate::agent::ForwardAnswer`] as a message frame; a refusal is followed by its close. Otherwise data travels both
//! ways as frames, and a frame of length 0 ends its own direction, as FIN does. When the agent has both sent its end
//! and seen the host's, it sends a second frame of length 0: everything has arrived, the host closes. A connection
//! that closes before that was reset, and so is what hangs on it.
//!
//! # A unix socket of the host
//!
//! The host keeps one stream waiting for each such socket of a container. When a client has connected, the agent says
//! so with a [`crate::agent::Knock`] as a message frame. The host dials its socket, opens the next stream to wait, and
//! answers with a [`crate::agent::ForwardAnswer`]; a refusal is followed by its close. Then both run
//! [`crate::relay::relay`].

/// Largest data frame, in bytes: one pipe buffer of Linux (pipe(7)).
pub const MAX_CHUNK: u32 = 64 * 1024;

/// The frame that ends a stream.
pub const END: [u8; 4] = 0u32.to_le_bytes();

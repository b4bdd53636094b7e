//! The format of streams, each on a vsock connection of its own. The host connects to [`crate::STREAM_PORT`] and sends
//! a [`crate::agent::StreamHeader`] as a message frame, which says which stream it is.
//!
//! # One stdio stream of one process
//!
//! Data travels one way only, guest to host for stdout and stderr, host to guest for stdin, as frames of at most
//! [`MAX_CHUNK`] bytes. A frame of length 0 is the end of the stream; the receiver answers it by closing the
//! connection, and the sender keeps its side open until then. vsock has no half-close, and a close can overtake data
//! that a slow reader has not read yet: this way the last byte cannot be lost. A connection that closes without a frame
//! of length 0 is a broken stream, not its end.
//!
//! Connections may come before or after the process exists. The agent keeps them until Start, and closes them when the
//! process is deleted.
//!
//! # A forwarded TCP connection
//!
//! The agent connects to the port on the guest's loopback, IPv4 then IPv6, and answers with a
//! [`crate::agent::ForwardAnswer`] as a message frame; after a refusal it closes. Otherwise data travels both ways as
//! frames, and a frame of length 0 ends its own direction, as FIN does. When the agent has both sent its end and got
//! the host's, it sends a second frame of length 0: everything has arrived, and the host closes. A connection that
//! closes before that was reset, and so is the forwarded connection.
//!
//! # A unix socket of the host
//!
//! The host keeps one stream open in advance for each such socket of a container. When a client has connected, the
//! agent sends a [`crate::agent::Knock`] as a message frame. The host connects to its socket, opens the next stream in
//! advance, and answers with a [`crate::agent::ForwardAnswer`]; after a refusal it closes. Then both run
//! [`crate::relay::relay`].

/// Largest data frame, in bytes: one pipe buffer of Linux (pipe(7)).
pub const MAX_CHUNK: u32 = 64 * 1024;

/// The frame that ends a stream.
pub const END: [u8; 4] = 0u32.to_le_bytes();

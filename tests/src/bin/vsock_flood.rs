//! Runs inside a guest for the bench: sends zeros to the host over vsock, as fast as they are taken.
//!
//! `vsock_flood PORT MEBIBYTES`; no output, exit status 0 when all of it was taken.

use std::io::{Error, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// As much as the agent sends in a frame.
const PIECE: usize = 64 * 1024;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).map(|word| word.parse::<u32>());
    let (Some(Ok(port)), Some(Ok(mebibytes))) = (args.next(), args.next()) else {
        eprintln!("usage: vsock_flood PORT MEBIBYTES");
        return ExitCode::from(2);
    };
    match flood(port, mebibytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn flood(port: u32, mebibytes: u32) -> Result<(), Error> {
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(nix::libc::VMADDR_CID_HOST, port))?;
    let mut stream = std::fs::File::from(socket);
    let zeros = vec![0; PIECE];
    for _ in 0..mebibytes.saturating_mul(16) {
        stream.write_all(&zeros)?;
    }
    Ok(())
}

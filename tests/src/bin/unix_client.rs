//! Runs inside containers: a client of a unix socket.
//!
//! `unix_client PATH [COUNT]`: connects, says what comes on stdin and its end, prints the answer; COUNT times.
//! `unix_client PATH hold`: connects, prints `connected`, and `closed` when the server has closed.

use std::io::{Error, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_default();
    let done = match args.next().as_deref() {
        Some("hold") => hold(&path),
        count => talk(&path, count.and_then(|count| count.parse().ok()).unwrap_or(1_u32)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn talk(path: &str, count: u32) -> Result<(), Error> {
    let mut question = Vec::new();
    std::io::stdin().read_to_end(&mut question)?;
    for _ in 0..count {
        let mut socket = UnixStream::connect(path)?;
        socket.write_all(&question)?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        std::io::stdout().write_all(&answer)?;
    }
    Ok(())
}

fn hold(path: &str) -> Result<(), Error> {
    let mut socket = UnixStream::connect(path)?;
    println!("connected");
    socket.read_to_end(&mut Vec::new())?;
    println!("closed");
    Ok(())
}

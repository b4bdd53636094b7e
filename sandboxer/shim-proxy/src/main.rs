//! `containerd-shim-bulkhead-v2`, the shim proxy: one small process for each pod, between containerd and the guest.
//!
//! | folder | what |
//! |---|---|
//! | [`command`] | the command line, containerd's shim protocol among it |
//! | [`serve`], [`service`] | the servers: Task API and stdio streams for containerd, control for the sandboxer |
//! | [`pod`] | containers and execs, owned by one task; the work that follows a call |
//! | [`lifecycle`] | the state machine of a process, as a pure function |
//! | [`stdio`] | copies between containerd's FIFOs or streams and the guest's; the stream registry |
//! | [`portforward`] | forwards localhost of the pod's network namespace into the guest |
//! | [`host_sockets`] | connects clients in the guest to unix sockets of the host |
//! | [`guest`] | the guest: session with its agent, its ports, its VMM, bounds of its answers |
//! | [`host`] | peers that are called: the sandboxer, containerd's event service |
//! | [`runtime`] | message passing, tasks that outlive their callers, times, the log, traces, sockets |
//! | [`sys`] | the only place with `unsafe` |
//! | [`error`] | errors of Task calls and their RPC codes |

mod command;
mod error;
mod guest;
mod host;
mod host_sockets;
mod lifecycle;
mod pod;
mod portforward;
mod runtime;
mod serve;
mod service;
mod stdio;
mod sys;

use std::io::Write;
use std::process::ExitCode;

use command::argv::{self, Command};
use command::{delete, info};
use runtime::logging;

/// Exit code for a command line that is not understood.
const USAGE: u8 = 2;

/// The answer to `start`.
const NO_START: &str = "containerd-shim-bulkhead-v2 serves only runtimes with `sandboxer = \"bulkhead\"` in \
containerd's configuration (containerd 2.x), where the shim is never started by containerd itself; see \
Bulkhead's README";

fn main() -> ExitCode {
    match argv::parse(std::env::args().skip(1)) {
        Ok(command) => run(command),
        Err(error) => fail(&error, USAGE),
    }
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(args) => {
            logging::init(&args.log_level);
            match serve::serve(args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = bulkhead_protocol::error::chain(&error), "cannot serve");
                    ExitCode::FAILURE
                }
            }
        }
        Command::Delete(args) => print(&delete::answer(&args)),
        Command::Info => match info::runtime_info() {
            Ok(info) => print(&info),
            Err(error) => fail(&error, 1),
        },
        Command::Version => print(info::version().as_bytes()),
        Command::Start => fail(&NO_START, 1),
    }
}

fn print(bytes: &[u8]) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // When stderr is closed there is nobody to tell.
    drop(writeln!(std::io::stderr(), "{error}"));
    ExitCode::from(code)
}

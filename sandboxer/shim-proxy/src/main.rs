//! `containerd-shim-bulkhead-v2`, the shim proxy: one small process for each pod, between containerd and the guest.
//!
//! | folder | what |
//! |---|---|
//! | [`command`] | the command line, containerd's shim protocol among it |
//! | [`serve`], [`service`] | the servers: Task API and stdio streams for containerd, control for the sandboxer |
//! | [`pod`], [`lifecycle`] | containers and execs; the state machine that decides, the actions that follow |
//! | [`stdio`] | copies between containerd's FIFOs or streams and the guest's |
//! | [`portforward`] | leads localhost of the pod's network namespace into the guest |
//! | [`host_sockets`] | leads clients in the guest to unix sockets of the host |
//! | [`guest`] | the guest: session with its agent, its ports, its VMM, bounds of its answers |
//! | [`host`] | peers that are called: the sandboxer, containerd's event service |
//! | [`runtime`] | tasks that outlive their callers, times, the log, traces, sockets |
//! | [`sys`] | the one place with `unsafe` |
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

/// Exit code for a command line that cannot be followed.
const USAGE: u8 = 2;

/// What `start` is answered with.
const NO_START: &str = "containerd-shim-bulkhead-v2 serves only runtimes with `sandboxer = \"bulkhead\"` in \
containerd's configuration (containerd 2.x), where the shim is never started by containerd itself; see \
Bulkhead's README";

fn main() -> ExitCode {
    match argv::parse(std::env::args().skip(1)) {
        Ok(command) => run(command),
        Err(error) => complain(&error, USAGE),
    }
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(args) => {
            logging::init(&args.log_level);
            match serve::serve(args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = error::chain(&error), "cannot serve");
                    ExitCode::FAILURE
                }
            }
        }
        Command::Delete(args) => print(&delete::answer(&args)),
        Command::Info => match info::runtime_info() {
            Ok(info) => print(&info),
            Err(error) => complain(&error, 1),
        },
        Command::Version => print(info::version().as_bytes()),
        Command::Start => complain(&NO_START, 1),
    }
}

fn print(bytes: &[u8]) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // Nobody to tell when stderr is closed.
    drop(writeln!(std::io::stderr(), "{error}"));
    ExitCode::from(code)
}

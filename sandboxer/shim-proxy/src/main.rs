//! `containerd-shim-bulkhead-v2`, the shim proxy: one small process for each pod, between containerd and the guest.
//!
//! | module | what |
//! |---|---|
//! | [`argv`], [`delete`], [`info`] | the command line, containerd's shim protocol |
//! | [`serve`], [`connections`] | the two servers: for containerd, and for the sandboxer |
//! | [`task_service`], [`streaming_service`], [`shim_service`] | Task API and stdio streams for containerd, control for the sandboxer |
//! | [`pod`], [`lifecycle`] | containers and execs; the state machine that decides, the actions that follow |
//! | [`stdio`] | containerd's FIFOs or streams, and the guest's |
//! | [`forward`] | port-forward: localhost of the pod's network namespace, led into the guest |
//! | [`sockets`] | unix sockets of the host, led to from the guest |
//! | [`guest`] | what a guest's answers may hold when they go on |
//! | [`agent`], [`dial`], [`control`], [`events`] | links: guest agent, guest ports, sandboxer, containerd's events |
//! | [`vmm`], [`callers`] | what is watched: the VMM process, and who of containerd is connected |

mod agent;
mod argv;
mod callers;
mod clock;
mod connections;
mod control;
mod delete;
mod dial;
mod error;
mod events;
mod flight;
mod forward;
mod guest;
mod info;
mod lifecycle;
mod lock;
mod logging;
mod pod;
mod serve;
mod shim_service;
mod sockets;
mod stdio;
mod streaming_service;
mod sys;
mod task_service;
mod trace;
mod vmm;
mod watched;

use std::io::Write;
use std::process::ExitCode;

use argv::Command;

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

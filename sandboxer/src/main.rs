//! The resident service of a node: runs every Kubernetes pod in its own microVM, for an unmodified containerd.
//!
//! This file only puts the parts together: arguments, settings, log, runtime, service.

mod args;
mod caller_limits;
mod containerd_config;
mod controller;
mod exporter;
mod logging;
mod metrics;
mod orphans;
mod pod_config;
mod pods;
mod runtime_class;
mod service;
mod sockets;
mod status;
mod traces;
mod update;

use std::io::Write;
use std::process::ExitCode;

use bulkhead_config::Settings;
use bulkhead_protocol::error::chain;
use clap::Parser;

use crate::args::Args;

/// The settings are wrong: trying again is useless before they are changed.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(faults) => return end(&faults.to_string(), BAD_SETTINGS),
    };
    if args.check_config {
        say("ok\n")
    } else if args.print_config {
        print(&settings)
    } else if args.print_runtimeclass {
        say(&runtime_class::manifest(&settings))
    } else if args.print_containerd {
        say(&containerd_config::drop_in(&settings))
    } else {
        run(settings)
    }
}

fn print(settings: &Settings) -> ExitCode {
    match settings.to_toml() {
        Ok(text) => say(&text),
        Err(error) => end(&format!("the settings cannot be printed: {error}"), BAD_SETTINGS),
    }
}

fn run(settings: Settings) -> ExitCode {
    // One thread: actors, services and their clients wait far more than they work.
    match actix::System::new().block_on(logged(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(&chain(&error), 1),
    }
}

async fn logged(settings: Settings) -> Result<(), service::ServiceError> {
    let traces = traces::Traces::start(&settings.traces);
    logging::start(&settings.sandboxer, traces.as_ref().ok().and_then(Option::as_ref));
    let traces = traces.unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "no traces");
        None
    });
    let ended = service::run(settings).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    ended
}

fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_nobody_reads) => ExitCode::FAILURE,
    }
}

fn end(text: &str, code: u8) -> ExitCode {
    eprintln!("{text}");
    ExitCode::from(code)
}

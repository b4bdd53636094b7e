//! What runs in a helper process.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use bulkhead_protocol::error::chain;
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use oci_spec::runtime::{Process, Spec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::workload::{self, Workload};
use super::{FILTER_FILE, Job, PROCESS_FILE, Report, SPEC_FILE, STATE_DIR, encode};
use crate::cgroup::Cgroup;

/// File descriptor of the report pipe, beside stdin, stdout and stderr. Given as the first argument.
const REPORT_ARGUMENT: &str = "--report=";

/// The argument that names the report pipe.
pub(super) fn report_argument(fd: i32) -> String {
    format!("{REPORT_ARGUMENT}{fd}")
}

/// Does the job that the command line names. None: it names none.
pub(crate) fn run(args: &[String]) -> Option<ExitCode> {
    let (first, rest) = args.split_first()?;
    if Job::from_args(args) == Some(Job::Pause) {
        return Some(pause());
    }
    let fd = first.strip_prefix(REPORT_ARGUMENT)?;
    let job = Job::from_args(rest)?;
    let cmdline = std::fs::read_to_string(crate::boot::cmdline::PATH).unwrap_or_default();
    crate::boot::log::init(crate::boot::cmdline::log_level(&cmdline));
    if let Err(error) = crate::kernel::syscalls::heed_sigpipe() {
        tracing::warn!(%error, "processes that this helper makes ignore SIGPIPE");
    }
    let report = std::panic::catch_unwind(|| perform(&job)).unwrap_or_else(|_| {
        Err(format!("the helper crashed doing {job:?}, the guest's console has the details"))
    });
    let pipe = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
    let sent = pipe.and_then(|mut pipe| pipe.write_all(&encode(&report)));
    Some(if sent.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn perform(job: &Job) -> Report {
    match job {
        Job::CreateContainer { id, bundle, console } => {
            create(id, bundle, console.as_deref()).map_err(|error| chain(&error))
        }
        Job::Exec { id, bundle, console } => {
            exec(id, bundle, console.as_deref()).map_err(|error| chain(&error))
        }
        Job::PidNamespace => pid_namespace().map_err(|error| chain(&error)),
        Job::Pause => Err("pause is no job of a helper".to_owned()),
    }
}

fn builder(id: &str, console: Option<&Path>) -> Result<ContainerBuilder, LibcontainerError> {
    ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(STATE_DIR)?
        .with_console_socket(console)
        .validate_id()
}

fn create(id: &str, bundle: &Path, console: Option<&Path>) -> Result<u32, MakeError> {
    let spec_file = bundle.join(SPEC_FILE);
    let mut spec: Spec = read(&spec_file)?;
    write(&bundle.join(FILTER_FILE), &workload::filter(&spec))?;
    let workload = Workload::of_init(&mut spec);
    write(&spec_file, &spec)?;
    let builder = builder(id, console).map_err(MakeError::Build)?.with_executor(workload);
    let made = builder.as_init(bundle).with_systemd(false).with_detach(true).build();
    let container = made.map_err(MakeError::Build)?;
    Ok(container.pid().map_or(0, |pid| pid.as_raw().unsigned_abs()))
}

fn exec(id: &str, bundle: &Path, console: Option<&Path>) -> Result<u32, MakeError> {
    let process_file = bundle.join(PROCESS_FILE);
    let mut process: Process = read(&process_file)?;
    let workload = Workload::of_exec(read(&bundle.join(FILTER_FILE))?, &mut process);
    write(&process_file, &process)?;
    let builder = builder(id, console).map_err(MakeError::Build)?.with_executor(workload);
    let init = Container::load(Path::new(STATE_DIR).join(id)).map_err(MakeError::Build)?.pid();
    let below = init.and_then(|init| Cgroup::of(id).subgroup_for_exec(init.as_raw().unsigned_abs()));
    let tenant = builder.as_tenant().with_process(Some(process_file)).with_sub_cgroup(below);
    let made = tenant.with_detach(true).build();
    Ok(made.map_err(MakeError::Build)?.as_raw().unsigned_abs())
}

/// A container or exec could not be created.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Build(LibcontainerError),
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), MakeError> {
    let text = serde_json::to_vec(value).map_err(std::io::Error::from);
    text.and_then(|text| std::fs::write(path, text))
        .map_err(|source| MakeError::Write { path: path.to_owned(), source })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, MakeError> {
    let parsed = std::fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    parsed.map_err(|source| MakeError::Read { path: path.to_owned(), source })
}

/// Makes a pid namespace: the first child after unshare(2) is its init process.
fn pid_namespace() -> std::io::Result<u32> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let child = Command::new("/proc/self/exe").arg0("pause").args(Job::Pause.args()).spawn()?;
    Ok(child.id())
}

/// Runs as init process of a pid namespace: reaps orphans, for ever.
fn pause() -> ExitCode {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    if children.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        if children.wait().is_err() {
            return ExitCode::FAILURE;
        }
    }
}

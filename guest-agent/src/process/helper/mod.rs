//! Short-lived helpers: this binary executed again, single-threaded.
//!
//! libcontainer must not run inside the agent: its raw clone hangs in a process with threads, it changes working
//! directory, oom_score_adj and dumpability of its process, and it waits for its own children. A helper does one job,
//! sends one [`Report`] through an inherited pipe and exits. The process that it has made is then a child of PID 1.

mod child;
mod launch;
mod workload;

use std::path::PathBuf;

pub(crate) use child::run;
pub(crate) use launch::{LaunchError, Launched, Stdio, launch, null};

/// Directory of libcontainer's state, with a directory for each container.
pub(crate) const STATE_DIR: &str = "/run/bulkhead/state";

/// File of a bundle: the container's OCI spec.
pub(crate) const SPEC_FILE: &str = "config.json";
/// File of a bundle: the container's seccomp filter, or null. The helper takes it out of the spec, and execs need it.
const FILTER_FILE: &str = "seccomp.json";
/// File of a bundle: the OCI `process` object of the exec that is being started.
pub(crate) const PROCESS_FILE: &str = "process.json";

/// What a helper does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// Creates a container from the bundle directory's config.json; its init process waits for the start.
    CreateContainer { id: String, bundle: PathBuf, console: Option<PathBuf> },
    /// Runs the bundle directory's process.json (OCI `process` object) in a container.
    Exec { id: String, bundle: PathBuf, console: Option<PathBuf> },
    /// Makes a pid namespace; the reported process is its init process.
    PidNamespace,
    /// Runs as init process of a pid namespace. Not a helper: it reports nothing and does not exit.
    Pause,
}

impl Job {
    fn args(&self) -> Vec<String> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let console = |console: &Option<PathBuf>| console.as_ref().map(text).unwrap_or_default();
        match self {
            Job::CreateContainer { id, bundle, console: socket } => {
                vec!["create".into(), id.clone(), text(bundle), console(socket)]
            }
            Job::Exec { id, bundle, console: socket } => {
                vec!["exec".into(), id.clone(), text(bundle), console(socket)]
            }
            Job::PidNamespace => vec!["pid-namespace".into()],
            Job::Pause => vec!["pause".into()],
        }
    }

    /// The job that these arguments name, if any.
    fn from_args(args: &[String]) -> Option<Self> {
        let console = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
        match args {
            [job, id, bundle, socket] if job == "create" => {
                Some(Job::CreateContainer { id: id.clone(), bundle: bundle.into(), console: console(socket) })
            }
            [job, id, bundle, socket] if job == "exec" => {
                Some(Job::Exec { id: id.clone(), bundle: bundle.into(), console: console(socket) })
            }
            [job] if job == "pid-namespace" => Some(Job::PidNamespace),
            [job] if job == "pause" => Some(Job::Pause),
            _ => None,
        }
    }
}

/// What a helper reports: the pid of the process that it made, or why it made none.
pub(crate) type Report = Result<u32, String>;

/// A report as bytes for the pipe: length (u32, little-endian), one byte for the kind, pid or text.
fn encode(report: &Report) -> Vec<u8> {
    let (kind, body) = match report {
        Ok(pid) => (b'p', pid.to_string()),
        Err(text) => (b'e', text.clone()),
    };
    let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
    let mut frame = length.to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(body.as_bytes());
    frame
}

/// The report in what has come through the pipe so far; none while it is not complete.
fn decode(bytes: &[u8]) -> Option<Report> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let body = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let (kind, text) = body.split_first()?;
    let text = String::from_utf8_lossy(text).into_owned();
    Some(match (kind, text.parse()) {
        (b'p', Ok(pid)) => Ok(pid),
        (_, _) => Err(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_the_same_after_the_command_line() {
        let jobs = [
            Job::CreateContainer { id: "c".into(), bundle: "/b".into(), console: None },
            Job::CreateContainer { id: "c".into(), bundle: "/b".into(), console: Some("/s".into()) },
            Job::Exec { id: "c".into(), bundle: "/b".into(), console: Some("/s".into()) },
            Job::PidNamespace,
            Job::Pause,
        ];
        for job in jobs {
            assert_eq!(Job::from_args(&job.args()), Some(job));
        }
        assert_eq!(Job::from_args(&["create".into()]), None);
        assert_eq!(Job::from_args(&[]), None);
    }

    #[test]
    fn a_report_is_decoded_only_when_complete() {
        for report in [Ok(1234), Err("no such file".to_owned()), Err(String::new())] {
            let wire = encode(&report);
            for cut in 0..wire.len() {
                assert_eq!(decode(&wire[..cut]), None);
            }
            assert_eq!(decode(&wire), Some(report));
        }
    }
}

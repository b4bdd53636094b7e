//! The last steps of a new process, taken in the process itself: what libcontainer leaves out.
//!
//! libcontainer gives no seccomp filter to an exec, and takes only programs that everybody may execute. Loading a
//! filter takes CAP_SYS_ADMIN unless no_new_privs is set (seccomp(2)), so an exec without it keeps its capabilities
//! until the filter is there, and drops them here.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use libcontainer::{capabilities, seccomp};
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, Spec};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::status;

/// Where programs are looked for when the environment does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What runs in the new process before its program does.
#[derive(Debug, Clone, Default)]
pub(super) struct Workload {
    /// Filter to load. A container's own is libcontainer's affair.
    filter: Option<LinuxSeccomp>,
    /// Capabilities to go down to once the filter is loaded, where libcontainer was kept from it.
    capabilities: Option<LinuxCapabilities>,
}

/// A program that cannot be started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ProgramError {
    #[error("process has no arguments, so there is nothing to execute")]
    NoArguments,
    #[error("executable '{0}' not found in $PATH")]
    NotInPath(String),
    #[error("executable '{path}' cannot be executed: {reason}")]
    NotExecutable { path: PathBuf, reason: rustix::io::Errno },
}

impl Workload {
    /// Of an exec in a container with this spec. Takes out of `process` what is done here instead.
    pub(super) fn of_exec(container: &Spec, process: &mut Process) -> Self {
        let Some(filter) = container.linux().as_ref().and_then(|linux| linux.seccomp().clone()) else {
            return Self::default();
        };
        let keeps = process.no_new_privileges() != Some(true);
        let capabilities = if keeps { process.capabilities().clone() } else { None };
        if keeps {
            process.set_capabilities(None);
        }
        Self { filter: Some(filter), capabilities }
    }

    fn confine(&self) -> Result<(), ExecutorValidationError> {
        if let Some(filter) = &self.filter {
            seccomp::initialize_seccomp(filter)
                .map_err(|error| refused("load the seccomp filter", &error))?;
        }
        if let Some(kept) = &self.capabilities {
            let syscall = SyscallType::default().create_syscall();
            capabilities::drop_privileges(kept, syscall.as_ref())
                .map_err(|error| refused("drop capabilities", &error))?;
        }
        Ok(())
    }
}

fn refused(act: &str, error: &dyn std::error::Error) -> ExecutorValidationError {
    ExecutorValidationError::ArgValidationError(format!("{act}: {}", status::chain(error)))
}

impl Executor for Workload {
    /// The last chance to say why nothing will run.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.confine()?;
        let found = arguments(spec).and_then(|args| program(args, &search_path(spec)));
        found.map(drop).map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        libcontainer::workload::default::DefaultExecutor {}.setup_envs(envs)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| ExecutorError::Execution(error);
        let args = arguments(spec).map_err(|error| failed(error.into()))?;
        let program = program(args, &search_path(spec)).map_err(|error| failed(error.into()))?;
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|error| failed(error.into()));
        let path = text(program.as_os_str().as_encoded_bytes())?;
        let args: Vec<CString> = args.iter().map(|arg| text(arg.as_bytes())).collect::<Result<_, _>>()?;
        // Returns only on failure.
        let Err(errno) = nix::unistd::execv(&path, &args);
        Err(failed(ProgramError::NotExecutable { path: program, reason: as_rustix(errno) }.into()))
    }
}

fn as_rustix(errno: nix::errno::Errno) -> rustix::io::Errno {
    rustix::io::Errno::from_raw_os_error(errno as i32)
}

fn arguments(spec: &Spec) -> Result<&[String], ProgramError> {
    let args = spec.process().as_ref().and_then(|process| process.args().as_deref());
    args.filter(|args| !args.is_empty()).ok_or(ProgramError::NoArguments)
}

fn search_path(spec: &Spec) -> String {
    let env = spec.process().as_ref().and_then(|process| process.env().as_deref()).unwrap_or_default();
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    path.unwrap_or(USUAL_PATH).to_owned()
}

/// The file that a command line names, as the calling process may execute it: its effective ids count.
fn program(args: &[String], search: &str) -> Result<PathBuf, ProgramError> {
    let name = args.first().ok_or(ProgramError::NoArguments)?;
    if name.contains('/') {
        return executable(Path::new(name))
            .map(|()| PathBuf::from(name))
            .map_err(|reason| ProgramError::NotExecutable { path: name.into(), reason });
    }
    let mut forbidden = None;
    for dir in search.split(':') {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(reason @ rustix::io::Errno::ACCESS) => {
                forbidden.get_or_insert(ProgramError::NotExecutable { path, reason });
            }
            Err(_not_here) => {}
        }
    }
    Err(forbidden.unwrap_or_else(|| ProgramError::NotInPath(name.clone())))
}

fn executable(path: &Path) -> Result<(), rustix::io::Errno> {
    let stat = rustix::fs::stat(path)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(rustix::io::Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn process(json: &str) -> Process {
        serde_json::from_str(json).unwrap()
    }

    const FILTERED: &str =
        r#"{"ociVersion": "1.2.0", "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}"#;
    const PLAIN: &str = r#"{"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["a"],
        "capabilities": {"effective": ["CAP_CHOWN"]}}"#;

    #[test]
    fn an_exec_gets_the_containers_filter_and_drops_capabilities_behind_it() {
        let mut plain = process(PLAIN);
        let workload = Workload::of_exec(&spec(FILTERED), &mut plain);
        assert!(workload.filter.is_some() && workload.capabilities.is_some());
        assert!(plain.capabilities().is_none());

        let mut strict = process(PLAIN);
        strict.set_no_new_privileges(Some(true));
        let workload = Workload::of_exec(&spec(FILTERED), &mut strict);
        assert!(workload.filter.is_some() && workload.capabilities.is_none());
        assert!(strict.capabilities().is_some(), "libcontainer drops them");

        let mut free = process(PLAIN);
        let workload = Workload::of_exec(&spec(r#"{"ociVersion": "1.2.0", "linux": {}}"#), &mut free);
        assert!(workload.filter.is_none() && workload.capabilities.is_none());
        assert!(free.capabilities().is_some());
    }

    #[test]
    fn programs_are_found_as_their_user_may_execute_them() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.display().to_string()
        };
        let (mine, data) = (make("mine", 0o700), make("data", 0o600));
        let search = format!("/nonexistent:{}", dir.path().display());
        let find = |name: &str| program(&[name.to_owned()], &search);
        assert_eq!(find("mine"), Ok(dir.path().join("mine")));
        assert_eq!(find(&mine), Ok(mine.into()));
        assert_eq!(find("absent").unwrap_err().to_string(), "executable 'absent' not found in $PATH");
        for name in [data.as_str(), "data"] {
            assert!(find(name).unwrap_err().to_string().contains("ermission"), "{name}");
        }
        assert!(find(dir.path().to_str().unwrap()).is_err(), "a directory");
        assert!(find("/nonexistent/x").unwrap_err().to_string().contains("/nonexistent/x"));
        assert_eq!(program(&[], &search), Err(ProgramError::NoArguments));
    }

    #[test]
    fn the_process_environment_says_where_to_look() {
        let with = r#"{"ociVersion": "1", "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=b", "PATH=/x"]}}"#;
        assert_eq!(search_path(&spec(with)), "/x");
        assert_eq!(search_path(&spec(r#"{"ociVersion": "1"}"#)), USUAL_PATH);
    }
}

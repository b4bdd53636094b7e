//! The last steps of a new process before its program runs, which libcontainer does not do as needed.
//!
//! libcontainer loads no seccomp filter for an exec, leaves its terminal to root, and accepts only programs that
//! everybody may execute. For an init process it does load the filter, but waits for the start afterwards, with system
//! calls that a profile need not allow. So filters are loaded here, as late as possible. Loading one takes
//! CAP_SYS_ADMIN unless no_new_privs is set (seccomp(2)), and changing the terminal's owner takes CAP_CHOWN:
//! capabilities are kept until both are done, and dropped here as well.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use bulkhead_protocol::error::chain;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use libcontainer::{capabilities, seccomp};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp, Process, Spec};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Where programs are looked for when the environment has no PATH.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a script's first line the kernel reads (BINPRM_BUF_SIZE of linux/binfmts.h).
const LONGEST_INTERPRETER: usize = 256;

/// What is done in the new process before its program runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Workload {
    /// The user who becomes the owner of the terminal, if there is one. None for an init process, whose terminal gets
    /// its owner from outside.
    terminal_of: Option<u32>,
    /// Filter to load.
    filter: Option<LinuxSeccomp>,
    /// Capabilities that the program keeps: libcontainer was kept from dropping the others.
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
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
    #[error("{act}: {reason}")]
    NotConfined { act: &'static str, reason: String },
    #[error("exec {path}: {}{}", in_words(*reason), missing_interpreter(path, *reason))]
    NotExecuted { path: PathBuf, reason: rustix::io::Errno },
}

/// The text that other runtimes have, such as "exec format error".
fn in_words(reason: rustix::io::Errno) -> String {
    nix::errno::Errno::from_raw(reason.raw_os_error()).desc().to_lowercase()
}

/// Says which interpreter is missing when a file exists and is "not found" all the same. Most often it has the line
/// ends of Windows.
fn missing_interpreter(path: &Path, reason: rustix::io::Errno) -> String {
    if reason != rustix::io::Errno::NOENT {
        return String::new();
    }
    let mut start = [0; LONGEST_INTERPRETER];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut start));
    let text = start.get(..read.unwrap_or(0)).unwrap_or_default();
    let line = text.strip_prefix(b"#!").and_then(|line| line.split(|byte| *byte == b'\n').next());
    let name = line.map(|line| String::from_utf8_lossy(line).trim_start_matches([' ', '\t']).to_owned());
    let name = name.and_then(|line| line.split([' ', '\t']).next().map(str::to_owned));
    name.map(|name| format!(" (its interpreter {name:?} is not there)")).unwrap_or_default()
}

impl Workload {
    /// For the init process of a container. Takes out of its spec what is done here. A filter with notifications stays
    /// in it: libcontainer hands its descriptor over, or says why it cannot.
    pub(super) fn of_init(spec: &mut Spec) -> Self {
        let Some(filter) = filter(spec).filter(|filter| !seccomp::is_notify(filter)) else {
            return Self::default();
        };
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        let Some(process) = spec.process_mut() else {
            return Self { filter: Some(filter), ..Self::default() };
        };
        // The terminal of an init process gets its owner from outside.
        Self { terminal_of: None, ..Self::of_exec(Some(filter), process) }
    }

    /// For an exec in a container with this filter. Takes out of `process` what is done here.
    pub(super) fn of_exec(filter: Option<LinuxSeccomp>, process: &mut Process) -> Self {
        let capabilities = process.capabilities().clone();
        process.set_capabilities(None);
        Self {
            terminal_of: (process.terminal() == Some(true)).then(|| process.user().uid()),
            filter,
            capabilities,
            no_new_privileges: process.no_new_privileges() == Some(true),
        }
    }

    /// Makes the user the owner of the terminal, which is stdin, stdout and stderr.
    fn give_terminal(&self) -> Result<(), ExecutorValidationError> {
        let stdin = std::io::stdin();
        let Some(uid) = self.terminal_of.filter(|_| stdin.is_terminal()) else { return Ok(()) };
        rustix::fs::fchown(&stdin, Some(rustix::fs::Uid::from_raw(uid)), None)
            .map_err(|errno| refused("give the terminal to its user", &errno))
    }

    /// The order is that of other runtimes, so that a profile must allow the same calls: with no_new_privs the filter
    /// comes last.
    fn confine(&self) -> Result<(), ProgramError> {
        if self.no_new_privileges {
            self.drop_capabilities()?;
            return self.load_filter();
        }
        self.load_filter()?;
        self.drop_capabilities()
    }

    fn load_filter(&self) -> Result<(), ProgramError> {
        let Some(filter) = &self.filter else { return Ok(()) };
        seccomp::initialize_seccomp(filter)
            .map(drop)
            .map_err(|error| not_confined("load the seccomp filter", &error))
    }

    fn drop_capabilities(&self) -> Result<(), ProgramError> {
        let Some(kept) = &self.capabilities else { return Ok(()) };
        let syscall = SyscallType::default().create_syscall();
        capabilities::drop_privileges(kept, syscall.as_ref())
            .map_err(|error| not_confined("drop capabilities", &error))
    }

    /// Executes the program. Returns only on failure. Everything that needs other system calls is done before the
    /// filter is loaded.
    fn execute(&self, spec: &Spec) -> Result<Infallible, ProgramError> {
        let path = self.find(spec)?;
        let zero_byte = || ProgramError::NotExecuted { path: path.clone(), reason: rustix::io::Errno::INVAL };
        let name = CString::new(path.as_os_str().as_encoded_bytes()).ok().ok_or_else(zero_byte)?;
        let args = c_strings(arguments(spec)?).ok_or_else(zero_byte)?;
        let env = c_strings(environment(spec)).ok_or_else(zero_byte)?;
        self.confine()?;
        let Err(errno) = nix::unistd::execve(&name, &args, &env);
        Err(ProgramError::NotExecuted { path, reason: as_rustix(errno) })
    }

    /// Looks for the program with the capabilities that it will have: root may execute files that its user may not.
    fn find(&self, spec: &Spec) -> Result<PathBuf, ProgramError> {
        let look = || arguments(spec).and_then(|args| program(args, &search_path(spec)));
        let Some(kept) = &self.capabilities else { return look() };
        let own = capabilities_now()?;
        let mut lowered = own;
        for (capability, flag) in [
            (Capability::DacOverride, CapabilitySet::DAC_OVERRIDE),
            (Capability::DacReadSearch, CapabilitySet::DAC_READ_SEARCH),
        ] {
            if !kept.effective().as_ref().is_some_and(|effective| effective.contains(&capability)) {
                lowered.effective.remove(flag);
            }
        }
        set_capabilities_now(lowered)?;
        let found = look();
        set_capabilities_now(own)?;
        found
    }
}

fn capabilities_now() -> Result<CapabilitySets, ProgramError> {
    rustix::thread::capabilities(None).map_err(|errno| not_confined("read capabilities", &errno))
}

fn set_capabilities_now(sets: CapabilitySets) -> Result<(), ProgramError> {
    rustix::thread::set_capabilities(None, sets).map_err(|errno| not_confined("lower capabilities", &errno))
}

/// The seccomp filter of a container.
pub(super) fn filter(container: &Spec) -> Option<LinuxSeccomp> {
    container.linux().as_ref().and_then(|linux| linux.seccomp().clone())
}

fn not_confined(act: &'static str, error: &(dyn std::error::Error + 'static)) -> ProgramError {
    ProgramError::NotConfined { act, reason: chain(error) }
}

fn refused(act: &str, error: &(dyn std::error::Error + 'static)) -> ExecutorValidationError {
    ExecutorValidationError::ArgValidationError(format!("{act}: {}", chain(error)))
}

impl Executor for Workload {
    /// Checks that the program can run, as long as the reason can be reported to the caller.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.give_terminal()?;
        self.find(spec)
            .map(drop)
            .map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))
    }

    /// No-op: [`Executor::exec`] gives the program its environment, and nothing needs it before.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    /// Executes the program. A failure is written to the process's stderr, too: once a container was created, its user
    /// sees nothing else.
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let text = match self.execute(spec) {
            Ok(never) => match never {},
            Err(error) => chain(&error),
        };
        if writeln!(std::io::stderr(), "{text}").is_err() {
            tracing::debug!(text, "the process has no stderr");
        }
        Err(ExecutorError::Other(text))
    }
}

/// None when one of the texts has a zero byte.
fn c_strings<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Option<Vec<CString>> {
    texts.into_iter().map(|text| CString::new(text.as_ref()).ok()).collect()
}

/// The variables of the spec; of several with one name the last. `HOME` always has a value.
fn environment(spec: &Spec) -> Vec<String> {
    let process = spec.process().as_ref();
    let entries = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let last: HashMap<String, usize> =
        entries.iter().enumerate().map(|(at, entry)| (name(entry), at)).collect();
    let wanted = entries.iter().enumerate().filter(|(at, entry)| last.get(&name(entry)) == Some(at));
    let mut kept: Vec<String> =
        wanted.map(|(_, entry)| entry.clone()).filter(|entry| entry != "HOME=").collect();
    if !kept.iter().any(|entry| entry.starts_with("HOME=")) {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let uid = process.map_or(0, |process| process.user().uid());
        kept.push(format!("HOME={}", home(&users, uid)));
    }
    kept
}

/// The home directory of a user by passwd(5); `/` without one.
fn home(users: &str, uid: u32) -> &str {
    let of_user = users.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2)).flatten()
    });
    of_user.filter(|home| !home.is_empty()).unwrap_or("/")
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

/// The file that the first argument names. Permissions are checked with the effective ids of this process.
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
    fn filter_and_capabilities_are_removed_from_what_libcontainer_gets() {
        let mut plain = process(PLAIN);
        let workload = Workload::of_exec(filter(&spec(FILTERED)), &mut plain);
        assert!(workload.filter.is_some() && workload.capabilities.is_some() && !workload.no_new_privileges);
        assert!(plain.capabilities().is_none());

        let mut free = process(PLAIN);
        let workload = Workload::of_exec(None, &mut free);
        assert!(workload.filter.is_none() && workload.capabilities.is_some());
        assert!(free.capabilities().is_none());

        let whole = |linux: &str, nnp: &str| {
            let process = PLAIN.replacen('{', &format!("{{{nnp}"), 1);
            spec(&format!(r#"{{"ociVersion": "1.2.0", "process": {process}, "linux": {linux}}}"#))
        };
        let mut init =
            whole(r#"{"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}"#, r#""noNewPrivileges": true, "#);
        let workload = Workload::of_init(&mut init);
        assert!(workload.filter.is_some() && workload.capabilities.is_some() && workload.no_new_privileges);
        assert!(filter(&init).is_none() && init.process().as_ref().unwrap().capabilities().is_none());

        let asks = r#"{"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}}"#;
        for left_alone in ["{}", asks] {
            let before = whole(left_alone, "");
            let mut after = before.clone();
            let workload = Workload::of_init(&mut after);
            assert!(workload.filter.is_none() && workload.capabilities.is_none());
            assert_eq!(after, before);
        }
    }

    #[test]
    fn the_terminal_of_an_exec_gets_its_user_as_owner() {
        let of = |terminal: &str| {
            let text = PLAIN.replace(r#""uid": 0"#, r#""uid": 7"#).replacen('{', &format!("{{{terminal}"), 1);
            Workload::of_exec(None, &mut process(&text)).terminal_of
        };
        assert_eq!(of(r#""terminal": true, "#), Some(7));
        assert_eq!((of(""), of(r#""terminal": false, "#)), (None, None));
    }

    #[test]
    fn the_environment_has_each_variable_once_and_always_home() {
        let of = |env: &str| {
            let text = format!(
                r#"{{"ociVersion": "1", "process": {{"cwd": "/", "user": {{"uid": 4242, "gid": 0}}, "env": {env}}}}}"#
            );
            environment(&spec(&text))
        };
        assert_eq!(of(r#"["A=1", "B=2", "A=3", "HOME=/x"]"#), ["B=2", "A=3", "HOME=/x"]);
        assert_eq!(of(r#"["HOME="]"#), ["HOME=/"]);
        assert_eq!(of("[]"), ["HOME=/"]);
        let users = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\nbad\nnone:x:7:7:::\n";
        let homes = [0, 1000, 7, 8].map(|uid| home(users, uid));
        assert_eq!(homes, ["/root", "/srv", "/", "/"]);
    }

    #[test]
    fn exec_errors_have_the_texts_of_other_runtimes() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#! /bin/none\r\necho\n").unwrap();
        let said = |reason| ProgramError::NotExecuted { path: script.clone(), reason }.to_string();
        let path = script.display();
        assert_eq!(said(rustix::io::Errno::NOEXEC), format!("exec {path}: exec format error"));
        assert_eq!(said(rustix::io::Errno::TOOBIG), format!("exec {path}: argument list too long"));
        assert_eq!(
            said(rustix::io::Errno::NOENT),
            format!("exec {path}: no such file or directory (its interpreter \"/bin/none\\r\" is not there)")
        );
    }

    #[test]
    fn a_program_is_found_only_where_its_user_may_execute_it() {
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
    fn programs_are_looked_for_in_the_path_of_the_process() {
        let with = r#"{"ociVersion": "1", "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=b", "PATH=/x"]}}"#;
        assert_eq!(search_path(&spec(with)), "/x");
        assert_eq!(search_path(&spec(r#"{"ociVersion": "1"}"#)), USUAL_PATH);
    }
}

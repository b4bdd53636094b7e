//! fork(2), what lies between, and execve(2).
//!
//! The standard library's way reports a failed exec through a pipe whose number it picks; a descriptor handed over
//! under that number would overwrite it, and a failure would look like a start. Here everything lies above the
//! numbers asked for before anything is moved.

#![allow(unsafe_code, reason = "fork and what follows have no safe form; this is the fence of the crate")]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;

use nix::libc::{self, c_char, pid_t};
use rustix::fs::{Mode, OFlags};

use super::{ProcessError, Spawn};

/// Where a child that failed was, as it tells its parent.
const CGROUP: u8 = 0;
const SESSION: u8 = 1;
const DESCRIPTOR: u8 = 2;
const EXECUTE: u8 = 3;
const CORE: u8 = 4;

/// Everything the child needs, made before the fork: between fork and exec nothing may allocate, because another
/// thread may have held the allocator's lock at the fork.
struct Prepared {
    program: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
    cgroups: Vec<OwnedFd>,
    /// Descriptor and its number in the child; stdin, stdout and stderr come first.
    fds: Vec<(OwnedFd, RawFd)>,
    /// Write end: silent if the program is executed.
    report: OwnedFd,
}

/// Starts the program and returns its pid. The child is ours to wait for.
pub(super) fn fork_exec(spawn: Spawn) -> Result<pid_t, ProcessError> {
    let program = spawn.program.clone();
    let cgroups: Vec<PathBuf> = spawn.cgroup.iter().flat_map(|c| c.files().to_vec()).collect();
    let start = |step| {
        let program = program.clone();
        move |source: io::Error| ProcessError::Start { program, step, source }
    };
    let (prepared, mut reports) = prepare(spawn)?;
    let (argv, envp) = (pointers(&prepared.argv), pointers(&prepared.envp));
    // SAFETY: the child calls only `in_child`, which is async-signal-safe and does not return.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        in_child(&prepared, &argv, &envp);
    }
    if pid < 0 {
        return Err(start("fork")(io::Error::last_os_error()));
    }
    drop(prepared);
    let mut report = [0; 6];
    match reports.read(&mut report) {
        Ok(0) => Ok(pid),
        Ok(_) => {
            reap(pid);
            Err(reported(program, &cgroups, report))
        }
        Err(source) => {
            // SAFETY: the child has not been waited for, so the pid is still its.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            reap(pid);
            Err(start("reading the child's report")(source))
        }
    }
}

fn prepare(spawn: Spawn) -> Result<(Prepared, File), ProcessError> {
    let Spawn { program, args, output, fds, cgroup, env } = spawn;
    let lowest = first_free_number(&program, &fds)?;
    let start = |step| {
        let program = program.clone();
        move |source| ProcessError::Start { program, step, source }
    };
    let lift = |fd: OwnedFd| {
        rustix::io::fcntl_dupfd_cloexec(fd, lowest).map_err(|e| start("moving a descriptor")(e.into()))
    };
    let null = lift(open(&program, Path::new("/dev/null"), OpenOptions::new().read(true))?)?;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let out = lift(open(&program, &output, &options)?)?;
    let err = rustix::io::fcntl_dupfd_cloexec(out.as_fd(), lowest)
        .map_err(|e| start("moving a descriptor")(e.into()))?;
    let mut moved = vec![(null, 0), (out, 1), (err, 2)];
    for (fd, number) in fds {
        moved.push((lift(fd)?, number));
    }
    let cgroups = cgroup
        .iter()
        .flat_map(|c| c.files())
        .map(|path| lift(open(&program, path, OpenOptions::new().write(true))?))
        .collect::<Result<Vec<_>, _>>()?;
    let (reports, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| start("making a pipe")(e.into()))?;
    let report = lift(report)?;
    let name = c_string(program.as_os_str());
    let argv = std::iter::once(program.as_os_str()).chain(args.iter().map(OsString::as_os_str)).map(c_string);
    let argv = argv.collect::<Option<Vec<_>>>();
    let envp = environment(env);
    let (Some(name), Some(argv), Some(envp)) = (name, argv, envp) else {
        return Err(ProcessError::Argument { program });
    };
    Ok((Prepared { program: name, argv, envp, cgroups, fds: moved, report }, reports.into()))
}

/// The lowest number above all that are asked for.
fn first_free_number(program: &Path, fds: &[(OwnedFd, RawFd)]) -> Result<RawFd, ProcessError> {
    let mut numbers: Vec<RawFd> = fds.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    let twice = numbers.windows(2).find_map(|pair| match pair {
        [a, b] if a == b => Some(*a),
        _ => None,
    });
    let low = numbers.first().copied().filter(|number| *number < 3);
    if let Some(number) = twice.or(low) {
        return Err(ProcessError::DescriptorNumber { program: program.to_owned(), number });
    }
    Ok(numbers.last().copied().unwrap_or(2).saturating_add(1))
}

fn open(program: &Path, path: &Path, options: &OpenOptions) -> Result<OwnedFd, ProcessError> {
    options.open(path).map(OwnedFd::from).map_err(|source| ProcessError::Open {
        program: program.to_owned(),
        path: path.to_owned(),
        source,
    })
}

fn environment(mut env: Vec<(OsString, OsString)>) -> Option<Vec<CString>> {
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.extend(std::env::var_os("PATH").map(|path| (OsString::from("PATH"), path)));
    }
    let join = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        c_string(&name)
    };
    env.into_iter().map(join).collect()
}

fn c_string(text: &OsStr) -> Option<CString> {
    CString::new(text.as_bytes()).ok()
}

/// A list for execve(2): ends with a null pointer, valid as long as `strings`.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(ptr::null())).collect()
}

/// Runs in the child of a process that may have more threads: system calls only, no allocation, no lock, no unwinding.
fn in_child(prepared: &Prepared, argv: &[*const c_char], envp: &[*const c_char]) -> ! {
    for (index, cgroup) in prepared.cgroups.iter().enumerate() {
        // cgroups(7): 0 stands for the writing process.
        if let Err(errno) = rustix::io::write(cgroup, b"0") {
            fail(prepared, CGROUP, u8::try_from(index).unwrap_or(u8::MAX), errno.raw_os_error());
        }
    }
    reset_signals();
    if let Err(errno) = forbid_core() {
        fail(prepared, CORE, 0, errno);
    }
    if let Err(errno) = rustix::process::setsid() {
        fail(prepared, SESSION, 0, errno.raw_os_error());
    }
    // Whatever this process itself inherited without close-on-exec stays here.
    // SAFETY: marks descriptors, touches no memory; kernels before 5.11 refuse it, which is harmless.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    for (fd, number) in &prepared.fds {
        // SAFETY: every descriptor in use lies above all the numbers, so that none is overwritten.
        if unsafe { libc::dup2(fd.as_raw_fd(), *number) } < 0 {
            fail(prepared, DESCRIPTOR, 0, errno());
        }
    }
    let program: &CStr = &prepared.program;
    // SAFETY: three valid C strings or lists of them, each list ends with a null pointer.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    fail(prepared, EXECUTE, 0, errno())
}

/// The runtime ignores SIGPIPE, which is inherited through exec; so would be a blocked signal.
fn reset_signals() {
    // SAFETY: sets a default, no handler of ours is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is on this stack.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set has been initialised; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// Helpers have the memory of a guest mapped: what of it is no business of the host's disks. The limit of this process
/// may be without bound, and a child cannot raise its own again.
fn forbid_core() -> Result<(), i32> {
    // The limit means nothing to a program that the kernel pipes cores to: that one gets no mapping (core(5)). A kernel
    // without core dumps has no such file.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(filter) = rustix::fs::open(c"/proc/self/coredump_filter", flags, Mode::empty()) {
        rustix::io::write(&filter, b"0").map_err(rustix::io::Errno::raw_os_error)?;
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads a value on this stack.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    if set == 0 { Ok(()) } else { Err(errno()) }
}

/// The error of the last call into the C library; rustix does not set it.
fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Tells the parent the step and its error.
fn fail(prepared: &Prepared, step: u8, index: u8, errno: i32) -> ! {
    let [a, b, c, d] = errno.to_ne_bytes();
    if rustix::io::write(&prepared.report, &[step, index, a, b, c, d]).is_err() {
        // Nobody is left to be told.
    }
    // SAFETY: ends the child without running anything of its parent's.
    unsafe { libc::_exit(127) }
}

fn reported(program: PathBuf, cgroups: &[PathBuf], report: [u8; 6]) -> ProcessError {
    let [step, index, a, b, c, d] = report;
    let source = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
    match step {
        CGROUP => {
            let cgroup = cgroups.get(usize::from(index)).cloned().unwrap_or_default();
            ProcessError::JoinCgroup { program, cgroup, source }
        }
        EXECUTE => ProcessError::Execute { program, source },
        CORE => ProcessError::Start { program, step: "forbidding core dumps", source },
        SESSION => ProcessError::Start { program, step: "setsid", source },
        _ => ProcessError::Start { program, step: "dup2", source },
    }
}

/// Waits for a child that is about to end.
fn reap(pid: pid_t) {
    // SAFETY: no status is asked for; the child is ours and has not been waited for.
    while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

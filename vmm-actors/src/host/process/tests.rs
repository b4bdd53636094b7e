use super::*;
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(10);

fn shell(dir: &TempDir, script: &str) -> Spawn {
    Spawn {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        output: dir.path().join("out"),
        fds: Vec::new(),
        cgroup: None,
        env: Vec::new(),
    }
}

fn start(dir: &TempDir, script: &str) -> OwnedProcess {
    OwnedProcess::spawn(shell(dir, script)).unwrap()
}

fn alive(pid: u32) -> bool {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    test_kill_process(pid).is_ok()
}

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what} did not happen in {LONG:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart_and_kept_for_every_waiter() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "exit 7");
    let (a, b) = tokio::join!(process.wait(), process.wait());
    assert_eq!((a, b, process.wait().await), (Exit::Code(7), Exit::Code(7), Exit::Code(7)));
    let process = start(&dir, "kill -9 $$");
    assert_eq!(process.wait().await, Exit::Signal(9));
    assert_eq!(Exit::Code(1).to_string(), "exit code 1");
    assert_eq!(Exit::Signal(9).to_string(), "signal 9");
}

#[tokio::test]
async fn a_waiter_that_goes_away_takes_nothing_with_it() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "read x; exit 3");
    // stdin is /dev/null, so `read` fails at once; be it before or after, the exit stays.
    drop(tokio::time::timeout(Duration::from_micros(1), process.wait()).await);
    assert_eq!(process.wait().await, Exit::Code(3));
}

#[tokio::test]
async fn output_is_appended_to_a_private_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    start(&dir, "echo one").wait().await;
    start(&dir, "echo two >&2").wait().await;
    let path = dir.path().join("out");
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_named() {
    let dir = TempDir::new().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "x").unwrap();
    for (program, kind) in [
        (dir.path().join("missing"), std::io::ErrorKind::NotFound),
        (plain, std::io::ErrorKind::PermissionDenied),
    ] {
        let spawn = Spawn { program: program.clone(), ..shell(&dir, "") };
        let error = OwnedProcess::spawn(spawn).unwrap_err();
        assert!(error.to_string().contains(program.to_str().unwrap()), "{error}");
        let ProcessError::Execute { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), kind);
    }
}

#[tokio::test]
async fn a_failed_exec_is_reported_even_when_low_descriptors_are_handed_over() {
    let dir = TempDir::new().unwrap();
    let fds = (3..20).map(|number| (fs::File::open("/dev/null").unwrap().into(), number)).collect();
    let spawn = Spawn { program: dir.path().join("missing"), fds, ..shell(&dir, "") };
    assert!(matches!(OwnedProcess::spawn(spawn).unwrap_err(), ProcessError::Execute { .. }));
}

#[tokio::test]
async fn descriptors_arrive_under_their_numbers_and_no_others() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "first").unwrap();
    fs::write(&b, "second").unwrap();
    // One that is inherited by everything that is executed, unless somebody takes care.
    let leaky = fs::File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    let fds = vec![(fs::File::open(&b).unwrap().into(), 3), (fs::File::open(&a).unwrap().into(), 4)];
    let script = "cat <&4; cat <&3; ls -l /proc/$$/fd";
    let process = OwnedProcess::spawn(Spawn { fds, ..shell(&dir, script) }).unwrap();
    assert_eq!(process.wait().await, Exit::Code(0));
    let out = fs::read_to_string(dir.path().join("out")).unwrap();
    assert!(out.starts_with("firstsecond"), "{out}");
    assert!(!out.contains("/dev/zero"), "{out}");
}

#[tokio::test]
async fn reserved_and_repeated_descriptor_numbers_are_refused() {
    let dir = TempDir::new().unwrap();
    for numbers in [vec![2], vec![5, 5], vec![-1]] {
        let fds = numbers.iter().map(|n| (fs::File::open("/dev/null").unwrap().into(), *n)).collect();
        let error = OwnedProcess::spawn(Spawn { fds, ..shell(&dir, "") }).unwrap_err();
        assert!(matches!(error, ProcessError::DescriptorNumber { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_environment_is_what_was_asked_for() {
    let dir = TempDir::new().unwrap();
    let env = vec![("A".into(), "1=2".into())];
    let program = "/usr/bin/env".into();
    let process = OwnedProcess::spawn(Spawn { program, args: vec![], env, ..shell(&dir, "") }).unwrap();
    process.wait().await;
    let out = fs::read_to_string(dir.path().join("out")).unwrap();
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    assert_eq!(out.lines().collect::<Vec<_>>(), ["A=1=2", path.as_str()]);
}

#[tokio::test]
async fn a_child_leads_its_own_session_without_blocked_signals() {
    let dir = TempDir::new().unwrap();
    // By the shell's own means: it blocks signals while it starts a command.
    let script = "while read -r line; do echo \"$line\"; done </proc/self/status; \
                  read -r line </proc/self/stat; echo \"$line\"; echo end; exec sleep 60";
    let process = start(&dir, script);
    let out = dir.path().join("out");
    wait_for("the output", || fs::read_to_string(&out).is_ok_and(|t| t.ends_with("end\n"))).await;
    let text = fs::read_to_string(&out).unwrap();
    let pid = process.identity().pid;
    // pid, name, state, parent, process group, session.
    let stat: Vec<&str> = text.lines().rev().nth(1).unwrap().split(' ').collect();
    assert_eq!((stat[0], stat[4], stat[5]), (&*pid.to_string(), &*pid.to_string(), &*pid.to_string()));
    assert_eq!(signals(&text, "SigBlk:"), 0, "{text}");
    // Bit 12 is SIGPIPE, which the test's own runtime ignores.
    assert_eq!(signals(&text, "SigIgn:") & 1 << 12, 0, "{text}");
    assert_eq!(process.end(Duration::from_secs(5)).await, Ok(Exit::Signal(15)));
}

fn signals(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_with_its_children() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "trap '' TERM; sleep 1000 & echo $!; wait; wait; while :; do sleep 1; done");
    let out = dir.path().join("out");
    wait_for("the output", || fs::read_to_string(&out).is_ok_and(|t| t.ends_with('\n'))).await;
    let child: u32 = fs::read_to_string(&out).unwrap().trim().parse().unwrap();
    assert!(alive(child));
    assert_eq!(process.end(Duration::from_millis(20)).await, Ok(Exit::Signal(9)));
    wait_for("the child's end", || !alive(child) || zombie(child)).await;
}

fn zombie(pid: u32) -> bool {
    identity::stat(pid).is_ok_and(|stat| stat.ended)
}

#[tokio::test]
async fn dropping_an_armed_guard_kills_and_reaps() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "exec sleep 60");
    let pid = process.identity().pid;
    assert!(alive(pid));
    drop(process);
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_kept_process_survives_its_guard_and_can_be_adopted() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "exec sleep 60");
    let identity = process.identity().clone();
    process.keep();
    drop(process);
    assert!(alive(identity.pid));
    let adopted = OwnedProcess::adopt(&identity).unwrap().unwrap();
    assert_eq!(adopted.identity(), &identity);
    assert_eq!(adopted.ended(), None);
    assert_eq!(adopted.end(LONG).await, Ok(Exit::Signal(15)));
    assert!(OwnedProcess::adopt(&identity).unwrap().is_none());
}

#[tokio::test]
async fn the_end_of_an_adopted_stranger_is_seen_but_not_made_up() {
    let dir = TempDir::new().unwrap();
    // The shell ends at once, its child is nobody's of ours.
    start(&dir, "setsid sleep 60 & echo $!").wait().await;
    let pid = fs::read_to_string(dir.path().join("out")).unwrap().trim().parse().unwrap();
    let identity = ProcessIdentity::of(pid).unwrap();
    let adopted = OwnedProcess::adopt(&identity).unwrap().unwrap();
    assert_eq!(adopted.ended(), None);
    assert_eq!(adopted.end(LONG).await, Ok(Exit::Unknown));
}

#[tokio::test]
async fn another_process_or_boot_is_never_adopted() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "exec sleep 60");
    let identity = process.identity().clone();
    let reused = ProcessIdentity { start_time: identity.start_time - 1, ..identity.clone() };
    assert!(OwnedProcess::adopt(&reused).unwrap().is_none());
    let rebooted = ProcessIdentity { boot_id: "another".into(), ..identity.clone() };
    assert!(OwnedProcess::adopt(&rebooted).unwrap().is_none());
    let nobody = ProcessIdentity { pid: 0, ..identity.clone() };
    assert!(OwnedProcess::adopt(&nobody).unwrap().is_none());
    assert!(alive(identity.pid));
}

#[tokio::test]
async fn the_cgroup_is_joined_before_the_program_runs() {
    let Some(cgroup) = TestCgroup::new() else {
        println!("skipped: no writable pids or freezer hierarchy of cgroup v1, nor cgroup v2");
        return;
    };
    let dir = TempDir::new().unwrap();
    let join = Some(CgroupProcs::new(vec![cgroup.0.join("cgroup.procs")]));
    let spawn = Spawn {
        cgroup: join,
        ..shell(&dir, "while read -r line; do echo \"$line\"; done </proc/self/cgroup; exec sleep 60")
    };
    let process = OwnedProcess::spawn(spawn).unwrap();
    let out = dir.path().join("out");
    let name = cgroup.0.file_name().unwrap().to_str().unwrap().to_owned();
    wait_for("the output", || fs::read_to_string(&out).is_ok_and(|t| t.contains(&name))).await;
    let procs = fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), process.identity().pid.to_string());
    drop(process);
}

#[tokio::test]
async fn a_cgroup_that_is_gone_is_named_and_nothing_runs() {
    let dir = TempDir::new().unwrap();
    let procs = dir.path().join("gone/cgroup.procs");
    let cgroup = Some(CgroupProcs::new(vec![procs.clone()]));
    let error = OwnedProcess::spawn(Spawn { cgroup, ..shell(&dir, "echo ran") }).unwrap_err();
    assert!(matches!(&error, ProcessError::Open { path, .. } if *path == procs), "{error}");
    // A file that takes no pid: writing to /dev/full fails in the child.
    let cgroup = Some(CgroupProcs::new(vec!["/dev/full".into()]));
    let error = OwnedProcess::spawn(Spawn { cgroup, ..shell(&dir, "echo ran") }).unwrap_err();
    assert!(
        matches!(&error, ProcessError::JoinCgroup { cgroup, .. } if cgroup == Path::new("/dev/full")),
        "{error}"
    );
    let mut out = String::new();
    fs::File::open(dir.path().join("out")).unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "");
}

/// A cgroup of this test, in one hierarchy.
struct TestCgroup(PathBuf);

impl TestCgroup {
    fn new() -> Option<Self> {
        let name = format!("bulkhead-process-test-{}", std::process::id());
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup"];
        roots
            .iter()
            .map(|root| Path::new(root).join(&name))
            .find(|path| fs::create_dir(path).is_ok())
            .map(Self)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

#[tokio::test]
async fn no_helper_dumps_core() {
    let dir = TempDir::new().unwrap();
    let process = start(&dir, "ulimit -S -c; ulimit -H -c; cat /proc/self/coredump_filter");
    assert_eq!(process.wait().await, Exit::Code(0));
    assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "0\n0\n00000000\n");
}

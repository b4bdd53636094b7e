//! Programs, their limits, users, environment and streams.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bulkhead_tests::cri::{Cri, Pod, mount};
use bulkhead_tests::remote_command::Session;
use bulkhead_tests::wait;
use k8s_cri::v1 as api;
use rustix::fs::XattrFlags;

use crate::stage::{Stage, stage};
use crate::stdio::{exec, talk};

/// How long output may take to reach a log.
const LIMIT: Duration = Duration::from_secs(20);

/// Longest string of a command line or environment that the kernel takes, its zero byte included (MAX_ARG_STRLEN).
const LONGEST: usize = 128 << 10;

/// A container that runs `script` as a user by number.
fn as_user(name: &str, script: &str, uid: i64) -> api::ContainerConfig {
    let mut config = Cri::shell(name, script);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.run_as_user = Some(api::Int64Value { value: uid });
    config
}

/// `/proc/<pid>/limits`: name → soft and hard, as the kernel prints them.
fn limits(text: &str) -> BTreeMap<String, String> {
    let column =
        |line: &str, from: usize, to: usize| line.get(from..to).unwrap_or_default().trim().to_owned();
    let limit = |line: &str| (column(line, 0, 26), column(line, 26, 68));
    text.lines().skip(1).map(limit).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn resource_limits_are_those_of_containerd() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pid = stage.node.containerd_pid().unwrap();
    let expected = limits(&std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap());
    assert!(expected.contains_key("Max open files"), "{expected:?}");
    let pod = cri.run_pod("limits").await;
    for uid in [0, 1234] {
        let container = cri.start(&pod, as_user("main", "cat /proc/self/limits; sleep 1000", uid)).await;
        assert_eq!(limits(&cri.exec(&container.id, "cat /proc/1/limits").await), expected, "uid {uid}");
        assert_eq!(
            limits(&cri.exec(&container.id, "cat /proc/self/limits").await),
            expected,
            "exec, uid {uid}"
        );
        cri.stop(&container.id, 0).await;
        cri.remove(&container.id).await;
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_terminal_belong_to_the_containers_user() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("owners").await;
    // As nginx has its log files.
    let script = "echo out > /dev/stdout && echo err > /dev/stderr; sleep 1000";
    let plain = cri.start(&pod, as_user("plain", script, 1000)).await;
    let answer = ["/bin/sh", "-c", "echo exec > /dev/stdout; echo said > /dev/stderr"];
    let answer = cri.try_exec(&plain.id, &answer).await.unwrap();
    assert_eq!(answer, (0, "exec\n".to_owned(), "said\n".to_owned()));
    let url =
        exec(&stage.node, &plain.id, &["/bin/sh", "-c", "read line < /dev/stdin; echo $line"], false).await;
    let output = talk(&stage.node, &url, |mut session| {
        session.stdin(b"read again\n");
        session.finish()
    });
    assert_eq!(String::from_utf8_lossy(&output.stdout), "read again\n");
    let log = plain.log();
    assert_eq!((log.stdout.as_str(), log.stderr.as_str()), ("out\n", "err\n"));

    let show = "stat -L -c %u:%g $(tty); echo seen > $(tty)";
    let mut config = as_user("tty", &format!("{show}; sleep 1000"), 1000);
    config.tty = true;
    let terminal = cri.start(&pod, config).await;
    let seen = wait::expect("the terminal's output", LIMIT, async || {
        let text = terminal.log().stdout;
        text.contains("seen").then_some(text)
    });
    // Group 5 is tty's, by containerd's mount of devpts.
    assert_eq!(seen.await.replace('\r', ""), "1000:5\nseen\n");
    let url = exec(&stage.node, &plain.id, &["/bin/sh", "-c", show], true).await;
    let output = talk(&stage.node, &url, Session::finish);
    assert_eq!(String::from_utf8_lossy(&output.stdout).replace('\r', ""), "1000:5\nseen\n", "an exec's");
    stage.end(&pod).await;
}

/// A program below the volume `/x` and what is wrong with it.
struct Bad {
    name: &'static str,
    content: Vec<u8>,
    cause: &'static str,
}

/// An ELF header of another architecture (AArch64, e_machine 183 of elf.h), and nothing behind it.
fn foreign() -> Vec<u8> {
    let mut header =
        vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 183, 0, 1, 0, 0, 0];
    header.resize(64, 0);
    header
}

fn bad_programs(dir: &Path) -> Vec<Bad> {
    let bad = |name, content: &[u8], cause| Bad { name, content: content.to_vec(), cause };
    let programs = vec![
        bad("no-first-line", b"echo hello\n", "exec format error"),
        bad("windows", b"#!/bin/sh\r\necho hello\r\n", "no such file or directory"),
        bad("no-interpreter", b"#!/bin/python9\n", "no such file or directory"),
        bad("foreign", &foreign(), "exec format error"),
    ];
    for Bad { name, content, .. } in &programs {
        std::fs::write(dir.join(name), content).unwrap();
        std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    programs
}

/// What the Start error or the log says of a container that cannot run.
async fn said_of(cri: &Cri, pod: &Pod, config: api::ContainerConfig) -> String {
    let container = match cri.try_create(pod, config).await {
        Ok(container) => container,
        Err(status) => return status.message().to_owned(),
    };
    let said = match cri.try_start(&container.id).await {
        Err(status) => status.message().to_owned(),
        Ok(()) => {
            assert_ne!(cri.wait_exit(&container.id).await.exit_code, 0);
            container.log().stderr
        }
    };
    cri.remove(&container.id).await;
    said
}

/// What the error or the output of an exec says that cannot run.
async fn said_of_exec(cri: &Cri, id: &str, command: &[&str]) -> String {
    match cri.try_exec(id, command).await {
        Err(status) => status.message().to_owned(),
        Ok((code, out, err)) => {
            assert_ne!(code, 0, "{command:?}: {out}");
            err
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_named_with_the_cause() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let dir = tempfile::tempdir().unwrap();
    let programs = bad_programs(dir.path());
    let pod = cri.run_pod("bad-programs").await;
    let running = |name: &str, command: &[&str]| {
        let mut config = Cri::shell(name, "");
        config.command = command.iter().map(|&word| word.to_owned()).collect();
        config.mounts = vec![mount(dir.path(), "/x")];
        config
    };
    let idle = cri.start(&pod, running("idle", &["/bin/sleep", "1000"])).await;
    for Bad { name, cause, .. } in &programs {
        let path = format!("/x/{name}");
        let said = said_of(cri, &pod, running(name, &[&path])).await;
        assert!(said.contains(&path) && said.contains(cause), "{name}: {said:?}");
        let said = said_of_exec(cri, &idle.id, &[&path]).await;
        assert!(said.contains(&path) && said.contains(cause), "exec of {name}: {said:?}");
    }
    // One byte more than the kernel takes, and a few less.
    let (most, more) = ("x".repeat(LONGEST - 1024), "x".repeat(LONGEST));
    let said = said_of(cri, &pod, running("long", &["/bin/echo", &more])).await;
    assert!(said.contains("argument list too long"), "{said:?}");
    let said = said_of_exec(cri, &idle.id, &["/bin/echo", &more]).await;
    assert!(said.contains("argument list too long"), "an exec: {said:?}");
    let answer = cri.try_exec(&idle.id, &["/bin/echo", &most]).await.unwrap();
    assert_eq!((answer.0, answer.1.len()), (0, most.len() + 1));

    let mut nameless = running("nameless", &["/bin/true"]);
    nameless.envs = vec![api::KeyValue { key: String::new(), value: "x".into() }];
    let said = said_of(cri, &pod, nameless).await;
    assert!(said.contains("environment"), "{said:?}");
    let mut too_large = running("too-large", &["/bin/true"]);
    too_large.envs = vec![api::KeyValue { key: "LONG".into(), value: "x".repeat(LONGEST) }];
    let said = said_of(cri, &pod, too_large).await;
    assert!(said.contains("argument list too long"), "a variable: {said:?}");
    let mut large = Cri::shell("large", "env | grep -c ^V; echo $LONG | wc -c");
    large.envs = (0..10_000).map(|n| api::KeyValue { key: format!("V{n}"), value: n.to_string() }).collect();
    large.envs.push(api::KeyValue { key: "LONG".into(), value: "x".repeat(LONGEST - 1024) });
    let large = cri.start(&pod, large).await;
    assert_eq!(cri.wait_exit(&large.id).await.exit_code, 0);
    assert_eq!(large.log().stdout, format!("10000\n{}\n", LONGEST - 1024 + 1));
    stage.end(&pod).await;
}

/// `security.capability` of a file that gives its programs CAP_NET_RAW, effective at once (linux/capability.h, version 2).
fn net_raw() -> [u8; 20] {
    let mut value = [0; 20];
    value[..4].copy_from_slice(&0x0200_0001_u32.to_le_bytes());
    value[4..8].copy_from_slice(&(1_u32 << 13).to_le_bytes());
    value
}

#[tokio::test(flavor = "multi_thread")]
async fn home_groups_and_what_files_give_are_the_users() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let dir = tempfile::tempdir().unwrap();
    for (name, mode) in [("handed-down", 0o2770), ("private", 0o770)] {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, None, Some(7000)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let capable = dir.path().join("busybox");
    std::fs::copy(&stage.node.base().busybox, &capable).unwrap();
    std::fs::set_permissions(&capable, PermissionsExt::from_mode(0o755)).unwrap();
    rustix::fs::setxattr(&capable, "security.capability", &net_raw(), XattrFlags::empty()).unwrap();
    let set_user = dir.path().join("id");
    std::fs::copy("/usr/bin/id", &set_user).unwrap();
    std::fs::set_permissions(&set_user, PermissionsExt::from_mode(0o4755)).unwrap();
    stage
        .node
        .run(&["mknod", "--mode=666", &dir.path().join("null").display().to_string(), "c", "1", "3"])
        .await;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();

    let pod = cri.run_pod("users").await;
    for (uid, home) in [(0, "/root"), (1000, "/"), (4242, "/")] {
        let script = "echo $HOME; sleep 1000";
        let container = cri.start(&pod, as_user(&format!("u{uid}"), script, uid)).await;
        assert_eq!(cri.exec(&container.id, "echo $HOME").await, format!("{home}\n"), "exec, uid {uid}");
        let said = wait::expect("the home", LIMIT, async || {
            Some(container.log().stdout).filter(|text| !text.is_empty())
        });
        assert_eq!(said.await, format!("{home}\n"), "uid {uid}");
    }
    let mut config = as_user("grouped", "sleep 1000", 1000);
    config.mounts = vec![mount(dir.path(), "/x")];
    // The libraries of the machine's id.
    config.mounts.extend(["/usr", "/lib", "/lib64"].map(|path| mount(Path::new(path), path)));
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.supplemental_groups = vec![7000];
    let container = cri.start(&pod, config).await;
    let made = "cd /x; for d in handed-down private; do touch $d/f && stat -c %u:%g $d/f; done";
    assert_eq!(cri.exec(&container.id, made).await, "1000:7000\n1000:1000\n");
    let effective = cri.exec(&container.id, "/x/busybox grep CapEff /proc/self/status").await;
    assert_eq!(effective, "CapEff:\t0000000000002000\n", "of a program with file capabilities");
    assert_eq!(cri.exec(&container.id, "/x/id -u; /x/id -ru").await, "0\n1000\n", "of a set-user-ID program");
    assert_eq!(cri.exec(&container.id, "echo gone > /x/null; cat /x/null").await, "", "of a device node");
    stage.end(&pod).await;
}

/// What runc calls between the filter and the program, and what a static busybox does. Nothing else is allowed.
const SMALLEST: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
    {"action": "SCMP_ACT_ALLOW", "names": ["capget", "capset", "prctl", "setuid", "setgid", "setgroups", "chdir", "getcwd", "faccessat", "faccessat2",
        "fstat", "newfstatat", "fstatfs", "openat", "getdents64", "close", "fcntl", "futex", "execve", "exit", "exit_group",
        "read", "write", "mmap", "munmap", "epoll_ctl", "rt_sigreturn", "tgkill", "getpid", "gettid", "getppid",
        "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink", "readlinkat",
        "getrandom", "mprotect", "uname", "getuid", "geteuid", "nanosleep", "clock_nanosleep"]}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_seccomp_profile_may_allow_no_more_than_runc_and_the_program_need() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let profile = stage.node.dir().join("smallest.json");
    std::fs::write(&profile, SMALLEST).unwrap();
    let pod = cri.run_pod("smallest").await;
    for (name, uid, no_new_privs) in [("root", 0, false), ("user", 1000, false), ("user-nnp", 1000, true)] {
        let mut config = as_user(name, "", uid);
        config.command = vec!["/bin/sleep".into(), "1000".into()];
        config.args = Vec::new();
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.no_new_privs = no_new_privs;
        context.seccomp = Some(api::SecurityProfile {
            profile_type: api::security_profile::ProfileType::Localhost.into(),
            localhost_ref: profile.display().to_string(),
        });
        let container = cri.start(&pod, config).await;
        let said = cri.try_exec(&container.id, &["/bin/echo", "up"]).await.unwrap();
        assert_eq!(said, (0, "up\n".into(), String::new()), "{name}");
        let (code, _, error) = cri.try_exec(&container.id, &["/bin/mkdir", "/tmp/x"]).await.unwrap();
        assert!(code != 0 && error.contains("not permitted"), "{name}: {code} {error}");
        let (_, status, _) = cri.try_exec(&container.id, &["/bin/cat", "/proc/self/status"]).await.unwrap();
        let capabilities = if uid == 0 { "CapEff:\t00000000a80425fb" } else { "CapEff:\t0000000000000000" };
        assert!(status.contains("Seccomp:\t2") && status.contains(capabilities), "{name}: {status}");
        let (_, of_init, _) = cri.try_exec(&container.id, &["/bin/cat", "/proc/1/status"]).await.unwrap();
        assert!(of_init.contains("Seccomp:\t2") && of_init.contains(capabilities), "{name}: {of_init}");
    }
    std::fs::remove_file(profile).unwrap();
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seccomp_profiles_may_name_what_the_kernel_does_not_know() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let profile = stage.node.dir().join("odd.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "syscalls": [{"names": ["a_call_of_tomorrow", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(&profile, text).unwrap();
    let pod = cri.run_pod("seccomp").await;
    let mut config = Cri::shell("odd", "sleep 1000");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.seccomp = Some(api::SecurityProfile {
        profile_type: api::security_profile::ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
    });
    let container = cri.start(&pod, config).await;
    let (code, _, err) = cri.try_exec(&container.id, &["/bin/mkdir", "/tmp/x"]).await.unwrap();
    assert!(code != 0 && err.contains("No space left"), "{code} {err}");
    std::fs::remove_file(profile).unwrap();
    stage.end(&pod).await;
}

//! Containers: start, output, exit, exec, mounts, stats, order of ends.

use std::time::{Duration, Instant};

use bulkhead_tests::cri::{Cri, mount};
use bulkhead_tests::wait;
use k8s_cri::v1 as api;

use crate::stage::{Stage, control_run, stage};

#[tokio::test(flavor = "multi_thread")]
async fn output_and_exit_codes() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("exits").await;
    for (name, script, code) in [
        ("zero", "echo fine", 0),
        ("one", "echo bad; exit 1", 1),
        ("killed", "echo gone; sh -c 'kill -9 $$'; exit $?", 137),
    ] {
        let container = cri.start(&pod, Cri::shell(name, &format!("echo warn >&2; {script}"))).await;
        let status = cri.wait_exit(&container.id).await;
        assert_eq!(status.exit_code, code, "{name}");
        // Two clocks: containerd's for the start, the runtime's for the end.
        let ran = status.finished_at - status.started_at;
        assert!(status.started_at > 0 && ran > -1_000_000_000, "{name}: {status:?}");
        let log = container.log();
        let words = script.split(';').next().unwrap().trim_start_matches("echo ").trim();
        assert_eq!(log.stdout.trim(), words, "{name}");
        assert!(log.stderr.starts_with("warn\n"), "{name}: {log:?}");
        cri.remove(&container.id).await;
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_byte_of_much_output_arrives() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("loud").await;
    let container = cri.start(&pod, Cri::shell("loud", "seq 1 100000; echo the end >&2")).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 0);
    let log = container.log();
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(log.stdout.len(), expected.len(), "bytes of output");
    assert!(log.stdout == expected, "the output is not what was written");
    assert_eq!(log.stderr, "the end\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_and_exit_code() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("exec").await;
    let mut config = Cri::shell("main", "sleep 1000");
    config.envs = vec![api::KeyValue { key: "COLOUR".into(), value: "green".into() }];
    let container = cri.start(&pod, config).await;
    let script = ["/bin/sh", "-c", "echo $COLOUR; echo no >&2; exit 42"];
    let answer = cri.try_exec(&container.id, &script).await.unwrap();
    assert_eq!(answer, (42, "green\n".into(), "no\n".into()));
    let status = cri.try_exec(&container.id, &["/bin/not-there"]).await;
    assert!(
        status.is_err() || status.is_ok_and(|(code, ..)| code != 0),
        "exec of a missing program succeeds"
    );
    let (code, ..) = cri.try_exec(&container.id, &["/bin/sh", "-c", "kill -9 $$"]).await.unwrap();
    assert_eq!(code, 137);
    assert_eq!(cri.container_status(&container.id).await.state(), api::ContainerState::ContainerRunning);
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_ends_with_its_process_though_a_child_keeps_the_pipe() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.run_pod("child").await;
    let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
    let start = Instant::now();
    assert_eq!(cri.exec(&container.id, "sleep 500 & echo done").await, "done\n");
    assert!(
        start.elapsed() < wait::patiently(Duration::from_secs(25)),
        "the exec waited for the child: {:?}",
        start.elapsed()
    );
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_first_and_kills_after_the_grace() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("grace").await;
    let polite = "trap 'echo bye; exit 7' TERM; echo ready; while :; do usleep 50000; done";
    let deaf = "trap '' TERM; echo ready; while :; do usleep 50000; done";
    for (name, script, code) in [("polite", polite, 7), ("deaf", deaf, 137)] {
        let container = cri.start(&pod, Cri::shell(name, script)).await;
        wait::expect("the trap is set", Duration::from_secs(20), async || {
            container.log().stdout.contains("ready").then_some(())
        })
        .await;
        cri.stop(&container.id, 3).await;
        let status = cri.wait_exit(&container.id).await;
        assert_eq!(status.exit_code, code, "{name}");
        assert_eq!(container.log().stdout.contains("bye"), code == 7, "{name}");
        cri.stop(&container.id, 3).await;
        cri.remove(&container.id).await;
    }
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_can_be_removed_before_it_was_started() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("unborn").await;
    let container = cri.create(&pod, Cri::shell("unborn", "true")).await;
    cri.remove(&container.id).await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_an_error_and_the_pod_lives_on() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("typo").await;
    let mut config = Cri::shell("typo", "");
    config.command = vec!["/bin/no-such-program".into()];
    let container = cri.create(&pod, config).await;
    let status = cri.try_start(&container.id).await.expect_err("there is nothing to start");
    assert!(status.message().contains("no-such-program"), "{status:?}");
    cri.remove(&container.id).await;
    let container = cri.start(&pod, Cri::shell("right", "echo alive")).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 0);
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_paths_are_mounted_read_only_or_not() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = stage.node.dir().join("volume");
    std::fs::create_dir_all(volume.join("sub")).unwrap();
    std::fs::write(volume.join("from-host"), "host\n").unwrap();
    std::fs::write(stage.node.dir().join("one-file"), "single\n").unwrap();
    let read_only = |mount| api::Mount { readonly: true, ..mount };
    let pod = cri.run_pod("volumes").await;
    let mut config = Cri::shell("main", "sleep 1000");
    config.mounts = vec![
        mount(&volume, "/rw"),
        read_only(mount(&volume, "/ro")),
        read_only(mount(&stage.node.dir().join("one-file"), "/etc/one-file")),
    ];
    let container = cri.start(&pod, config).await;
    assert_eq!(
        cri.exec(&container.id, "cat /rw/from-host /ro/from-host /etc/one-file").await,
        "host\nhost\nsingle\n"
    );
    cri.exec(&container.id, "echo guest > /rw/sub/from-guest").await;
    assert_eq!(std::fs::read_to_string(volume.join("sub/from-guest")).unwrap(), "guest\n");
    assert_eq!(cri.exec(&container.id, "cat /ro/sub/from-guest").await, "guest\n");
    let (code, ..) = cri.try_exec(&container.id, &["/bin/sh", "-c", "echo x > /ro/no"]).await.unwrap();
    assert_ne!(code, 0, "a read-only mount takes writes");
    std::fs::write(volume.join("later"), "later\n").unwrap();
    assert_eq!(cri.exec(&container.id, "sleep 1; cat /rw/later").await, "later\n");
    stage.end(&pod).await;
    assert!(volume.join("from-host").exists(), "the volume's content is gone with the pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_directory_is_made_where_it_is_missing() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = stage.node.dir().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let pod = cri.run_pod("workdir").await;
    for (name, dir) in [("root", "/not/there/yet"), ("volume", "/data/sub"), ("there", "/www")] {
        let mut config = Cri::shell(name, "pwd; stat -c %u:%a .");
        config.working_dir = dir.into();
        config.mounts = vec![mount(&volume, "/data")];
        let container = cri.start(&pod, config).await;
        assert_eq!(cri.wait_exit(&container.id).await.exit_code, 0, "{dir}");
        assert_eq!(container.log().stdout, format!("{dir}\n0:755\n"));
    }
    assert!(volume.join("sub").is_dir());
    let mut config = Cri::shell("file", "pwd");
    config.working_dir = "/etc/passwd".into();
    let container = cri.create(&pod, config).await;
    let status = cri.try_start(&container.id).await.expect_err("a file is no directory");
    assert!(control_run() || status.message().contains("working directory /etc/passwd"), "{status:?}");
    cri.remove(&container.id).await;
    stage.end(&pod).await;
}

/// What every container of a real node has.
#[tokio::test(flavor = "multi_thread")]
async fn a_termination_message_and_the_variables_of_many_services() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("usual").await;
    let message = stage.node.dir().join("termination-log");
    std::fs::write(&message, "").unwrap();
    let mut config = Cri::shell("main", "env | grep -c ^SERVICE_; echo why > /dev/termination-log; exit 3");
    config.mounts = vec![mount(&message, "/dev/termination-log")];
    let variable = |number| api::KeyValue {
        key: format!("SERVICE_{number}_PORT_80_TCP"),
        value: format!("tcp://10.96.{}.{}:80", number / 250, number % 250),
    };
    config.envs = (0..4000).map(variable).collect();
    let container = cri.start(&pod, config).await;
    assert_eq!(cri.wait_exit(&container.id).await.exit_code, 3);
    assert_eq!(container.log().stdout, "4000\n");
    assert_eq!(std::fs::read_to_string(&message).unwrap(), "why\n");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_limits_hold() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("user").await;
    let mut config = Cri::shell("main", "sleep 1000");
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().run_as_user = Some(api::Int64Value { value: 1000 });
    linux.security_context.as_mut().unwrap().readonly_rootfs = true;
    let container = cri.start(&pod, config).await;
    assert_eq!(cri.exec(&container.id, "id -u").await, "1000\n");
    let (code, ..) = cri.try_exec(&container.id, &["/bin/touch", "/tmp/x"]).await.unwrap();
    assert_ne!(code, 0, "a read-only root takes writes");
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_have_cpu_and_memory() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let pod = cri.run_pod("stats").await;
    let container = cri.start(&pod, Cri::shell("main", "while :; do :; done")).await;
    let stats = wait::expect("stats with CPU time", Duration::from_secs(30), async || {
        let request = api::ContainerStatsRequest { container_id: container.id.clone() };
        let stats = cri.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap();
        let cpu = stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()?.value;
        (cpu > 100_000_000).then_some(stats)
    })
    .await;
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 4096);
    // What it takes is what is told, and no more.
    cri.exec(&container.id, "head -c 20000000 /dev/zero > /dev/shm/twenty").await;
    let request = api::ContainerStatsRequest { container_id: container.id.clone() };
    let stats = cri.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let used = stats.memory.unwrap().working_set_bytes.unwrap().value;
    assert!((19_000_000..30_000_000).contains(&used), "{used} bytes of 20 million");
    let request = api::ListContainerStatsRequest { filter: None };
    let all = cri.runtime().list_container_stats(request).await.unwrap().into_inner().stats;
    assert_eq!(all.len(), 1);
    stage.end(&pod).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_ten_execs_at_once() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("busy").await;
        let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
        let execs =
            (0..10).map(|number| {
                let id = container.id.clone();
                async move {
                    (number, cri.exec(&id, &format!("seq {number} 2000 | tail -1; echo {number}")).await)
                }
            });
        for (number, output) in futures::future::join_all(execs).await {
            assert_eq!(output, format!("2000\n{number}\n"));
        }
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_2464_exec_timeout_kills_the_exec_and_what_it_started() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("slow").await;
        let container = cri.start(&pod, Cri::shell("main", "sleep 1000")).await;
        let request = api::ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: vec!["/bin/sleep".into(), "777".into()],
            timeout: 2,
        };
        let status = cri.runtime().exec_sync(request).await.expect_err("a timeout is an error");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
        let expect_none = async |mark: &str| {
            let left = cri.exec(&container.id, &format!("ps -o args | grep -c '{mark}' || true")).await;
            assert_eq!(left.trim(), "0", "the exec's process lives on");
        };
        expect_none("[s]leep 777").await;
        // Nor does what it has started; with runc it does.
        if !control_run() {
            let command = ["/bin/sh", "-c", "sleep 778 & (sleep 778 & sleep 778) & sleep 778; echo never"];
            let cmd = command.map(Into::into).to_vec();
            let request = api::ExecSyncRequest { container_id: container.id.clone(), cmd, timeout: 2 };
            let status = cri.runtime().exec_sync(request).await.expect_err("a timeout is an error");
            assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
            expect_none("[s]leep 778").await;
        }
        assert_eq!(cri.container_status(&container.id).await.state(), api::ContainerState::ContainerRunning);
        stage.end(&pod).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kuasar_85_containers_of_one_image_share_nothing_of_it() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let pod = cri.run_pod("alike").await;
        let one = cri.start(&pod, Cri::shell("one", "sleep 1000")).await;
        let two = cri.start(&pod, Cri::shell("two", "sleep 1000")).await;
        cri.exec(&one.id, "echo mine > /mine; rm /www/index.html").await;
        assert_eq!(
            cri.exec(&two.id, "ls /mine 2> /dev/null; cat /www/index.html").await,
            "hello from the pod\n"
        );
        cri.stop(&one.id, 0).await;
        cri.remove(&one.id).await;
        let three = cri.start(&pod, Cri::shell("three", "sleep 1000")).await;
        for id in [&two.id, &three.id] {
            assert_eq!(
                cri.exec(id, "ls /mine 2> /dev/null; cat /www/index.html").await,
                "hello from the pod\n"
            );
        }
        stage.end(&pod).await;
    }
}

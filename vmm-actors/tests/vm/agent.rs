//! The agent as it is: in a real guest, spoken to over vsock as sandboxer and shim proxy do.

use std::time::{Duration, Instant};

use bulkhead_config::Machine;
use bulkhead_protocol::agent::stream_header::Kind;
use bulkhead_protocol::agent::{
    CreateContainerRequest, PingRequest, ResizePtyRequest, ShutdownRequest, SignalRequest, Stdio,
    UpdateRequest, WaitOomRequest,
};
use serde_json::json;
use ttrpc::Code;

use crate::guest::container::{code, of, output_only, piped, process, spec};
use crate::guest::{Guest, setup, soon, stream};

/// One boot serves all that a pod's callers may ask of the agent: each step leaves the guest as it found it.
#[actix::test]
async fn on_microvm_it_does_what_its_callers_ask() {
    let Some(guest) = Guest::pod(Machine::Microvm).await else { return };
    output_and_status_are_the_containers(&guest).await;
    a_container_sees_its_pod_and_nothing_else(&guest).await;
    streams_lose_nothing(&guest).await;
    execs_end_with_their_own_process(&guest).await;
    terminals_work_for_init_and_exec(&guest).await;
    limits_pause_and_update_hold(&guest).await;
    the_oom_killer_is_reported(&guest).await;
    refusals_name_the_fault_and_leave_nothing(&guest).await;
    it_is_one_pod_and_keeps_the_time(&guest).await;
    shutdown_ends_containers_politely(guest).await;
}

#[actix::test]
async fn on_q35_it_is_a_pod_and_ends() {
    let Some(guest) = Guest::pod(Machine::Q35).await else { return };
    it_is_one_pod_and_keeps_the_time(&guest).await;
    drop(guest.agent.shutdown(soon(), &ShutdownRequest::new()).await);
    guest.ended().await;
}

/// Setup again, as after a lost answer; another one is refused. Then the clock.
async fn it_is_one_pod_and_keeps_the_time(guest: &Guest) {
    let asked = setup();
    guest.agent.setup(soon(), &asked).await.unwrap();
    let mut other = setup();
    other.hostname = "web-1".into();
    let refused = guest.agent.setup(soon(), &other).await.unwrap_err();
    assert!(refused.to_string().contains("pod-1"), "{refused}");

    let ping = guest.agent.ping(soon(), &PingRequest::new()).await.unwrap();
    let off = (ping.guest_time_nanos - asked.host_time_nanos).abs();
    assert!(off < 2_000_000_000, "the guest's clock is {off} ns off");
    // Little by little, then at once.
    for (turn, seen) in [(100_000_000, 0), (-3_600_000_000_000, -3_600)] {
        let asked = PingRequest { adjust_clock_nanos: turn, ..PingRequest::new() };
        let then = guest.agent.ping(soon(), &asked).await.unwrap().guest_time_nanos;
        let turned = (then - ping.guest_time_nanos) / 1_000_000_000;
        assert!((seen..seen + 30).contains(&turned), "turned by {turned} s for {turn} ns");
    }
}

/// An init process without a handler does not hear SIGTERM, so a shell must have set its trap first.
async fn ready(guest: &Guest, container: &str) {
    let mut stdout = stream::open(guest, container, "", Kind::STDOUT).await;
    stream::expect(&mut stdout, "ready\n").await;
}

async fn shutdown_ends_containers_politely(guest: Guest) {
    let started = Instant::now();
    guest
        .run("last", &spec("trap 'exit 0' TERM; echo ready; while :; do sleep 0.2; done"), output_only())
        .await;
    ready(&guest, "last").await;
    let request = ShutdownRequest { grace_millis: 20_000, ..Default::default() };
    drop(guest.agent.shutdown(soon(), &request).await);
    guest.ended().await;
    println!("ended after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(15), "the container was not asked, but waited for");
}

async fn output_and_status_are_the_containers(guest: &Guest) {
    let started = Instant::now();
    let (status, stdout, stderr) = guest.once("hello", &spec("echo out; echo err >&2; exit 3")).await;
    println!("a container's whole life took {:?}", started.elapsed());
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (3, "out\n", "err\n"));
    assert_eq!(code(guest.agent.stats(soon(), &of("hello")).await), Code::NOT_FOUND);
    // The same id again.
    assert_eq!(guest.once("hello", &spec("exit 0")).await.0, 0);
}

async fn a_container_sees_its_pod_and_nothing_else(guest: &Guest) {
    let script = "hostname; cat /etc/hostname /etc/resolv.conf; test -e /etc/hosts || echo no hosts; \
        cat /proc/self/oom_score_adj; cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max; readlink /proc/self/ns/uts; \
        df -k /dev/shm | tail -n 1; ls /sys/fs/cgroup | grep -c bulkhead; ls -1 / ; mount | grep -c bulkhead/share; true";
    let (status, seen, stderr) = guest.once("eyes", &spec(script)).await;
    println!("--- a container sees\n{seen}{stderr}");
    assert_eq!(status, 0);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..7], ["web-0", "web-0", "nameserver 10.96.0.10", "no hosts", "0", "0::/", "64"]);
    assert!(lines[8].contains("65536"), "the pod's /dev/shm is 64 MiB: {}", lines[8]);
    assert_eq!(lines[9], "0", "other containers' cgroups are in sight");

    // Two containers share memory, host name and IPC, and nothing else.
    guest
        .run("one", &spec("echo shared > /dev/shm/x; readlink /proc/self/ns/uts; sleep 100"), output_only())
        .await;
    let (_, stdout, _) = guest.once("two", &spec("sleep 1; cat /dev/shm/x; ps | wc -l")).await;
    assert!(stdout.starts_with("shared\n"), "{stdout}");
    assert!(stdout.lines().nth(1).unwrap().trim().parse::<u32>().unwrap() < 8, "{stdout}");
    guest.kill("one", "", 9).await;
    assert_eq!(guest.wait("one", "").await.exit_status, 137);
    guest.delete("one", "").await;
}

async fn streams_lose_nothing(guest: &Guest) {
    // Connected before the container exists; 10 MB each way, more than any buffer holds.
    guest.rootfs("pipe");
    let mut stdin = stream::open(guest, "pipe", "", Kind::STDIN).await;
    let stdout = stream::open(guest, "pipe", "", Kind::STDOUT).await;
    let request = guest.request("pipe", &spec("cat; echo end >&2"), piped());
    guest.agent.create_container(soon(), &request).await.unwrap();
    guest.agent.start(soon(), &process("pipe", "")).await.unwrap();
    let sent: Vec<u8> = (0..10_000_000u32).map(|n| (n % 251) as u8).collect();
    let reading = tokio::spawn(stream::read_all(stdout));
    let started = Instant::now();
    for chunk in sent.chunks(64 * 1024) {
        stream::write(&mut stdin, chunk).await;
    }
    stream::end(stdin).await;
    assert!(reading.await.unwrap() == sent, "bytes were lost or changed");
    println!("10 MB there and back in {:?}", started.elapsed());
    assert_eq!(guest.wait("pipe", "").await.exit_status, 0);
    // Connected after the end: what was written is still there.
    let stderr = stream::open(guest, "pipe", "", Kind::STDERR).await;
    assert_eq!(stream::read_all(stderr).await, b"end\n");
    guest.delete("pipe", "").await;

    // A process that ends leaves everything it wrote, down to the last byte.
    let (status, stdout, _) =
        guest.once("bulk", &spec("dd if=/dev/zero bs=1000 count=3001 2>/dev/null")).await;
    assert_eq!((status, stdout.len()), (0, 3_001_000));
}

async fn execs_end_with_their_own_process(guest: &Guest) {
    guest.run("host", &spec("sleep 1000"), output_only()).await;
    let started = Instant::now();
    let (status, stdout) = guest.exec_once("host", "e1", "id -u; cat /proc/self/cgroup; exit 7").await;
    println!("an exec took {:?}", started.elapsed());
    assert_eq!((status, stdout.as_str()), (7, "0\n0::/\n"));

    // The exec ends with its own process, though a child holds its output.
    let started = Instant::now();
    let (status, stdout) = guest.exec_once("host", "e2", "sleep 600 & echo started").await;
    assert_eq!((status, stdout.as_str()), (0, "started\n"));
    assert!(started.elapsed() < Duration::from_secs(20));

    guest.exec("host", "e3", "sleep 600", output_only()).await;
    assert_eq!(code(guest.agent.delete(soon(), &process("host", "e3")).await), Code::FAILED_PRECONDITION);
    guest.kill("host", "e3", 15).await;
    assert_eq!(guest.wait("host", "e3").await.exit_status, 128 + 15);
    let gone =
        SignalRequest { container_id: "host".into(), exec_id: "e3".into(), signal: 9, ..Default::default() };
    assert_eq!(code(guest.agent.signal(soon(), &gone).await), Code::NOT_FOUND);
    guest.delete("host", "e3").await;

    // Rust programs ignore SIGPIPE (13), and what is ignored is inherited.
    let ignored = "grep SigIgn /proc/self/status; grep SigBlk /proc/self/status; yes | head -n 1";
    let (_, signals) = guest.exec_once("host", "pipe", ignored).await;
    let masks: Vec<u64> = signals.lines().filter_map(|line| line.split_once('\t')).map(hex).collect();
    assert_eq!((masks[0] & (1 << 12), masks[1]), (0, 0), "{signals}");

    let (_, score) = guest.exec_once("host", "e4", "cat /proc/self/oom_score_adj").await;
    assert_eq!(score, "0\n", "an exec must not inherit the agent's immunity");

    // An exec outlives nothing: the container's end is its end.
    guest.exec("host", "e5", "sleep 600", output_only()).await;
    let waiting = guest.wait("host", "e5");
    guest.kill("host", "", 9).await;
    assert_eq!(waiting.await.exit_status, 137);
    assert_eq!(guest.wait("host", "").await.exit_status, 137);
    guest.delete("host", "").await;
    assert_eq!(code(guest.agent.wait(soon(), &process("host", "e5")).await), Code::NOT_FOUND);
}

async fn terminals_work_for_init_and_exec(guest: &Guest) {
    let tty =
        Stdio { terminal: true, stdin: true, stdout: true, width: 132, height: 43, ..Default::default() };
    guest.run("term", &spec("stty size; read line; echo got $line; stty size; exit 5"), tty.clone()).await;
    let mut stdin = stream::open(guest, "term", "", Kind::STDIN).await;
    let mut stdout = stream::open(guest, "term", "", Kind::STDOUT).await;
    stream::expect(&mut stdout, "43 132\r\n").await;
    let resize =
        ResizePtyRequest { container_id: "term".into(), width: 80, height: 25, ..Default::default() };
    guest.agent.resize_pty(soon(), &resize).await.unwrap();
    stream::write(&mut stdin, b"input\n").await;
    let rest = String::from_utf8(stream::read_all(stdout).await).unwrap();
    assert_eq!(rest, "input\r\ngot input\r\n25 80\r\n");
    assert_eq!(guest.wait("term", "").await.exit_status, 5);
    guest.delete("term", "").await;

    guest.run("host", &spec("sleep 1000"), output_only()).await;
    guest.exec("host", "tty", "test -t 0 && stty size", tty).await;
    let stdout = stream::open(guest, "host", "tty", Kind::STDOUT).await;
    assert_eq!(stream::read_all(stdout).await, b"43 132\r\n");
    assert_eq!(guest.wait("host", "tty").await.exit_status, 0);
    guest.kill("host", "", 9).await;
    guest.wait("host", "").await;
    guest.delete("host", "").await;
}

async fn limits_pause_and_update_hold(guest: &Guest) {
    guest
        .run("lim", &spec("trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"), output_only())
        .await;
    ready(guest, "lim").await;
    assert!(!guest.agent.pids(soon(), &of("lim")).await.unwrap().pids.is_empty());
    let stats = guest.agent.stats(soon(), &of("lim")).await.unwrap();
    assert_eq!((stats.memory_usage_limit, stats.pids_limit), (67_108_864, 64));
    assert!(
        stats.cpu_usage_usec > 0 && stats.memory_usage > 0 && stats.memory_stat.contains_key("anon"),
        "{stats}"
    );
    let resources = json!({"memory": {"limit": 33_554_432}, "cpu": {"quota": 50_000, "period": 100_000}});
    let update = UpdateRequest {
        container_id: "lim".into(),
        resources: serde_json::to_vec(&resources).unwrap(),
        ..Default::default()
    };
    guest.agent.update(soon(), &update).await.unwrap();
    assert_eq!(guest.agent.stats(soon(), &of("lim")).await.unwrap().memory_usage_limit, 33_554_432);

    guest.agent.pause(soon(), &of("lim")).await.unwrap();
    let before = guest.agent.stats(soon(), &of("lim")).await.unwrap().cpu_usage_usec;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(guest.agent.stats(soon(), &of("lim")).await.unwrap().cpu_usage_usec, before);
    guest.agent.resume(soon(), &of("lim")).await.unwrap();
    assert_eq!(code(guest.agent.delete(soon(), &process("lim", "")).await), Code::FAILED_PRECONDITION);
    guest.kill("lim", "", 15).await;
    let ended = guest.wait("lim", "").await;
    assert_eq!((ended.exit_status, ended.oom_killed), (9, false));
    guest.delete("lim", "").await;
}

async fn the_oom_killer_is_reported(guest: &Guest) {
    let mut small = spec("x=0123456789; while :; do x=$x$x; done");
    small["linux"]["resources"]["memory"] = json!({"limit": 16_777_216, "swap": 16_777_216});
    guest.run("oom", &small, output_only()).await;
    let wait = WaitOomRequest { container_id: "oom".into(), ..Default::default() };
    let oom = guest.agent.wait_oom(soon(), &wait).await.unwrap();
    assert!(oom.count >= 1);
    let ended = guest.wait("oom", "").await;
    assert_eq!((ended.exit_status, ended.oom_killed), (137, true));
    // Until it is deleted, an ended container has figures: containerd learns the cause from them.
    let stats = guest.agent.stats(soon(), &of("oom")).await.unwrap();
    assert!(stats.memory_events["oom_kill"] >= 1 && stats.cpu_usage_usec > 0, "{stats}");
    assert_eq!((stats.pids_current, stats.memory_usage_limit), (0, 16_777_216));
    let more = WaitOomRequest { container_id: "oom".into(), seen: oom.count, ..Default::default() };
    let waiting = guest.agent.wait_oom(soon(), &more);
    guest.delete("oom", "").await;
    assert_eq!(code(waiting.await), Code::NOT_FOUND);
}

async fn refusals_name_the_fault_and_leave_nothing(guest: &Guest) {
    let refused = async |id: &str, change: &dyn Fn(&mut serde_json::Value)| {
        guest.rootfs(id);
        let mut spec = spec("exit 0");
        change(&mut spec);
        let error =
            guest.agent.create_container(soon(), &guest.request(id, &spec, output_only())).await.unwrap_err();
        println!("refused: {error}");
        std::fs::remove_dir_all(guest.share().join(id)).unwrap();
        error.to_string()
    };
    let text = refused("prog", &|spec| spec["process"]["args"] = json!(["/bin/nothing"])).await;
    assert!(text.contains("/bin/nothing"), "{text}");
    let text = refused("bind", &|spec| {
        let mount = json!({"destination": "/x", "type": "bind", "source": "/run/bulkhead/share/bind/mounts/0",
            "options": ["rbind"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    assert!(text.await.contains("mounts/0"));
    let text = refused("pidns", &|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "pid", "path": "/run/bulkhead/ns/pid"}]);
    });
    assert!(text.await.contains("pid namespace"));
    let text = refused("parse", &|spec| spec["process"] = json!(7)).await;
    assert!(text.contains("OCI"), "{text}");

    let request = guest.request("rootless", &spec("exit 0"), output_only());
    let error = guest.agent.create_container(soon(), &request).await.unwrap_err();
    assert!(error.to_string().contains("/run/bulkhead/share/rootless/rootfs"), "{error}");
    let bad = CreateContainerRequest { container_id: "../x".into(), ..request };
    assert_eq!(code(guest.agent.create_container(soon(), &bad).await), Code::INVALID_ARGUMENT);

    // After every refusal the same id can be created, run, and is known only once.
    guest.run("prog", &spec("sleep 100"), output_only()).await;
    let again =
        guest.agent.create_container(soon(), &guest.request("prog", &spec("exit 0"), output_only())).await;
    assert_eq!(code(again), Code::ALREADY_EXISTS);
    guest.kill("prog", "", 9).await;
    guest.wait("prog", "").await;
    guest.delete("prog", "").await;

    // Never started, and deleted.
    guest.rootfs("idle");
    guest
        .agent
        .create_container(soon(), &guest.request("idle", &spec("exit 0"), output_only()))
        .await
        .unwrap();
    guest.delete("idle", "").await;
    assert_eq!(code(guest.agent.delete(soon(), &process("idle", "")).await), Code::NOT_FOUND);
}

fn hex((_, mask): (&str, &str)) -> u64 {
    u64::from_str_radix(mask, 16).unwrap()
}

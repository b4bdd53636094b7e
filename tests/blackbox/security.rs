//! What a container may do, and as whom.

use bulkhead_tests::cri::{Container, Cri, Pod};
use k8s_cri::v1 as api;

use crate::stage::{Stage, stage};

/// What a container has by default, capabilities(7).
const USUAL_CAPABILITIES: &str = "00000000a80425fb";

fn sleeper(name: &str, change: impl FnOnce(&mut api::LinuxContainerSecurityContext)) -> api::ContainerConfig {
    let mut config = Cri::shell(name, "sleep 1000");
    change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
    config
}

/// A field of /proc/self/status of what an exec runs.
async fn status_of(cri: &Cri, container: &Container, field: &str) -> String {
    let line = cri.exec(&container.id, &format!("grep ^{field}: /proc/self/status")).await;
    line.trim_start_matches(field).trim_start_matches(':').trim().to_owned()
}

/// The same field of the container's own first process.
async fn init_status(cri: &Cri, container: &Container, field: &str) -> String {
    let line = cri.exec(&container.id, &format!("grep ^{field}: /proc/1/status")).await;
    line.trim_start_matches(field).trim_start_matches(':').trim().to_owned()
}

/// Both agree: the container and what is executed in it.
async fn expect_status(cri: &Cri, container: &Container, field: &str, wanted: &str) {
    assert_eq!(init_status(cri, container, field).await, wanted, "{field} of the container");
    assert_eq!(status_of(cri, container, field).await, wanted, "{field} of an exec");
}

async fn fails(cri: &Cri, container: &Container, script: &str) {
    let (code, out, err) = cri.try_exec(&container.id, &["/bin/sh", "-c", script]).await.unwrap();
    assert_ne!(code, 0, "{script:?} works: {out}{err}");
}

fn capabilities(add: &[&str], drop: &[&str]) -> Option<api::Capability> {
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Some(api::Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() })
}

async fn capabilities_are_what_was_asked_for(cri: &Cri, pod: &Pod) {
    let usual = cri.start(pod, sleeper("usual", |_| {})).await;
    expect_status(cri, &usual, "CapEff", USUAL_CAPABILITIES).await;
    expect_status(cri, &usual, "CapBnd", USUAL_CAPABILITIES).await;
    fails(cri, &usual, "mount -t tmpfs none /tmp").await;
    let few = sleeper("few", |context| {
        context.capabilities = capabilities(&["NET_BIND_SERVICE", "SYS_TIME"], &["ALL"]);
    });
    let few = cri.start(pod, few).await;
    expect_status(cri, &few, "CapEff", "0000000002000400").await;
    expect_status(cri, &few, "CapInh", "0000000000000000").await;
    let less = sleeper("less", |context| context.capabilities = capabilities(&[], &["CHOWN"]));
    let less = cri.start(pod, less).await;
    fails(cri, &less, "touch /tmp/x && chown 7 /tmp/x").await;
}

async fn privileges_are_not_gained(cri: &Cri, pod: &Pod) {
    let config = sleeper("strict", |context| {
        context.no_new_privs = true;
        context.seccomp = Some(api::SecurityProfile {
            profile_type: api::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        context.masked_paths = ["/proc/kcore", "/proc/scsi", "/proc/timer_list"].map(str::to_owned).to_vec();
        context.readonly_paths = vec!["/proc/sys".into(), "/proc/bus".into()];
    });
    let strict = cri.start(pod, config).await;
    expect_status(cri, &strict, "NoNewPrivs", "1").await;
    expect_status(cri, &strict, "Seccomp", "2").await;
    fails(cri, &strict, "echo x > /proc/sys/kernel/domainname").await;
    let masked = "head -c 1 /proc/kcore; head -c 1 /proc/timer_list; ls /proc/scsi 2>/dev/null; true";
    assert_eq!(cri.exec(&strict.id, masked).await, "", "masked paths have content");
    let loose = cri.start(pod, sleeper("loose", |_| {})).await;
    expect_status(cri, &loose, "NoNewPrivs", "0").await;
    expect_status(cri, &loose, "Seccomp", "0").await;
}

async fn a_profile_of_the_node_filters(stage: &Stage, pod: &Pod) {
    let cri = stage.cri();
    let profile = stage.node.dir().join("no-mkdir.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
        [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(&profile, text).unwrap();
    let config = sleeper("filtered", |context| {
        context.seccomp = Some(api::SecurityProfile {
            profile_type: api::security_profile::ProfileType::Localhost.into(),
            localhost_ref: profile.display().to_string(),
        });
    });
    let filtered = cri.start(pod, config).await;
    let (code, _, err) = cri.try_exec(&filtered.id, &["/bin/mkdir", "/tmp/x"]).await.unwrap();
    assert!(code != 0 && err.contains("No space left"), "{code} {err}");
    assert_eq!(cri.exec(&filtered.id, "touch /tmp/y && ls /tmp").await, "y\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_seccomp_and_masked_paths_hold() {
    let stage = stage!(Stage::shared());
    let pod = stage.cri().run_pod("secure").await;
    capabilities_are_what_was_asked_for(stage.cri(), &pod).await;
    privileges_are_not_gained(stage.cri(), &pod).await;
    a_profile_of_the_node_filters(&stage, &pod).await;
    stage.end(&pod).await;
}

/// uid, gid and all groups of the container's own process and of an exec.
async fn expect_identity(cri: &Cri, container: &Container, uid: u32, gid: u32, groups: &str) {
    let ids = cri.exec(&container.id, "id -u; id -g; id -G").await;
    assert_eq!(ids, format!("{uid}\n{gid}\n{groups}\n"), "an exec");
    for (field, id) in [("Uid", uid), ("Gid", gid)] {
        let line = init_status(cri, container, field).await;
        assert!(line.split_whitespace().all(|each| each == id.to_string()), "{field}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_what_was_asked_for() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let mut config = cri.pod_config("users");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.supplemental_groups = vec![4000];
    let pod = cri.try_run_pod(config).await.unwrap();
    let number = |value| Some(api::Int64Value { value });

    let config = sleeper("number", |context| {
        context.run_as_user = number(1234);
        context.run_as_group = number(4321);
    });
    let container = cri.start(&pod, config).await;
    expect_identity(cri, &container, 1234, 4321, "4321").await;

    // `web` is 1000 in the image, and of the group `extra`, 5000.
    let config = sleeper("name", |context| {
        context.run_as_username = "web".into();
        context.supplemental_groups = vec![6000];
    });
    let container = cri.start(&pod, config).await;
    expect_identity(cri, &container, 1000, 1000, "1000 5000 6000").await;

    let config = sleeper("strict", |context| {
        context.run_as_user = number(1000);
        context.supplemental_groups = vec![6000];
        context.supplemental_groups_policy = api::SupplementalGroupsPolicy::Strict.into();
    });
    let container = cri.start(&pod, config).await;
    expect_identity(cri, &container, 1000, 1000, "1000 6000").await;
    let status = cri.container_status(&container.id).await;
    let user = status.user.and_then(|user| user.linux).expect("the user is in the status");
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![1000, 6000]));
    // What such a user may not do, and what it owns.
    fails(cri, &container, "touch /etc/x").await;
    assert_eq!(cri.exec(&container.id, "touch /tmp/mine && stat -c %u:%g /tmp/mine").await, "1000:1000\n");
    stage.end(&pod).await;
}

/// What containerd gives to the privileged is all that it has itself.
fn own_capabilities() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned()
}

pub(crate) fn privileged_pod(cri: &Cri, name: &str) -> api::PodSandboxConfig {
    let mut config = cri.pod_config(name);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_owns_its_guest_and_nothing_of_the_node() {
    let stage = stage!(Stage::shared_vm());
    let cri = stage.cri();
    let pod = cri.try_run_pod(privileged_pod(cri, "mighty")).await.unwrap();
    let container = cri.start(&pod, sleeper("mighty", |context| context.privileged = true)).await;
    expect_status(cri, &container, "CapEff", &own_capabilities()).await;
    expect_status(cri, &container, "Seccomp", "0").await;
    cri.exec(&container.id, "mount -t tmpfs none /tmp && echo x > /tmp/x && umount /tmp").await;
    cri.exec(&container.id, "echo 7 > /proc/sys/vm/swappiness && test $(cat /proc/sys/vm/swappiness) = 7")
        .await;
    cri.exec(&container.id, "test -w /sys/kernel/uevent_helper || mount | grep ' /sys ' | grep rw").await;
    // Neither module is loaded at boot: the guest's kernel asks for them.
    let layers = "cd /tmp && mkdir lower upper work merged && echo below > lower/f && \
        mount -t overlay none merged -o lowerdir=lower,upperdir=upper,workdir=work && cat merged/f && umount merged";
    let script = format!("mount -t tmpfs none /tmp && ({layers}) && umount /tmp");
    assert_eq!(cri.exec(&container.id, &script).await, "below\n");
    cri.exec(&container.id, "ip link add name br0 type bridge && ip link del br0").await;
    // Devices of the guest, in working order.
    cri.exec(&container.id, "test -c /dev/kmsg && head -c 10 /dev/kmsg > /dev/null").await;
    cri.exec(&container.id, "test -c /dev/fuse || test -c /dev/mem").await;
    assert_ne!(std::fs::read_to_string("/proc/sys/vm/swappiness").unwrap().trim(), "7", "it was the node's");
    // What it does to the guest is the pod's own affair: the others of it live on.
    let plain = cri.start(&pod, sleeper("plain", |_| {})).await;
    expect_status(cri, &plain, "CapEff", USUAL_CAPABILITIES).await;
    fails(cri, &plain, "test -e /dev/kmsg").await;
    stage.end(&pod).await;
}

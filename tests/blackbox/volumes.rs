//! Volumes: what the node and the containers of a pod see of each other's files.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_tests::cri::{Container, Cri, Pod, mount};
use bulkhead_tests::wait;
use k8s_cri::v1 as api;

use crate::stage::{Stage, stage};

/// As long as a guest may take to see what the node changed: its cache times out after a second.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn read_only(host: &Path, container: &str) -> api::Mount {
    api::Mount { readonly: true, ..mount(host, container) }
}

pub(crate) fn sleeper(name: &str, mounts: Vec<api::Mount>) -> api::ContainerConfig {
    api::ContainerConfig { mounts, ..Cri::shell(name, "sleep 1000") }
}

pub(crate) async fn fails(cri: &Cri, container: &Container, script: &str) -> String {
    let (code, out, err) = cri.try_exec(&container.id, &["/bin/sh", "-c", script]).await.unwrap();
    assert_ne!(code, 0, "{script:?} works: {out}{err}");
    err
}

pub(crate) fn folder(stage: &Stage, name: &str) -> PathBuf {
    let path = stage.node.dir().join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The container prints `wanted` for `script` before long.
pub(crate) async fn expect_soon(cri: &Cri, container: &Container, script: &str, wanted: &str) {
    let mut last = String::new();
    let seen = wait::until(SOON, async || {
        let answer = cri.try_exec(&container.id, &["/bin/sh", "-c", script]).await.unwrap();
        last = answer.1;
        (last == wanted).then_some(())
    });
    let seen = seen.await;
    assert!(seen.is_some(), "{script:?} prints {last:?}, not {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_paths_of_every_kind() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let real = folder(&stage, "real/deep");
    std::fs::write(real.join("file"), "content\n").unwrap();
    symlink("file", real.join("relative")).unwrap();
    symlink("/etc/hostname", real.join("absolute")).unwrap();
    symlink("nowhere", real.join("dangling")).unwrap();
    let (dir_link, file_link) = (stage.node.dir().join("dir-link"), stage.node.dir().join("file-link"));
    symlink(&real, &dir_link).unwrap();
    symlink(real.join("file"), &file_link).unwrap();
    // As kubelet does it for a subPath: the part of the volume is mounted elsewhere first.
    let (part, part_file) = (folder(&stage, "sub-path/0"), stage.node.dir().join("sub-path/1"));
    std::fs::write(&part_file, "").unwrap();
    for (from, to) in [(&real, &part), (&real.join("file"), &part_file)] {
        stage.node.run(&["mount", "--bind", &from.display().to_string(), &to.display().to_string()]).await;
    }

    let pod = cri.run_pod("paths").await;
    let mounts = vec![
        mount(&real, "/a/new/place"),
        mount(&dir_link, "/linked"),
        mount(&real.join("file"), "/single"),
        read_only(&file_link, "/linked-file"),
        mount(&part, "/part"),
        mount(&part_file, "/etc/part"),
        // Made by the runtime, as a directory.
        mount(&stage.node.dir().join("not-there-yet"), "/made"),
    ];
    let container = cri.start(&pod, sleeper("main", mounts)).await;
    let all = "for f in /a/new/place/file /a/new/place/relative /linked/file /single /linked-file /part/file \
        /etc/part; do cat $f; done";
    assert_eq!(cri.exec(&container.id, all).await, "content\n".repeat(7));
    assert_eq!(
        cri.exec(&container.id, "cat /a/new/place/absolute").await,
        "paths\n",
        "it is the container's"
    );
    assert_eq!(cri.exec(&container.id, "readlink /linked/dangling").await, "nowhere\n");
    fails(cri, &container, "echo x > /linked-file").await;
    cri.exec(&container.id, "echo more >> /single && touch /made/x /part/y").await;
    assert_eq!(std::fs::read_to_string(real.join("file")).unwrap(), "content\nmore\n");
    assert!(stage.node.dir().join("not-there-yet/x").exists() && real.join("y").exists());
    cri.end_pod(&pod).await;
    for path in [part, part_file] {
        stage.node.run(&["umount", &path.display().to_string()]).await;
    }
    stage.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_is_recursive_when_it_says_so_and_only_then() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = folder(&stage, "volume");
    let sub = folder(&stage, "volume/sub").display().to_string();
    stage.node.run(&["mount", "-t", "tmpfs", "sub", &sub]).await;
    let pod = cri.run_pod("rro").await;
    let plain = cri.start(&pod, sleeper("plain", vec![read_only(&volume, "/v")])).await;
    let recursive = api::Mount { recursive_read_only: true, ..read_only(&volume, "/v") };
    let recursive = cri.start(&pod, sleeper("recursive", vec![recursive])).await;
    for container in [&plain, &recursive] {
        let error = fails(cri, container, "touch /v/x").await;
        assert!(error.contains("Read-only"), "{error}");
    }
    cri.exec(&plain.id, "touch /v/sub/x").await;
    let error = fails(cri, &recursive, "touch /v/sub/y").await;
    assert!(error.contains("Read-only"), "{error}");
    // What a container has keeps the node from nothing.
    stage.node.run(&["umount", &sub]).await;
    std::fs::remove_dir(&sub).unwrap();
    assert_eq!(cri.exec(&plain.id, "echo alive").await, "alive\n");
    stage.end(&pod).await;
}

/// As monitoring agents have it.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_the_whole_node_harms_no_other_pod() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let other = cri.run_pod("other").await;
    let container = cri.start(&other, sleeper("main", Vec::new())).await;
    let name = folder(&stage, "mounted").display().to_string();
    stage.node.run(&["mount", "-t", "tmpfs", "mounted", &name]).await;
    stage.node.run(&["sh", "-c", &format!("echo there > {name}/file")]).await;

    let watching = cri.run_pod("watching").await;
    let whole = api::Mount {
        propagation: api::MountPropagation::PropagationHostToContainer.into(),
        ..read_only(Path::new("/"), "/host")
    };
    let watcher = cri.start(&watching, sleeper("slave", vec![whole])).await;
    let private = cri.start(&watching, sleeper("private", vec![read_only(Path::new("/"), "/host")])).await;
    for watcher in [&watcher, &private] {
        assert_eq!(cri.exec(&watcher.id, &format!("cat /host{name}/file")).await, "there\n");
        fails(cri, watcher, "touch /host/x").await;
        assert_eq!(cri.exec(&watcher.id, "test -e /host/proc/1/status && echo mounted").await, "mounted\n");
    }
    cri.stop(&container.id, 0).await;
    cri.remove(&container.id).await;
    cri.end_pod(&other).await;
    stage.node.run(&["umount", &name]).await;
    std::fs::remove_dir(&name).unwrap();
    stage.end(&watching).await;
}

/// A directory as kubelet writes config maps and secrets: `file → ..data/file`, `..data → ..<time>`.
fn write_version(volume: &Path, version: &str) {
    let folder = format!("..{version}");
    std::fs::create_dir(volume.join(&folder)).unwrap();
    std::fs::write(volume.join(&folder).join("key"), format!("{version}\n")).unwrap();
    symlink(folder, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_a_config_map_is_seen_whole() {
    let stage = stage!(Stage::shared());
    let cri = stage.cri();
    let volume = folder(&stage, "config-map");
    write_version(&volume, "one");
    symlink("..data/key", volume.join("key")).unwrap();
    let pod = cri.run_pod("config").await;
    let container = cri.start(&pod, sleeper("main", vec![read_only(&volume, "/config")])).await;
    assert_eq!(cri.exec(&container.id, "cat /config/key").await, "one\n");
    for version in ["two", "three"] {
        let old = std::fs::read_link(volume.join("..data")).unwrap();
        write_version(&volume, version);
        std::fs::remove_dir_all(volume.join(old)).unwrap();
        expect_soon(cri, &container, "cat /config/key", &format!("{version}\n")).await;
    }
    stage.end(&pod).await;
}

/// extended attribute of a file that gives whoever executes it CAP_NET_BIND_SERVICE (`linux/capability.h`, version 2).
const BIND_SERVICE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

async fn owners_and_attributes(cri: &Cri, pod: &Pod, volume: &Path, busybox: &Path) {
    let program = volume.join("grep");
    std::fs::copy(busybox, &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    xattr_set(&program, "security.capability", &BIND_SERVICE);
    std::os::unix::fs::chown(volume, Some(0), Some(2000)).unwrap();
    std::fs::set_permissions(volume, std::fs::Permissions::from_mode(0o2775)).unwrap();
    let mut config = sleeper("owner", vec![mount(volume, "/v")]);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.run_as_user = Some(api::Int64Value { value: 1000 });
    // As kubelet does it for fsGroup.
    context.supplemental_groups = vec![2000];
    let container = cri.start(pod, config).await;
    cri.exec(
        &container.id,
        "umask 027; echo mine > /v/mine; mkdir /v/dir; ln /v/mine /v/linked; mkfifo /v/fifo",
    )
    .await;
    let made = std::fs::metadata(volume.join("mine")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777, made.nlink()), (1000, 2000, 0o640, 2));
    assert_eq!(std::fs::metadata(volume.join("dir")).unwrap().mode() & 0o7777, 0o2750);
    std::os::unix::fs::chown(volume.join("mine"), Some(77), Some(78)).unwrap();
    expect_soon(cri, &container, "stat -c %u:%g:%a /v/mine", "77:78:640\n").await;
    fails(cri, &container, "cat /v/mine").await;
    let capabilities = cri.exec(&container.id, "/v/grep CapEff /proc/self/status").await;
    assert_eq!(capabilities.trim_start_matches("CapEff:").trim(), "0000000000000400", "file capabilities");
}

fn xattr_set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

async fn a_volume_in_memory_ends_at_its_size(stage: &Stage, pod: &Pod) {
    let cri = stage.cri();
    let volume = folder(stage, "memory");
    let name = volume.display().to_string();
    stage.node.run(&["mount", "-t", "tmpfs", "-o", "size=1m,mode=0777", "emptydir", &name]).await;
    let container = cri.start(pod, sleeper("memory", vec![mount(&volume, "/cache")])).await;
    let error = fails(cri, &container, "dd if=/dev/zero of=/cache/big bs=64k count=32").await;
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(cri.exec(&container.id, "stat -c %s /cache/big; rm /cache/big").await, "1048576\n");
    assert_eq!(
        cri.exec(&container.id, "df -k /cache | tail -1 | tr -s ' ' | cut -d ' ' -f 2").await,
        "1024\n"
    );
    cri.stop(&container.id, 0).await;
    cri.remove(&container.id).await;
    // Nobody holds on to it: kubelet takes it away when the pod goes.
    stage.node.run(&["umount", &name]).await;
}

/// Failures that users of other sandboxed runtimes have reported (the table in `main.rs`).
mod reported {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_10487_mounts_of_the_node_reach_containers_that_ask_for_them() {
        let stage = stage!(Stage::shared());
        let cri = stage.cri();
        let volume = folder(&stage, "volume");
        for sub in ["before", "later"] {
            std::fs::create_dir(volume.join(sub)).unwrap();
        }
        let name = volume.display().to_string();
        // Propagation needs a mount that passes it on.
        stage.node.run(&["mount", "--bind", &name, &name]).await;
        stage.node.run(&["mount", "--make-rshared", &name]).await;
        let tmpfs = async |sub: &str| {
            let at = volume.join(sub).display().to_string();
            stage.node.run(&["mount", "-t", "tmpfs", sub, &at]).await;
            stage.node.run(&["sh", "-c", &format!("echo {sub} > {at}/name")]).await;
        };
        tmpfs("before").await;
        let pod = cri.run_pod("propagation").await;
        let slave = api::Mount {
            propagation: api::MountPropagation::PropagationHostToContainer.into(),
            ..mount(&volume, "/volume")
        };
        let slave = cri.start(&pod, sleeper("slave", vec![slave])).await;
        let private = cri.start(&pod, sleeper("private", vec![mount(&volume, "/volume")])).await;
        for container in [&slave, &private] {
            assert_eq!(cri.exec(&container.id, "cat /volume/before/name").await, "before\n");
            assert_eq!(cri.exec(&container.id, "ls /volume/later").await, "");
        }
        tmpfs("later").await;
        expect_soon(cri, &slave, "cat /volume/later/name", "later\n").await;
        assert_eq!(cri.exec(&private.id, "ls /volume/later").await, "", "a private volume got a later mount");
        cri.exec(&slave.id, "echo written > /volume/later/back").await;
        let back = stage.node.inside(&volume.join("later/back").display().to_string());
        assert_eq!(std::fs::read_to_string(back).unwrap(), "written\n");
        cri.end_pod(&pod).await;
        for at in [volume.join("later"), volume.join("before"), volume.clone()] {
            stage.node.run(&["umount", &at.display().to_string()]).await;
        }
        stage.expect_clean().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn kata_2438_owners_attributes_and_sizes_are_kept() {
        let stage = stage!(Stage::shared());
        let pod = stage.cri().run_pod("owners").await;
        let volume = folder(&stage, "volume");
        owners_and_attributes(stage.cri(), &pod, &volume, &stage.node.base().busybox).await;
        a_volume_in_memory_ends_at_its_size(&stage, &pod).await;
        stage.end(&pod).await;
    }
}

//! The driver against a server that answers as Cloud Hypervisor's API does.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::*;
use crate::host::process::{OwnedProcess, Spawn};
use crate::runtime_dir::VmDir;
use crate::vm::{Access, Disk, Nic};

const PING: &str = r#"{"version": "53.0.0", "build_version": "v53.0", "pid": 1, "features": ["kvm"]}"#;

/// What a request was: its name, its body, the descriptors beside it, and whether the VM had its links then.
#[derive(Debug)]
struct Asked {
    request: String,
    body: Value,
    descriptors: Vec<OwnedFd>,
    links: bool,
}

/// A server that gives the answers that it was told to, in order; after the last it closes every connection.
struct Server {
    dir: VmDir,
    asked: Arc<Mutex<Vec<Asked>>>,
    _root: tempfile::TempDir,
}

/// Status and body of one answer.
type Answer = (u16, &'static str);

impl Server {
    fn start(answers: &[Answer]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir: VmDir = serde_json::from_value(json!(root.path())).unwrap();
        let listener = UnixListener::bind(dir.vmm_sock()).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, mut answers, path) =
            (Arc::clone(&asked), VecDeque::from(answers.to_vec()), root.path().to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(asked) = read(&stream, &path) else { continue };
                log.lock().unwrap().push(asked);
                let Some((status, body)) = answers.pop_front() else { continue };
                let length = body.len();
                write!(stream, "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
            }
        });
        Self { dir, asked, _root: root }
    }

    fn api(&self) -> Api {
        Api::new(self.dir.vmm_sock())
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn requests(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.request.clone()).collect()
    }

    /// A process that stands for the VMM.
    fn vmm(&self, script: &str) -> OwnedProcess {
        let start = Spawn {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            output: self.dir.vmm_output(),
            fds: Vec::new(),
            cgroup: None,
            env: Vec::new(),
        };
        OwnedProcess::spawn(start).unwrap()
    }

    fn spec(&self) -> LaunchSpec {
        let mut spec = LaunchSpec::new(self.dir.clone(), &Settings::default());
        (spec.kernel, spec.image) = ("/proc/self/exe".into(), "/proc/self/exe".into());
        spec
    }
}

fn read(stream: &UnixStream, dir: &Path) -> Option<Asked> {
    let mut bytes = [0; 16384];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let mut text = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
    while text.len() < whole_length(&text)? {
        let mut more = [0; 4096];
        let count = (&*stream).read(&mut more).unwrap();
        text.push_str(std::str::from_utf8(&more[..count]).unwrap());
    }
    let (line, body) = (text.lines().next()?.to_owned(), text.split_once("\r\n\r\n")?.1);
    let [method, path, _version] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let expected = if matches!(path, "/api/v1/vmm.ping" | "/api/v1/vm.info") { "GET" } else { "PUT" };
    assert_eq!(method, expected, "{path}");
    Some(Asked {
        request: path.strip_prefix("/api/v1/")?.to_owned(),
        body: if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() },
        descriptors,
        links: dir.join("kernel").exists() && dir.join("initramfs").exists(),
    })
}

/// How long a request is, head and body.
fn whole_length(text: &str) -> Option<usize> {
    let (head, _) = text.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    Some(head.len() + 4 + length.unwrap_or(0))
}

fn info(rest: &str) -> &'static str {
    let text = format!(
        r#"{{"state": "Running", "config": {{"cpus": {{"boot_vcpus": 1, "max_vcpus": 4}}, "memory": {{"size": 268435456, "hotplug_size": 268435456}}}}, {rest}}}"#
    );
    text.leak()
}

fn memory(mib: u64, disks: &str) -> Answer {
    (200, info(&format!(r#""memory_actual_size": {}, "device_tree": {{{disks}}}"#, mib << 20)))
}

fn disk() -> Disk {
    Disk {
        id: "disk0".into(),
        slot: 0,
        path: "/dev/loop0".into(),
        access: Access::ReadWrite,
        logical_block_size: 512,
        physical_block_size: 512,
    }
}

fn size(vcpus: u32, memory_mib: u32) -> Size {
    Size { vcpus: vcpus.try_into().unwrap(), memory_mib: memory_mib.try_into().unwrap() }
}

#[tokio::test]
async fn a_vm_is_made_gets_its_taps_and_boots_in_that_order() {
    let server = Server::start(&[(200, PING), (204, ""), (200, "{}"), (204, "")]);
    let tap = tempfile::tempfile().unwrap();
    let inode = tap.metadata().unwrap().ino();
    let mut spec = server.spec();
    spec.nics = vec![Nic { tap: tap.into(), mac: "02:00:00:00:00:01".into(), mtu: 1400 }];
    let vmm = server.vmm("exec sleep 60");
    assert_eq!(boot::boot(&server.api(), &vmm, &spec).await.unwrap(), "53.0.0");
    let asked = server.asked();
    let requests: Vec<&str> = asked.iter().map(|asked| asked.request.as_str()).collect();
    assert_eq!(requests, ["vmm.ping", "vm.create", "vm.add-net", "vm.boot"]);
    let [_, create, net, boot] = asked.try_into().unwrap();
    let kernel = server.dir.path().join("kernel");
    assert_eq!(create.body["payload"]["kernel"], json!(kernel));
    assert_eq!(
        net.body,
        json!({ "id": "net0", "mac": "02:00:00:00:00:01", "num_queues": 2, "queue_size": 256 })
    );
    let given: Vec<u64> =
        net.descriptors.into_iter().map(|fd| File::from(fd).metadata().unwrap().ino()).collect();
    assert_eq!(given, [inode], "the tap, and nothing else");
    assert!(create.descriptors.is_empty() && boot.descriptors.is_empty());
    assert!(boot.links && !kernel.exists(), "a guest that resets must find no kernel");
}

#[tokio::test]
async fn what_the_vmm_refuses_is_told_in_its_own_words() {
    let refusal = r#"["Error from API","The VM could not boot","Cannot open kernel file"]"#;
    let server = Server::start(&[(200, PING), (204, ""), (500, refusal)]);
    let vmm = server.vmm("exec sleep 60");
    let refused = boot::boot(&server.api(), &vmm, &server.spec()).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the VMM did not take \"vm.boot\" (500 Internal Server Error): Error from API: The VM could not boot: \
         Cannot open kernel file"
    );
    assert!(!server.dir.path().join("kernel").exists() && !server.dir.path().join("initramfs").exists());
}

#[tokio::test]
async fn a_vmm_that_is_too_old_is_asked_for_nothing_else() {
    let server = Server::start(&[(200, r#"{"version": "49.0.0"}"#)]);
    let vmm = server.vmm("exec sleep 60");
    let refused: VmError = boot::boot(&server.api(), &vmm, &server.spec()).await.unwrap_err().into();
    assert!(refused.is_misconfigured() && refused.to_string().contains("\"49.0.0\""), "{refused}");
    assert_eq!(server.requests(), ["vmm.ping"]);
}

#[tokio::test]
async fn a_vmm_that_dies_has_its_last_words_told() {
    let server = Server::start(&[(200, PING)]);
    let vmm = server.vmm("echo 'no memory for a VM'; exit 7");
    let ended = boot::boot(&server.api(), &vmm, &server.spec()).await.unwrap_err();
    assert!(
        matches!(&ended, CloudHypervisorError::Ended { exit: crate::host::process::Exit::Code(7), .. }),
        "{ended}"
    );
    assert!(ended.to_string().contains("no memory for a VM"), "{ended}");
}

#[tokio::test]
async fn an_api_that_has_gone_is_named_by_what_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let gone = Api::new(dir.path().join("vmm.sock"));
    let error = Info::of(&gone).await.unwrap_err();
    assert_eq!(error.to_string(), "the VMM cannot be asked for \"vm.info\"");
    let closing = Server::start(&[]);
    assert!(matches!(Info::of(&closing.api()).await, Err(CloudHypervisorError::Unreachable { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_does_not_answer_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket: PathBuf = dir.path().join("vmm.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let error = Info::of(&Api::new(socket)).await.unwrap_err();
    assert_eq!(error.to_string(), "the VMM did not answer \"vm.info\" within 20s");
}

#[tokio::test]
async fn a_disk_is_added_once() {
    let server = Server::start(&[
        memory(256, ""),
        (200, r#"{"id":"disk0","bdf":"0000:00:05.0"}"#),
        memory(256, r#""disk0": {}"#),
    ]);
    disk::add(&server.api(), &disk()).await.unwrap();
    disk::add(&server.api(), &disk()).await.unwrap();
    assert_eq!(server.requests(), ["vm.info", "vm.add-disk", "vm.info"]);
    assert_eq!(server.asked()[1].body, body::add_disk(&disk()));
}

#[tokio::test]
async fn a_disk_is_gone_when_the_guest_has_ejected_it() {
    let there = || memory(256, r#""disk0": {}"#);
    let server = Server::start(&[there(), (204, ""), there(), memory(256, ""), memory(256, "")]);
    disk::remove(&server.api(), "disk0").await.unwrap();
    assert_eq!(server.requests(), ["vm.info", "vm.remove-device", "vm.info", "vm.info"]);
    disk::remove(&server.api(), "disk0").await.unwrap();
    assert_eq!(server.requests().len(), 5, "none there: nothing to do");
    let asked = server.asked();
    assert_eq!(asked[1].body, json!({ "id": "disk0" }));
}

#[tokio::test]
async fn a_refused_disk_is_told_in_the_vmms_words() {
    let server = Server::start(&[memory(256, ""), (500, r#""AddDisk(NoSuchFile)""#)]);
    let refused = disk::add(&server.api(), &disk()).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "the VMM did not take \"vm.add-disk\" (500 Internal Server Error): AddDisk(NoSuchFile)"
    );
}

#[tokio::test]
async fn a_vm_grows_as_far_as_its_guest_has_taken_what_it_was_offered() {
    let server = Server::start(&[memory(256, ""), (204, ""), (204, ""), memory(256, ""), memory(300, "")]);
    assert_eq!(resize::resize(&server.api(), size(2, 300)).await.unwrap(), size(2, 300));
    let asked = server.asked();
    let bodies: Vec<&Value> = asked.iter().map(|asked| &asked.body).filter(|body| !body.is_null()).collect();
    assert_eq!(bodies, [&json!({ "desired_vcpus": 2 }), &json!({ "desired_ram": 300_u64 << 20 })]);
}

#[tokio::test]
async fn processors_on_their_way_out_are_waited_for() {
    let two: &'static str =
        info(r#""memory_actual_size": 268435456"#).replace(r#""boot_vcpus": 1"#, r#""boot_vcpus": 2"#).leak();
    let busy = (429, r#"["Too Many Requests"]"#);
    let server = Server::start(&[(200, two), busy, (204, ""), busy, busy, (204, "")]);
    assert_eq!(resize::resize(&server.api(), size(1, 256)).await.unwrap(), size(1, 256));
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn a_vm_becomes_neither_larger_than_its_room_nor_smaller_than_it_was_made() {
    let server = Server::start(&[memory(300, ""), memory(300, "")]);
    let refused = resize::resize(&server.api(), size(5, 300)).await.unwrap_err();
    assert!(matches!(refused, VmError::NoRoom { limit, .. } if limit == size(4, 512)), "{refused}");
    let refused = resize::resize(&server.api(), size(1, 200)).await.unwrap_err();
    assert!(matches!(refused, VmError::NotResized { has, .. } if has == size(1, 300)), "{refused}");
    assert_eq!(server.requests(), ["vm.info", "vm.info"], "nothing was asked for");
}

fn record(state: &str) -> VmRecord {
    let process = r#"{"pid": 2, "start_time": 3, "boot_id": "b"}"#;
    let text = format!(
        r#"{{"hypervisor": "cloud-hypervisor", "acceleration": "kvm", "vmm": {process}, "vsock_helper": null, "dir": "/run/b/vm/1", {state}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_vm_is_known_by_its_record_alone() {
    let driver = CloudHypervisorDriver::new(&Settings::default());
    let vm = record(r#""version": "53.0.0", "block_volumes": true"#);
    assert_eq!(driver.name(&vm), "cloud-hypervisor/53.0.0");
    let can = driver.capabilities(&vm);
    assert_eq!((can.disk_bus, can.hotplug.disk, can.resize), (DiskBus::Pci, Ability::Can, Ability::Can));
    let without = record(r#""version": "53.0.0", "block_volumes": false"#);
    assert_eq!(driver.capabilities(&without).hotplug.disk, Ability::cannot(NO_BLOCK_VOLUMES));
    assert_eq!(api(&vm).socket(), Path::new("/run/b/vm/1/vmm.sock"));
}

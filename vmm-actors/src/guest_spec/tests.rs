use serde_json::{Value, json};

use super::*;

static NO_LIMITS: BTreeMap<String, ResourceLimit> = BTreeMap::new();
const TARGET: Target<'_> =
    Target { container_id: "c1", shared_pid_namespace: false, inherited_limits: &NO_LIMITS };

/// In the shape in which containerd's CRI plugin writes it for a sandboxed container.
fn containerd_spec() -> Value {
    serde_json::from_str(include_str!("containerd-config.json")).unwrap()
}

fn rewrite(spec: &Value, target: Target<'_>) -> Result<(Value, GuestSpec), SpecError> {
    let guest = for_guest(spec.to_string().as_bytes(), target)?;
    Ok((serde_json::from_slice(&guest.spec_json).unwrap(), guest))
}

fn accepted(spec: &Value) -> (Value, GuestSpec) {
    rewrite(spec, TARGET).unwrap()
}

fn refused(spec: &Value) -> SpecError {
    match rewrite(spec, TARGET) {
        Err(error) => error,
        Ok((value, _)) => panic!("accepted as {value}"),
    }
}

fn namespace<'a>(spec: &'a Value, kind: &str) -> Option<&'a Value> {
    spec["linux"]["namespaces"].as_array().unwrap().iter().find(|n| n["type"] == kind)
}

#[test]
fn what_runs_and_how_it_is_bounded_stays() {
    let before = containerd_spec();
    let (after, _) = accepted(&before);
    for field in ["args", "env", "cwd", "user", "rlimits", "noNewPrivileges"] {
        assert_eq!(after["process"][field], before["process"][field], "{field}");
    }
    assert_eq!(after["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(after["linux"]["maskedPaths"], before["linux"]["maskedPaths"]);
    assert_eq!(after["linux"]["resources"]["memory"], before["linux"]["resources"]["memory"]);
    assert_eq!(after["linux"]["resources"]["unified"], before["linux"]["resources"]["unified"]);
    assert_eq!(after["linux"]["resources"]["cpu"]["quota"], 10000);
    assert_eq!(after["root"]["readonly"], true);
    assert_eq!(after["annotations"], before["annotations"]);
}

#[test]
fn what_is_of_the_host_becomes_the_guest_s() {
    let (after, guest) = accepted(&containerd_spec());
    assert_eq!(after["root"]["path"], "/run/bulkhead/share/c1/rootfs");
    assert_eq!(guest.rootfs, Path::new("/run/bulkhead/share/c1/rootfs"));
    assert_eq!(after["linux"]["cgroupsPath"], "/bulkhead/c1");
    assert_eq!(after["process"].get("apparmorProfile"), None);
    assert_eq!(after["process"].get("selinuxLabel"), None);
    assert_eq!(after["process"]["oomScoreAdj"], -999);
    assert_eq!(after["linux"]["resources"]["cpu"].get("cpus"), None);
    assert_eq!(after["linux"]["resources"].get("blockIO"), None);
    let left_out: Vec<String> = guest.notes.iter().map(ToString::to_string).collect();
    for part in ["apparmorProfile", "selinuxLabel", "cpu.cpus left out (3)", "116:33", "blockIO"] {
        assert!(left_out.iter().any(|note| note.contains(part)), "{part} is not in {left_out:?}");
    }
}

#[test]
fn the_pod_s_namespaces_are_the_vm_s() {
    let (after, _) = accepted(&containerd_spec());
    for gone in ["network", "ipc", "uts"] {
        assert_eq!(namespace(&after, gone), None);
    }
    assert_eq!(namespace(&after, "pid"), Some(&json!({"type": "pid"})));
    assert_eq!(namespace(&after, "mount"), Some(&json!({"type": "mount"})));
    assert_eq!(namespace(&after, "cgroup"), Some(&json!({"type": "cgroup"})));
}

#[test]
fn pid_namespace_follows_the_pod() {
    let mut spec = containerd_spec();
    spec["linux"]["namespaces"][0]["path"] = json!("/proc/4242/ns/pid");
    let (alone, _) = accepted(&spec);
    assert_eq!(namespace(&alone, "pid"), Some(&json!({"type": "pid"})));

    let shared = Target { shared_pid_namespace: true, ..TARGET };
    let (together, _) = rewrite(&spec, shared).unwrap();
    assert_eq!(namespace(&together, "pid"), Some(&json!({"type": "pid", "path": PID_NAMESPACE})));

    spec["linux"]["namespaces"][0]["path"] = json!("/proc/117/ns/pid");
    let (debugger, _) = rewrite(&spec, shared).unwrap();
    assert_eq!(namespace(&debugger, "pid"), Some(&json!({"type": "pid", "path": "/proc/117/ns/pid"})));
}

#[test]
fn binds_come_in_through_the_share() {
    let (after, guest) = accepted(&containerd_spec());
    let mount = |at: &str| {
        let mounts = after["mounts"].as_array().unwrap().clone();
        mounts.into_iter().find(|mount| mount["destination"] == at)
    };
    assert_eq!(mount("/etc/hosts").unwrap()["source"], "/run/bulkhead/share/c1/mounts/0");
    assert_eq!(mount("/data").unwrap()["source"], "/run/bulkhead/share/c1/mounts/1");
    assert_eq!(mount("/data").unwrap()["options"], json!(["rbind", "rslave"]), "the host sees to ro");
    assert_eq!(mount("/dev/shm"), None, "the agent binds the pod's");
    assert!(mount("/dev/mqueue").is_some() && mount("/sys/fs/cgroup").is_some());

    let [hosts, data] = guest.binds.as_slice() else { panic!("{:?}", guest.binds) };
    assert_eq!(
        (hosts.index, hosts.read_only, hosts.propagation),
        (0, ReadOnly::Nothing, Propagation::Private)
    );
    assert_eq!(hosts.source, Path::new("/var/lib/kubelet/pods/u1/etc-hosts"));
    assert_eq!((data.index, data.read_only, data.propagation), (1, ReadOnly::Top, Propagation::FromHost));
    assert!(data.recursive);
    assert_eq!(data.guest_path, Path::new("/run/bulkhead/share/c1/mounts/1"));
}

#[test]
fn sockets_and_volumes_in_memory_come_from_the_agent() {
    for (left, source) in [
        (LeftToGuest { sockets: vec![1], ..LeftToGuest::default() }, "/run/bulkhead/sockets/c1/1"),
        (LeftToGuest { memory: vec![1], ..LeftToGuest::default() }, "/run/bulkhead/memory/c1/1"),
    ] {
        let (before, mut guest) = accepted(&containerd_spec());
        guest.settle("c1", &LeftToGuest::default()).unwrap();
        guest.settle("c1", &left).unwrap();
        let after: Value = serde_json::from_slice(&guest.spec_json).unwrap();
        let (before, after) = (before["mounts"].as_array().unwrap(), after["mounts"].as_array().unwrap());
        let changed: Vec<_> = before.iter().zip(after).filter(|(before, after)| before != after).collect();
        let [(_, changed)] = changed.as_slice() else { panic!("{changed:?}") };
        assert_eq!(changed["destination"], "/data");
        assert_eq!(changed["source"], source);
        assert_eq!(changed["options"], json!(["rbind", "rslave", "ro"]), "nobody else sees to ro");
        assert_eq!(before.len(), after.len());
    }
}

#[test]
fn the_guest_sees_to_read_only_where_the_host_does_not() {
    let (_, mut guest) = accepted(&containerd_spec());
    guest.settle("c1", &LeftToGuest { read_only: vec![0, 1], ..LeftToGuest::default() }).unwrap();
    let after: Value = serde_json::from_slice(&guest.spec_json).unwrap();
    let find = |at: &str| {
        let mounts = after["mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["destination"] == at).unwrap().clone()
    };
    assert_eq!(find("/data")["options"], json!(["rbind", "rslave", "ro"]));
    assert_eq!(find("/data")["source"], "/run/bulkhead/share/c1/mounts/1");
    let writable = find("/etc/hosts")["options"].as_array().unwrap().clone();
    assert!(!writable.contains(&json!("ro")), "{writable:?}");
}

#[test]
fn all_of_a_volume_is_read_only_where_asked() {
    let mut spec = containerd_spec();
    spec["mounts"][8]["options"] = json!(["rbind", "rprivate", "rro"]);
    let (after, guest) = accepted(&spec);
    assert_eq!(guest.binds[1].read_only, ReadOnly::Below);
    assert_eq!(after["mounts"][7]["options"], json!(["rbind", "rprivate"]), "one mount less: /dev/shm");
}

#[test]
fn a_volume_over_shm_stays() {
    let mut spec = containerd_spec();
    spec["mounts"][3] = json!({"destination": "/dev/shm", "type": "bind", "source": "/srv/shm",
        "options": ["rbind", "rw"]});
    let (_, guest) = accepted(&spec);
    assert!(guest.binds.iter().any(|bind| bind.destination == Path::new("/dev/shm")));
}

#[test]
fn kernel_directories_are_the_guest_s() {
    let mut spec = containerd_spec();
    spec["mounts"][8]["source"] = json!("/sys/kernel/debug");
    let (after, guest) = accepted(&spec);
    assert_eq!(after["mounts"][7]["source"], "/sys/kernel/debug", "one mount less: /dev/shm");
    assert_eq!(guest.binds.len(), 1);
    assert!(guest.notes.contains(&Note::FromGuest { source: "/sys/kernel/debug".into() }));
}

#[test]
fn a_block_device_becomes_a_disk_with_the_rights_of_its_rule() {
    let mut spec = containerd_spec();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/xvda", "type": "b", "major": 7, "minor": 5, "fileMode": 0o660, "uid": 3, "gid": 4},
        {"path": "/block", "type": "b", "major": 8, "minor": 17},
    ]);
    let rules = spec["linux"]["resources"]["devices"].as_array_mut().unwrap();
    rules.push(json!({"allow": true, "access": "rwm"}));
    rules.push(json!({"allow": true, "type": "b", "major": 7, "minor": 5, "access": "mrw"}));
    rules.push(json!({"allow": true, "type": "b", "major": 8, "minor": 17, "access": "r"}));
    let (after, guest) = accepted(&spec);
    let [one, two] = guest.disks.as_slice() else { panic!("{:?}", guest.disks) };
    assert_eq!((one.path.as_path(), one.access.as_str()), (Path::new("/dev/xvda"), "mrw"));
    assert_eq!(one.number, crate::host::block::Number { major: 7, minor: 5 });
    assert_eq!((one.file_mode, one.uid, one.gid), (Some(0o660), 3, 4));
    assert!(one.is_writable() && !two.is_writable());
    assert_eq!(after["linux"]["devices"].as_array().unwrap().len(), 1, "the guest knows no such numbers");
    let rules = after["linux"]["resources"]["devices"].to_string();
    assert!(!rules.contains(r#""major":7"#) && !rules.contains(r#""major":8"#), "{rules}");
    let noted: Vec<String> = guest.notes.iter().map(ToString::to_string).collect();
    assert!(!noted.iter().any(|note| note.contains("7:5") || note.contains("8:17")), "{noted:?}");
}

#[test]
fn a_privileged_container_has_what_it_asks_for_and_never_all_that_the_host_has() {
    let mut spec = containerd_spec();
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let disk = json!({"path": "/dev/xvda", "type": "b", "major": 7, "minor": 5});
    spec["linux"]["devices"] = json!([disk]);
    let (_, guest) = accepted(&spec);
    let [only] = guest.disks.as_slice() else { panic!("{:?}", guest.disks) };
    assert_eq!(only.access, "rwm");
    let nothing = json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 3});
    spec["linux"]["devices"] = json!([disk, nothing]);
    let error = refused(&spec).to_string();
    assert!(
        error.contains("/dev/xvda (b 7:5)") && error.contains("privileged_without_host_devices"),
        "{error}"
    );
    spec["linux"]["devices"] = json!([disk, {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    let error = refused(&spec).to_string();
    assert!(error.contains("/dev/kvm (c 10:232)") && error.contains("only block devices"), "{error}");
}

/// One edit of a good spec, and a piece of the refusal it must meet.
type Refusal = (&'static str, fn(&mut Value), &'static str);

const REFUSALS: [Refusal; 19] = [
    ("no process", |s| s["process"] = Value::Null, "no process"),
    ("no root", |s| s["root"] = Value::Null, "no root"),
    ("not linux", |s| s["linux"] = Value::Null, "no linux section"),
    ("user namespace", |s| s["linux"]["namespaces"][1] = json!({"type": "user"}), "hostUsers"),
    ("uid map", |s| s["linux"]["uidMappings"] = json!([{"containerID":0,"hostID":9,"size":1}]), "hostUsers"),
    ("host pid", |s| s["linux"]["namespaces"][0] = json!({"type": "mount"}), "hostPID"),
    ("mount ns", |s| s["linux"]["namespaces"][3]["path"] = json!("/proc/1/ns/mnt"), "/proc/1/ns/mnt"),
    ("cgroup ns", |s| s["linux"]["namespaces"][5]["path"] = json!("/proc/1/ns/cgroup"), "joined from a VM"),
    (
        "device",
        |s| {
            s["linux"]["devices"] =
                json!([{"path": "/dev/snd/timer", "type": "c", "major": 116, "minor": 33}])
        },
        "/dev/snd/timer (c 116:33) cannot be given to a VM",
    ),
    (
        "every device",
        |s| s["linux"]["devices"] = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
        "/dev/sda (b 8:0) is not asked for",
    ),
    (
        "hook",
        |s| s["hooks"] = json!({"createRuntime": [{"path": "/usr/bin/cdi"}]}),
        "createRuntime hook /usr/bin/cdi",
    ),
    ("seccomp", |s| s["linux"]["seccomp"]["listenerPath"] = json!("/run/s.sock"), "/run/s.sock"),
    ("net device", |s| s["linux"]["netDevices"] = json!({"eth7": {}}), "eth7"),
    ("mount type", |s| s["mounts"][7]["type"] = json!("nfs"), "/etc/hosts"),
    ("relative bind", |s| s["mounts"][8]["source"] = json!("srv/data"), "absolute host path"),
    ("dotted bind", |s| s["mounts"][8]["source"] = json!("/srv/../etc"), "/srv/../etc"),
    ("host shm", |s| s["mounts"][8]["source"] = json!("/dev/shm"), "hostIPC"),
    ("to host", |s| s["mounts"][8]["options"] = json!(["rbind", "rshared"]), "Bidirectional"),
    (
        "id-mapped",
        |s| s["mounts"][8]["uidMappings"] = json!([{"containerID":0,"hostID":9,"size":1}]),
        "id-mapped",
    ),
];

#[test]
fn what_a_vm_cannot_give_is_refused_by_name() {
    for (name, edit, says) in REFUSALS {
        let mut spec = containerd_spec();
        edit(&mut spec);
        if name == "mount type" {
            spec["mounts"][7]["options"] = json!(["rw"]);
        }
        let error = refused(&spec).to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn what_is_no_spec_is_refused() {
    for text in ["", "{}x", "null", "{\"ociVersion\": 7}"] {
        let error = for_guest(text.as_bytes(), TARGET).unwrap_err();
        assert!(matches!(error, SpecError::Parse { .. }), "{text}: {error}");
    }
}

#[test]
fn limits_that_the_spec_does_not_set_are_those_of_containerd() {
    let limit = |soft, hard| ResourceLimit { soft, hard };
    let inherited = BTreeMap::from([
        ("RLIMIT_NOFILE".to_owned(), limit(1, 2)),
        ("RLIMIT_CORE".to_owned(), limit(3, u64::MAX)),
        ("RLIMIT_UNHEARD_OF".to_owned(), limit(5, 6)),
    ]);
    let mut spec: Value = containerd_spec();
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]);
    let (rewritten, _) = rewrite(&spec, Target { inherited_limits: &inherited, ..TARGET }).unwrap();
    let expected = json!([
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
        {"type": "RLIMIT_CORE", "soft": 3, "hard": u64::MAX},
    ]);
    assert_eq!(rewritten["process"]["rlimits"], expected);
}

#[test]
fn classes_of_a_kernel_are_the_guests_own() {
    let mut spec = containerd_spec();
    let tun = json!({"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 438, "uid": 0, "gid": 0});
    let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
    spec["linux"]["devices"] = json!([tun, fuse]);
    let rules = spec["linux"]["resources"]["devices"].as_array_mut().unwrap();
    for minor in [200, 229] {
        rules.push(json!({"allow": true, "type": "c", "major": 10, "minor": minor, "access": "rwm"}));
    }
    let (after, guest) = rewrite(&spec, TARGET).unwrap();
    assert_eq!(after["linux"]["devices"].as_array().unwrap().len(), 2);
    assert!(guest.disks.is_empty());
    let rules = after["linux"]["resources"]["devices"].to_string();
    assert!(rules.contains("200") && rules.contains("229"), "{rules}");
}

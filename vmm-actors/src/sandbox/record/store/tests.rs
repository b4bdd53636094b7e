use bulkhead_config::{ProfileName, Settings};

use super::*;
use crate::id::ContainerdNamespace;
use crate::pod_spec::PodSpec;
use crate::sandbox::CreateSandbox;
use crate::sandbox::record::Phase;

fn id(text: &str) -> SandboxId {
    SandboxId::new(text).unwrap()
}

pub(crate) fn record(name: &str) -> Record {
    let request = CreateSandbox {
        id: id(name),
        containerd_namespace: ContainerdNamespace::default(),
        profile: ProfileName::default(),
        netns: "/run/netns/none".into(),
        pod: PodSpec::default(),
    };
    Record::intend(request, &Settings::default()).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn quarantined(found: Vec<Found>) -> (Option<SandboxId>, PathBuf, Broken) {
    match found.into_iter().next() {
        Some(Found::Quarantined { id, path, why }) => (id, path, why),
        other => panic!("not quarantined: {other:?}"),
    }
}

#[test]
fn what_is_saved_is_found_and_what_is_deleted_is_not() {
    let (_dir, store) = store();
    let (one, two) = (record("one"), record("two"));
    store.save(&one).unwrap();
    store.save(&two).unwrap();
    store.save(&one).unwrap();
    store.delete(&two.id).unwrap();
    store.delete(&two.id).unwrap();
    let found = store.load_all().unwrap();
    assert!(matches!(found.as_slice(), [Found::Record(found)] if **found == one), "{found:?}");
    assert!(store.load_one(&two.id).is_none());
}

#[test]
fn a_record_cut_or_changed_anywhere_is_quarantined_and_keeps_its_bytes() {
    let (_dir, store) = store();
    let whole = record("pod");
    store.save(&whole).unwrap();
    let path = store.path(&whole.id);
    let bytes = fs::read(&path).unwrap();
    let step = bytes.len() / 40 + 1;
    for at in (0..bytes.len()).step_by(step) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x20;
        for broken in [bytes[..at].to_vec(), flipped] {
            fs::write(&path, &broken).unwrap();
            let (id, kept, _why) = quarantined(store.load_all().unwrap());
            assert_eq!(id.as_ref(), Some(&whole.id));
            assert_eq!(fs::read(kept).unwrap(), broken, "cut or changed at {at}");
            assert!(!path.exists());
        }
    }
}

#[test]
fn a_newer_release_a_wrong_name_and_a_huge_file_are_told_apart() {
    let (_dir, store) = store();
    let whole = record("pod");
    store.save(&whole).unwrap();
    let path = store.path(&whole.id);
    let text = fs::read_to_string(&path).unwrap();

    fs::write(&path, text.replacen("\"version\":1", "\"version\":9", 1)).unwrap();
    assert!(matches!(quarantined(store.load_all().unwrap()).2, Broken::Version(9)));

    fs::write(store.path(&id("other")), &text).unwrap();
    assert!(matches!(quarantined(store.load_all().unwrap()).2, Broken::WrongName(_)));

    fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(matches!(quarantined(store.load_all().unwrap()).2, Broken::TooLarge(_)));
}

#[test]
fn a_write_that_a_crash_cut_short_leaves_the_old_record() {
    let (_dir, store) = store();
    let whole = record("pod");
    store.save(&whole).unwrap();
    fs::write(store.sandboxes.join("pod.new"), b"{").unwrap();
    let found = store.load_all().unwrap();
    assert!(matches!(found.as_slice(), [Found::Record(_)]), "{found:?}");
    assert!(!store.sandboxes.join("pod.new").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let (dir, store) = store();
    fs::remove_dir(&store.sandboxes).unwrap();
    fs::write(&store.sandboxes, b"").unwrap();
    let error = store.save(&record("pod")).unwrap_err();
    assert!(error.to_string().contains("pod.json"), "{error}");
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("sandboxes"), "{error}");
}

#[test]
fn a_record_from_before_namespaces_were_kept_is_cris() {
    let named = ContainerdNamespace::new("other").unwrap();
    let record = Record { containerd_namespace: named.clone(), ..record("pod") };
    let mut json = serde_json::to_value(&record).unwrap();
    assert_eq!(serde_json::from_value::<Record>(json.clone()).unwrap().containerd_namespace, named);
    json.as_object_mut().unwrap().remove("containerd_namespace").unwrap();
    let old: Record = serde_json::from_value(json).unwrap();
    assert_eq!(old.containerd_namespace.as_str(), "k8s.io");
}

#[test]
fn what_is_said_of_containers_lies_flat_in_the_record_as_it_always_did() {
    let with_container = serde_json::json!({
        "c1": { "bundle": "/bundles/c1", "stdio": ["", "/out", ""], "guest_pid": 7 },
    });
    let disks = serde_json::json!({
        "next": 4,
        "disks": [{ "number": 3, "major": 7, "minor": 0, "access": "read-write", "users": ["c1"] }],
    });
    let mut json = serde_json::to_value(record("pod")).unwrap();
    let body = json.as_object_mut().unwrap();
    assert_eq!(body["containers"], serde_json::json!({}));
    body.insert("containers".to_owned(), with_container.clone());
    body.insert("disks".to_owned(), disks.clone());
    let read: Record = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(read.containers.by_id.len(), 1);
    assert_eq!(read.containers.disks.count(), 1);
    assert_eq!(serde_json::to_value(&read).unwrap(), json);
    // Of a release without block volumes.
    json.as_object_mut().unwrap().remove("disks").unwrap();
    let old: Record = serde_json::from_value(json).unwrap();
    assert_eq!((old.containers.by_id, old.containers.disks.count()), (read.containers.by_id, 0));
}

#[test]
fn a_record_from_before_profiles_is_of_the_default_one() {
    let mut json = serde_json::to_value(record("pod")).unwrap();
    assert_eq!(json["controller"], "/run/bulkhead/sandboxer.sock");
    for key in ["profile", "controller"] {
        json.as_object_mut().unwrap().remove(key).unwrap();
    }
    let old: Record = serde_json::from_value(json).unwrap();
    assert_eq!((old.profile, old.controller), (ProfileName::default(), None));
}

#[test]
fn a_record_keeps_its_profiles_name_socket_and_sizes() {
    let text = "[profile.big]\nlisten = \"/run/big.sock\"\n[profile.big.vm]\nvcpus = 3\nmemory_mib = 1024\n";
    let settings = Settings::parse(text, bulkhead_config::Scope::Values).unwrap();
    let request = |profile: &str| CreateSandbox {
        id: id("pod"),
        containerd_namespace: ContainerdNamespace::default(),
        profile: ProfileName::new(profile).unwrap(),
        netns: "/run/netns/none".into(),
        pod: PodSpec::default(),
    };
    let made = Record::intend(request("big"), &settings).unwrap();
    assert_eq!(
        (made.profile.as_str(), made.controller.as_deref()),
        ("big", Some(Path::new("/run/big.sock")))
    );
    // What the settings say by now means nothing to it.
    let size = made.size(&Settings::default());
    assert_eq!((size.vcpus.get(), size.memory_mib.get()), (3, 1024));
    assert_eq!(made.basis(&Settings::default()).memory_mib.get(), 1024);
    let read: Record = serde_json::from_value(serde_json::to_value(&made).unwrap()).unwrap();
    assert_eq!(read, made);

    let refused = Record::intend(request("small"), &settings).unwrap_err();
    assert_eq!(refused.class(), crate::cause::Class::Invalid);
    assert!(refused.to_string().contains("add [profile.small]"), "{refused}");
}

/// What the version that had one directory for a pod and its VM (commit 43944f3) wrote of a running pod with a container.
const BEFORE_VM_IDS: &[u8] = include_bytes!("../../../../tests/fixtures/record-before-vm-ids.json");

#[test]
fn a_record_of_the_version_before_vm_ids_is_read_and_loses_nothing() {
    let (_dir, store) = store();
    let id = id("03cd5b126d82657bdbb6f7be5cc5f5bcb622409d6dee717731ddf70b7e5364d5");
    fs::write(store.path(&id), BEFORE_VM_IDS).unwrap();
    let found = store.load_all().unwrap();
    let [Found::Record(record)] = found.as_slice() else { panic!("not read: {found:?}") };

    assert_eq!((&record.id, &record.phase), (&id, &Phase::Running));
    assert_eq!(record.vm_dir().path(), record.dir.path(), "the VM's files lie in its pod's directory");
    let vm = record.vm.as_ref().unwrap();
    assert_eq!((vm.vmm.pid, vm.vsock_helper.as_ref().map(|helper| helper.pid)), (74, Some(69)));
    assert_eq!(record.containers.by_id.len(), 1);

    // All that it said is there when it is written again: what only a driver reads, too.
    let (_header, body) = std::str::from_utf8(BEFORE_VM_IDS).unwrap().split_once('\n').unwrap();
    let before: serde_json::Map<String, serde_json::Value> = serde_json::from_str(body).unwrap();
    let now = serde_json::to_value(record).unwrap();
    for (key, value) in before {
        assert_eq!(now[&key], value, "{key}");
    }
}

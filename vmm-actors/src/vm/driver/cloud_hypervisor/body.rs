//! Bodies of the API's requests, as pure functions of what is asked for.

use std::path::Path;

use bulkhead_protocol::SHARE_TAG;
use serde_json::{Map, Value, json};

use crate::vm::{Access, Disk, LaunchSpec, Nic, Share};

/// The guest's context id. Each VMM serves one VM, so all may have the same; below 3 they are reserved (vsock(7)).
const GUEST_CID: u32 = 3;
/// Memory for growth comes in whole blocks of the guest's, in MiB (`/sys/devices/system/memory/block_size_bytes`).
const GROWTH_BLOCK_MIB: u32 = 128;
/// Size of the host's huge pages that `[vm] hugepages` means, in bytes.
const HUGE_PAGE: u64 = 2 << 20;
/// Receive and transmit queue of a network device.
const NET_QUEUES: u32 = 2;
/// What a kernel is told before what the administrator and the agent want: of a parameter given twice it takes the last.
const CMDLINE: [&str; 6] = [
    "console=ttyS0",
    "quiet",
    // A panic resets the VM at once, which ends it: see `boot`.
    "panic=-1",
    // 64 MiB, set aside in a guest that may have memory above 4 GiB, for devices that reach less: none of ours.
    "swiotlb=noforce",
    // Work at boot that a pod has no use for: self-tests of the crypto algorithms, and tracefs with the directories of
    // its 1500 events.
    "cryptomgr.notests=1",
    "initcall_blacklist=crypto_kdf108_init,trace_eval_init,tracer_init_tracefs",
];

/// What the VM boots and works with, by paths that are its own.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// What the entropy device reads.
    pub(super) entropy: &'a Path,
    /// Where the guest's console goes.
    pub(super) serial: &'a Path,
}

/// `vm.create`: everything but the network devices, whose descriptors this request drops.
pub(super) fn create(spec: &LaunchSpec, payload: &Payload<'_>) -> Value {
    let mut config = object(json!({
        "payload": {
            "kernel": text(payload.kernel),
            "initramfs": text(payload.initramfs),
            "cmdline": cmdline(spec),
        },
        "cpus": cpus(spec),
        "memory": memory(spec),
        "rng": { "src": text(payload.entropy) },
        "serial": { "mode": "File", "file": text(payload.serial) },
        "console": { "mode": "Off" },
        "vsock": { "cid": GUEST_CID, "socket": text(&spec.dir.vsock()) },
    }));
    if spec.share == Share::Exported {
        let socket = text(&spec.dir.virtiofs_sock());
        let share = json!([{ "tag": SHARE_TAG, "socket": socket, "num_queues": 1, "queue_size": 1024 }]);
        config.insert("fs".to_owned(), share);
    }
    config.into()
}

/// `vm.add-net`, beside the descriptor of its tap. Without the MTU: the VMM would set it on a link of that name in its own
/// network namespace, and the agent sets the guest's.
pub(super) fn add_net(index: usize, nic: &Nic) -> Value {
    json!({ "id": format!("net{index}"), "mac": nic.mac, "num_queues": NET_QUEUES, "queue_size": 256 })
}

/// `vm.add-disk`. Past the host's cache: what the guest has flushed is on the device. Its format is said, so that the VMM
/// takes nothing that a guest writes into its first sectors for another one.
pub(super) fn add_disk(disk: &Disk) -> Value {
    json!({
        "id": disk.id,
        "serial": disk.id,
        "path": text(&disk.path),
        "readonly": disk.access == Access::ReadOnly,
        "direct": true,
        "image_type": "Raw",
        "num_queues": 1,
    })
}

fn cpus(spec: &LaunchSpec) -> Value {
    let most = spec.size.vcpus.max(spec.room.vcpus);
    // A guest that could be a host itself has more of KVM to attack.
    json!({ "boot_vcpus": spec.size.vcpus, "max_vcpus": most, "nested": false })
}

fn memory(spec: &LaunchSpec) -> Value {
    // Shared, because vhost-user devices work in the guest's memory.
    let mut memory =
        object(json!({ "size": spec.size.memory_bytes(), "shared": true, "hugepages": spec.hugepages }));
    if spec.hugepages {
        memory.insert("hugepage_size".to_owned(), HUGE_PAGE.into());
    }
    let more = spec.room.memory_mib.get().saturating_sub(spec.size.memory_mib.get());
    let more = u64::from(more - more % GROWTH_BLOCK_MIB) << 20;
    if more > 0 {
        // Not by ACPI: what came that way does not go again.
        memory.insert("hotplug_method".to_owned(), "VirtioMem".into());
        memory.insert("hotplug_size".to_owned(), more.into());
    }
    memory.into()
}

/// The object that `json!` has made of braces.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

fn cmdline(spec: &LaunchSpec) -> String {
    let mut words = CMDLINE.to_vec();
    words.push(&spec.cmdline);
    words.join(" ")
}

/// A path as JSON has it. Ours are UTF-8, as the settings are.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use bulkhead_config::Settings;

    use super::*;
    use crate::runtime_dir::VmDir;

    fn spec() -> LaunchSpec {
        let dir: VmDir = serde_json::from_str(r#""/run/b/vm/1""#).unwrap();
        let mut settings = Settings::default();
        settings.guest.kernel_params = "loglevel=7".into();
        LaunchSpec::new(dir, &settings)
    }

    fn created(spec: &LaunchSpec) -> Value {
        create(
            spec,
            &Payload {
                kernel: Path::new("/k"),
                initramfs: Path::new("/i"),
                entropy: Path::new("/e"),
                serial: Path::new("/s"),
            },
        )
    }

    #[test]
    fn a_vm_boots_kernel_and_image_with_shared_memory_and_room_to_grow() {
        let mut spec = spec();
        spec.size.memory_mib = 300.try_into().unwrap();
        spec.room.memory_mib = 1000.try_into().unwrap();
        let config = created(&spec);
        assert_eq!(
            (&config["payload"]["kernel"], &config["payload"]["initramfs"]),
            (&"/k".into(), &"/i".into())
        );
        assert_eq!(config["cpus"], json!({ "boot_vcpus": 1, "max_vcpus": 8, "nested": false }));
        let memory = json!({
            "size": 300_u64 << 20, "shared": true, "hugepages": false,
            "hotplug_method": "VirtioMem", "hotplug_size": 640_u64 << 20,
        });
        assert_eq!(config["memory"], memory, "growth in blocks of 128 MiB");
        assert_eq!(config["vsock"], json!({ "cid": 3, "socket": "/run/b/vm/1/vsock.sock" }));
        assert_eq!(config["rng"], json!({ "src": "/e" }));
        assert_eq!(config["serial"], json!({ "mode": "File", "file": "/s" }));
        assert_eq!(config["fs"][0]["tag"], SHARE_TAG);
        assert!(config.get("net").is_none(), "vm.create drops descriptors");
    }

    #[test]
    fn what_a_vm_is_without_is_left_out() {
        let mut spec = spec();
        (spec.room, spec.share, spec.hugepages) = (spec.size, Share::Absent, true);
        let config = created(&spec);
        assert!(config.get("fs").is_none());
        assert_eq!(config["cpus"]["max_vcpus"], 1);
        let memory = json!({
            "size": 256_u64 << 20, "shared": true, "hugepages": true, "hugepage_size": 2 << 20,
        });
        assert_eq!(config["memory"], memory);
    }

    #[test]
    fn the_administrators_parameters_come_last() {
        let config = created(&spec());
        let cmdline = config["payload"]["cmdline"].as_str().unwrap();
        assert!(cmdline.starts_with("console=ttyS0 quiet panic=-1 "), "{cmdline}");
        assert!(cmdline.ends_with(" bulkhead.log=info loglevel=7"), "{cmdline}");
    }

    #[test]
    fn a_disk_is_raw_and_has_its_id_for_serial_number() {
        let disk = Disk {
            id: "disk3".into(),
            slot: 3,
            path: "/dev/loop7".into(),
            access: Access::ReadOnly,
            logical_block_size: 512,
            physical_block_size: 4096,
        };
        let expected = json!({
            "id": "disk3", "serial": "disk3", "path": "/dev/loop7", "readonly": true, "direct": true,
            "image_type": "Raw", "num_queues": 1,
        });
        assert_eq!(add_disk(&disk), expected);
    }
}

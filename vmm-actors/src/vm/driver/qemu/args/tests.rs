use std::num::NonZeroU32;

use bulkhead_config::Settings;

use super::*;
use crate::id::VmId;
use crate::runtime_dir::VmDir;

fn spec(nics: usize) -> LaunchSpec {
    let dir = VmDir::new(Path::new("/run/b"), &VmId::new("0123456789ab").unwrap());
    let mut spec = LaunchSpec::new(dir, &Settings::default());
    spec.nics = (0..nics)
        .map(|n| Nic {
            tap: std::fs::File::open("/dev/null").unwrap().into(),
            mac: format!("02:00:00:00:00:0{n}"),
            mtu: 1450,
        })
        .collect();
    spec
}

fn line(machine: Machine, acceleration: Acceleration, spec: &LaunchSpec) -> String {
    let descriptors = Descriptors { api: 3, vsock: 4, taps: vec![5, 6] };
    let extra_args = ["-d".to_owned(), "guest_errors".to_owned()];
    let tsc_khz = Some(2_000_000);
    let line = CommandLine {
        machine,
        acceleration,
        tsc_khz,
        spec,
        descriptors: &descriptors,
        extra_args: &extra_args,
    };
    line.args().iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[test]
fn microvm_has_devices_on_its_own_bus() {
    let line = line(Machine::Microvm, Acceleration::Emulation, &spec(2));
    for part in [
        "-machine microvm,accel=tcg,acpi=on,",
        "-global virtio-mmio.force-legacy=false",
        "-device vhost-user-fs-device,chardev=share,tag=bulkhead",
        "-device vhost-user-vsock-device,chardev=vsock",
        "-device virtio-scsi-device,id=disks",
        "-chardev socket,id=vsock,fd=4",
        "-netdev tap,id=net1,fd=6,vhost=off",
        "-device virtio-net-device,netdev=net1,mac=02:00:00:00:00:01,host_mtu=1450",
        "-chardev socket,id=api,fd=3,server=on,wait=off",
        "-cpu max,-erms",
        "dump-guest-core=off",
        "tsc_early_khz=2000000",
        "cryptomgr.notests=1 initcall_blacklist=crypto_kdf108_init,trace_eval_init,tracer_init_tracefs",
    ] {
        assert!(line.contains(part), "{part:?} is missing in {line}");
    }
    assert!(!line.contains("pci"), "{line}");
    assert!(line.ends_with("-d guest_errors"), "{line}");
}

#[test]
fn q35_has_pci_devices_and_room_for_more() {
    let line = line(Machine::Q35, Acceleration::Hardware, &spec(1));
    for part in [
        "-machine q35,accel=kvm,",
        "-cpu host,-vmx,-svm,pmu=off",
        "dump-guest-core=off",
        "-device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:00,host_mtu=1450,romfile=",
        "-device vhost-user-vsock-pci,chardev=vsock",
        "-device pcie-root-port,id=slot3,chassis=4",
    ] {
        assert!(line.contains(part), "{part:?} is missing in {line}");
    }
    assert!(!line.contains("mmio"), "{line}");
    assert!(line.contains(&format!("id={DISKS_SLOT},")) && !line.contains("virtio-scsi"), "{line}");
}

#[test]
fn guest_memory_is_shared_and_of_the_asked_size() {
    let mut spec = spec(0);
    spec.size.memory_mib = NonZeroU32::new(512).unwrap();
    spec.hugepages = true;
    let line = line(Machine::Microvm, Acceleration::Emulation, &spec);
    assert!(
        line.contains("-m 512M -object memory-backend-memfd,id=ram,size=512M,share=on,hugetlb=on"),
        "{line}"
    );
}

#[test]
fn a_vm_without_a_share_has_no_device_for_it() {
    let mut spec = spec(0);
    spec.share = Share::Absent;
    let line = line(Machine::Microvm, Acceleration::Emulation, &spec);
    assert!(!line.contains("vhost-user-fs"), "{line}");
}

#[test]
fn a_vm_without_block_volumes_has_no_controller_for_them() {
    let mut spec = spec(0);
    spec.block_volumes = false;
    let line = line(Machine::Microvm, Acceleration::Emulation, &spec);
    assert!(!line.contains("virtio-scsi"), "{line}");
}

#[test]
fn a_comma_in_a_path_is_not_an_option() {
    let mut spec = spec(0);
    spec.entropy_source = "/dev/hw,rng=x".into();
    let line = line(Machine::Microvm, Acceleration::Emulation, &spec);
    assert!(line.contains("filename=/dev/hw,,rng=x "), "{line}");
}

#[test]
fn the_administrators_parameters_are_the_last_on_the_kernels_command_line() {
    let mut spec = spec(0);
    spec.cmdline = "bulkhead.log=info panic=5".into();
    let line = line(Machine::Microvm, Acceleration::Emulation, &spec);
    let (_, behind) = line.split_once("-append ").unwrap();
    assert!(behind.contains("panic=-1") && behind.contains("bulkhead.log=info panic=5 -chardev"), "{behind}");
}

#[test]
fn only_q35_has_room_to_grow_and_takes_it_from_shared_memory_that_is_not_set_aside() {
    let mut spec = spec(0);
    let room = |vcpus: u32, memory_mib: u32| Size {
        vcpus: vcpus.try_into().unwrap(),
        memory_mib: memory_mib.try_into().unwrap(),
    };
    (spec.size, spec.room) = (room(2, 300), room(8, 1000));
    spec.hugepages = true;
    let q35 = line(Machine::Q35, Acceleration::Hardware, &spec);
    for part in [
        "-smp 2,maxcpus=8",
        "-m 300M,maxmem=940M",
        "-object memory-backend-memfd,id=growth-ram,size=640M,share=on,hugetlb=on,reserve=off",
        "-object memory-backend-memfd,id=ram,size=300M,share=on,hugetlb=on ",
        "-device virtio-mem-pci,id=growth,memdev=growth-ram,prealloc=on",
        "swiotlb=noforce",
    ] {
        assert!(q35.contains(part), "{part:?} is missing in {q35}");
    }
    let microvm = line(Machine::Microvm, Acceleration::Hardware, &spec);
    assert!(microvm.contains("-smp 2 -m 300M -object") && !microvm.contains("growth"), "{microvm}");
    spec.room = room(1, 400);
    let full = line(Machine::Q35, Acceleration::Hardware, &spec);
    assert!(full.contains("-smp 2 -m 300M -object") && !full.contains("growth"), "{full}");
}

#[test]
fn an_emulated_vm_might_have_a_second_processor_and_its_guest_knows_of_none() {
    let mut spec = spec(0);
    let size = |vcpus: u32| Size { vcpus: vcpus.try_into().unwrap(), ..spec.size };
    let (one, two) = (size(1), size(2));
    (spec.size, spec.room) = (one, one);
    for machine in [Machine::Microvm, Machine::Q35] {
        let emulated = line(machine, Acceleration::Emulation, &spec);
        assert!(emulated.contains("-smp 1,maxcpus=2 ") && emulated.contains(" nr_cpus=1 "), "{emulated}");
        let kvm = line(machine, Acceleration::Hardware, &spec);
        assert!(kvm.contains("-smp 1 ") && !kvm.contains("nr_cpus"), "{kvm}");
    }
    (spec.size, spec.room) = (two, two);
    let emulated = line(Machine::Microvm, Acceleration::Emulation, &spec);
    assert!(emulated.contains("-smp 2 ") && !emulated.contains("nr_cpus"), "{emulated}");
    (spec.size, spec.room) = (one, two);
    let growing = line(Machine::Q35, Acceleration::Emulation, &spec);
    assert!(growing.contains("-smp 1,maxcpus=2 ") && !growing.contains("nr_cpus"), "{growing}");
}

//! VMs and their helper processes: boot, devices, growth, take-over, every kind of end.

use std::time::Duration;

use actix::Actor;
use bulkhead_config::{Accelerator, Machine};
use bulkhead_protocol::agent::{Interface, SetupRequest};
use vmm_actors::ask::{AskError, ask, tell};
use vmm_actors::host::netns::Netns;
use vmm_actors::host::process::Exit;
use vmm_actors::host::tap::Tap;
use vmm_actors::vm::{Access, Device, Disk, EndCause, GuestState, Vm, VmError};
use vmm_actors::{agent, virtiofsd, vm};

use crate::rig::loop_device::LoopDevice;
use crate::rig::{OwnNetns, Rig, say_skipped};

async fn boots_answers_and_powers_off(machine: Machine) {
    let Some(mut rig) = Rig::new(machine) else { return };
    let booted = rig.boot().await;
    println!("{machine:?}: up as {}", booted.record.acceleration);
    let guest = ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    println!("{machine:?}: {guest:?}");
    rig.set_up().await;
    let view = ask(&rig.vm, vm::Observe).await.unwrap();
    assert_eq!((view.state, view.guest), ("up", Some(GuestState::Running)));
    ask(&rig.agent, agent::Ping).await.unwrap();

    ask(&rig.agent, agent::Shutdown { grace: Duration::ZERO }).await.unwrap();
    let grace = Duration::from_secs(20);
    let exit = ask(&rig.vm, vm::Shutdown { grace }).await.unwrap();
    assert_eq!(exit, Exit::Code(0), "the guest powers off by itself");
    let exited = rig.vmm_exited.recv().await.unwrap();
    assert_eq!(exited.cause, EndCause::Asked);
    let daemon = rig.virtiofsd_exited.recv().await.unwrap();
    assert_eq!(daemon.cause, virtiofsd::EndCause::VmmDisconnected, "{daemon}");
    rig.assert_nothing_runs();
}

#[actix::test]
async fn microvm_boots_answers_and_powers_off() {
    boots_answers_and_powers_off(Machine::Microvm).await;
}

#[actix::test]
async fn q35_boots_answers_and_powers_off() {
    boots_answers_and_powers_off(Machine::Q35).await;
}

async fn finds_its_network_device(machine: Machine) {
    let Some(mut rig) = Rig::new(machine) else { return };
    let Some(own) = OwnNetns::make() else { return say_skipped("a network namespace needs root") };
    let interface = rig.add_nic(&own).await;
    rig.boot().await;
    ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    let request =
        SetupRequest { sandbox_id: "rig".to_owned(), interfaces: vec![interface], ..SetupRequest::default() };
    ask(&rig.agent, agent::Setup { request: Box::new(request) }).await.unwrap();
    ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    rig.virtiofsd_exited.recv().await.unwrap();
    rig.assert_nothing_runs();
}

#[actix::test]
async fn a_guest_on_microvm_finds_its_network_device() {
    finds_its_network_device(Machine::Microvm).await;
}

#[actix::test]
async fn a_guest_on_q35_finds_its_network_device() {
    finds_its_network_device(Machine::Q35).await;
}

async fn a_disk_comes_and_goes(machine: Machine) {
    let Some(rig) = Rig::new(machine) else { return };
    let file = rig.dir.path().join("disk.img");
    let mut rig = rig;
    rig.boot().await;
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let device = match LoopDevice::attach(&file) {
        Ok(device) => device,
        Err(why) => {
            ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
            return say_skipped(&why);
        }
    };
    let pid = ask(&rig.vm, vm::Observe).await.unwrap().vmm_pid.unwrap();
    let disk = |id: &str, slot| Disk {
        id: id.to_owned(),
        slot,
        path: device.path.clone(),
        access: Access::ReadWrite,
        logical_block_size: 512,
        physical_block_size: 4096,
    };
    let plug = |disk| ask(&rig.vm, vm::AddDevice { device: Device::Disk(disk) });
    let unplug = |id: &str| {
        let id = id.to_owned();
        ask(&rig.vm, vm::RemoveDevice { id })
    };
    for _ in 0..2 {
        plug(disk("disk0", 0)).await.unwrap();
        plug(disk("disk0", 0)).await.expect("a repeat finds it there");
        plug(disk("disk1", 254)).await.expect("a device may be plugged in twice");
        assert!(device.is_open_in(pid));
        let refused = plug(disk("disk2", 254)).await.unwrap_err().to_string();
        assert!(refused.contains("device_add"), "the slot is taken: {refused}");
        unplug("disk0").await.unwrap();
        unplug("disk0").await.expect("none there is fine");
        assert!(device.is_open_in(pid), "the other disk has it");
        unplug("disk1").await.unwrap();
        assert!(!device.is_open_in(pid), "what failed to be plugged in is closed as well");
    }
    let missing = Disk { path: "/nonexistent/disk".into(), ..disk("disk3", 3) };
    let refused = plug(missing).await.unwrap_err().to_string();
    assert!(refused.contains("/nonexistent/disk"), "{refused}");
    ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    rig.virtiofsd_exited.recv().await.unwrap();
    rig.assert_nothing_runs();
}

#[actix::test]
async fn a_disk_comes_and_goes_on_microvm() {
    a_disk_comes_and_goes(Machine::Microvm).await;
}

#[actix::test]
async fn a_disk_comes_and_goes_on_q35() {
    a_disk_comes_and_goes(Machine::Q35).await;
}

#[actix::test]
async fn a_running_q35_grows_and_gives_back_what_it_was_given() {
    let Some(mut rig) = Rig::new(Machine::Q35) else { return };
    rig.boot().await;
    ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    rig.set_up().await;
    let sizes = ask(&rig.vm, vm::Measure).await.unwrap();
    let size = |vcpus: u32, memory_mib: u32| vm::Size {
        vcpus: vcpus.try_into().unwrap(),
        memory_mib: memory_mib.try_into().unwrap(),
    };
    assert_eq!((sizes.now, sizes.limit), (size(1, 256), size(8, 16 * 1024)));
    let before = ask(&rig.agent, agent::Grow { to: None }).await.unwrap();
    assert_eq!(before.cpus, 1);

    let to = size(3, 256 + 644);
    assert_eq!(ask(&rig.vm, vm::Resize { to }).await.unwrap(), to);
    let more = agent::Capacity { cpus: 3, memory_bytes: before.memory_bytes + (644 << 20) };
    let now = ask(&rig.agent, agent::Grow { to: Some(more) }).await.unwrap();
    assert_eq!(now, more, "all of it, to the byte");
    assert_eq!(ask(&rig.vm, vm::Measure).await.unwrap().now, to);

    // Processors always; of memory all but where the guest's kernel itself has something by now.
    let left = match ask(&rig.vm, vm::Resize { to: sizes.now }).await {
        Ok(has) | Err(AskError::Failed(VmError::NotResized { has, .. })) => has,
        Err(failed) => panic!("{failed}"),
    };
    assert!(left.vcpus == sizes.now.vcpus && left.memory_mib.get() < 256 + 64, "{left}");
    let after = ask(&rig.agent, agent::Grow { to: None }).await.unwrap();
    let kept = u64::from(left.memory_mib.get() - 256) << 20;
    assert_eq!(after, agent::Capacity { memory_bytes: before.memory_bytes + kept, ..before });
    ask(&rig.agent, agent::Ping).await.unwrap();
    ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    rig.virtiofsd_exited.recv().await.unwrap();
    rig.assert_nothing_runs();
}

#[actix::test]
async fn a_running_vm_is_kept_and_taken_over() {
    let Some(mut rig) = Rig::new(Machine::Microvm) else { return };
    let booted = rig.boot().await;
    ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    rig.set_up().await;
    tell(&rig.vm, vm::Keep).unwrap();
    tell(&rig.virtiofsd, virtiofsd::Keep).unwrap();
    ask(&rig.vm, vm::Observe).await.unwrap();
    let (record, daemon) = (booted.record, rig.virtiofsd_record.clone().unwrap());
    let mut second = rig.drop_actors().await;
    assert_eq!(second.running().len(), 4, "VMM, vsock helper and two processes of virtiofsd live on");

    let adopted = Vm::adopt(&record, second.driver.clone(), second.parent.clone().recipient());
    let vm = adopted.unwrap().expect("the VM lives").start();
    let daemon = virtiofsd::Virtiofsd::adopt(&daemon, second.parent.clone().recipient());
    let _daemon = daemon.unwrap().expect("virtiofsd lives").start();
    let agent = agent::Agent::adopt(second.dir.clone(), second.parent.clone().recipient()).start();
    let guest = ask(&agent, agent::AwaitGuest).await.unwrap();
    assert_eq!(guest.version, 1);
    let view = ask(&vm, vm::Observe).await.unwrap();
    assert_eq!(view.guest, Some(GuestState::Running), "QMP takes the next client");
    ask(&vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    assert_eq!(second.vmm_exited.recv().await.unwrap().cause, EndCause::Asked);
    second.virtiofsd_exited.recv().await.unwrap();
    second.assert_nothing_runs();
}

#[actix::test]
async fn the_end_of_any_process_is_told_and_leaves_none() {
    for victim in ["qemu-system-x86_64", "vhost-device-vsock", "virtiofsd"] {
        let Some(mut rig) = Rig::new(Machine::Microvm) else { return };
        rig.boot().await;
        rig.kill(victim);
        match victim {
            "virtiofsd" => {
                let exited = rig.virtiofsd_exited.recv().await.unwrap();
                assert_eq!(exited.cause, virtiofsd::EndCause::Crashed, "{exited}");
                ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
            }
            "vhost-device-vsock" => {
                let exited = rig.vmm_exited.recv().await.unwrap();
                assert_eq!(exited.cause, EndCause::VsockHelperEnded(Exit::Signal(9)), "{exited}");
            }
            _vmm => {
                let exited = rig.vmm_exited.recv().await.unwrap();
                assert_eq!((exited.cause, exited.exit), (EndCause::VmmEnded, Exit::Signal(9)), "{exited}");
            }
        }
        rig.drop_actors().await.assert_nothing_runs();
    }
}

#[actix::test]
async fn a_vm_that_is_not_kept_goes_with_its_actor() {
    let Some(rig) = Rig::new(Machine::Microvm) else { return };
    let mut rig = rig;
    rig.boot().await;
    assert!(!rig.running().is_empty());
    rig.drop_actors().await.assert_nothing_runs();
}

#[actix::test]
async fn a_vmm_that_ends_at_once_has_its_last_words_told() {
    let Some(mut rig) = Rig::with(Machine::Microvm, |settings| {
        settings.qemu.extra_args = vec!["-no-such-option".to_owned()];
    }) else {
        return;
    };
    rig.boot().await;
    let exited = rig.vmm_exited.recv().await.unwrap();
    assert_eq!((exited.cause, exited.exit), (EndCause::VmmEnded, Exit::Code(1)));
    assert!(exited.last_words.contains("no-such-option"), "{exited}");
    rig.drop_actors().await.assert_nothing_runs();
}

#[actix::test]
async fn a_guest_without_an_agent_is_given_up_with_its_console() {
    let Some(mut rig) = Rig::with(Machine::Microvm, |settings| {
        settings.guest.boot_timeout_secs = std::num::NonZeroU32::new(8).unwrap();
        settings.guest.kernel_params = "rdinit=/nonexistent panic=0".to_owned();
    }) else {
        return;
    };
    rig.boot().await;
    let error = ask(&rig.agent, agent::AwaitGuest).await.unwrap_err().to_string();
    assert!(error.contains("did not announce itself within 8s") && error.contains("panic"), "{error}");
    rig.drop_actors().await.assert_nothing_runs();
}

#[actix::test]
async fn later_mounts_are_seen_by_the_guests_file_server() {
    let Some(mut rig) = Rig::new(Machine::Microvm) else { return };
    if !rig.may_mount() {
        say_skipped("mounting needs root");
        return;
    }
    rig.boot().await;
    rig.mount_below_share("late", "mark");
    let seen = rig.file_server_sees("late/mark");
    rig.unmount_below_share("late");
    assert!(seen, "virtiofsd does not see a mount made after its start");
    ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    rig.drop_actors().await.assert_nothing_runs();
}

#[actix::test]
async fn unusable_programs_and_files_are_named_with_the_setting() {
    type Break = fn(&mut bulkhead_config::Settings);
    let cases: [(&str, Break); 5] = [
        ("[qemu] path", |s| s.qemu.path = "/nonexistent/qemu".into()),
        ("[qemu] path", |s| s.qemu.path = "/etc/passwd".into()),
        ("[qemu] vsock_path", |s| s.qemu.vsock_path = "/nonexistent/vsock".into()),
        ("[guest] kernel", |s| s.guest.kernel = "/nonexistent/vmlinux".into()),
        ("[guest] image", |s| s.guest.image = "/nonexistent/cpio".into()),
    ];
    for (setting, break_it) in cases {
        let Some(rig) = Rig::with(Machine::Microvm, break_it) else { return };
        let error = rig.try_boot().await.unwrap_err();
        assert!(error.is_misconfigured(), "{error}");
        assert!(error.to_string().contains(setting), "{error} should name {setting}");
        rig.drop_actors().await.assert_nothing_runs();
    }
}

#[actix::test]
async fn kvm_is_believed_only_where_a_guest_runs() {
    let Some(rig) = Rig::with(Machine::Microvm, |s| s.qemu.accelerator = Accelerator::Auto) else { return };
    let found = rig.driver.probe().await.unwrap();
    println!("auto is {found} here");
    let Some(demanding) = Rig::with(Machine::Microvm, |s| s.qemu.accelerator = Accelerator::Kvm) else {
        return;
    };
    let demanded = demanding.driver.probe().await;
    match found {
        vm::Acceleration::Hardware => assert_eq!(demanded.unwrap(), vm::Acceleration::Hardware),
        vm::Acceleration::Emulation => {
            let error = demanded.unwrap_err().to_string();
            assert!(error.contains("set it to \"auto\" or \"tcg\""), "{error}");
        }
    }
    rig.drop_actors().await.assert_nothing_runs();
    demanding.drop_actors().await.assert_nothing_runs();
}

impl Rig {
    pub(crate) async fn set_up(&self) {
        self.set_up_with(Vec::new()).await;
    }

    /// Gives the VM a network device before it boots, by a tap in this namespace; returns what the guest is told of it.
    pub(crate) async fn add_nic(&self, own: &OwnNetns) -> Interface {
        let netns = Netns::open(&own.path()).unwrap();
        let taps = Tap::create(&netns, vec!["rig0".to_owned()]).await.unwrap();
        let mac = "02:00:5e:10:00:01";
        let nic = |tap: Tap| vm::Nic { tap: tap.into_fd(), mac: mac.to_owned(), mtu: 1400 };
        self.nics.replace(taps.into_iter().map(nic).collect());
        Interface {
            mac: mac.to_owned(),
            name: "eth0".to_owned(),
            mtu: 1400,
            addresses: vec!["10.9.8.7/24".to_owned()],
            ..Interface::default()
        }
    }

    /// With these network devices.
    pub(crate) async fn set_up_with(&self, interfaces: Vec<Interface>) {
        let request = Box::new(SetupRequest {
            sandbox_id: "rig".to_owned(),
            hostname: "rig".to_owned(),
            share_tag: bulkhead_protocol::SHARE_TAG.to_owned(),
            interfaces,
            ..SetupRequest::default()
        });
        ask(&self.agent, agent::Setup { request }).await.unwrap();
    }
}

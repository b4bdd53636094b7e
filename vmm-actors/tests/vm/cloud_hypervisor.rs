//! Real VMs of Cloud Hypervisor: `CLOUD_HYPERVISOR` names the program, else it is in `PATH`. Needs KVM that runs guests, as
//! the node VM has (`tests/node-vm`).

use std::time::Duration;

use vmm_actors::ask::{AskError, ask};
use vmm_actors::host::process::Exit;
use vmm_actors::vm::{Acceleration, Access, Device, Disk, EndCause, GuestState, Size, VmError};
use vmm_actors::{agent, vm};

use crate::rig::loop_device::LoopDevice;
use crate::rig::{OwnNetns, Rig, say_skipped};

#[actix::test]
async fn a_guest_boots_answers_and_powers_off() {
    let Some(mut rig) = Rig::on_cloud_hypervisor(|_| {}).await else { return };
    let start = std::time::Instant::now();
    let booted = rig.boot().await;
    assert_eq!((booted.record.acceleration, &booted.record.vsock_helper), (Acceleration::Hardware, &None));
    let guest = ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    println!("{}: {guest:?} after {:?}", rig.driver.name(&booted.record), start.elapsed());
    rig.set_up().await;
    let view = ask(&rig.vm, vm::Observe).await.unwrap();
    assert_eq!((view.state, view.guest), ("up", Some(GuestState::Running)));
    ask(&rig.agent, agent::Ping).await.unwrap();
    ask(&rig.agent, agent::Shutdown { grace: Duration::ZERO }).await.unwrap();
    let grace = Duration::from_secs(30);
    let exit = ask(&rig.vm, vm::Shutdown { grace }).await.unwrap();
    assert_eq!(exit, Exit::Code(0), "the guest powers off by itself");
    assert_eq!(rig.vmm_exited.recv().await.unwrap().cause, EndCause::Asked);
    rig.virtiofsd_exited.recv().await.unwrap();
    rig.assert_nothing_runs();
}

#[actix::test]
async fn a_running_vm_takes_disks_and_grows_and_gives_both_back() {
    let Some(mut rig) = Rig::on_cloud_hypervisor(|_| {}).await else { return };
    rig.boot().await;
    ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    rig.set_up().await;
    disks_come_and_go(&rig).await;
    grows_and_shrinks(&rig).await;
    ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    rig.virtiofsd_exited.recv().await.unwrap();
    rig.assert_nothing_runs();
}

async fn disks_come_and_go(rig: &Rig) {
    let file = rig.dir.path().join("disk.img");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let device = match LoopDevice::attach(&file) {
        Ok(device) => device,
        Err(why) => return say_skipped(&why),
    };
    let pid = ask(&rig.vm, vm::Observe).await.unwrap().vmm_pid.unwrap();
    let disk = |id: &str| Disk {
        id: id.to_owned(),
        slot: 0,
        path: device.path.clone(),
        access: Access::ReadWrite,
        logical_block_size: 512,
        physical_block_size: 4096,
    };
    let plug = |disk| ask(&rig.vm, vm::AddDevice { device: Device::Disk(disk) });
    let unplug = || ask(&rig.vm, vm::RemoveDevice { id: "disk0".to_owned() });
    for _ in 0..2 {
        plug(disk("disk0")).await.unwrap();
        plug(disk("disk0")).await.expect("a repeat finds it there");
        assert!(device.is_open_in(pid));
        unplug().await.unwrap();
        unplug().await.expect("a repeat is a no-op");
        assert!(!device.is_open_in(pid), "what the guest has ejected is closed");
    }
    let missing = Disk { path: "/nonexistent/disk".into(), ..disk("disk3") };
    let refused = plug(missing).await.unwrap_err().to_string();
    println!("{refused}");
    assert!(refused.contains("vm.add-disk") && refused.contains("No such file"), "{refused}");
}

async fn grows_and_shrinks(rig: &Rig) {
    let size = |vcpus: u32, memory_mib: u32| Size {
        vcpus: vcpus.try_into().unwrap(),
        memory_mib: memory_mib.try_into().unwrap(),
    };
    let sizes = ask(&rig.vm, vm::Measure).await.unwrap();
    assert_eq!((sizes.now, sizes.limit), (size(1, 256), size(8, 16 * 1024)));
    let before = ask(&rig.agent, agent::Grow { to: None }).await.unwrap();
    let to = size(2, 256 + 324);
    assert_eq!(ask(&rig.vm, vm::Resize { to }).await.unwrap(), to);
    let more = agent::Capacity { cpus: 2, memory_bytes: before.memory_bytes + (324 << 20) };
    let now = ask(&rig.agent, agent::Grow { to: Some(more) }).await.unwrap();
    assert_eq!(now, more, "all of it, to the byte");
    // Of memory all but where the guest's kernel itself has something by now.
    let left = shrunk(rig, size(2, 256)).await;
    assert!(left.vcpus.get() == 2 && left.memory_mib.get() < 256 + 64, "{left}");
    // An emulated guest may keep a processor for longer than anybody waits; then the answer says that it has it.
    let left = shrunk(rig, Size { memory_mib: left.memory_mib, ..sizes.now }).await;
    println!("after giving back a processor: {left}");
    ask(&rig.agent, agent::Ping).await.unwrap();
}

/// What the VM has when it was told to become as small as that.
async fn shrunk(rig: &Rig, to: Size) -> Size {
    match ask(&rig.vm, vm::Resize { to }).await {
        Ok(has) | Err(AskError::Failed(VmError::NotResized { has, .. })) => has,
        Err(failed) => panic!("{failed}"),
    }
}

#[actix::test]
async fn a_guest_finds_its_network_device() {
    let Some(mut rig) = Rig::on_cloud_hypervisor(|_| {}).await else { return };
    let Some(own) = OwnNetns::make() else { return say_skipped("a network namespace needs root") };
    let interface = rig.add_nic(&own).await;
    rig.boot().await;
    ask(&rig.agent, agent::AwaitGuest).await.unwrap();
    rig.set_up_with(vec![interface]).await;
    ask(&rig.vm, vm::Shutdown { grace: Duration::ZERO }).await.unwrap();
    rig.virtiofsd_exited.recv().await.unwrap();
    rig.assert_nothing_runs();
}

#[actix::test]
async fn a_guest_that_resets_ends_its_vm() {
    let without_agent = |settings: &mut bulkhead_config::Settings| {
        settings.guest.kernel_params = "rdinit=/nonexistent".to_owned();
    };
    let Some(mut rig) = Rig::on_cloud_hypervisor(without_agent).await else { return };
    rig.boot().await;
    let exited = rig.vmm_exited.recv().await.unwrap();
    println!("{exited}");
    assert_eq!(exited.cause, EndCause::VmmEnded);
    assert!(exited.console_tail.contains("panic"), "the console of its only life: {exited}");
    rig.drop_actors().await.assert_nothing_runs();
}

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::ask::{AskError, ask, tell};
use crate::host::process::OwnedProcess;
use crate::id::VmId;
use crate::testing::{FakeDriver, Fault};
use crate::vm::{Access, Device, Disk, GuestState, LaunchSpec};

/// The end at once.
const KILL: Shutdown = Shutdown { grace: Duration::ZERO };

struct Parent(UnboundedSender<VmmExited>);

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<VmmExited> for Parent {
    type Result = ();
    fn handle(&mut self, exited: VmmExited, _: &mut Self::Context) {
        self.0.send(exited).unwrap();
    }
}

struct Bench {
    driver: Arc<FakeDriver>,
    dir: VmDir,
    parent: actix::Addr<Parent>,
    exits: UnboundedReceiver<VmmExited>,
    _root: tempfile::TempDir,
}

impl Bench {
    fn new(fault: Fault) -> (Self, actix::Addr<Vm>) {
        let root = tempfile::tempdir().unwrap();
        let dir = VmDir::new(root.path(), &VmId::new("0123456789ab").unwrap());
        std::fs::create_dir_all(dir.path()).unwrap();
        let (sender, exits) = unbounded_channel();
        let driver = Arc::new(FakeDriver::new(Duration::ZERO).then(fault));
        let bench = Self { driver, dir, parent: Parent(sender).start(), exits, _root: root };
        let vm = Vm::new(bench.driver.clone(), bench.parent.clone().recipient()).start();
        (bench, vm)
    }

    fn boot(&self) -> Boot {
        Boot { spec: Box::new(LaunchSpec::new(self.dir.clone(), &bulkhead_config::Settings::default())) }
    }

    fn vmm_lives(&self) -> bool {
        let launched = self.driver.launched();
        launched.iter().any(|vmm| {
            OwnedProcess::adopt(vmm).unwrap().is_some_and(|vmm| {
                vmm.keep();
                true
            })
        })
    }
}

#[actix::test]
async fn a_vm_boots_once_and_ends_when_asked() {
    let (mut bench, vm) = Bench::new(Fault::None);
    let booted = ask(&vm, bench.boot()).await.unwrap();
    assert_eq!(booted.record.vmm, bench.driver.launched()[0]);
    let again = ask(&vm, bench.boot()).await;
    assert!(matches!(again, Err(AskError::Failed(VmError::Refused { state: "up", .. }))), "{again:?}");
    let view = ask(&vm, Observe).await.unwrap();
    assert_eq!((view.state, view.guest), ("up", Some(GuestState::Running)));

    let exit = ask(&vm, Shutdown { grace: Duration::from_millis(1) }).await.unwrap();
    assert_eq!(exit, Exit::Signal(15), "the guest did not end by itself, so the VMM was told");
    assert_eq!(bench.exits.recv().await.unwrap().cause, EndCause::Asked);
    assert_eq!(ask(&vm, KILL).await.unwrap(), exit, "an ended VM answers at once");
    assert!(!bench.vmm_lives());
}

#[actix::test]
async fn an_unasked_end_is_told_with_the_last_words() {
    let (mut bench, vm) = Bench::new(Fault::VmmExits("no such machine".into()));
    ask(&vm, bench.boot()).await.unwrap();
    let exited = bench.exits.recv().await.unwrap();
    assert_eq!((exited.exit, exited.cause), (Exit::Code(3), EndCause::VmmEnded));
    assert!(exited.to_string().contains("no such machine"), "{exited}");
    let view = ask(&vm, Observe).await.unwrap();
    assert_eq!((view.state, view.exited), ("gone", Some(exited)));
}

#[actix::test]
async fn a_failed_launch_leaves_a_vm_that_can_be_booted_again() {
    let (bench, vm) = Bench::new(Fault::LaunchFails);
    assert!(matches!(ask(&vm, bench.boot()).await, Err(AskError::Failed(VmError::Unsupported { .. }))));
    ask(&vm, bench.boot()).await.unwrap();
}

#[actix::test]
async fn a_launch_that_hangs_can_be_killed_and_its_caller_hears_of_it() {
    let (bench, vm) = Bench::new(Fault::LaunchHangs);
    let boot = ask(&vm, bench.boot());
    let kill = async {
        tokio::task::yield_now().await;
        ask(&vm, KILL).await
    };
    let (booted, killed) = tokio::join!(boot, kill);
    assert!(matches!(booted, Err(AskError::Failed(VmError::Cancelled))), "{booted:?}");
    assert_eq!(killed.unwrap(), Exit::Unknown);
}

#[actix::test]
async fn a_kept_vm_outlives_its_actor_and_is_taken_over() {
    let (mut bench, vm) = Bench::new(Fault::None);
    let record = ask(&vm, bench.boot()).await.unwrap().record;
    tell(&vm, Keep).unwrap();
    ask(&vm, Observe).await.unwrap();
    drop(vm);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(bench.vmm_lives());

    let driver: Arc<dyn Driver> = bench.driver.clone();
    let parent = bench.parent.clone().recipient();
    let vm = Vm::adopt(&record, driver.clone(), parent.clone()).unwrap().unwrap().start();
    ask(&vm, KILL).await.unwrap();
    assert_eq!(bench.exits.recv().await.unwrap().cause, EndCause::Asked);
    assert!(Vm::adopt(&record, driver, parent).unwrap().is_none(), "an ended VM is not taken over");
}

#[actix::test]
async fn a_vm_that_is_not_kept_goes_with_its_actor() {
    let (bench, vm) = Bench::new(Fault::None);
    ask(&vm, bench.boot()).await.unwrap();
    drop(vm);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!bench.vmm_lives());
}

#[actix::test]
async fn what_the_driver_cannot_is_said_and_what_the_state_forbids_refused() {
    let (bench, vm) = Bench::new(Fault::None);
    let plug = || {
        Device::Disk(Disk {
            id: "d".into(),
            slot: 0,
            path: "/x".into(),
            access: Access::ReadOnly,
            logical_block_size: 512,
            physical_block_size: 512,
        })
    };
    let early = ask(&vm, AddDevice { device: plug() }).await;
    assert!(matches!(early, Err(AskError::Failed(VmError::Refused { state: "cold", .. }))), "{early:?}");
    ask(&vm, bench.boot()).await.unwrap();
    ask(&vm, AddDevice { device: plug() }).await.unwrap();
    assert_eq!(bench.driver.disks().len(), 1);
    ask(&vm, RemoveDevice { id: "d".into() }).await.unwrap();
    assert!(bench.driver.disks().is_empty());
    let to = LaunchSpec::new(bench.dir.clone(), &bulkhead_config::Settings::default()).size;
    let refused = ask(&vm, Resize { to }).await.unwrap_err();
    assert_eq!(refused.to_string(), "fake cannot resize a running VM, which this fake was told not to");
}

#[actix::test]
async fn a_console_that_floods_is_emptied() {
    let (bench, vm) = Bench::new(Fault::None);
    ask(&vm, bench.boot()).await.unwrap();
    std::fs::write(bench.dir.console(), vec![b'x'; 2 << 20]).unwrap();
    tokio::time::pause();
    tokio::time::advance(CONSOLE_CHECK + Duration::from_millis(1)).await;
    tokio::time::resume();
    ask(&vm, Observe).await.unwrap();
    assert_eq!(std::fs::metadata(bench.dir.console()).unwrap().len(), 0);
}

#[actix::test]
async fn a_vmm_that_sigkill_does_not_end_is_an_answer_and_its_later_end_is_told() {
    let (mut bench, vm) = Bench::new(Fault::None);
    let vmm = ask(&vm, bench.boot()).await.unwrap().record.vmm;
    let dir = tempfile::tempdir().unwrap();
    let frozen = match crate::testing::Frozen::new(vmm.pid, dir.path()) {
        Ok(frozen) => frozen,
        Err(error) => return println!("skipped: no process can be made to ignore SIGKILL here: {error}"),
    };
    let asked = vm.clone();
    let killed = actix::spawn(async move { ask(&asked, KILL).await });
    while !killed.is_finished() {
        tokio::time::sleep(Duration::from_millis(2)).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
    }
    let left = killed.await.unwrap().unwrap_err();
    let AskError::Failed(VmError::StillAlive(left)) = left else { panic!("{left}") };
    assert_eq!(left.pid, vmm.pid);
    let view = ask(&vm, Observe).await.unwrap();
    assert_eq!((view.state, view.vmm_pid, view.exited), ("ending", Some(vmm.pid), None));
    let refused = ask(&vm, RemoveDevice { id: "d".into() }).await;
    assert!(
        matches!(refused, Err(AskError::Failed(VmError::Refused { state: "ending", .. }))),
        "{refused:?}"
    );
    drop(frozen);
    let exited = bench.exits.recv().await.unwrap();
    assert_eq!(exited.cause, EndCause::Asked);
    assert_eq!(ask(&vm, KILL).await.unwrap(), exited.exit);
}

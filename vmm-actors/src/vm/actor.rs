//! The Vm actor.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, SpawnHandle, WrapFuture};

use super::output::{bound_console, exited};
use super::{
    AddDevice, Boot, Booted, Driver, EndCause, Keep, Launched, Measure, Observe, RemoveDevice, Resize,
    Shutdown, VmError, VmRecord, VmView, VmmExited,
};
use crate::ask::{Reply, ReplyTo, Request, answer, report};
use crate::host::process::Exit;
use crate::host::process::supervised::{Grace, Processes, Supervised};
use crate::orphan::EndWhenOrphaned;
use crate::runtime_dir::VmDir;

/// How often the console file's size is looked at.
const CONSOLE_CHECK: Duration = Duration::from_secs(10);
/// How long the VMM's API may take to say what the guest does.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a VMM may take to end by SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// The end of a VM that never ran.
const NEVER_RAN: VmmExited = VmmExited {
    exit: Exit::Unknown,
    cause: EndCause::Asked,
    last_words: String::new(),
    console_tail: String::new(),
};

/// Owns the processes of one VM. See the [module](super).
#[derive(Debug)]
pub struct Vm {
    driver: Arc<dyn Driver>,
    parent: Recipient<VmmExited>,
    processes: Supervised<VmmExited>,
    booting: Option<Booting>,
    /// Of a VM that was booted or taken over.
    record: Option<VmRecord>,
}

/// A launch that is under way.
#[derive(Debug)]
struct Booting {
    launch: SpawnHandle,
    dir: VmDir,
    reply: ReplyTo<Boot>,
}

impl Vm {
    /// A VM that has not been started. `parent` is told of its end.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, parent: Recipient<VmmExited>) -> Self {
        Self { driver, parent, processes: Supervised::cold(), booting: None, record: None }
    }

    /// Takes over a VM that an earlier instance of this service started and kept. `None` when it is gone; a part of
    /// it that was left has been ended then. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`VmError::Adopt`] when the kernel does not let us find out.
    pub fn adopt(
        record: &VmRecord,
        driver: Arc<dyn Driver>,
        parent: Recipient<VmmExited>,
    ) -> Result<Option<Self>, VmError> {
        let adopted = Processes::adopt(&record.vmm, record.vsock_helper.as_ref())
            .map_err(|source| VmError::Adopt { pid: record.vmm.pid, source })?;
        Ok(adopted.map(|processes| Self {
            processes: Supervised::up(processes),
            record: Some(record.clone()),
            ..Self::new(driver, parent)
        }))
    }

    fn state(&self) -> &'static str {
        if self.booting.is_some() { "booting" } else { self.processes.name() }
    }

    fn launched(&mut self, launched: Result<Launched, VmError>, ctx: &mut Context<Self>) {
        let Some(Booting { dir, reply, .. }) = self.booting.take() else { return };
        let booted = launched.map(|launched| {
            let record = launched.record(self.driver.hypervisor(), dir);
            self.processes = Supervised::up(Processes::new(launched.vmm, launched.vsock_helper));
            self.record = Some(record.clone());
            self.watch(ctx);
            Booted { record }
        });
        answer(reply, booted);
    }

    /// Waits for the end of what runs.
    fn watch(&self, ctx: &mut Context<Self>) {
        let Some((ended, record)) = self.processes.watch().zip(self.record.as_ref()) else { return };
        let dir = record.dir.clone();
        let exited = async move { exited(ended.await, &dir) };
        ctx.spawn(exited.into_actor(self).map(|exited, vm, ctx| vm.ended(exited, ctx)));
        ctx.run_interval(CONSOLE_CHECK, |vm, _| {
            if let Some(record) = vm.running() {
                bound_console(&record.dir);
            }
        });
    }

    fn ended(&mut self, exited: VmmExited, ctx: &mut Context<Self>) {
        self.processes.gone(exited.exit, exited.clone());
        ctx.spawn(report(self.parent.clone(), exited).into_actor(self));
    }

    /// The record of a VM whose VMM is there.
    fn running(&self) -> Option<&VmRecord> {
        self.record.as_ref().filter(|_| self.processes.pid().is_some())
    }

    /// Ends the VM in whatever state it is; `grace` is the guest's.
    fn end(&mut self, grace: Duration, reply: ReplyTo<Shutdown>, ctx: &mut Context<Self>) {
        if let Some(Booting { launch, reply, .. }) = self.booting.take() {
            // Dropping the future drops the guards of what it had started.
            ctx.cancel_future(launch);
            answer(reply, Err(VmError::Cancelled));
        }
        if self.processes.is_cold() {
            self.processes.gone(NEVER_RAN.exit, NEVER_RAN);
        }
        let grace =
            if grace.is_zero() { Grace::NONE } else { Grace { by_itself: grace, by_sigterm: TERM_GRACE } };
        let ended = self.processes.end(grace);
        ctx.spawn(async move { answer(reply, ended.await.map_err(VmError::StillAlive)) }.into_actor(self));
    }

    /// Runs a command of the VMM's API, or refuses it when no VM is up.
    fn command<T, F>(
        &mut self,
        name: &'static str,
        reply: Reply<T, VmError>,
        call: impl FnOnce(Arc<dyn Driver>, VmRecord) -> F,
        ctx: &mut Context<Self>,
    ) where
        F: Future<Output = Result<T, VmError>> + 'static,
        T: 'static,
    {
        let Some(record) = self.running().filter(|_| self.processes.is_up()) else {
            answer(reply, Err(VmError::Refused { command: name, state: self.state() }));
            return;
        };
        let called = call(Arc::clone(&self.driver), record.clone());
        ctx.spawn(async move { answer(reply, called.await) }.into_actor(self));
    }

    fn view(&self) -> VmView {
        let record = self.running();
        VmView {
            state: self.state(),
            driver: record.map(|record| self.driver.name(record)),
            vmm_pid: record.map(|record| record.vmm.pid),
            acceleration: record.map(|record| record.acceleration),
            guest: None,
            exited: self.processes.told().cloned(),
        }
    }
}

impl Actor for Vm {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(EndWhenOrphaned);
        // Something runs already only in an adopted VM.
        self.watch(ctx);
    }
}

impl Handler<Request<Boot>> for Vm {
    type Result = ();
    fn handle(&mut self, Request { command: Boot { spec }, reply }: Request<Boot>, ctx: &mut Self::Context) {
        if !self.processes.is_cold() || self.booting.is_some() {
            answer(reply, Err(VmError::Refused { command: "boot", state: self.state() }));
            return;
        }
        let (driver, dir) = (Arc::clone(&self.driver), spec.dir.clone());
        let launch = async move { driver.launch(*spec).await };
        let launch = ctx.spawn(launch.into_actor(self).map(|launched, vm, ctx| vm.launched(launched, ctx)));
        self.booting = Some(Booting { launch, dir, reply });
    }
}

impl Handler<Keep> for Vm {
    type Result = ();
    fn handle(&mut self, Keep: Keep, _: &mut Self::Context) {
        self.processes.keep();
    }
}

impl Handler<Request<Shutdown>> for Vm {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Shutdown { grace }, reply }: Request<Shutdown>,
        ctx: &mut Self::Context,
    ) {
        self.end(grace, reply, ctx);
    }
}

impl Handler<Request<AddDevice>> for Vm {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: AddDevice { device }, reply }: Request<AddDevice>,
        ctx: &mut Self::Context,
    ) {
        let call = |driver: Arc<dyn Driver>, vm| async move { driver.add_device(&vm, device).await };
        self.command("add a device", reply, call, ctx);
    }
}

impl Handler<Request<RemoveDevice>> for Vm {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: RemoveDevice { id }, reply }: Request<RemoveDevice>,
        ctx: &mut Self::Context,
    ) {
        let call = |driver: Arc<dyn Driver>, vm| async move { driver.remove_device(&vm, &id).await };
        self.command("remove a device", reply, call, ctx);
    }
}

impl Handler<Request<Measure>> for Vm {
    type Result = ();
    fn handle(&mut self, Request { command: Measure, reply }: Request<Measure>, ctx: &mut Self::Context) {
        let call = |driver: Arc<dyn Driver>, vm| async move { driver.sizes(&vm).await };
        self.command("be measured", reply, call, ctx);
    }
}

impl Handler<Request<Resize>> for Vm {
    type Result = ();
    fn handle(
        &mut self,
        Request { command: Resize { to }, reply }: Request<Resize>,
        ctx: &mut Self::Context,
    ) {
        let call = move |driver: Arc<dyn Driver>, vm| async move { driver.resize(&vm, to).await };
        self.command("be resized", reply, call, ctx);
    }
}

impl Handler<Request<Observe>> for Vm {
    type Result = ();
    fn handle(&mut self, Request { command: Observe, reply }: Request<Observe>, ctx: &mut Self::Context) {
        let mut view = self.view();
        let Some(record) = self.running().filter(|_| self.processes.is_up()).cloned() else {
            answer(reply, Ok(view));
            return;
        };
        let driver = Arc::clone(&self.driver);
        let asked = async move {
            let asked = tokio::time::timeout(OBSERVE_TIMEOUT, driver.guest_state(&record)).await;
            view.guest = asked.ok().and_then(Result::ok);
            answer(reply, Ok(view));
        };
        ctx.spawn(asked.into_actor(self));
    }
}

#[cfg(test)]
mod tests;

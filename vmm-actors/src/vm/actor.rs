//! The Vm actor.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, SpawnHandle, WrapFuture};

use super::running::Running;
use super::{
    AddDevice, Boot, Booted, Driver, EndCause, Keep, Kill, Launched, Measure, Observe, RemoveDevice, Resize,
    Shutdown, VmError, VmRecord, VmView, VmmExited,
};
use crate::ask::{Reply, answer, report};
use crate::host::process::Exit;
use crate::orphan::EndWhenOrphaned;
use crate::runtime_dir::VmDir;

/// How often the console file's size is looked at.
const CONSOLE_CHECK: Duration = Duration::from_secs(10);
/// How long the VMM's API may take to say what the guest does.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Owns the processes of one VM. See the [module](super).
#[derive(Debug)]
pub struct Vm {
    driver: Arc<dyn Driver>,
    parent: Recipient<VmmExited>,
    state: State,
}

#[derive(Debug)]
enum State {
    Cold,
    Booting { launch: SpawnHandle, dir: VmDir, reply: Reply<Booted, VmError> },
    Up { running: Arc<Running>, watched: Watched },
    Ending { running: Arc<Running>, waiters: Vec<Reply<Exit, VmError>> },
    Gone(VmmExited),
}

/// Whether somebody already waits for the end of an adopted VM.
#[derive(Debug, PartialEq, Eq)]
enum Watched {
    No,
    Yes,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Booting { .. } => "booting",
            Self::Up { .. } => "up",
            Self::Ending { .. } => "ending",
            Self::Gone(_) => "gone",
        }
    }

    fn running(&self) -> Option<&Arc<Running>> {
        match self {
            Self::Up { running, .. } | Self::Ending { running, .. } => Some(running),
            Self::Cold | Self::Booting { .. } | Self::Gone(_) => None,
        }
    }
}

impl Vm {
    /// A VM that has not been started. `parent` is told of its end.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, parent: Recipient<VmmExited>) -> Self {
        Self { driver, parent, state: State::Cold }
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
        let Some(running) = Running::adopt(record.clone())? else { return Ok(None) };
        running.keep();
        let state = State::Up { running: Arc::new(running), watched: Watched::No };
        Ok(Some(Self { driver, parent, state }))
    }

    fn launched(&mut self, launched: Result<Launched, VmError>, ctx: &mut Context<Self>) {
        let State::Booting { dir, reply, .. } = std::mem::replace(&mut self.state, State::Cold) else {
            return;
        };
        let booted = launched.map(|launched| {
            let record = launched.record(self.driver.hypervisor(), dir);
            let running = Running::new(launched.vmm, launched.vsock_helper, record.clone());
            self.state = State::Up { running: Arc::new(running), watched: Watched::No };
            self.watch(ctx);
            Booted { record }
        });
        answer(reply, booted);
    }

    /// Waits for the end of what runs.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        let State::Up { running, watched } = &mut self.state else { return };
        if std::mem::replace(watched, Watched::Yes) == Watched::Yes {
            return;
        }
        let running = Arc::clone(running);
        let ended = async move { running.watch().await };
        ctx.spawn(ended.into_actor(self).map(|exited, vm, ctx| vm.ended(exited, ctx)));
        ctx.run_interval(CONSOLE_CHECK, |vm, _| {
            if let Some(running) = vm.state.running() {
                running.bound_console();
            }
        });
    }

    fn ended(&mut self, mut exited: VmmExited, ctx: &mut Context<Self>) {
        let before = std::mem::replace(&mut self.state, State::Cold);
        if let State::Ending { waiters, .. } = before {
            exited.cause = EndCause::Asked;
            for waiter in waiters {
                answer(waiter, Ok(exited.exit));
            }
        }
        self.state = State::Gone(exited.clone());
        ctx.spawn(report(self.parent.clone(), exited).into_actor(self));
    }

    /// Ends the VM in whatever state it is; `grace` is the guest's.
    fn end(&mut self, grace: Duration, reply: Reply<Exit, VmError>, ctx: &mut Context<Self>) {
        match std::mem::replace(&mut self.state, State::Cold) {
            State::Cold => self.never_ran(reply),
            State::Booting { launch, reply: boot, .. } => {
                // Dropping the future drops the guards of what it had started.
                ctx.cancel_future(launch);
                answer(boot, Err(VmError::Cancelled));
                self.never_ran(reply);
            }
            State::Up { running, .. } => {
                let ending = Arc::clone(&running);
                ctx.spawn(async move { ending.end(grace).await }.into_actor(self));
                self.state = State::Ending { running, waiters: vec![reply] };
            }
            State::Ending { running, mut waiters } => {
                waiters.push(reply);
                if grace.is_zero() {
                    let ending = Arc::clone(&running);
                    ctx.spawn(async move { ending.end(grace).await }.into_actor(self));
                }
                self.state = State::Ending { running, waiters };
            }
            State::Gone(exited) => {
                answer(reply, Ok(exited.exit));
                self.state = State::Gone(exited);
            }
        }
    }

    fn never_ran(&mut self, reply: Reply<Exit, VmError>) {
        let exit = super::running::NEVER_RAN;
        self.state = State::Gone(VmmExited {
            exit,
            cause: EndCause::Asked,
            last_words: String::new(),
            console_tail: String::new(),
        });
        answer(reply, Ok(exit));
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
        let State::Up { running, .. } = &self.state else {
            answer(reply, Err(VmError::Refused { command: name, state: self.state.name() }));
            return;
        };
        let called = call(Arc::clone(&self.driver), running.record().clone());
        ctx.spawn(async move { answer(reply, called.await) }.into_actor(self));
    }

    fn view(&self) -> VmView {
        let record = self.state.running().map(|running| running.record());
        VmView {
            state: self.state.name(),
            driver: record.map(|record| self.driver.name(record)),
            vmm_pid: record.map(|record| record.vmm.pid),
            acceleration: record.map(|record| record.acceleration),
            guest: None,
            exited: match &self.state {
                State::Gone(exited) => Some(exited.clone()),
                State::Cold | State::Booting { .. } | State::Up { .. } | State::Ending { .. } => None,
            },
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

impl Handler<Boot> for Vm {
    type Result = ();
    fn handle(&mut self, Boot { spec, reply }: Boot, ctx: &mut Self::Context) {
        if !matches!(self.state, State::Cold) {
            answer(reply, Err(VmError::Refused { command: "boot", state: self.state.name() }));
            return;
        }
        let (driver, dir) = (Arc::clone(&self.driver), spec.dir.clone());
        let launch = async move { driver.launch(*spec).await };
        let launch = ctx.spawn(launch.into_actor(self).map(|launched, vm, ctx| vm.launched(launched, ctx)));
        self.state = State::Booting { launch, dir, reply };
    }
}

impl Handler<Keep> for Vm {
    type Result = ();
    fn handle(&mut self, Keep: Keep, _: &mut Self::Context) {
        if let State::Up { running, .. } = &self.state {
            running.keep();
        }
    }
}

impl Handler<Shutdown> for Vm {
    type Result = ();
    fn handle(&mut self, Shutdown { grace, reply }: Shutdown, ctx: &mut Self::Context) {
        self.end(grace, reply, ctx);
    }
}

impl Handler<Kill> for Vm {
    type Result = ();
    fn handle(&mut self, Kill { reply }: Kill, ctx: &mut Self::Context) {
        self.end(Duration::ZERO, reply, ctx);
    }
}

impl Handler<AddDevice> for Vm {
    type Result = ();
    fn handle(&mut self, AddDevice { device, reply }: AddDevice, ctx: &mut Self::Context) {
        let call = |driver: Arc<dyn Driver>, vm| async move { driver.add_device(&vm, device).await };
        self.command("add a device", reply, call, ctx);
    }
}

impl Handler<RemoveDevice> for Vm {
    type Result = ();
    fn handle(&mut self, RemoveDevice { id, reply }: RemoveDevice, ctx: &mut Self::Context) {
        let call = |driver: Arc<dyn Driver>, vm| async move { driver.remove_device(&vm, &id).await };
        self.command("remove a device", reply, call, ctx);
    }
}

impl Handler<Measure> for Vm {
    type Result = ();
    fn handle(&mut self, Measure { reply }: Measure, ctx: &mut Self::Context) {
        let call = |driver: Arc<dyn Driver>, vm| async move { driver.sizes(&vm).await };
        self.command("be measured", reply, call, ctx);
    }
}

impl Handler<Resize> for Vm {
    type Result = ();
    fn handle(&mut self, Resize { to, reply }: Resize, ctx: &mut Self::Context) {
        let call = move |driver: Arc<dyn Driver>, vm| async move { driver.resize(&vm, to).await };
        self.command("be resized", reply, call, ctx);
    }
}

impl Handler<Observe> for Vm {
    type Result = ();
    fn handle(&mut self, Observe { reply }: Observe, ctx: &mut Self::Context) {
        let mut view = self.view();
        let State::Up { running, .. } = &self.state else {
            answer(reply, Ok(view));
            return;
        };
        let (driver, record) = (Arc::clone(&self.driver), running.record().clone());
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

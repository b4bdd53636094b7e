//! The actor: waits for the kernel, looks, tells.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Recipient, SpawnHandle, WrapFuture};
use tracing::{debug, warn};

use super::tally::{is_v2, memory_directory};
use super::{Oom, Pressure, Watch, oom_kills};
use crate::ask::report;
use crate::cgroup::CgroupRecord;
use crate::host::cgroup_events::CgroupEvents;
use crate::orphan::EndWhenOrphaned;

/// How long nothing more is told of pressure, once it was.
const QUIET: Duration = Duration::from_secs(60);
/// What counts as pressure where the kernel has PSI: no process of the pod gets on for 150 ms within a second.
const STALL: &str = "full 150000 1000000";
/// What counts as pressure on cgroup v1: the kernel is about to call the OOM killer.
const LEVEL: &str = "critical";

/// Watches the host's memory for one pod. See the [module](super).
#[derive(Debug)]
pub struct Monitor {
    record: CgroupRecord,
    oom: Recipient<Oom>,
    pressure: Recipient<Pressure>,
    watching: Vec<SpawnHandle>,
}

impl Monitor {
    /// A monitor for the pod with this cgroup, that watches nothing yet, and tells these.
    #[must_use]
    pub fn new(record: CgroupRecord, oom: Recipient<Oom>, pressure: Recipient<Pressure>) -> Self {
        Self { record, oom, pressure, watching: Vec::new() }
    }

    fn unwatch(&mut self, ctx: &mut Context<Self>) {
        for handle in std::mem::take(&mut self.watching) {
            ctx.cancel_future(handle);
        }
    }

    fn listen<F>(
        &mut self,
        what: &'static str,
        events: io::Result<CgroupEvents>,
        listen: impl FnOnce(CgroupEvents) -> F,
        ctx: &mut Context<Self>,
    ) where
        F: Future<Output = io::Result<()>> + 'static,
    {
        match events {
            Ok(events) => {
                let listening = listen(events);
                let ended = async move {
                    if let Err(error) = listening.await {
                        debug!(what, %error, "listens no more");
                    }
                };
                self.watching.push(ctx.spawn(ended.into_actor(self)));
            }
            Err(error) => warn!(what, %error, "the host tells nothing of it while the pod runs"),
        }
    }
}

fn oom_events(directory: &Path) -> io::Result<CgroupEvents> {
    if is_v2(directory) {
        CgroupEvents::of_v2(&directory.join("memory.events"))
    } else {
        CgroupEvents::of_v1(directory, "memory.oom_control", "")
    }
}

fn pressure_events(directory: &Path) -> io::Result<CgroupEvents> {
    if is_v2(directory) {
        CgroupEvents::of_stall(&directory.join("memory.pressure"), STALL)
    } else {
        CgroupEvents::of_v1(directory, "memory.pressure_level", LEVEL)
    }
}

/// Tells of every kill. Ends with the cgroup.
async fn tell_kills(events: CgroupEvents, record: CgroupRecord, parent: Recipient<Oom>) -> io::Result<()> {
    // The pod may be one that was taken over: what was told before is not told again.
    let mut told = oom_kills(&record).map_or(0, |kills| kills.count);
    loop {
        events.happened().await?;
        if memory_directory(&record).is_none() {
            return Ok(());
        }
        // v1 tells that the killer was called, before it has killed: the count may follow, but not without an event.
        if let Some(kills) = settled(&record, told).await {
            told = kills.count;
            report(parent.clone(), Oom(kills)).await;
        }
    }
}

/// The kills beyond those that were told, once there are any.
async fn settled(record: &CgroupRecord, told: u64) -> Option<super::OomKills> {
    for pause in [0, 10, 100, 500] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if let Some(kills) = oom_kills(record).filter(|kills| kills.count > told) {
            return Some(kills);
        }
    }
    None
}

/// Tells of pressure, now and then. Ends with the cgroup.
async fn tell_pressure(
    events: CgroupEvents,
    record: CgroupRecord,
    parent: Recipient<Pressure>,
) -> io::Result<()> {
    loop {
        events.happened().await?;
        if memory_directory(&record).is_none() {
            return Ok(());
        }
        report(parent.clone(), Pressure).await;
        tokio::time::sleep(QUIET).await;
    }
}

impl Actor for Monitor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(EndWhenOrphaned);
    }
}

impl Handler<Watch> for Monitor {
    type Result = ();

    fn handle(&mut self, Watch: Watch, ctx: &mut Self::Context) {
        self.unwatch(ctx);
        let record = self.record.clone();
        let Some(directory) = memory_directory(&record).map(Path::to_owned) else {
            return warn!("the host has no memory controller for the pod: its OOM killer goes unnoticed");
        };
        let (oom, pressure) = (self.oom.clone(), self.pressure.clone());
        let kills = record.clone();
        self.listen("OOM kills", oom_events(&directory), |events| tell_kills(events, kills, oom), ctx);
        let told = pressure_events(&directory);
        self.listen("memory pressure", told, |events| tell_pressure(events, record, pressure), ctx);
    }
}

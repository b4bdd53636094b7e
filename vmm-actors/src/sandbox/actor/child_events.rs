//! What the children tell without being asked: ends, and troubles that are no ends.

use actix::{Context, Handler};
use tracing::{error, warn};

use super::Sandbox;
use crate::agent::AgentSilent;
use crate::monitor::{Oom, Pressure, oom_kills};
use crate::sandbox::lifecycle::state::{Cause, Class, Event};
use crate::shim::ShimExited;
use crate::virtiofsd::VirtiofsdExited;
use crate::vm::VmmExited;

/// What Status says of a pod that waits for the host's memory.
const PRESSED: &str = "the pod's processes on the host wait for memory; it may be close to its limit";

impl Sandbox {
    /// The pod is over, and this is how it looks from here. Where the host's OOM killer came, that is the reason.
    pub(super) fn died(&mut self, how: String, ctx: &mut Context<Self>) {
        // What ends because it is being released needs no reason.
        let kills = if self.state.cause().is_none() { oom_kills(&self.record.cgroup) } else { None };
        let cause = match kills {
            Some(kills) => {
                error!(parent: &self.span, %kills, how, "the host's OOM killer ended the pod");
                Cause { class: Class::Exhausted, reason: format!("the pod was {kills} ({how})") }
            }
            None => Cause::lost(how),
        };
        self.note(Event::Died(cause), ctx);
    }

    /// Shows it in Status, once.
    pub(super) fn warning(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }
}

impl Handler<VmmExited> for Sandbox {
    type Result = ();

    fn handle(&mut self, exited: VmmExited, ctx: &mut Self::Context) {
        self.died(exited.to_string(), ctx);
    }
}

impl Handler<VirtiofsdExited> for Sandbox {
    type Result = ();

    fn handle(&mut self, exited: VirtiofsdExited, ctx: &mut Self::Context) {
        self.died(exited.to_string(), ctx);
    }
}

impl Handler<ShimExited> for Sandbox {
    type Result = ();

    fn handle(&mut self, exited: ShimExited, ctx: &mut Self::Context) {
        self.died(exited.to_string(), ctx);
    }
}

impl Handler<AgentSilent> for Sandbox {
    type Result = ();

    fn handle(&mut self, silent: AgentSilent, _: &mut Self::Context) {
        // A guest that is starved is not dead: say so, and let kubelet's probes decide.
        warn!(parent: &self.span, %silent, "the guest does not answer");
        self.warning(silent.to_string());
    }
}

impl Handler<Oom> for Sandbox {
    type Result = ();

    fn handle(&mut self, Oom(kills): Oom, _: &mut Self::Context) {
        // Whoever watches the process tells of its end, which is the pod's.
        warn!(parent: &self.span, %kills, count = kills.count, "a process of the pod was killed");
        self.warning(format!("a process of the pod was {kills}"));
    }
}

impl Handler<Pressure> for Sandbox {
    type Result = ();

    fn handle(&mut self, _: Pressure, _: &mut Self::Context) {
        warn!(parent: &self.span, "{PRESSED}");
        self.warning(PRESSED.to_owned());
    }
}

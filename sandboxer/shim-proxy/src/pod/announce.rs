//! What subscribers of containerd's events are told of a process.

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;

use super::Pod;
use super::process::ProcessRef;
use crate::lifecycle::{Notice, State};
use crate::runtime::clock;

impl Pod {
    /// Publishes the event of a transition; `state` is the new state.
    pub(super) fn announce(&mut self, process: &ProcessRef, notice: Notice, state: State) {
        let container_id = process.container_id().to_owned();
        let exec_id = process.exec_id().to_owned();
        let (init, pid) = (process.is_init(), state.pid());
        match notice {
            Notice::Created if init => self.announce_creation(process, pid),
            Notice::Created => {
                let event = events::TaskExecAdded { container_id, exec_id, ..Default::default() };
                self.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
            }
            Notice::Started if init => {
                let event = events::TaskStart { container_id, pid, ..Default::default() };
                self.publish(topics::TASK_START_EVENT_TOPIC, &event);
            }
            Notice::Started => {
                let event = events::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
                self.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
            }
            Notice::Paused => {
                let event = events::TaskPaused { container_id, ..Default::default() };
                self.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
            }
            Notice::Resumed => {
                let event = events::TaskResumed { container_id, ..Default::default() };
                self.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
            }
            Notice::Ended => self.announce_end(process, state),
            Notice::Deleted => self.announce_deletion(process, state),
        }
    }

    /// Publishes the event of an OOM kill.
    pub(super) fn announce_oom(&self, process: &ProcessRef) {
        let event = events::TaskOOM { container_id: process.container_id().to_owned(), ..Default::default() };
        self.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    fn publish<M: protobuf::Message>(&self, topic: &str, event: &M) {
        self.handle.links.events.publish(topic, event);
    }

    fn announce_creation(&mut self, process: &ProcessRef, pid: u32) {
        let rootfs = self.container_mut(process).map(|container| std::mem::take(&mut container.rootfs));
        let stdio = process.stdio();
        let io = events::TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        let event = events::TaskCreate {
            container_id: process.container_id().to_owned(),
            bundle: process.bundle().to_owned(),
            rootfs: rootfs.unwrap_or_default(),
            io: Some(io).into(),
            pid,
            ..Default::default()
        };
        self.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
    }

    fn announce_end(&self, process: &ProcessRef, state: State) {
        let Some(exit) = state.exit() else { return };
        let id = if process.is_init() { process.container_id() } else { process.exec_id() };
        let event = events::TaskExit {
            container_id: process.container_id().to_owned(),
            id: id.to_owned(),
            pid: state.pid(),
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at_nanos)).into(),
            ..Default::default()
        };
        self.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// containerd's own shims announce the deletion of init processes only.
    fn announce_deletion(&mut self, process: &ProcessRef, state: State) {
        let Some(exit) = state.exit().filter(|_| process.is_init()) else { return };
        let event = events::TaskDelete {
            container_id: process.container_id().to_owned(),
            pid: self.process_mut(process).map_or(0, |known| known.last_pid),
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at_nanos)).into(),
            ..Default::default()
        };
        self.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
    }
}

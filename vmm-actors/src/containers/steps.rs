//! The steps on the way to a prepared container, each a future that asks others.

use std::path::PathBuf;

use actix::Addr;
use bulkhead_protocol::error::chain;
use tracing::{Span, info, warn};

use super::error::ContainerError;
use super::hotplug::{self, WantedDisk};
use super::messages::{ContainerRequest, PreparedContainer, RunningPod};
use crate::ask::ask;
use crate::guest_spec::{Bind, GuestSpec, LeftToGuest, Propagation, ReadOnly, Target, for_guest};
use crate::id::ContainerId;
use crate::mounts::{self, Mounts};
use crate::pod_spec::PodSpec;
use crate::trace::step;

/// The container's spec, fit for the guest, and the block devices of the host that it wants.
pub(super) async fn read(
    call: Span,
    request: ContainerRequest,
    pod: PodSpec,
) -> Result<(ContainerRequest, GuestSpec, Vec<WantedDisk>), ContainerError> {
    let mut spec = step(&call, "read the spec", read_spec(&request, &pod)).await?;
    for note in &spec.notes {
        info!(container = %request.id, %note, "spec made fit for the guest");
    }
    let wanted = hotplug::find(&request.id, std::mem::take(&mut spec.disks)).await?;
    Ok((request, spec, wanted))
}

async fn read_spec(request: &ContainerRequest, pod: &PodSpec) -> Result<GuestSpec, ContainerError> {
    let path: PathBuf = request.bundle.join("config.json");
    let container = request.id.clone();
    let config = tokio::fs::read(&path).await.map_err(|source| ContainerError::ReadBundle {
        container: container.clone(),
        path,
        source,
    })?;
    let target = Target {
        container_id: request.id.as_str(),
        shared_pid_namespace: pod.shared_pid_namespace,
        inherited_limits: &pod.inherited_limits,
    };
    for_guest(&config, target).map_err(|source| ContainerError::Spec { container, source })
}

/// Mounts what the container has into the share, and settles its spec by what was mounted.
pub(super) async fn make_mounts(
    mounts: &Addr<Mounts>,
    pod: RunningPod,
    request: ContainerRequest,
    mut spec: GuestSpec,
) -> Result<PreparedContainer, ContainerError> {
    let RunningPod { server, memory_of, .. } = pod;
    let ContainerRequest { id, rootfs, .. } = request;
    let container = id.clone();
    let volumes = mounts::Volumes { binds: spec.binds.iter().map(bind_mount).collect(), memory_of };
    let asked = ask(mounts, mounts::Prepare { container: id, rootfs, volumes, server });
    let made =
        asked.await.map_err(|source| ContainerError::Mount { container: container.clone(), source })?;
    let left = LeftToGuest {
        sockets: made.sockets.iter().map(|socket| socket.number).collect(),
        memory: made.memory.iter().map(|volume| volume.number).collect(),
        read_only: made.read_only_in_guest,
    };
    if let Err(source) = spec.settle(container.as_str(), &left) {
        if let Err(left) = release_mounts(mounts, &container).await {
            warn!(%container, error = chain(&left), "mounts are left");
        }
        return Err(ContainerError::Spec { container, source });
    }
    let rootfs = spec.rootfs.to_string_lossy().into_owned();
    let memory = made.memory.into_iter().map(memory_volume).collect();
    Ok(PreparedContainer { spec: spec.spec_json, rootfs, sockets: made.sockets, memory, disks: Vec::new() })
}

fn memory_volume(volume: mounts::MemoryVolume) -> bulkhead_protocol::agent::MemoryVolume {
    let mounts::MemoryVolume { number, name, size_bytes, root, sub_path, sub } = volume;
    bulkhead_protocol::agent::MemoryVolume {
        number,
        name,
        size_bytes,
        uid: root.uid,
        gid: root.gid,
        mode: root.mode,
        sub_path,
        sub_uid: sub.uid,
        sub_gid: sub.gid,
        sub_mode: sub.mode,
        ..Default::default()
    }
}

fn bind_mount(bind: &Bind) -> mounts::BindMount {
    let mut options = vec![if bind.recursive { "rbind" } else { "bind" }.to_owned()];
    match bind.read_only {
        ReadOnly::Nothing => {}
        ReadOnly::Top => options.push("ro".to_owned()),
        ReadOnly::Below => options.push("rro".to_owned()),
    }
    match bind.propagation {
        Propagation::Private => options.push("rprivate".to_owned()),
        Propagation::FromHost => options.push("rslave".to_owned()),
    }
    mounts::BindMount { source: bind.source.clone(), number: bind.index, options }
}

/// Unmounts what the container has in the share.
pub(super) async fn release_mounts(mounts: &Addr<Mounts>, id: &ContainerId) -> Result<(), ContainerError> {
    let asked = ask(mounts, mounts::Release { container: id.clone() });
    asked.await.map_err(|source| ContainerError::Mount { container: id.clone(), source })
}

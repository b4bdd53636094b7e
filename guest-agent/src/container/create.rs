//! Create: all of a container, or nothing of it on an error.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bulkhead_protocol::PID_NAMESPACE;
use bulkhead_protocol::agent::CreateContainerRequest;
use bulkhead_protocol::error::chain;
use oci_spec::runtime::{Capability, Spec};
use tokio::sync::watch;

use super::disks;
use super::error::ContainerError;
use super::mounts::{guest, targets, workdir};
use super::process::Process;
use super::spec::{self, PodView, Target, devices};
use super::state::Event;
use super::{Attachments, Container, Containers, Entry, bundle, check_id};
use crate::cgroup::Cgroup;
use crate::kernel::blocking::blocking;
use crate::kernel::modules;
use crate::process::helper::{Job, Launched, launch};
use crate::stdio::{self, Owner};

/// Reserves the id of a container that is being created. Dropping it frees the id, unless the container was filled in.
struct Reservation<'a> {
    containers: &'a Containers,
    id: &'a str,
    filled: bool,
}

impl<'a> Reservation<'a> {
    fn new(containers: &'a Containers, id: &'a str) -> Result<Self, ContainerError> {
        let mut map = containers.lock();
        if map.contains_key(id) {
            return Err(ContainerError::ContainerExists { id: id.to_owned() });
        }
        map.insert(id.to_owned(), Entry::Creating);
        Ok(Self { containers, id, filled: false })
    }

    fn fill(mut self, container: Arc<Container>) {
        self.containers.lock().insert(self.id.to_owned(), Entry::Created(container));
        self.filled = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.containers.lock().remove(self.id);
        }
    }
}

impl Containers {
    /// Creates a container and returns the pid of its init process, which waits for the start. On an error nothing is
    /// left behind.
    pub(crate) async fn create(
        self: Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<u32, ContainerError> {
        let id = request.container_id.as_str();
        check_id(id)?;
        let reservation = Reservation::new(&self, id)?;
        match self.build(&request).await {
            Ok((container, pid)) => {
                reservation.fill(container);
                tracing::debug!(container = id, pid, "created");
                Ok(pid)
            }
            Err(error) => {
                self.streams.forget(id, None);
                Err(error)
            }
        }
    }

    async fn build(
        self: &Arc<Self>,
        request: &CreateContainerRequest,
    ) -> Result<(Arc<Container>, u32), ContainerError> {
        let id = request.container_id.as_str();
        let rootfs = PathBuf::from(&request.rootfs);
        check_rootfs(id, &rootfs).await?;
        let target = Target { id, rootfs: &rootfs, terminal: request.stdio.terminal };
        let mut spec = spec::adapt(&request.spec, target, &pod_view())?;
        let attached_disks = disks::attach(&self.disks, id, &request.disks, &mut spec).await?;
        devices::add(&mut spec, devices::of_guest);
        load_netfilter(&spec).await;
        let attached = match self.attach(request, &spec).await {
            Ok(attached) => Attachments { disks: attached_disks, ..attached },
            Err(error) => {
                disks::detach(&self.disks, &attached_disks).await;
                return Err(error);
            }
        };
        let shown = request.sockets.iter().try_for_each(|socket| self.sockets.listen(id, socket));
        if let Err(error) = shown {
            self.clean_up(id, &Cgroup::of(id), &attached).await;
            return Err(error.into());
        }
        let (spec, workdir) = resolve_targets(id, &rootfs, spec).await;
        match self.launch_init(request, &spec, attached.clone()).await {
            Ok(made) => Ok(made),
            Err(error) => {
                // Which source is missing can be seen only while the mounts exist.
                let error = find_cause(id, &spec, error, workdir).await;
                self.clean_up(id, &Cgroup::of(id), &attached).await;
                Err(error)
            }
        }
    }

    async fn attach(
        &self,
        request: &CreateContainerRequest,
        spec: &Spec,
    ) -> Result<Attachments, ContainerError> {
        let wanted = request.mounts.clone();
        let sources: Vec<PathBuf> = spec::binds(spec).map(|(source, _)| source.to_owned()).collect();
        let volumes = Arc::clone(&self.volumes);
        let (id, memory) = (request.container_id.clone(), Arc::clone(&self.memory));
        let in_memory = request.memory_volumes.clone();
        blocking(move || {
            let mut mounts = guest::attach_all(&wanted)?;
            let made = memory.attach(&id, &in_memory).inspect_err(|_| guest::detach_all(&mounts))?;
            mounts.extend(made);
            Ok(Attachments { mounts, volumes: volumes.acquire(&sources), disks: Vec::new() })
        })
        .await
    }

    async fn launch_init(
        self: &Arc<Self>,
        request: &CreateContainerRequest,
        spec: &Spec,
        attached: Attachments,
    ) -> Result<(Arc<Container>, u32), ContainerError> {
        let id = &request.container_id;
        let dir = bundle(id);
        write_bundle(&dir, spec)?;
        let (stdio, prepared) = stdio::prepare(&request.stdio, spec::uid(spec))?;
        let job = Job::CreateContainer { id: id.clone(), bundle: dir, console: prepared.console() };
        let made = launch(&self.reaper, &job, stdio)
            .await
            .map_err(|source| ContainerError::Create { id: id.clone(), source })?;
        let init = Process::new(id, "");
        init.on(Event::Created { pid: made.pid })?;
        let owner = Owner { registry: Arc::clone(&self.streams), container: id.clone(), exec: String::new() };
        init.attach(prepared.start(&owner, &init.writers_gone())?);
        let container = Arc::new(Container {
            id: id.clone(),
            cgroup: Cgroup::of(id),
            init,
            execs: Mutex::new(HashMap::new()),
            operation: tokio::sync::Mutex::new(()),
            attached,
            inherited: spec::Inherited::of(spec),
            gone: watch::Sender::new(false),
        });
        self.follow_init(&container, made);
        Ok((container, made.pid))
    }

    /// Has everything in the container end with its init process.
    fn follow_init(&self, container: &Arc<Container>, made: Launched) {
        let exit = self.reaper.claim(made.pid, made.since_nanos);
        tokio::spawn(super::run::follow_init(Arc::clone(container), exit));
    }
}

/// Loads the modules for which legacy iptables and ip6tables run modprobe themselves: in a container there is no
/// modprobe, or it finds no module. All other network modules are asked for by the kernel.
async fn load_netfilter(spec: &Spec) {
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let bounding = capabilities.and_then(|capabilities| capabilities.bounding().as_ref());
    if !bounding.is_some_and(|bounding| bounding.contains(&Capability::NetAdmin)) {
        return;
    }
    let loading = tokio::task::spawn_blocking(|| ["ip_tables", "ip6_tables"].map(modules::ensure_loaded));
    for error in loading.await.into_iter().flatten().filter_map(Result::err) {
        tracing::warn!(error = %chain(&error), "legacy iptables will not work");
    }
}

async fn check_rootfs(id: &str, rootfs: &Path) -> Result<(), ContainerError> {
    let missing = |source| ContainerError::NoRootfs { id: id.to_owned(), path: rootfs.to_owned(), source };
    let found = tokio::fs::metadata(rootfs).await.map_err(missing)?;
    if found.is_dir() { Ok(()) } else { Err(missing(std::io::ErrorKind::NotADirectory.into())) }
}

fn pod_view() -> PodView {
    let exists = |path: PathBuf| std::fs::exists(path).unwrap_or(false);
    let dir = Path::new(crate::pod::ETC_DIR);
    PodView {
        files: spec::POD_FILES.into_iter().filter(|file| exists(dir.join(file))).collect(),
        shm: crate::pod::has_shm(),
        pid_namespace: exists(PID_NAMESPACE.into()),
    }
}

fn write_bundle(dir: &Path, spec: &Spec) -> Result<(), ContainerError> {
    let path = dir.join(crate::process::helper::SPEC_FILE);
    let write = || {
        std::fs::create_dir_all(dir)?;
        std::fs::create_dir_all(crate::process::helper::STATE_DIR)?;
        std::fs::write(&path, serde_json::to_vec(spec)?)
    };
    write().map_err(|source| ContainerError::WriteFile { path: path.clone(), source })
}

/// The spec with the targets of its mounts resolved, and whether its working directory could be made. If not, it may
/// still exist once the container has its mounts.
async fn resolve_targets(id: &str, rootfs: &Path, mut spec: Spec) -> (Spec, Result<(), ContainerError>) {
    let (id, rootfs) = (id.to_owned(), rootfs.to_owned());
    blocking(move || {
        let tree = targets::resolve_all(&rootfs, &mut spec);
        let workdir = workdir::make(&id, &tree, &spec);
        (spec, workdir)
    })
    .await
}

/// Finds out what libcontainer does not say: which mount's source is missing, or which working directory.
async fn find_cause(
    id: &str,
    spec: &Spec,
    error: ContainerError,
    workdir: Result<(), ContainerError>,
) -> ContainerError {
    if !matches!(error, ContainerError::Create { .. }) {
        return error;
    }
    for (source, destination) in spec::binds(spec) {
        if let Err(missing) = tokio::fs::metadata(source).await {
            return ContainerError::NoMountSource {
                id: id.to_owned(),
                path: source.to_owned(),
                destination: destination.to_owned(),
                source: missing,
            };
        }
    }
    workdir.err().unwrap_or(error)
}

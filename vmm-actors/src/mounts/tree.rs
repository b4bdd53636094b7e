//! The four things the actor does, each on its own so that a successor can do them without one.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bulkhead_protocol::SHARE_DIR;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::error::MountsError;
use super::memory::{self, MemoryVolume};
use super::messages::{FileServer, PreparedMounts, Volumes};
use super::options::{self, Kind};
use super::request::{BindMount, RootfsMount};
use super::share::{backing, blocking, make_directory, mounts_below, unmount_below};
use super::sockets::{self, HostSocket};
use super::volumes::{self, Volume};
use crate::host::dir::{self, PrivateDir};
use crate::host::mount::{BindFlags, Mount, Propagation, attribute};
use crate::host::mount_ns::MountNs;
use crate::id::ContainerId;

/// Makes `share` a read-only, shared view of the directory beside it.
///
/// # Errors
/// [`MountsError`]; what was made is removed again then.
pub async fn open(share: &Path) -> Result<(), MountsError> {
    let share = real(share);
    blocking(move || {
        if !mounts_below(&share)?.is_empty() {
            return Ok(());
        }
        let backing = PrivateDir::create(&backing(&share)).map_err(MountsError::Directory)?;
        let point = PrivateDir::create(&share).map_err(MountsError::Directory)?;
        // Private first: otherwise it would be a peer of what is around it, and mounts would appear in `backing`.
        let flags =
            BindFlags { set: attribute::RDONLY, propagation: Propagation::Private, ..BindFlags::default() };
        let view = Mount::bind(backing.path(), &share, flags).map_err(MountsError::Mount)?;
        view.share().map_err(MountsError::Mount)?;
        view.keep();
        point.keep();
        backing.keep();
        Ok(())
    })
    .await
}

/// Mounts a container's root file system and volumes in a share that nobody serves yet.
///
/// # Errors
/// [`MountsError`]; what was mounted is unmounted again, in reverse.
pub async fn prepare(
    share: &Path,
    container: ContainerId,
    rootfs: Vec<RootfsMount>,
    binds: Vec<BindMount>,
) -> Result<PreparedMounts, MountsError> {
    prepare_for(None, share, container, rootfs, Volumes { binds, memory_of: None }).await
}

/// Mounts a container's root file system and volumes.
///
/// # Errors
/// [`MountsError`]; what was mounted is unmounted again, in reverse.
pub async fn prepare_for(
    server: Option<FileServer>,
    share: &Path,
    container: ContainerId,
    rootfs: Vec<RootfsMount>,
    volumes: Volumes,
) -> Result<PreparedMounts, MountsError> {
    let share = real(share);
    let result = prepare_all(server, share.clone(), container, rootfs, volumes).await;
    if result.is_err() {
        // Of volumes that were new, the mount is gone and its place is left.
        if let Err(error) = volumes::release_unused(&share).await {
            tracing::warn!(%error, "an unused volume is left in the share");
        }
    }
    result
}

async fn prepare_all(
    server: Option<FileServer>,
    share: PathBuf,
    container: ContainerId,
    rootfs: Vec<RootfsMount>,
    volumes: Volumes,
) -> Result<PreparedMounts, MountsError> {
    blocking(move || {
        let place = Place::new(&share, container)?;
        if rootfs.is_empty() {
            return Err(MountsError::NoRootfs { container: place.container });
        }
        let directory = PrivateDir::create(&place.backing).map_err(MountsError::Directory)?;
        // Dropped in this order on an error: mounts, the last one first, then the directory.
        let mut made = Undo::default();
        for mount in &rootfs {
            made.0.push(place.mount_rootfs(mount)?);
        }
        let mut apart = Vec::new();
        let mut prepared = place.seen_by_guest(&volumes.binds);
        for bind in &volumes.binds {
            let volume = match place.source(bind, volumes.memory_of.as_deref())? {
                Source::Volume(volume) => volume,
                Source::Socket(socket) => {
                    prepared.sockets.push(socket);
                    continue;
                }
                Source::Memory(memory) => {
                    prepared.memory.push(memory);
                    continue;
                }
            };
            if !volume.is_in_the_way()? {
                let volume = volume.alone();
                let attached = volumes::attach(&place.share, &place.container, &volume)?;
                made.0.extend(attached.made);
                prepared.read_only_in_guest.extend(attached.is_read_only_in_guest.then_some(volume.number));
                continue;
            }
            make_directory(&place.backing.join("mounts"))?;
            volume.make_point(&place.backing.join("mounts").join(volume.number.to_string()))?;
            if server.is_some() {
                apart.push(volume);
            } else {
                made.0.push(place.mount(&volume.source, &place.target(&volume), Kind::Bind(volume.flags))?);
            }
        }
        // Last: these have no guard, and go with the directory below.
        if let Some(server) = server.filter(|_| !apart.is_empty()) {
            place.mount_apart(&server, &apart)?;
        }
        made.keep();
        directory.keep();
        Ok(prepared)
    })
    .await
}

/// Unmounts everything of one container and removes its mount points.
///
/// # Errors
/// [`MountsError`]; what could be unmounted is.
pub async fn release(share: &Path, container: &ContainerId) -> Result<(), MountsError> {
    let share = real(share);
    unmount_below(&share.join(container.as_str())).await?;
    let directory = backing(&share).join(container.as_str());
    blocking(move || dir::remove(&directory).map_err(MountsError::Directory)).await?;
    volumes::release_unused(&share).await
}

/// Unmounts everything of the pod, the share included, and removes its directories.
///
/// # Errors
/// [`MountsError`]; what could be unmounted is.
pub async fn close(share: &Path) -> Result<(), MountsError> {
    let share = real(share);
    unmount_below(&share).await?;
    blocking(move || {
        dir::remove(&share).map_err(MountsError::Directory)?;
        dir::remove(&backing(&share)).map_err(MountsError::Directory)?;
        dir::remove(&volumes::notes(&share)).map_err(MountsError::Directory)
    })
    .await
}

/// The path as the kernel lists it. One whose directory is gone has nothing mounted in it either.
fn real(share: &Path) -> PathBuf {
    let directory = share.parent().and_then(|parent| fs::canonicalize(parent).ok());
    match (directory, share.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        (None, _) | (_, None) => share.to_owned(),
    }
}

/// Guards in the order in which they were made. A vector would drop the first one first.
#[derive(Default)]
struct Undo(Vec<Mount>);

impl Undo {
    fn keep(mut self) {
        self.0.drain(..).for_each(Mount::keep);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(mount) = self.0.pop() {
            drop(mount);
        }
    }
}

/// What a container gets of a path of the host.
enum Source {
    Volume(Volume),
    Socket(HostSocket),
    Memory(MemoryVolume),
}

/// One container's part of the share.
struct Place {
    container: ContainerId,
    share: PathBuf,
    /// As the file server sees it: mounts are made here.
    view: PathBuf,
    /// As only the host sees it: mount points are made here.
    backing: PathBuf,
}

impl Place {
    fn new(share: &Path, container: ContainerId) -> Result<Self, MountsError> {
        let view = share.join(container.as_str());
        let backing = backing(share).join(container.as_str());
        let mounted = mounts_below(share)?;
        if !mounted.iter().any(|path| path == share) {
            return Err(MountsError::NotOpen { share: share.to_owned() });
        }
        if mounted.iter().any(|path| path.starts_with(&view)) {
            return Err(MountsError::AlreadyPrepared { container });
        }
        Ok(Self { container, share: share.to_owned(), view, backing })
    }

    fn mount_rootfs(&self, rootfs: &RootfsMount) -> Result<Mount, MountsError> {
        let source = Path::new(&rootfs.source);
        let kind = options::rootfs(rootfs)
            .map_err(|error| MountsError::Options { source_path: source.to_owned(), source: error })?;
        make_directory(&self.backing.join("rootfs"))?;
        let root = self.view.join("rootfs");
        let inner = rootfs.target.trim_matches('/');
        if inner.is_empty() {
            return self.mount(source, &root, kind);
        }
        let opened = self.resolve(&root, Path::new(inner))?;
        // The name that the kernel gives the descriptor is where it really is, below the root file system.
        let target = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
            .map_err(|source| self.unresolved(inner, source))?;
        self.mount(source, &target, kind)
    }

    fn source(&self, bind: &BindMount, memory_of: Option<&str>) -> Result<Source, MountsError> {
        let flags = options::bind(&bind.options)
            .map_err(|source| MountsError::Options { source_path: bind.source.clone(), source })?;
        let metadata = fs::metadata(&bind.source).map_err(|source| MountsError::FindSource {
            source_path: bind.source.clone(),
            number: bind.number,
            container: self.container.clone(),
            source,
        })?;
        if metadata.file_type().is_socket() {
            return sockets::describe(bind, &metadata, &self.container).map(Source::Socket);
        }
        if let Some(pod_uid) = memory_of
            && let Some(memory) = memory::describe(bind, &metadata, pod_uid, &self.container)?
        {
            return Ok(Source::Memory(memory));
        }
        let flags = self.keep_out(&bind.source, flags);
        let (number, source) = (bind.number, bind.source.clone());
        Ok(Source::Volume(Volume { number, source, flags, is_dir: metadata.is_dir() }))
    }

    /// Where a volume of this container alone is mounted.
    fn target(&self, volume: &Volume) -> PathBuf {
        self.view.join("mounts").join(volume.number.to_string())
    }

    /// Mounts volumes where only the file server sees them.
    fn mount_apart(&self, server: &FileServer, volumes: &[Volume]) -> Result<(), MountsError> {
        let find = |source| MountsError::FindServer { source };
        // Gone: the pod is ending, and what it ends by is told elsewhere.
        let namespace = MountNs::of(&server.process).map_err(find)?;
        let namespace = namespace.ok_or_else(|| MountsError::NotOpen { share: self.share.clone() })?;
        for volume in volumes {
            let target = self.target(volume);
            let target = server.share.join(target.strip_prefix(&self.share).unwrap_or(&target));
            namespace.bind(&volume.source, &target, volume.flags).map_err(MountsError::Mount)?;
        }
        Ok(())
    }

    fn mount(&self, source: &Path, target: &Path, kind: Kind) -> Result<Mount, MountsError> {
        let mounted = match kind {
            Kind::Bind(flags) => Mount::bind(source, target, flags),
            Kind::Filesystem(filesystem) => Mount::filesystem(&filesystem, target),
        };
        mounted.map_err(MountsError::Mount)
    }

    /// A volume that holds the share itself (`/`, for example) must not get what is mounted into the share later:
    /// that would be the volume again.
    fn keep_out(&self, source: &Path, flags: BindFlags) -> BindFlags {
        let real = fs::canonicalize(source).unwrap_or_else(|_gone| source.to_owned());
        if flags.propagation == Propagation::Slave && self.share.starts_with(&real) {
            tracing::info!(volume = %source.display(), "volume holds the share: later mounts of the host are left out");
            return BindFlags { propagation: Propagation::Private, ..flags };
        }
        flags
    }

    /// A path inside an image, which may hold links to anywhere.
    fn resolve(&self, root: &Path, inner: &Path) -> Result<std::os::fd::OwnedFd, MountsError> {
        let wrap = |errno: rustix::io::Errno| self.unresolved(&inner.to_string_lossy(), errno.into());
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = openat2(CWD, root, flags | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            .map_err(wrap)?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&root, inner, flags, Mode::empty(), inside).map_err(wrap)
    }

    fn unresolved(&self, inner: &str, source: io::Error) -> MountsError {
        MountsError::ResolveTarget { target: inner.into(), container: self.container.clone(), source }
    }

    fn seen_by_guest(&self, binds: &[BindMount]) -> PreparedMounts {
        let container = Path::new(SHARE_DIR).join(self.container.as_str());
        let mounts = container.join("mounts");
        PreparedMounts {
            rootfs: container.join("rootfs"),
            binds: binds.iter().map(|bind| mounts.join(bind.number.to_string())).collect(),
            sockets: Vec::new(),
            memory: Vec::new(),
            read_only_in_guest: Vec::new(),
        }
    }
}

//! The durable form of a sandbox, and the file it lives in.
//!
//! `<state_dir>/sandboxes/<id>.json`: one header line (magic, version, length and CRC-32 of the body), then the body.
//! Written to a temporary file, fsynced, renamed, directory fsynced: a reader sees the old record or the new one.
//! A record that does not read is moved to `quarantine/`, never deleted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_config::Settings;
use serde::{Deserialize, Serialize};

use super::sizing::Size;
use super::state::Cause;
use crate::cgroup::{self, CgroupError, CgroupRecord, Limits};
use crate::host::process::boot_id;
use crate::id::{ContainerId, SandboxId};
use crate::network::{self, NetworkRecord};
use crate::pod_dir::PodDir;
use crate::pod_spec::PodSpec;
use crate::registry::CreateSandbox;
use crate::shim::ShimRecord;
use crate::virtiofsd::VirtiofsdRecord;
use crate::vm::VmRecord;

/// First word of the header line.
const MAGIC: &str = "bulkhead-sandbox";
/// Newest version of the body that this build reads and the one it writes.
const VERSION: u32 = 1;
/// Largest record that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Everything a successor needs to finish or to adopt a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox.
    pub id: SandboxId,
    /// How far it got.
    pub phase: Phase,
    /// `/proc/sys/kernel/random/boot_id` of the boot it was made in.
    pub boot_id: String,
    /// When Create came.
    pub created_at: Nanos,
    /// What the pod asks for.
    pub pod: PodSpec,
    /// The pod's network namespace as containerd named it.
    pub netns: PathBuf,
    /// The pod's runtime directory.
    pub dir: PodDir,
    /// Its host cgroup: planned before it exists.
    pub cgroup: CgroupRecord,
    /// Its taps and redirects: planned before they exist.
    pub network: NetworkRecord,
    /// The VMM, once launched.
    pub vm: Option<VmRecord>,
    /// The size that the VM was given; none in records of releases that did not write it.
    #[serde(default)]
    pub size: Option<Size>,
    /// The file server, once started.
    pub virtiofsd: Option<VirtiofsdRecord>,
    /// The shim proxy, once started.
    pub shim: Option<ShimRecord>,
    /// Containers whose mounts exist or may exist.
    pub containers: BTreeMap<ContainerId, ContainerRecord>,
}

impl Record {
    /// The intent: written before the first effect.
    ///
    /// # Errors
    /// [`CgroupError`] when the pod's cgroup parent cannot be one.
    pub fn intend(request: CreateSandbox, settings: &Settings) -> Result<Self, CgroupError> {
        let CreateSandbox { id, netns, pod } = request;
        Ok(Self {
            phase: Phase::Starting,
            // Without /proc nothing of a sandbox can be made; the bring-up says so better than this could.
            boot_id: boot_id().unwrap_or_default(),
            created_at: Nanos::now(),
            dir: PodDir::new(&settings.sandboxer.run_dir, &id),
            cgroup: cgroup::plan(&pod.cgroup_parent, &settings.cgroup.default_parent, &id)?,
            network: network::plan(&netns),
            netns,
            size: Some(Size::of(&pod.resources, &settings.vm)),
            pod,
            vm: None,
            virtiofsd: None,
            shim: None,
            containers: BTreeMap::new(),
            id,
        })
    }

    /// The size of the pod's VM.
    pub(super) fn size(&self, settings: &Settings) -> Size {
        self.size.unwrap_or_else(|| Size::of(&self.pod.resources, &settings.vm))
    }

    /// What the host must give the pod's VM, in bytes.
    pub(super) fn needed_bytes(&self, settings: &Settings) -> u64 {
        Limits::needed_bytes(self.size(settings).memory_bytes())
    }

    /// What the pod may use of the host.
    pub(super) fn host_limits(&self, settings: &Settings) -> Limits {
        let guest = self.size(settings).memory_bytes();
        Limits::for_pod(&self.pod.resources, &self.pod.overhead, guest)
    }
}

/// How far a sandbox got, as far as a successor must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Start has not been answered: containerd will not remember it.
    Starting,
    /// Start was, or may have been, answered.
    Running,
    /// Everything is released, or was tried to be.
    Stopped {
        /// Why.
        cause: Cause,
        /// When.
        at: Nanos,
    },
}

/// One container of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRecord {
    /// containerd's bundle.
    pub bundle: PathBuf,
    /// The container's stdio as containerd named it: stdin, stdout, stderr; empty where there is none.
    pub stdio: [String; 3],
    /// Pid of its init in the guest, once it runs.
    pub guest_pid: Option<u32>,
}

/// A point in time, nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub i64);

impl Nanos {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }
}

impl From<SystemTime> for Nanos {
    fn from(time: SystemTime) -> Self {
        let nanos = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Self(i64::try_from(nanos).unwrap_or(i64::MAX))
    }
}

impl From<Nanos> for SystemTime {
    fn from(nanos: Nanos) -> Self {
        UNIX_EPOCH + std::time::Duration::from_nanos(nanos.0.unsigned_abs())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    magic: String,
    version: u32,
    length: u64,
    crc32: u32,
}

/// What went wrong with a record's file.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory could not be made or listed.
    #[error("cannot use the state directory {path}; it must be a writable directory on a local disk")]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record could not be made durable.
    #[error("cannot write the sandbox's record {path}; is the disk full or read-only?")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record could not be turned into JSON.
    #[error("cannot encode the record of sandbox {id}")]
    Encode {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        source: serde_json::Error,
    },
    /// The record could not be deleted.
    #[error("cannot delete the sandbox's record {path}")]
    Delete {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a record's file is no record.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It could not be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is too large to be one.
    #[error("it has {0} bytes, a record has at most {MAX_BYTES}")]
    TooLarge(u64),
    /// Its header line is missing or no header.
    #[error("its header line is damaged")]
    Header,
    /// A newer release wrote it.
    #[error("it has version {0}, this build reads up to {VERSION}")]
    Version(u32),
    /// Its body is shorter than the header says, or other bytes.
    #[error("its body is cut or damaged (checksum mismatch)")]
    Checksum,
    /// Its body is whole but no record.
    #[error("its body is no record")]
    Body(#[source] serde_json::Error),
    /// It names another sandbox than its file does.
    #[error("it is the record of sandbox {0}")]
    WrongName(SandboxId),
}

/// A file of the state directory.
#[derive(Debug)]
pub enum Found {
    /// A record.
    Record(Box<Record>),
    /// Something that should have been one; it now lies in the quarantine.
    Quarantined {
        /// The sandbox its name speaks of.
        id: Option<SandboxId>,
        /// Where it lies now.
        path: PathBuf,
        /// Why.
        why: Broken,
    },
}

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Store {
    sandboxes: PathBuf,
    quarantine: PathBuf,
}

impl Store {
    /// Opens (and makes) the directory.
    ///
    /// # Errors
    /// [`RecordError::OpenDirectory`] naming the directory.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let store = Self { sandboxes: state_dir.join("sandboxes"), quarantine: state_dir.join("quarantine") };
        for path in [&store.sandboxes, &store.quarantine] {
            fs::create_dir_all(path)
                .map_err(|source| RecordError::OpenDirectory { path: path.clone(), source })?;
        }
        Ok(store)
    }

    /// Where the record of `id` lies.
    #[must_use]
    pub fn path(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes.join(format!("{id}.json"))
    }

    /// Makes a record durable. Blocks for the disk.
    ///
    /// # Errors
    /// [`RecordError::Encode`] and [`RecordError::Write`]; the old record, if any, is then still there.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.id);
        let encode = |source| RecordError::Encode { id: record.id.clone(), source };
        let body = serde_json::to_vec(record).map_err(encode)?;
        let header = Header {
            magic: MAGIC.to_owned(),
            version: VERSION,
            length: body.len() as u64,
            crc32: crc32fast::hash(&body),
        };
        let mut bytes = serde_json::to_vec(&header).map_err(encode)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        let temporary = self.sandboxes.join(format!("{}.new", record.id));
        replace(&temporary, &path, &bytes, &self.sandboxes)
            .map_err(|source| RecordError::Write { path, source })
    }

    /// Deletes a record. One that is not there is fine. Blocks for the disk.
    ///
    /// # Errors
    /// [`RecordError::Delete`].
    pub fn delete(&self, id: &SandboxId) -> Result<(), RecordError> {
        let path = self.path(id);
        let deleted = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.and_then(|()| sync_directory(&self.sandboxes)),
        };
        deleted.map_err(|source| RecordError::Delete { path, source })
    }

    /// Reads every record; what is none goes to the quarantine.
    ///
    /// # Errors
    /// [`RecordError::OpenDirectory`] when the directory cannot be listed.
    pub fn load_all(&self) -> Result<Vec<Found>, RecordError> {
        let list = |source| RecordError::OpenDirectory { path: self.sandboxes.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.sandboxes).map_err(list)? {
            let path = entry.map_err(list)?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => found.push(self.load(&path)),
                // A write that a crash cut short: the record it was to replace is still whole.
                Some("new") => drop(fs::remove_file(&path)),
                Some(_) | None => {
                    tracing::warn!(path = %path.display(), "a stray file in the state directory")
                }
            }
        }
        Ok(found)
    }

    /// Reads one record; `None` when there is none.
    #[must_use]
    pub fn load_one(&self, id: &SandboxId) -> Option<Found> {
        let path = self.path(id);
        path.exists().then(|| self.load(&path))
    }

    fn load(&self, path: &Path) -> Found {
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| SandboxId::new(stem).ok());
        let why = match read(path) {
            Ok(record) if Some(&record.id) == id.as_ref() => return Found::Record(Box::new(record)),
            Ok(record) => Broken::WrongName(record.id),
            Err(why) => why,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = self.quarantine.join(format!("{name}.{}", Nanos::now().0));
        let path = match fs::rename(path, &target) {
            Ok(()) => target,
            Err(_stays) => path.to_owned(),
        };
        Found::Quarantined { id, path, why }
    }
}

fn replace(temporary: &Path, path: &Path, bytes: &[u8], directory: &Path) -> io::Result<()> {
    let mut file = fs::File::create(temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| fs::rename(temporary, path));
    if replaced.is_err() {
        drop(fs::remove_file(temporary));
    }
    replaced.and_then(|()| sync_directory(directory))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn read(path: &Path) -> Result<Record, Broken> {
    let length = fs::metadata(path).map_err(Broken::Read)?.len();
    if length > MAX_BYTES {
        return Err(Broken::TooLarge(length));
    }
    let bytes = fs::read(path).map_err(Broken::Read)?;
    let (header, body) = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .and_then(|end| Some((bytes.get(..end)?, bytes.get(end + 1..)?)))
        .ok_or(Broken::Header)?;
    let header: Header = serde_json::from_slice(header).ok().ok_or(Broken::Header)?;
    if header.magic != MAGIC {
        return Err(Broken::Header);
    }
    if header.version > VERSION {
        return Err(Broken::Version(header.version));
    }
    if header.length != body.len() as u64 || header.crc32 != crc32fast::hash(body) {
        return Err(Broken::Checksum);
    }
    serde_json::from_slice(body).map_err(Broken::Body)
}

#[cfg(test)]
pub(super) mod tests;

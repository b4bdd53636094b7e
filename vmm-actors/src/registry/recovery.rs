//! What a service that has just started finds of its predecessor: read before any socket is bound, local and fast.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bulkhead_config::ProfileName;
use bulkhead_protocol::error::chain;
use tracing::{info, warn};

use crate::cgroup::{self, CgroupError};
use crate::host::dir;
use crate::host::process::{OwnedProcess, ProcessIdentity, boot_id};
use crate::id::SandboxId;
use crate::mounts;
use crate::runtime_dir::{PodDir, VmDir};
use crate::sandbox::Origin;
use crate::sandbox::record::{Found, Phase, Record, RecordError, Store};
use crate::sandbox::verdict::{Reality, Verdict, judge};
use crate::telemetry::Telemetry;

/// What was found, for the log and for the operator.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Sandboxes that run on.
    pub adopted: Vec<SandboxId>,
    /// Sandboxes that had not started; they are being undone.
    pub undone: Vec<SandboxId>,
    /// Sandboxes that ran and are lost; they are answered as not ready until they are removed.
    pub lost: Vec<SandboxId>,
    /// Sandboxes that had been stopped before.
    pub stopped: Vec<SandboxId>,
    /// Records that could not be read, and where they lie now.
    pub quarantined: Vec<PathBuf>,
    /// The runtime directories in which adopted sandboxes lie: their shim proxies dial us there.
    pub run_dirs: BTreeSet<PathBuf>,
    /// The Controller sockets on which containerd asks for sandboxes that it has not forgotten, and the profiles that they
    /// were of.
    pub controllers: BTreeMap<PathBuf, ProfileName>,
}

/// Reads every record and decides what becomes of its sandbox. Must be called on an actix system.
///
/// # Errors
/// [`RecordError::OpenDirectory`] when the state directory cannot be used.
pub(crate) fn recover(
    store: &Store,
    run_dir: &Path,
) -> Result<(Vec<(SandboxId, Origin)>, RecoveryReport), RecordError> {
    let mut report = RecoveryReport::default();
    let mut begins = Vec::new();
    for found in store.load_all()? {
        match found {
            Found::Record(record) => {
                let (id, begin) = origin_of(record);
                if let Origin::Recovered { record, verdict } = &begin {
                    report.note(record, verdict);
                }
                begins.push((id, begin));
            }
            Found::Quarantined { id, path, why } => {
                warn!(path = %path.display(), why = chain(&why), "a record is no record; it lies in the quarantine");
                report.quarantined.push(path);
                if let Some(id) = id {
                    // Slow where the cgroup tree is large, and nobody waits for it.
                    actix::spawn(end_unrecorded(run_dir.to_owned(), id));
                }
            }
        }
    }
    Ok((begins, report))
}

/// How a recorded sandbox goes on, judged by what is true now.
pub(crate) fn origin_of(record: Box<Record>) -> (SandboxId, Origin) {
    let verdict = judge(&record, probe(&record));
    info!(sandbox = %record.id, ?verdict, "found a recorded sandbox");
    (record.id.clone(), Origin::Recovered { record, verdict })
}

impl RecoveryReport {
    /// Counts what became of the recorded sandboxes.
    pub(crate) fn count_in(&self, telemetry: &Telemetry) {
        let Self { adopted, undone, lost, stopped, quarantined, run_dirs: _, controllers: _ } = self;
        for (outcome, count) in [
            ("adopted", adopted.len()),
            ("undone", undone.len()),
            ("lost", lost.len()),
            ("stopped", stopped.len()),
            ("quarantined", quarantined.len()),
        ] {
            telemetry.recovered(outcome, count);
        }
    }

    fn note(&mut self, record: &Record, verdict: &Verdict) {
        if *verdict == Verdict::Adopt {
            self.run_dirs.extend(record.dir.run_dir().map(Path::to_owned));
        }
        if !matches!(verdict, Verdict::Undo(_)) {
            let controller = record.controller.clone();
            self.controllers.extend(controller.map(|socket| (socket, record.profile.clone())));
        }
        let list = match verdict {
            Verdict::Adopt => &mut self.adopted,
            Verdict::Undo(_) => &mut self.undone,
            Verdict::Lost(_) => &mut self.lost,
            Verdict::KeepStopped(_) => &mut self.stopped,
        };
        list.push(record.id.clone());
    }
}

fn probe(record: &Record) -> Reality {
    let same_boot = boot_id().is_ok_and(|now| now == record.boot_id);
    let nobody = Reality { same_boot, vmm: false, vsock_helper: false, virtiofsd: false, shim: false };
    if !same_boot || record.phase != Phase::Running {
        return nobody;
    }
    Reality {
        same_boot,
        vmm: record.vm.as_ref().is_some_and(|vm| lives(&vm.vmm)),
        vsock_helper: record.vm.as_ref().is_some_and(|vm| vm.vsock_helper.as_ref().is_none_or(lives)),
        virtiofsd: record.virtiofsd.as_ref().is_some_and(|virtiofsd| lives(&virtiofsd.process)),
        shim: record.shim.as_ref().is_some_and(|shim| lives(&shim.process)),
    }
}

fn lives(identity: &ProcessIdentity) -> bool {
    match OwnedProcess::adopt(identity) {
        Ok(Some(process)) => {
            process.keep();
            true
        }
        Ok(None) => false,
        Err(failed) => {
            warn!(pid = identity.pid, error = chain(&failed), "cannot tell whether the process lives");
            false
        }
    }
}

/// A record that does not read says nothing of its sandbox; the cgroup named after it has its processes, and the
/// directory named after it its mounts and sockets. What is in the pod's network namespace goes with that.
async fn end_unrecorded(run_dir: PathBuf, id: SandboxId) {
    if let Err(failed) = end_processes(&id).await {
        warn!(sandbox = %id, error = chain(&failed), "cannot end the processes of a sandbox without a record");
    }
    let vm_dirs = find_vm_dirs(&id).unwrap_or_else(|error| {
        warn!(sandbox = %id, %error, "cannot look for the directories of a sandbox without a record");
        Vec::new()
    });
    // The pod's directory is beside that of its VM.
    let mut run_dirs = BTreeSet::from([run_dir]);
    run_dirs.extend(vm_dirs.iter().filter_map(|dir| dir.run_dir().map(Path::to_owned)));
    let mut directories = Vec::new();
    for dir in vm_dirs {
        if let Err(failed) = mounts::close(&dir.shared()).await {
            return warn!(sandbox = %id, error = chain(&failed), "cannot unmount a sandbox without a record");
        }
        directories.push(dir.path().to_owned());
    }
    directories.extend(run_dirs.iter().map(|run_dir| PodDir::new(run_dir, &id).path().to_owned()));
    for directory in directories {
        match tokio::task::spawn_blocking(move || dir::remove(&directory)).await {
            Ok(Ok(())) => {}
            Ok(Err(failed)) => {
                warn!(sandbox = %id, error = chain(&failed), "a directory of a sandbox without a record stays");
            }
            Err(panic) => warn!(sandbox = %id, %panic, "a directory of a sandbox without a record stays"),
        }
    }
}

/// Of this release, or of one whose pods and VMs shared a directory.
fn find_vm_dirs(id: &SandboxId) -> std::io::Result<Vec<VmDir>> {
    let mut found = VmDir::find(id)?;
    found.extend(VmDir::find_within_pod(id)?);
    Ok(found)
}

async fn end_processes(id: &SandboxId) -> Result<(), CgroupError> {
    let name = id.clone();
    let looked = tokio::task::spawn_blocking(move || cgroup::find_by_name(&name)).await;
    let found = looked.unwrap_or(Err(CgroupError::CutOff))?;
    let pids = cgroup::find_pids(&found);
    if !pids.is_empty() {
        warn!(sandbox = %id, ?pids, "ending the processes of a sandbox without a record");
    }
    cgroup::delete(&found).await
}

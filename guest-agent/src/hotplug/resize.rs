//! Takes CPUs and memory into use that the host adds while the VM runs.
//!
//! An added CPU appears in sysfs, and the agent brings it online. Added memory is brought online by the kernel itself,
//! once it is told to. Where a virtio memory device provides it, its driver is loaded when the host first asks what the
//! guest has.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use bulkhead_protocol::agent::{GrowRequest, GrowResponse};
use tokio::time::Instant;

use super::drivers::{self, VIRTIO_MEMORY};
use crate::kernel::capacity::{CPUS, ListCpus, memory_bytes, online_cpus};
use crate::kernel::modules::ModuleError;

/// Where sysfs is mounted.
const SYS: &str = "/sys";
/// Whether added memory is brought online (Linux, `Documentation/admin-guide/mm/memory-hotplug.rst`).
const MEMORY_POLICY: &str = "/sys/devices/system/memory/auto_online_blocks";
/// Pause between two looks: the kernel has no notification of how much memory it counts.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// The longest that a call waits, whatever the host asks for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Why added CPUs or memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error("have added memory brought online through {path}")]
    Policy { path: &'static str, source: io::Error },
    #[error("load the driver of added memory")]
    Driver(#[source] ModuleError),
    #[error(transparent)]
    ListCpus(#[from] ListCpus),
}

/// Brings CPUs online and waits until the guest has what the request names, or the time is up. Returns what it has.
pub(crate) async fn resize(request: GrowRequest) -> Result<GrowResponse, ResizeError> {
    if request.cpus == 0 && request.memory_bytes == 0 {
        prepare_memory()?;
    }
    let deadline = Instant::now() + Duration::from_millis(request.wait_millis.into()).min(MAX_WAIT);
    loop {
        let refused = bring_online(Path::new(CPUS), request.cpus)?;
        let has = GrowResponse {
            cpus: online_cpus(Path::new(CPUS))?,
            memory_bytes: memory_bytes(),
            refused: refused.unwrap_or_default(),
            ..GrowResponse::default()
        };
        if (has.cpus >= request.cpus && has.memory_bytes >= request.memory_bytes)
            || Instant::now() >= deadline
        {
            tracing::info!(cpus = has.cpus, memory_mib = has.memory_bytes >> 20, "capacity of the guest");
            return Ok(has);
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

fn prepare_memory() -> Result<(), ResizeError> {
    let policy = fs::write(MEMORY_POLICY, "online");
    policy.map_err(|source| ResizeError::Policy { path: MEMORY_POLICY, source })?;
    drivers::load(Path::new(SYS), VIRTIO_MEMORY, &mut BTreeSet::new()).map_err(ResizeError::Driver)
}

/// Brings CPUs online until `wanted` are. Returns why the first one that failed did.
fn bring_online(dir: &Path, wanted: u32) -> Result<Option<String>, ResizeError> {
    let mut refused = None;
    for cpu in cpus(dir)? {
        if online_cpus(dir)? >= wanted {
            break;
        }
        let switch = dir.join(&cpu).join("online");
        // The first CPU has no such file and is always online.
        if fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0")
            && let Err(error) = fs::write(&switch, "1")
        {
            refused.get_or_insert_with(|| format!("{cpu}: {error}"));
        }
    }
    Ok(refused)
}

/// Names of the CPUs' directories, in the order of their numbers.
fn cpus(dir: &Path) -> Result<Vec<String>, ListCpus> {
    let failed = |source| ListCpus { path: dir.to_owned(), source };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu")?.parse::<u32>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers.into_iter().map(|number| format!("cpu{number}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_come_online_in_order_and_no_more_than_wanted() {
        let dir = tempfile::tempdir().unwrap();
        for cpu in ["cpu0", "cpu1", "cpu2", "cpu10", "cpufreq"] {
            fs::create_dir(dir.path().join(cpu)).unwrap();
        }
        for cpu in ["cpu1", "cpu2", "cpu10"] {
            fs::write(dir.path().join(cpu).join("online"), "0\n").unwrap();
        }
        fs::write(dir.path().join("online"), "0\n").unwrap();
        assert_eq!(cpus(dir.path()).unwrap(), ["cpu0", "cpu1", "cpu2", "cpu10"]);
        assert_eq!(bring_online(dir.path(), 1).unwrap(), None);
        let state = |cpu: &str| fs::read_to_string(dir.path().join(cpu).join("online")).unwrap();
        assert_eq!(state("cpu1"), "0\n", "one was wanted, and is there");
        assert_eq!(bring_online(dir.path(), 4).unwrap(), None);
        assert_eq!([state("cpu1"), state("cpu2"), state("cpu10")], ["1", "1", "1"]);
    }
}

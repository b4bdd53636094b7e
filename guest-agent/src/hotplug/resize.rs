//! CPUs and memory that are added while the VM runs.
//!
//! A CPU that is plugged in appears in sysfs and waits there for somebody to bring it online. Memory comes through
//! `virtio_mem`, which is loaded when the host first asks what there is, and is put to use as it comes.

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
/// Where new memory's use is decided (Linux, `Documentation/admin-guide/mm/memory-hotplug.rst`).
const MEMORY_POLICY: &str = "/sys/devices/system/memory/auto_online_blocks";
/// Pause between two looks. The kernel tells of CPUs, but not of the memory that it counts.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The longest that a call waits.
const MOST: Duration = Duration::from_secs(60);

/// Why nothing can be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowthError {
    #[error("have added memory put to use through {path}")]
    Policy { path: &'static str, source: io::Error },
    #[error("load the driver of added memory")]
    Driver(#[source] ModuleError),
    #[error(transparent)]
    ListCpus(#[from] ListCpus),
}

/// Waits until there is as much as is asked for, or the time is up, and says what there is.
pub(crate) async fn take(request: GrowRequest) -> Result<GrowResponse, GrowthError> {
    if request.cpus == 0 && request.memory_bytes == 0 {
        get_ready()?;
    }
    let deadline = Instant::now() + Duration::from_millis(request.wait_millis.into()).min(MOST);
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
            tracing::info!(cpus = has.cpus, memory_mib = has.memory_bytes >> 20, "what the guest has");
            return Ok(has);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn get_ready() -> Result<(), GrowthError> {
    let policy = fs::write(MEMORY_POLICY, "online");
    policy.map_err(|source| GrowthError::Policy { path: MEMORY_POLICY, source })?;
    drivers::load(Path::new(SYS), VIRTIO_MEMORY, &mut BTreeSet::new()).map_err(GrowthError::Driver)
}

/// Brings CPUs online that are not, until there are `wanted`; what the first said that refused.
fn bring_online(dir: &Path, wanted: u32) -> Result<Option<String>, GrowthError> {
    let mut refused = None;
    for cpu in cpus(dir)? {
        if online_cpus(dir)? >= wanted {
            break;
        }
        let switch = dir.join(&cpu).join("online");
        // The first CPU of a machine has none, and is always on.
        if fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0")
            && let Err(error) = fs::write(&switch, "1")
        {
            refused.get_or_insert_with(|| format!("{cpu}: {error}"));
        }
    }
    Ok(refused)
}

/// Names of the CPUs' directories, by number.
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

//! Processors and memory of a running VM: `device_add` of what QEMU left room for, and the size of its `virtio-mem`
//! device. Linux as the guest takes memory by itself; a processor it has to be told to use.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use qapi::qmp;
use tokio::time::Instant;

use super::args::GROWTH;
use super::error::QemuError;
use super::qmp::Session;
use crate::vm::{Size, Sizes, VmError};

/// How often the VMM is asked how far the guest is. QEMU would tell of memory, but at most once a second.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long a guest may make no progress before it counts as one that does not take or give what it was offered.
const STALLED: Duration = Duration::from_secs(15);
/// Where devices with an id are, in QEMU's tree of objects.
const PERIPHERAL: &str = "/machine/peripheral";
const MIB: u64 = 1 << 20;

/// What of a VM can change.
#[derive(Debug)]
struct Parts {
    processors: Vec<Processor>,
    /// That the VM began with, in bytes.
    base: u64,
    memory: Option<Memory>,
}

/// A place for a processor.
#[derive(Debug, Clone, PartialEq)]
struct Processor {
    /// Where it is: node, socket, die, core, thread, as QEMU wants it back.
    props: qapi::Dictionary,
    driver: String,
    plugged: Option<String>,
}

/// The device that memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    /// What the guest has taken of it, in bytes.
    taken: u64,
    /// What it could take, in bytes.
    most: u64,
}

/// One step towards another size.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Add { id: String, processor: Processor },
    Remove { id: String },
    Memory { bytes: u64 },
}

/// How large the VM is, and can become.
pub(super) async fn sizes(socket: &Path) -> Result<Sizes, VmError> {
    Parts::of(&mut Session::open(socket).await?).await?.sizes()
}

/// Makes the VM that large, or says how large it is instead. One thing after the other: a guest that gives back both at
/// once may get into its own way (tried: Linux 6.1 gave back neither in 1 of 3 trials).
pub(super) async fn resize(socket: &Path, to: Size) -> Result<Size, VmError> {
    let Sizes { now, limit } = sizes(socket).await?;
    if !limit.holds(to) {
        return Err(VmError::NoRoom { wanted: to, limit });
    }
    reach(socket, Size { memory_mib: now.memory_mib, ..to })
        .await
        .map_err(|error| error.on_the_way_to(to))?;
    reach(socket, to).await
}

async fn reach(socket: &Path, to: Size) -> Result<Size, VmError> {
    let mut session = Session::open(socket).await?;
    let parts = Parts::of(&mut session).await?;
    for step in parts.steps_to(to)? {
        step.take(&mut session).await?;
    }
    // Others may have a word with the VMM meanwhile.
    drop(session);
    let (mut has, mut since) = (parts.sizes()?.now, Instant::now());
    while has != to {
        tokio::time::sleep(ASK_EVERY).await;
        let now = sizes(socket).await?.now;
        if now != has {
            (has, since) = (now, Instant::now());
        } else if since.elapsed() > STALLED {
            return Err(VmError::NotResized { wanted: to, has });
        }
    }
    Ok(has)
}

impl Parts {
    async fn of(session: &mut Session) -> Result<Self, VmError> {
        let places = session.execute("query-hotpluggable-cpus", qmp::query_hotpluggable_cpus {}).await?;
        let mut processors: Vec<Processor> = places.into_iter().filter_map(Processor::read).collect();
        processors.sort_by_key(Processor::place);
        let memory = session.execute("query-memory-size-summary", qmp::query_memory_size_summary {}).await?;
        let devices = session.execute("query-memory-devices", qmp::query_memory_devices {}).await?;
        Ok(Self { processors, base: memory.base_memory, memory: devices.into_iter().find_map(growth) })
    }

    fn sizes(&self) -> Result<Sizes, VmError> {
        let plugged = self.processors.iter().filter(|place| place.plugged.is_some()).count();
        let (taken, most) = self.memory.map_or((0, 0), |memory| (memory.taken, memory.most));
        Ok(Sizes {
            now: size(plugged, self.base.saturating_add(taken))?,
            limit: size(self.processors.len(), self.base.saturating_add(most))?,
        })
    }

    /// Processors first: of these a guest gives back what it has, should it not get the memory.
    fn steps_to(&self, to: Size) -> Result<Vec<Step>, VmError> {
        let sizes = self.sizes()?;
        if !sizes.limit.holds(to) {
            return Err(VmError::NoRoom { wanted: to, limit: sizes.limit });
        }
        let wanted = usize::try_from(to.vcpus.get()).unwrap_or(usize::MAX);
        let mut steps = Vec::new();
        for (number, processor) in self.processors.iter().enumerate() {
            let id = format!("vcpu{number}");
            match &processor.plugged {
                None if number < wanted => steps.push(Step::Add { id, processor: processor.clone() }),
                Some(path) if number >= wanted && *path == format!("{PERIPHERAL}/{id}") => {
                    steps.push(Step::Remove { id });
                }
                Some(_) | None => {}
            }
        }
        let bytes = to.memory_bytes().saturating_sub(self.base);
        if self.memory.is_some_and(|memory| memory.taken != bytes) {
            steps.push(Step::Memory { bytes });
        }
        Ok(steps)
    }
}

impl Processor {
    fn read(place: qmp::HotpluggableCPU) -> Option<Self> {
        let serde_props = serde_json::to_value(&place.props).ok()?;
        let props = serde_props.as_object()?.clone();
        Some(Self { props, driver: place.type_, plugged: place.qom_path })
    }

    /// QEMU lists them from the last to the first.
    fn place(&self) -> [i64; 4] {
        ["socket-id", "die-id", "core-id", "thread-id"]
            .map(|part| self.props.get(part).and_then(qapi::Any::as_i64).unwrap_or(0))
    }
}

impl Step {
    async fn take(self, session: &mut Session) -> Result<(), VmError> {
        match self {
            Self::Add { id, processor: Processor { props, driver, .. } } => {
                let add = qmp::device_add { bus: None, id: Some(id), driver, arguments: props };
                session.execute("device_add", add).await?;
            }
            Self::Remove { id } => {
                session.execute("device_del", qmp::device_del { id }).await?;
            }
            Self::Memory { bytes } => {
                let path = format!("{PERIPHERAL}/{GROWTH}");
                let set = qmp::qom_set { path, property: "requested-size".to_owned(), value: bytes.into() };
                session.execute("qom-set", set).await?;
            }
        }
        Ok(())
    }
}

fn growth(device: qmp::MemoryDeviceInfo) -> Option<Memory> {
    match device {
        qmp::MemoryDeviceInfo::virtio_mem(device) => {
            Some(Memory { taken: device.data.size, most: device.data.max_size })
        }
        qmp::MemoryDeviceInfo::dimm(_)
        | qmp::MemoryDeviceInfo::hv_balloon(_)
        | qmp::MemoryDeviceInfo::nvdimm(_)
        | qmp::MemoryDeviceInfo::sgx_epc(_)
        | qmp::MemoryDeviceInfo::virtio_pmem(_) => None,
    }
}

fn size(vcpus: usize, bytes: u64) -> Result<Size, VmError> {
    let vcpus = u32::try_from(vcpus).ok().and_then(NonZeroU32::new);
    let memory_mib = u32::try_from(bytes / MIB).ok().and_then(NonZeroU32::new);
    let (Some(vcpus), Some(memory_mib)) = (vcpus, memory_mib) else {
        let reason = format!("a VM with {bytes} bytes and processors {vcpus:?}");
        return Err(QemuError::Api { command: "query-hotpluggable-cpus", reason }.into());
    };
    Ok(Size { vcpus, memory_mib })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(core: i64, plugged: Option<&str>) -> Processor {
        let value = serde_json::json!({ "core-id": core, "socket-id": 0, "thread-id": 0, "die-id": 0 });
        let props = value.as_object().unwrap().clone();
        Processor { props, driver: "max-x86_64-cpu".into(), plugged: plugged.map(Into::into) }
    }

    fn parts(memory: Option<Memory>) -> Parts {
        let own = format!("{PERIPHERAL}/vcpu1");
        let processors =
            vec![place(0, Some("/machine/unattached/device[0]")), place(1, Some(&own)), place(2, None)];
        Parts { processors, base: 256 * MIB, memory }
    }

    fn to(vcpus: u32, memory_mib: u32) -> Size {
        Size { vcpus: vcpus.try_into().unwrap(), memory_mib: memory_mib.try_into().unwrap() }
    }

    #[test]
    fn a_vm_grows_and_shrinks_by_what_was_added() {
        let memory = Memory { taken: 64 * MIB, most: 1024 * MIB };
        let parts = parts(Some(memory));
        assert_eq!(parts.sizes().unwrap(), Sizes { now: to(2, 320), limit: to(3, 1280) });
        let grown = parts.steps_to(to(3, 512)).unwrap();
        let add = Step::Add { id: "vcpu2".into(), processor: place(2, None) };
        assert_eq!(grown, [add, Step::Memory { bytes: 256 * MIB }]);
        let shrunk = parts.steps_to(to(1, 256)).unwrap();
        assert_eq!(shrunk, [Step::Remove { id: "vcpu1".into() }, Step::Memory { bytes: 0 }]);
        assert_eq!(parts.steps_to(to(2, 320)).unwrap(), []);
    }

    #[test]
    fn what_there_is_no_room_for_is_said_before_anything_is_done() {
        let refused = parts(None).steps_to(to(4, 300)).unwrap_err();
        assert!(matches!(refused, VmError::NoRoom { limit, .. } if limit == to(3, 256)), "{refused}");
    }
}

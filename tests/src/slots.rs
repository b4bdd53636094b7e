//! VMs are expensive where there is no KVM: no more tests with VMs at once than there are cores, because an emulated
//! VM takes one for as long as it boots.

use std::sync::OnceLock;

use tokio::sync::{Semaphore, SemaphorePermit};

static SLOTS: OnceLock<Semaphore> = OnceLock::new();

/// How many tests may have VMs at a time: as many as there are cores. `BULKHEAD_VM_SLOTS` overrides it.
#[must_use]
pub fn count() -> usize {
    if let Some(wanted) = std::env::var("BULKHEAD_VM_SLOTS").ok().and_then(|text| text.parse().ok()) {
        return wanted;
    }
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn slots() -> &'static Semaphore {
    SLOTS.get_or_init(|| Semaphore::new(count()))
}

/// Waits until no other test has VMs: for one that needs the whole machine.
pub async fn take_all() -> SemaphorePermit<'static> {
    let all = u32::try_from(count()).expect("not so many slots");
    slots().acquire_many(all).await.expect("the semaphore is never closed")
}

/// Waits for its turn; the slot is free again when the permit is dropped.
pub async fn take() -> SemaphorePermit<'static> {
    slots().acquire().await.expect("the semaphore is never closed")
}

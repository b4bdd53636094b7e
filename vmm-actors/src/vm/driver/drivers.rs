//! Which driver a VM has: the one place that lists them.

use std::sync::Arc;

use bulkhead_config::{Hypervisor, Settings};

use super::api::Driver;
use super::qemu::QemuDriver;
use crate::vm::record::VmRecord;

/// One driver for each VMM that Bulkhead knows.
#[derive(Debug, Clone)]
pub struct Drivers {
    qemu: Arc<dyn Driver>,
}

impl Drivers {
    /// The drivers with these settings. Nothing is started before a driver is asked.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { qemu: Arc::new(QemuDriver::new(settings)) }
    }

    /// This driver for every VM, whatever its record says: for tests.
    #[must_use]
    pub fn only(driver: &Arc<dyn Driver>) -> Self {
        Self { qemu: Arc::clone(driver) }
    }

    /// The driver of this VMM.
    #[must_use]
    pub fn get(&self, hypervisor: Hypervisor) -> Arc<dyn Driver> {
        Arc::clone(match hypervisor {
            Hypervisor::Qemu => &self.qemu,
        })
    }

    /// The driver that launched this VM.
    #[must_use]
    pub fn of(&self, vm: &VmRecord) -> Arc<dyn Driver> {
        self.get(vm.hypervisor)
    }
}

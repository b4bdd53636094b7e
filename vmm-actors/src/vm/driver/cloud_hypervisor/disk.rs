//! Disks that come and go while the VM runs: virtio-blk devices on PCI, plugged and ejected by ACPI.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::api::Api;
use super::body;
use super::error::CloudHypervisorError;
use super::info::Info;
use crate::vm::Disk;

/// How long a guest may take to eject a device. Only then the VMM closes what is behind it.
const EJECTED_WITHIN: Duration = Duration::from_secs(10);
/// How often the VMM is asked whether it has.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Plugs a disk in, or finds it plugged in.
pub(super) async fn add(api: &Api, disk: &Disk) -> Result<(), CloudHypervisorError> {
    if Info::of(api).await?.has_device(&disk.id) {
        return Ok(());
    }
    match api.put("vm.add-disk", Some(&body::add_disk(disk))).await {
        // Somebody else was faster.
        Err(error) if error.is(StatusCode::CONFLICT) && Info::of(api).await?.has_device(&disk.id) => Ok(()),
        added => added,
    }
}

/// Unplugs a disk and waits until the guest has ejected it. A no-op if no device has this id.
pub(super) async fn remove(api: &Api, id: &str) -> Result<(), CloudHypervisorError> {
    if !Info::of(api).await?.has_device(id) {
        return Ok(());
    }
    match api.put("vm.remove-device", Some(&json!({ "id": id }))).await {
        Err(error) if error.is(StatusCode::NOT_FOUND) => return Ok(()),
        removed => removed?,
    }
    let since = Instant::now();
    while Info::of(api).await?.has_device(id) {
        if since.elapsed() > EJECTED_WITHIN {
            return Err(CloudHypervisorError::KeptByGuest { id: id.to_owned(), within: EJECTED_WITHIN });
        }
        sleep(ASK_EVERY).await;
    }
    Ok(())
}

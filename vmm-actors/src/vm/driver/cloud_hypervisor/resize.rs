//! Processors and memory of a running VM. The VMM offers them at once; the guest takes memory by itself, and gives
//! processors back by ejecting them.

use std::num::NonZeroU32;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::Api;
use super::error::CloudHypervisorError;
use super::info::Info;
use crate::vm::{Size, Sizes, VmError};

/// How often the VMM is asked how far the guest is.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long a guest may make no progress before it counts as one that does not take or give what it was offered.
const STALLED: Duration = Duration::from_secs(15);
const RESIZE: &str = "vm.resize";

/// How large the VM is, and can become.
pub(super) async fn sizes(api: &Api) -> Result<Sizes, VmError> {
    Ok(Info::of(api).await?.sizes())
}

/// Makes the VM that large, or says how large it is instead. Processors first: of these a guest gives back what it has,
/// should it not get the memory.
pub(super) async fn resize(api: &Api, to: Size) -> Result<Size, VmError> {
    let info = Info::of(api).await?;
    let Sizes { now, limit } = info.sizes();
    if !limit.holds(to) {
        return Err(VmError::NoRoom { wanted: to, limit });
    }
    if to.memory_mib < info.first_memory_mib() {
        return Err(VmError::NotResized { wanted: to, has: now });
    }
    if to.vcpus != now.vcpus && !reach_processors(api, now.vcpus, to.vcpus).await? {
        return Err(VmError::NotResized { wanted: to, has: now });
    }
    if to.memory_mib != now.memory_mib {
        reach_memory(api, to).await?;
    }
    Ok(to)
}

/// Whether the guest has as many now. While it has not ejected what it was told to, the VMM answers every other number, and
/// the same one again, that there are too many requests; so a repeat that is taken says that it has.
async fn reach_processors(api: &Api, from: NonZeroU32, to: NonZeroU32) -> Result<bool, VmError> {
    let ask = json!({ "desired_vcpus": to });
    if !taken_in_time(api, &ask).await? {
        return Ok(false);
    }
    Ok(to > from || taken_in_time(api, &ask).await?)
}

/// Repeats a request for as long as processors are on their way out.
async fn taken_in_time(api: &Api, ask: &Value) -> Result<bool, CloudHypervisorError> {
    let since = Instant::now();
    loop {
        match api.put(RESIZE, Some(ask)).await {
            Err(error) if error.is(StatusCode::TOO_MANY_REQUESTS) => {}
            taken => return taken.map(|()| true),
        }
        if since.elapsed() > STALLED {
            return Ok(false);
        }
        sleep(ASK_EVERY).await;
    }
}

async fn reach_memory(api: &Api, to: Size) -> Result<(), VmError> {
    api.put(RESIZE, Some(&json!({ "desired_ram": to.memory_bytes() }))).await?;
    let (mut has, mut since) = (sizes(api).await?.now, Instant::now());
    while has.memory_mib != to.memory_mib {
        sleep(ASK_EVERY).await;
        let now = sizes(api).await?.now;
        if now != has {
            (has, since) = (now, Instant::now());
        } else if since.elapsed() > STALLED {
            return Err(VmError::NotResized { wanted: to, has });
        }
    }
    Ok(())
}

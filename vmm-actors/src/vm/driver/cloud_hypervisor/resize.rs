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
    match reach_processors(api, now.vcpus, to.vcpus).await {
        Err(error) if error.is(StatusCode::TOO_MANY_REQUESTS) && to.vcpus < now.vcpus => {
            return Err(VmError::NotResized { wanted: to, has: now });
        }
        reached => reached?,
    }
    if to.memory_mib != now.memory_mib {
        reach_memory(api, to).await?;
    }
    Ok(to)
}

/// Answers when the guest has as many. While it has not ejected what it was told to, the VMM answers every other number, and
/// the same one again, that there are too many requests; so a repeat that is taken says that it has. Asked even for as many
/// as it has by the VMM's account, which counts one as gone that is on its way out.
async fn reach_processors(api: &Api, from: NonZeroU32, to: NonZeroU32) -> Result<(), CloudHypervisorError> {
    let ask = json!({ "desired_vcpus": to });
    taken_in_time(api, &ask).await?;
    if to < from { taken_in_time(api, &ask).await } else { Ok(()) }
}

/// Repeats a request for as long as processors are on their way out.
async fn taken_in_time(api: &Api, ask: &Value) -> Result<(), CloudHypervisorError> {
    let since = Instant::now();
    loop {
        match api.put(RESIZE, Some(ask)).await {
            Err(error) if error.is(StatusCode::TOO_MANY_REQUESTS) && since.elapsed() < STALLED => {}
            taken => return taken,
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

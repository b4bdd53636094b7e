//! The peers on this host that the proxy calls: the sandboxer, and containerd's event service.

pub(crate) mod events;
pub(crate) mod sandboxer;

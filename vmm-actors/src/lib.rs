//! The actors that own virtual machines and what belongs to them.

mod pod_spec;

pub use pod_spec::{PodSpec, PortMapping, Resources};

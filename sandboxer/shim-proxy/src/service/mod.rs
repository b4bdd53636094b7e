//! The services that the proxy offers: Task API and stdio streams for containerd, control for the sandboxer. Each
//! translates a request, asks the pod, and translates the answer.

pub(crate) mod connections;
mod lifetime;
pub(crate) mod shim;
mod streaming;
mod task;

#[cfg(test)]
mod streaming_tests;

//! The services that the proxy offers: Task API and stdio streams for containerd, control for the sandboxer. Each
//! translates a request, asks the pod, and translates the answer.

pub(crate) mod connections;
pub(crate) mod shim;
pub(crate) mod streaming;
pub(crate) mod task;

#[cfg(test)]
mod streaming_tests;

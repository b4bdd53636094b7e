//! Fakes for fast tests: a driver whose VMs are idle processes, a guest that lives in the test, and stand-ins for the
//! helper programs. The processes are real, so that their deaths are.

mod driver;
mod fault;
mod guest;
mod hung;
mod programs;
mod shim;

pub use driver::FakeDriver;
pub use fault::{EAT, Fault};
pub use guest::FakeGuest;
pub use hung::{Frozen, HungFilesystem};
pub use programs::{fake_virtiofsd, write_program};
pub use shim::{fake_shim, serve_as_shim_when_told_to};
